"""MindCV's networks, in MindSpore's vocabulary (gamma, beta, moving_mean, moving_variance).

The table at the end says of each how its names become ours, what a network must be built with to
compute the same, and why its files are refused where nothing makes them give the same numbers.
What is not in the table is not loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from ...errors import CheckpointError
from ...layers.mobile_conv import SamePadding
from . import torchvision
from .draft import Draft, Layout, Rule
from .originals import convnext_block

Step = Callable[[Draft, nn.Module], None]

LEAVES = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


class Need(NamedTuple):
    """A requirement on some module of a network, which MindCV has everywhere.

    Attributes:
        holds: whether a module is so.
        what: MindCV's peculiarity, after the network's name.
        option: how a network is built with it.
    """

    holds: Callable[[nn.Module], bool]
    what: str
    option: str


GELU = Need(
    lambda m: isinstance(m, nn.GELU) and m.approximate == "tanh",
    "was trained with the tanh approximation of GELU",
    'act_layer="gelu_tanh"',
)
RELU = Need(lambda m: isinstance(m, nn.ReLU), "was trained with ReLU", 'act_layer="relu"')
SAME = Need(
    lambda m: isinstance(m, SamePadding),
    "was trained with TensorFlow's padding",
    'pad_type="same" (the names that start with tf_)',
)


# Names --------------------------------------------------------------------------------------------


def _leaf(key: str) -> str:
    module, dot, leaf = key.rpartition(".")
    if module.endswith((".grn", ".ls1", ".ls2")):  # a parameter, not a norm's
        return key
    return f"{module}{dot}{LEAVES.get(leaf, leaf)}"


def _rules(*rules: Rule, why: str = "") -> Step:
    return lambda draft, model: draft.substitute(rules, why=why)


def _zero_biases(draft: Draft, model: nn.Module) -> None:
    """Its convolutions have no biases where others' have."""
    for key, value in model.state_dict().items():
        weight = draft.tensors.get(key.removesuffix("bias") + "weight")
        missing = key.endswith(".bias") and key not in draft.tensors
        if missing and weight is not None and weight.ndim == 4:
            draft.put(key, torch.zeros(value.shape, dtype=weight.dtype), "zero: MindCV has none")


def _densenet(draft: Draft, model: nn.Module) -> None:
    """Layers stand in lists, and the features in features."""
    del model

    def new_name(key: str) -> str:
        parts = key.split(".")
        if "cell_list" in parts:
            at = parts.index("cell_list")
            parts[at : at + 2] = [f"denselayer{int(parts[at + 1]) + 1}"]
        return ".".join(p for i, p in enumerate(parts) if i == 0 or p != "features")

    draft.rename(new_name)


def _counted(draft: Draft, model: nn.Module) -> None:
    """Networks of the mobile kind, counted through in one sequence of modules."""
    draft.substitute(
        [(r"(.*)\.conv_reduce\.(.*)", r"\1.0.\2"), (r"(.*)\.conv_expand\.(.*)", r"\1.1.\2")]
    )
    torchvision.in_order(draft, model)


def _convnext(draft: Draft, model: nn.Module) -> None:
    """Stages and what is between them are counted through."""
    del model

    def counted(key: str) -> str:
        root, _, rest = key.partition(".")
        if root != "feature":
            return key
        index, _, rest = rest.partition(".")
        if index == "0":
            return f"stem.{rest}"
        stage = (int(index) - 1) // 2
        return (
            f"stages.{stage}.{rest}" if int(index) % 2 else f"stages.{stage + 1}.downsample.{rest}"
        )

    draft.rename(counted)
    draft.substitute([(r"(.*)\.gamma_", r"\1.gamma")])
    draft.substitute(
        [
            *convnext_block(r"stages\.(\d+)\.(\d+)", r"stages.\1.blocks.\2"),
            (r"norm\.(.*)", r"head.norm.\1"),
            (r"classifier\.(weight|bias)", r"head.fc.\1"),
        ]
    )


# MindSpore names a list in a list after its first parameter: 0.blocks.2.blocks.1 is block 1 of
# stage 2
STAGED = re.compile(r"(?:0\.blocks\.)?(\d+)\.(blocks\.(\d+)|downsample)\.(.*)")
REGNET = {
    "proj": "downsample.conv",
    "bn": "downsample.bn",
    "f.se.conv_reduce": "se.fc1",
    "f.se.conv_expand": "se.fc2",
    **{f"f.{x}": f"conv{i}.conv" for i, x in enumerate("abc", 1)},
    **{f"f.{x}_bn": f"conv{i}.bn" for i, x in enumerate("abc", 1)},
}


def _regnet(draft: Draft, model: nn.Module) -> None:
    """Stages and blocks are counted from one here."""
    del model

    def new_name(key: str) -> str:
        match = STAGED.fullmatch(key)
        if match is None or match[3] is None:
            return key
        module, dot, leaf = match[4].rpartition(".")
        return f"s{int(match[1]) + 1}.b{int(match[3]) + 1}.{REGNET.get(module, module)}{dot}{leaf}"

    draft.rename(new_name)


