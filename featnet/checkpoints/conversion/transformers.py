"""Hugging Face transformers' checkpoints."""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import nn

from ...errors import CheckpointError
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
            (
                rf"{block}\.shortcut\.{kind}\.(.*)",
                rf"layer\1.\2.downsample.{int(inner == 'bn')}.\3",
            ),
        ]

    _unroot(draft, "resnet.")
    draft.substitute(
        [
            *rules("convolution", "conv"),
            *rules("normalization", "bn"),
            (r"classifier\.1\.(.*)", r"fc.\1"),
        ]
    )
    draft.rename(_count_from_one)


def _count_from_one(key: str) -> str:
    """``layer0.1.conv0`` is our ``layer1.1.conv1``; the stem's and shortcuts are counted
    already."""
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
    draft.substitute(
        [
            (r"embeddings\.patch_embeddings\.(.*)", r"stem.0.\1"),
            (r"embeddings\.layernorm\.(.*)", r"stem.1.\1"),
            (rf"{stage}\.downsampling_layer\.(.*)", r"stages.\1.downsample.\2"),
            *convnext_block(rf"{stage}\.layers\.(\d+)", r"stages.\1.blocks.\2"),
            (r"layernorm\.(.*)", r"head.norm.\1"),
            (r"classifier\.(weight|bias)", r"head.fc.\1"),
        ]
    )
    draft.steps.append("epsilon of the final norm: 1e-06 instead of 1e-12")


def _attention(old: str, new: str) -> list[tuple[str, str]]:
    """Rules for the attention of a block, as in files and as modules are called since version 5;
    ``old`` is a pattern with groups, the last of which is the block."""
    tail = rf"\{re.compile(old).groups + 1}"
    parts = {"q": "query|q_proj", "k": "key|k_proj", "v": "value|v_proj"}
    return [
        *(
            (
                rf"{old}\.attention\.(?:(?:attention|self)\.)?(?:{names})\.(.*)",
                rf"{new}.attn.{letter}.{tail}",
            )
            for letter, names in parts.items()
        ),
        (rf"{old}\.attention\.(?:output\.dense|o_proj)\.(.*)", rf"{new}.attn.proj.{tail}"),
        (rf"{old}\.(?:norm1|layernorm_before)\.(.*)", rf"{new}.norm1.{tail}"),
        (rf"{old}\.(?:norm2|layernorm_after)\.(.*)", rf"{new}.norm2.{tail}"),
        (
            rf"{old}\.(?:intermediate\.dense|mlp\.(?:fc1|weights_in))\.(.*)",
            rf"{new}.mlp.fc1.{tail}",
        ),
        (
            rf"{old}\.(?:output\.dense|mlp\.(?:fc2|weights_out|down_proj))\.(.*)",
            rf"{new}.mlp.fc2.{tail}",
        ),
    ]


def _join(draft: Draft) -> None:
    """Queries, keys and values as one; of a gated MLP gate and values."""
    for key in [k for k in draft.tensors if ".attn.q." in k]:
        stem, leaf = key.split(".attn.q.")
        if leaf == "weight" or f"{stem}.attn.k.{leaf}" in draft.tensors:
            draft.concatenate(f"{stem}.attn.qkv.{leaf}", [f"{stem}.attn.{x}.{leaf}" for x in "qkv"])
        else:  # Swin V2's keys have none
            for letter in "qv":
                old, new = f"{stem}.attn.{letter}.{leaf}", f"{stem}.attn.{letter}_{leaf}"
                draft.substitute([(old.replace(".", r"\."), new)])
    for key in [k for k in draft.tensors if ".mlp.gate_proj." in k]:
        stem, leaf = key.split("gate_proj.")
        draft.concatenate(f"{stem}fc1.{leaf}", [f"{stem}{x}_proj.{leaf}" for x in ("gate", "up")])


