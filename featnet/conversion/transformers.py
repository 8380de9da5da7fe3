"""Hugging Face transformers' checkpoints."""

from __future__ import annotations

from torch import nn

from .draft import Draft, Layout
from .originals import convnext_block


def resnet(draft: Draft, model: nn.Module) -> None:
    """``ResNetForImageClassification`` and ``ResNetBackbone``."""
    del model
    block = r"encoder\.stages\.(\d+)\.layers\.(\d+)"

    def rules(kind: str, inner: str) -> list[tuple[str, str]]:
        return [
            (rf"embedder\.embedder\.{kind}\.(.*)", rf"{inner}1.\1"),
            (rf"{block}\.layer\.(\d+)\.{kind}\.(.*)", rf"layer\1.\2.{inner}\3.\4"),
            (rf"{block}\.shortcut\.{kind}\.(.*)", rf"layer\1.\2.downsample.{int(inner == 'bn')}.\3"),
        ]

    _unroot(draft, "resnet.")
    draft.substitute([
        *rules("convolution", "conv"),
        *rules("normalization", "bn"),
        (r"classifier\.1\.(.*)", r"fc.\1"),
    ])  # fmt: skip
    draft.rename(_count_from_one)


def _count_from_one(key: str) -> str:
    """``layer0.1.conv0`` is our ``layer1.1.conv1``; the stem's and shortcuts are counted already."""
    parts = key.split(".")
    if not parts[0].startswith("layer"):
        return key
    parts[0] = f"layer{int(parts[0][5:]) + 1}"
    for name in ("conv", "bn"):
        if parts[2].startswith(name) and parts[2][len(name) :].isdigit():
            parts[2] = f"{name}{int(parts[2][len(name) :]) + 1}"
    return ".".join(parts)


def convnext(draft: Draft, model: nn.Module) -> None:
    """``ConvNextForImageClassification``, ``ConvNextV2...`` and the models inside.

    Their final norm has the epsilon 1e-12 where the paper's code has 1e-6, as we do.
    """
    del model
    for root in ("convnext.", "convnextv2."):
        _unroot(draft, root)
    stage = r"encoder\.stages\.(\d+)"
    draft.substitute([
        (r"embeddings\.patch_embeddings\.(.*)", r"stem.0.\1"),
        (r"embeddings\.layernorm\.(.*)", r"stem.1.\1"),
        (rf"{stage}\.downsampling_layer\.(.*)", r"stages.\1.downsample.\2"),
        *convnext_block(rf"{stage}\.layers\.(\d+)", r"stages.\1.blocks.\2"),
        (r"layernorm\.(.*)", r"head.norm.\1"),
        (r"classifier\.(weight|bias)", r"head.fc.\1"),
    ])  # fmt: skip
    draft.steps.append("epsilon of the final norm: 1e-06 instead of 1e-12")


def _unroot(draft: Draft, root: str) -> None:
    """A classifier's file has the network under its name, and the classifier beside it."""
    draft.rename(lambda key: key.removeprefix(root))


def _convnext(name: str) -> Layout:
    root = f"{name.lower()}."
    marks = ("embeddings.patch_embeddings.weight", "encoder.stages.0.layers.0.dwconv.weight")
    return Layout(
        f"transformers' {name}", "ConvNeXt", tuple(root + mark for mark in marks), convnext, root=root
    )


LAYOUTS = (
    Layout(
        "transformers' ResNet", "ResNet",
        (
            "resnet.embedder.embedder.convolution.weight",
            "resnet.encoder.stages.0.layers.0.layer.0.convolution.weight",
        ),
        resnet, root="resnet.", eps=lambda draft: 1e-5,
    ),
    _convnext("ConvNext"), _convnext("ConvNextV2"),
)  # fmt: skip