def _swin(draft: Draft, model: nn.Module) -> None:
    """A stage begins with what halves the size here, where MindCV ends one; queries, keys and
    values are one."""
    del model

    def new_name(key: str) -> str:
        match = STAGED.fullmatch(key)
        if match is None:
            return key
        last = match[2] == "downsample"
        return f"layers.{int(match[1]) + last}.{match[2]}.{match[4]}"

    draft.rename(new_name)
    draft.substitute(
        [
            (
                r".*(?:attn_mask|relative_bias\.index|relative_coords_table|relative_position_index)",
                "",
            ),
            (r"(.*\.attn)\.relative_bias\.(.*)", r"\1.\2"),
            (r"(.*\.attn)\.relative_position_bias\.cpb_mlp(\d)\.(.*)", r"\1.cpb_mlp.\2.\3"),
            (r"(?:head|classifier)\.(.*)", r"head.fc.\1"),
        ],
        why="is counted from the size of the image",
    )
    for key in [key for key in draft.tensors if ".attn.q." in key]:
        root, leaf = key.split(".q.")
        draft.concatenate(f"{root}.qkv.{leaf}", [f"{root}.{x}.{leaf}" for x in "qkv"])
    draft.substitute([(r"(.*\.attn)\.([qv])\.bias", r"\1.\2_bias")])  # V2's keys have none


def _epsilon(there: float) -> Step:
    """Says that norms have another epsilon, which no tensor can take up."""

    def convert(draft: Draft, model: nn.Module) -> None:
        here = {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} - {there}
        if here:
            draft.steps.append(f"epsilon of the norms: {max(here):g}, {there:g} there")

    return convert


def _down(draft: Draft, model: nn.Module) -> None:
    """Insert names: where ours pools before a shortcut's convolution, one that keeps the size has
    one that does nothing."""
    if "layer1.0.downsample.2.weight" in model.state_dict():
        shifted = {f"layer1.0.downsample.{i}.": f"layer1.0.downsample.{i + 1}." for i in (0, 1)}
        draft.rename(
            lambda key: next(
                (
                    new + key.removeprefix(old)
                    for old, new in shifted.items()
                    if key.startswith(old)
                ),
                key,
            )
        )


def _half(draft: Draft, model: nn.Module) -> None:
    del model
    draft.steps.append(
        "MindCV rounds the branches that it enlarges to float16, which is not done here"
    )


# Networks -----------------------------------------------------------------------------------------


def _efficientnet_eps(draft: Draft) -> float:
    """1e-3 from B5 on."""
    weight = draft.tensors.get("conv_head.weight")
    return 1e-3 if weight is not None and weight.shape[0] >= 2048 else 1e-5


def network(
    name: str,
    family: str,
    marks: tuple[str, ...],
    *steps: Step,
    need: Need | None = None,
    eps: float | Callable[[Draft], float] = 1e-5,
) -> Layout:
    """MindCV's layout of a network that computes the same as ours."""

    def convert(draft: Draft, model: nn.Module) -> None:
        if need is not None and not any(map(need.holds, model.modules())):
            raise CheckpointError(
                f"MindCV's {name} {need.what}: build the network with {need.option}, or its "
                "outputs are others."
            )
        draft.rename(_leaf)
        for step in steps:
            step(draft, model)

    constant: Any = eps
    return Layout(
        f"MindCV's {name}",
        family,
        marks,
        convert,
        format="MindSpore",
        eps=eps if callable(eps) else lambda draft: constant,
    )


def other(name: str, family: str, marks: tuple[str, ...], why: str) -> Layout:
    """A network of MindCV's that is not the one of the same name here."""
    return Layout(
        f"MindCV's {name}",
        family,
        marks,
        lambda draft, model: None,
        format="MindSpore",
        refused=why,
    )


POOLING = "its pooling after the stem pads at one side only"
RES_NET = (r"(.*)\.down_sample\.(.*)", r"\1.downsample.\2")
SE = ((r"(.*)\.conv_reduce\.(.*)", r"\1.fc1.\2"), (r"(.*)\.conv_expand\.(.*)", r"\1.fc2.\2"))

