"""The checkpoints of the papers' authors."""

from __future__ import annotations

from torch import nn

from .draft import Draft, Layout

# Inside a block of the ConvNeXts, in the authors' words and in ours
CONVNEXT_BLOCK = {
    "dwconv": "conv_dw", "norm": "norm", "layernorm": "norm", "pwconv1": "mlp.fc1",
    "pwconv2": "mlp.fc2",
}  # fmt: skip


def convnext_block(old: str, new: str) -> list[tuple[str, str]]:
    """Rules for a block: ``old`` is a pattern with two groups, ``new`` what they stand in."""
    rules = [(rf"{old}\.{a}\.(.*)", rf"{new}.{b}.\3") for a, b in CONVNEXT_BLOCK.items()]
    return [
        *rules,
        (rf"{old}\.(?:gamma|layer_scale_parameter)", rf"{new}.gamma"),
        (rf"{old}\.grn\.(?:gamma|weight)", rf"{new}.mlp.grn.weight"),
        (rf"{old}\.grn\.(?:beta|bias)", rf"{new}.mlp.grn.bias"),
    ]


def convnext(draft: Draft, model: nn.Module) -> None:
    """facebookresearch's ConvNeXt and ConvNeXt V2."""
    del model
    draft.substitute([
        (r"downsample_layers\.0\.(.*)", r"stem.\1"),
        (r"downsample_layers\.(\d+)\.(.*)", r"stages.\1.downsample.\2"),
        *convnext_block(r"stages\.(\d+)\.(\d+)", r"stages.\1.blocks.\2"),
        (r"norm\.(.*)", r"head.norm.\1"),
        (r"head\.(weight|bias)", r"head.fc.\1"),
    ])  # fmt: skip


LAYOUTS = (
    Layout(
        "the original ConvNeXt", "ConvNeXt",
        ("downsample_layers.0.0.weight", "stages.0.0.dwconv.weight"), convnext,
    ),
)  # fmt: skip
