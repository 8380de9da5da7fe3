"""MindCV's checkpoints, in MindSpore's vocabulary (gamma, beta, moving_mean, moving_variance).

Some of its networks are not those of the same name elsewhere; their files are refused, because no
renaming makes them give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ..errors import CheckpointError
from . import torchvision
from .draft import Draft, Layout
from .originals import convnext_block

LEAVES = {
    "gamma": "weight", "beta": "bias", "moving_mean": "running_mean",
    "moving_variance": "running_var",
}  # fmt: skip


def _leaf(key: str) -> str:
    module, dot, leaf = key.rpartition(".")
    return f"{module}{dot}{LEAVES.get(leaf, leaf)}"


def leaves(draft: Draft) -> None:
    """The names inside norms."""
    draft.rename(_leaf)


def densenet(draft: Draft, model: nn.Module) -> None:
    """DenseNet, whose layers stand in lists and whose features are in features."""
    del model
    leaves(draft)

    def new_name(key: str) -> str:
        parts = key.split(".")
        if "cell_list" in parts:
            at = parts.index("cell_list")
            parts[at : at + 2] = [f"denselayer{int(parts[at + 1]) + 1}"]
        return ".".join(p for i, p in enumerate(parts) if i == 0 or p != "features")

    draft.rename(new_name)


def mobilenetv2(draft: Draft, model: nn.Module) -> None:
    """MobileNetV2, counted through in one sequence of modules."""
    leaves(draft)
    torchvision.in_order(draft, model)


def convnext(draft: Draft, model: nn.Module) -> None:
    """ConvNeXt and V2; MindSpore's GELU is the tanh approximation, which no file says."""
    acts = [m.approximate for m in model.modules() if isinstance(m, nn.GELU)]
    if "tanh" not in acts:
        raise CheckpointError(
            "MindCV's ConvNeXt was trained with the tanh approximation of GELU: build the network "
            'with act_layer="gelu_tanh", or its outputs are others.'
        )
    draft.substitute([(r"(.*)\.gamma_", r"\1.layer_scale_parameter")])
    draft.rename(lambda key: key if ".grn." in key else _leaf(key))

    def counted(key: str) -> str:
        root, dot, rest = key.partition(".")
        if root != "feature":
            return key
        index, _, rest = rest.partition(".")
        if index == "0":
            return f"stem.{rest}"
        stage = (int(index) - 1) // 2
        return f"stages.{stage}.{rest}" if int(index) % 2 else f"stages.{stage + 1}.downsample.{rest}"

    draft.rename(counted)
    draft.substitute([
        *convnext_block(r"stages\.(\d+)\.(\d+)", r"stages.\1.blocks.\2"),
        (r"norm\.(.*)", r"head.norm.\1"),
        (r"classifier\.(weight|bias)", r"head.fc.\1"),
    ])  # fmt: skip


def refuse(why: str) -> Callable[[Draft, nn.Module], None]:
    """A layout that is recognised so that it can be refused."""

    def convert(draft: Draft, model: nn.Module) -> None:
        raise CheckpointError(
            f"A checkpoint of MindCV's {type(model).__name__} is not loaded: {why}, so that it would "
            "give other numbers than it was trained for."
        )

    return convert


LAYOUTS = (
    Layout(
        "MindCV's DenseNet", "DenseNet",
        ("features.denseblock1.cell_list.0.norm1.gamma", "features.conv0.weight"), densenet,
        eps=lambda draft: 1e-5,
    ),
    Layout(
        "MindCV's MobileNetV2", "EfficientNet",
        ("features.3.layers.0.weight", "features.1.gamma", "features.0.weight"), mobilenetv2,
        eps=lambda draft: 1e-5,
    ),
    Layout("MindCV's ConvNeXt", "ConvNeXt", ("feature.0.0.weight", "feature.1.0.norm.gamma"), convnext),
    Layout(
        "MindCV's ResNet", "ResNet", ("bn1.gamma", "layer1.0.conv1.weight"),
        refuse("its pooling after the stem pads at one side only"),
    ),
    Layout(
        "MindCV's MobileNetV3", "MobileNetV3", ("features.1.gamma", "features.3.layers.0.weight"),
        refuse("its depthwise convolutions of stride 2 pad at one side only"),
    ),
)  # fmt: skip