def vit(draft: Draft, model: nn.Module) -> None:
    """``ViTForImageClassification``, ``Dinov2...``, ``Dinov2WithRegisters...`` and what is in
    them."""
    for root in ("vit.", "dinov2.", "dinov2_with_registers."):
        _unroot(draft, root)
    others = (".lambda_1", "embeddings.distillation_token")
    if any(key.endswith(others) for key in draft.tensors):
        raise CheckpointError(
            "A checkpoint of transformers' BEiT or distilled DeiT is not of "
            f"{type(model).__name__}: build the network by its name, such as "
            "deit_base_distilled_patch16_224."
        )
    block = r"(?:encoder\.layer|encoder\.layers|layers)\.(\d+)"
    draft.substitute(
        [
            (r"embeddings\.cls_token", "cls_token"),
            (r"embeddings\.register_tokens", "reg_token"),
            (r"embeddings\.position_embeddings", "pos_embed"),
            (r"embeddings\.patch_embeddings\.projection\.(.*)", r"patch_embed.proj.\1"),
            *_attention(block, r"blocks.\1"),
            (rf"{block}\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
            (rf"{block}\.(mlp\.(?:gate|up)_proj\..*)", r"blocks.\1.\2"),
            (r"layernorm\.(.*)", r"norm.\1"),
            (r"classifier\.(weight|bias)", r"head.\1"),
            (r"embeddings\.mask_token|pooler\..*|decoder\..*", ""),
        ],
        why="is for another task",
    )
    _join(draft)
    weight = draft.tensors.get("head.weight")
    width = draft.tensors["norm.weight"].shape[0] if "norm.weight" in draft.tensors else 0
    if weight is not None and weight.ndim == 2 and weight.shape[1] == 2 * width:
        for key in ("head.weight", "head.bias"):
            if key in draft.tensors:
                draft.drop(
                    key, "a classifier of the class token and the mean of the others together"
                )
    norms = {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)}
    if norms - {1e-12} and not any(".ls1." in key for key in draft.tensors):
        draft.steps.append(f"epsilon of the norms: {max(norms):g}, by default 1e-12 there")


def swin(draft: Draft, model: nn.Module) -> None:
    """``SwinForImageClassification``, ``Swinv2...`` and the models inside."""
    del model
    for root in ("swin.", "swinv2."):
        _unroot(draft, root)
    layer = r"encoder\.layers\.(\d+)"
    block, new = rf"{layer}\.blocks\.(\d+)", r"layers.\1.blocks.\2"
    position = r"attention\.(?:(?:self|relative_position_bias)\.)?"
    draft.substitute(
        [
            (r"embeddings\.patch_embeddings\.projection\.(.*)", r"patch_embed.proj.\1"),
            (r"embeddings\.norm\.(.*)", r"patch_embed.norm.\1"),
            (
                rf"{block}\.{position}relative_position_bias_table",
                rf"{new}.attn.relative_position_bias_table",
            ),
            (rf"{block}\.{position}logit_scale", rf"{new}.attn.logit_scale"),
            (rf"{block}\.{position}continuous_position_bias_mlp\.(.*)", rf"{new}.attn.cpb_mlp.\3"),
            *_attention(block, new),
            (rf"{layer}\.downsample\.(.*)", r"layers.\1.downsample.\2"),
            (r"layernorm\.(.*)", r"norm.\1"),
            (r"classifier\.(weight|bias)", r"head.fc.\1"),
            (r"embeddings\.mask_token|pooler\..*|decoder\..*|hidden_states_norms\..*", ""),
        ],
        why="is for another task",
    )
    _join(draft)


def _unroot(draft: Draft, root: str) -> None:
    """A classifier's file has the network under its name, and the classifier beside it."""
    draft.rename(lambda key: key.removeprefix(root))


def _convnext(name: str) -> Layout:
    root = f"{name.lower()}."
    marks = ("embeddings.patch_embeddings.weight", "encoder.stages.0.layers.0.dwconv.weight")
    return Layout(
        f"transformers' {name}",
        "ConvNeXt",
        tuple(root + mark for mark in marks),
        convnext,
        root=root,
    )


def _layout(
    name: str, family: str, root: str, mark: str, convert: Callable[[Draft, nn.Module], None]
) -> Layout:
    marks = ("embeddings.patch_embeddings.projection.weight", mark)
    return Layout(
        f"transformers' {name}", family, tuple(root + m for m in marks), convert, root=root
    )


LAYOUTS = (
    Layout(
        "transformers' ResNet",
        "ResNet",
        (
            "resnet.embedder.embedder.convolution.weight",
            "resnet.encoder.stages.0.layers.0.layer.0.convolution.weight",
        ),
        resnet,
        root="resnet.",
        eps=lambda draft: 1e-5,
    ),
    _convnext("ConvNext"),
    _convnext("ConvNextV2"),
    *(
        _layout("ViT", "VisionTransformer", "vit.", f"{block}.0.layernorm_before.weight", vit)
        for block in ("encoder.layer", "layers")
    ),
    *(
        _layout(name, "VisionTransformer", root, "encoder.layer.0.layer_scale1.lambda1", vit)
        for name, root in {
            "DINOv2": "dinov2.",
            "DINOv2 with registers": "dinov2_with_registers.",
        }.items()
    ),
    *(
        _layout(name, family, root, "encoder.layers.0.blocks.0.layernorm_before.weight", swin)
        for name, family, root in (
            ("Swin", "SwinTransformer", "swin."),
            ("Swin V2", "SwinTransformerV2", "swinv2."),
        )
    ),
)