LAYOUTS = (
    network(
        "DenseNet",
        "DenseNet",
        ("features.denseblock1.cell_list.0.norm1.gamma", "features.conv0.weight"),
        _densenet,
    ),
    network(
        "VGG",
        "VGG",
        ("features.0.weight", "classifier.3.weight", "classifier.6.weight"),
        torchvision.vgg,
        _zero_biases,
    ),
    network(
        "RepVGG",
        "ByobNet",
        ("stage0.rbr_dense.0.weight",),
        _rules(
            *(
                (rf"(.*)\.rbr_{old}\.{i}\.(.*)", rf"\1.{new}.{part}.\2")
                for old, new in (("dense", "conv_kxk"), ("1x1", "conv_1x1"))
                for i, part in enumerate(("conv", "bn"))
            ),
            (r"(.*)\.rbr_identity\.(.*)", r"\1.identity.\2"),
            (r"linear\.(.*)", r"head.fc.\1"),
        ),
        _rules(
            (r"stage0\.(.*)", r"stem.\1"),
            *((rf"stage{i + 1}\.(.*)", rf"stages.{i}.\1") for i in range(4)),
        ),
    ),
    network(
        "RegNet", "RegNet", ("stem.bn.gamma", "head.fc.weight", "0.blocks.0.f.a.weight"), _regnet
    ),
    network(
        "ReXNet",
        "RexNet",
        ("stem.features.1.gamma", "features.0.conv_dw.features.0.weight"),
        _rules(
            (r"(.*)\.features\.0\.(.*)", r"\1.conv.\2"),
            (r"(.*)\.features\.1\.(.*)", r"\1.bn.\2"),
            *SE,
            (r"cls\.1\.(.*)", r"head.fc.\1"),
        ),
    ),
    network(
        "HRNet",
        "HRNet",
        ("stage2.0.branches.0.0.conv1.weight", "bn1.gamma"),
        _rules(RES_NET, (r"downsample_modules\.(.*)", r"downsamp_modules.\1")),
        _zero_biases,
        _half,
    ),
    network(
        "Res2Net",
        "ResNet",
        ("bn1.gamma", "layer1.0.convs.0.weight"),
        _rules(RES_NET, (r"classifier\.(.*)", r"fc.\1")),
        _down,
    ),
    other(
        "MobileNetV3",
        "MobileNetV3",
        ("features.1.gamma", "features.3.layers.0.weight", "classifier.0.weight"),
        "its depthwise convolutions of stride 2 pad at one side only",
    ),
    network(
        "MobileNetV2",
        "EfficientNet",
        ("features.3.layers.0.weight", "features.1.gamma", "features.0.weight"),
        _counted,
    ),
    network(
        "MNASNet",
        "EfficientNet",
        ("features.8.layers.0.weight", "features.7.gamma", "features.6.weight"),
        _counted,
        eps=1e-3,
    ),
    network(
        "MobileNetV1",
        "EfficientNet",
        ("features.3.0.weight", "features.3.1.gamma"),
        _counted,
        need=RELU,
    ),
    network(
        "EfficientNet",
        "EfficientNet",
        ("features.3.0.block.0.weight", "features.1.gamma"),
        _counted,
        need=SAME,
        eps=_efficientnet_eps,
    ),
    network(
        "ConvNeXt",
        "ConvNeXt",
        ("feature.0.0.weight", "feature.1.0.norm.gamma"),
        _convnext,
        need=GELU,
    ),
    network(
        "ViT",
        "VisionTransformer",
        ("cls_token", "pos_embed", "blocks.0.attn.qkv.weight"),
        _epsilon(1e-7),
        need=GELU,
    ),
    network(
        "Swin",
        "SwinTransformer",
        ("patch_embed.norm.gamma", "0.blocks.0.attn.relative_bias.relative_position_bias_table"),
        _swin,
        need=GELU,
    ),
    network(
        "Swin V2",
        "SwinTransformerV2",
        ("patch_embed.norm.gamma", "0.blocks.0.attn.logit_scale"),
        _swin,
        _epsilon(1e-6),
        need=GELU,
    ),
    other("ResNeSt", "ResNet", ("bn1.gamma", "layer1.0.conv2.fc1.weight"), POOLING),
    other("SKNet", "ResNet", ("bn1.gamma", "layer1.0.conv1.paths.0.features.0.weight"), POOLING),
    other("SKNet", "ResNet", ("bn1.gamma", "layer1.0.conv2.paths.0.features.0.weight"), POOLING),
    other(
        "SENet",
        "SENet",
        ("layer0.1.gamma", "layer1.0.se_module.conv_reduce.weight"),
        "its pooling after the stem pads otherwise where the map's side is odd",
    ),
    other("ResNet", "ResNet", ("bn1.gamma", "layer1.0.conv1.weight"), POOLING),
    other(
        "MixNet",
        "EfficientNet",
        ("stem_conv.1.gamma",),
        "its squeeze-and-excitation has ReLU inside where ours has SiLU",
    ),
    other(
        "PVTv2",
        "PyramidVisionTransformerV2",
        ("patch_embed_list.0.proj.weight",),
        "its patch embeddings pad as TensorFlow does",
    ),
    other(
        "HaloNet",
        "ByobNet",
        ("stem.conv1.bn.gamma", "stem.conv1.conv.weight"),
        "its windows are cut by an operator that runs on Ascend hardware only, where we could not "
        "compare it",
    ),
)
