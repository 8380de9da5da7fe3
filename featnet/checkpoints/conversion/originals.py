"""The checkpoints of the papers' authors."""

from __future__ import annotations

import re

from torch import nn

from .draft import Draft, Layout

# Inside a block of the ConvNeXts, in the authors' words and in ours
CONVNEXT_BLOCK = {
    "dwconv": "conv_dw",
    "norm": "norm",
    "layernorm": "norm",
    "pwconv1": "mlp.fc1",
    "pwconv2": "mlp.fc2",
}

# Inside a block of VISSL's RegNets
REGNET_BLOCK = {
    "proj": "downsample.conv",
    "bn": "downsample.bn",
    r"f\.a\.0": "conv1.conv",
    r"f\.a\.1": "conv1.bn",
    r"f\.b\.0": "conv2.conv",
    r"f\.b\.1": "conv2.bn",
    r"f\.c": "conv3.conv",
    r"f\.final_bn": "conv3.bn",
    r"f\.se\.excitation\.0": "se.fc1",
    r"f\.se\.excitation\.2": "se.fc2",
}


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
    draft.substitute(
        [
            (r"downsample_layers\.0\.(.*)", r"stem.\1"),
            (r"downsample_layers\.(\d+)\.(.*)", r"stages.\1.downsample.\2"),
            *convnext_block(r"stages\.(\d+)\.(\d+)", r"stages.\1.blocks.\2"),
            (r"norm\.(.*)", r"head.norm.\1"),
            (r"head\.(weight|bias)", r"head.fc.\1"),
            (r"(?:projectors|norms)\..*", ""),  # what students are compared with their teachers by
        ],
        why="is for training",
    )


def convnext_clip(draft: Draft, model: nn.Module) -> None:
    """The image tower of open_clip's ConvNeXt: its projection is the classifier."""
    del model
    draft.strip("visual.")
    draft.substitute(
        [
            (r"trunk\.(.*)", r"\1"),
            (r"head\.proj\.(.*)", r"head.fc.\1"),
            (r"head\.mlp\.fc1\.(.*)", r"head.pre_logits.fc.\1"),
            (r"head\.mlp\.fc2\.(.*)", r"head.fc.\1"),
        ]
    )
    weight = draft.tensors.get("head.fc.weight")
    if weight is not None and "head.fc.bias" not in draft.tensors:
        draft.put("head.fc.bias", weight.new_zeros(weight.shape[0]), "zero: a projection has none")


def resnet_clip(draft: Draft, model: nn.Module) -> None:
    """The image tower of OpenAI's CLIP ResNets."""
    draft.strip("visual.")
    block, names = r"layer(\d)\.(\d+)", {"1": "1_1x1", "2": "2_kxk", "3": "3_1x1"}
    pool = {"positional_embedding": "pos_embed", "c_proj": "proj"} | {f"{x}_proj": x for x in "qkv"}
    tail = [
        (
            rf"attnpool\.{old}(\..*)?",
            rf"head.{new}\1" if "head.q.weight" in model.state_dict() else "",
        )
        for old, new in pool.items()
    ]
    draft.substitute(
        [
            (r"(conv|bn)([123])\.(.*)", r"stem.conv\2.\1.\3"),
            *(
                (rf"{block}\.(conv|bn){old}\.(.*)", rf"stages.#\1.\2.conv{new}.\3.\4")
                for old, new in names.items()
            ),
            (rf"{block}\.downsample\.0\.(.*)", r"stages.#\1.\2.shortcut.conv.conv.\3"),
            (rf"{block}\.downsample\.1\.(.*)", r"stages.#\1.\2.shortcut.conv.bn.\3"),
            *tail,
        ],
        why="the model pools without attention",
    )
    draft.substitute([(rf"stages\.#{n + 1}\.(.*)", rf"stages.{n}.\1") for n in range(4)])


def regnet_vissl(draft: Draft, model: nn.Module) -> None:
    """VISSL's RegNetY (SEER): a trunk, and heads of which one may be a classifier."""
    del model
    block, new = r"trunk\._feature_blocks\.res\d+\.block(\d+)-(\d+)", r"s\1.b#\2"
    draft.substitute(
        [
            (r"trunk\._feature_blocks\.conv1\.stem\.0\.(.*)", r"stem.conv.\1"),
            (r"trunk\._feature_blocks\.conv1\.stem\.1\.(.*)", r"stem.bn.\1"),
            *(
                (rf"{block}\.{old}\.([^.]+)", rf"{new}.{name}.\3")
                for old, name in REGNET_BLOCK.items()
            ),
            (r"heads\.0\.clf\.0\.(.*)", r"head.fc.\1"),
            (r"heads\..*(?:projection_head|prototypes).*", ""),
        ],
        why="is for training",
    )
    draft.rename(lambda key: re.sub(r"#(\d+)", lambda match: str(int(match[1]) + 1), key))


LAYOUTS = (
    Layout(
        "VISSL's RegNet",
        "RegNet",
        ("trunk._feature_blocks.conv1.stem.0.weight", "trunk._feature_blocks.conv1.stem.1.weight"),
        regnet_vissl,
        root="trunk.",
    ),
    Layout(
        "the original ConvNeXt",
        "ConvNeXt",
        ("downsample_layers.0.0.weight", "stages.0.0.dwconv.weight"),
        convnext,
    ),
    Layout("open_clip's ConvNeXt", "ConvNeXt", ("visual.trunk.stem.0.weight",), convnext_clip),
    Layout(
        "CLIP's ResNet",
        "ByobNet",
        ("visual.conv1.weight", "visual.layer1.0.conv1.weight"),
        resnet_clip,
    ),
)
