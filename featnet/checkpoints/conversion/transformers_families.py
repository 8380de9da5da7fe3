"""More of Hugging Face transformers' checkpoints: networks whose names are their own there.

Names of modules differ between memory and files since version 5, so that most patterns allow both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ...errors import CheckpointError
from ...layers import SamePadding
from .draft import Draft, Layout, Rule, natural

LAYER = r"(?:model\.|encoder\.)?layers?\.(\d+)"  # a block, with one group
ATTENTION = r"attention\.(?:attention\.)?"
OTHER_TASK = "is for another task"


def _join(draft: Draft, model: nn.Module) -> None:
    """Queries, keys and values as one; biases as far as the network has them.

    Raises:
        CheckpointError: biases that are not zero, and for which the network has no place.
    """
    wanted = model.state_dict()
    for key in [k for k in draft.tensors if k.endswith(".attn.q.weight")]:
        stem = key.removesuffix("q.weight")
        draft.concatenate(f"{stem}qkv.weight", [f"{stem}{x}.weight" for x in "qkv"])
        biases = [x for x in "qkv" if f"{stem}{x}.bias" in draft.tensors]
        if f"{stem}qkv.bias" in wanted and biases == ["q", "v"]:
            zero = torch.zeros_like(draft.tensors[f"{stem}q.bias"])
            draft.put(f"{stem}k.bias", zero, "zero: keys have no bias")
            biases = ["q", "k", "v"]
        if f"{stem}qkv.bias" in wanted and len(biases) == 3:
            draft.concatenate(f"{stem}qkv.bias", [f"{stem}{x}.bias" for x in "qkv"])
            continue
        for x in biases:
            old, new = f"{stem}{x}.bias", f"{stem}{x}_bias"
            if new in wanted:
                draft.move(old, new)
            elif not draft.tensors[old].any():
                draft.drop(old, "is zero, and the network has none")
            else:
                raise CheckpointError(
                    "The file's attention has biases that the network has no place for: build the "
                    "variant with them (its name ends in _qkvb, where there is one)."
                )


def dinov3_vit(draft: Draft, model: nn.Module) -> None:
    """``DINOv3ViTModel``."""
    gated = any(".gate_proj." in key for key in draft.tensors)
    draft.substitute(
        [
            (r"embeddings\.cls_token", "cls_token"),
            (r"embeddings\.register_tokens", "reg_token"),
            (r"embeddings\.patch_embeddings\.(.*)", r"patch_embed.proj.\1"),
            (rf"{LAYER}\.attention\.([qkv])_proj\.(.*)", r"blocks.\1.attn.\2.\3"),
            (rf"{LAYER}\.attention\.o_proj\.(.*)", r"blocks.\1.attn.proj.\2"),
            (rf"{LAYER}\.layer_scale([12])\.lambda1", r"blocks.\1.gamma_\2"),
            (rf"{LAYER}\.(norm[12]\..*)", r"blocks.\1.\2"),
            (rf"{LAYER}\.mlp\.gate_proj\.(.*)", r"blocks.\1.mlp.fc1_g.\2"),
            (rf"{LAYER}\.mlp\.up_proj\.(.*)", rf"blocks.\1.mlp.fc1{'_x' if gated else ''}.\2"),
            (rf"{LAYER}\.mlp\.down_proj\.(.*)", r"blocks.\1.mlp.fc2.\2"),
            (r"embeddings\.mask_token", ""),
        ],
        why=OTHER_TASK,
    )
    _join(draft, model)


def dinov3_convnext(draft: Draft, model: nn.Module) -> None:
    """``DINOv3ConvNextModel``."""
    del model
    stage = r"(?:model\.)?stages\.(\d+)"
    block = rf"{stage}\.layers\.(\d+)"
    draft.substitute(
        [
            (r"(?:model\.)?stages\.0\.downsample_layers\.(.*)", r"stem.\1"),
            (rf"{stage}\.downsample_layers\.(.*)", r"stages.\1.downsample.\2"),
            (rf"{block}\.gamma", r"stages.\1.blocks.\2.gamma"),
            (rf"{block}\.depthwise_conv\.(.*)", r"stages.\1.blocks.\2.conv_dw.\3"),
            (rf"{block}\.layer_norm\.(.*)", r"stages.\1.blocks.\2.norm.\3"),
            (rf"{block}\.pointwise_conv([12])\.(.*)", r"stages.\1.blocks.\2.mlp.fc\3.\4"),
            (r"layer_norm\.(.*)", r"head.norm.\1"),
        ]
    )


TEXT = r"text_model\..*|text_projection\..*|logit_scale|logit_bias|.*position_ids"


def _tower(draft: Draft, *rules: Rule) -> None:
    """An image tower of CLIP's kind."""
    root, layer = r"(?:vision_model\.)?", r"(?:vision_model\.)?encoder\.layers\.(\d+)"
    draft.substitute(
        [
            (TEXT, ""),
            (rf"{root}embeddings\.patch_embedding\.(.*)", r"patch_embed.proj.\1"),
            (rf"{root}embeddings\.position_embedding\.weight", "pos_embed"),
            (rf"{layer}\.layer_norm([12])\.(.*)", r"blocks.\1.norm\2.\3"),
            (rf"{layer}\.self_attn\.([qkv])_proj\.(.*)", r"blocks.\1.attn.\2.\3"),
            (rf"{layer}\.self_attn\.out_proj\.(.*)", r"blocks.\1.attn.proj.\2"),
            (rf"{layer}\.(mlp\.fc[12]\..*)", r"blocks.\1.\2"),
            (rf"{root}post_layernorm\.(.*)", r"norm.\1"),
            *((root + old, new) for old, new in rules),
        ],
        why="is not of the image tower",
    )


def _say_activation(draft: Draft, model: nn.Module, other: str) -> None:
    """A state dict does not hold the activation, which both names of a network may differ in."""
    mlp: Any = next((m for name, m in model.named_modules() if name.endswith("mlp.act")), None)
    if mlp is not None:
        draft.steps.append(
            f"activation: {mlp}; config.json says hidden_act, by default {other} there"
        )


def clip(draft: Draft, model: nn.Module) -> None:
    """``CLIPVisionModel``, ``CLIPVisionModelWithProjection``, ``CLIPModel``: its image tower."""
    _tower(
        draft,
        (r"embeddings\.class_embedding", "cls_token"),
        (r"pre_layrnorm\.(.*)", r"norm_pre.\1"),
    )
    _join(draft, model)
    if "visual_projection.weight" in draft.tensors:
        draft.move("visual_projection.weight", "head.weight")
        weight = draft.tensors["head.weight"]
        zero = weight.new_zeros(weight.shape[0])
        draft.put("head.bias", zero, "zero: a projection has none")
    _say_activation(draft, model, "quick_gelu")


def siglip(draft: Draft, model: nn.Module) -> None:
    """``SiglipVisionModel``, ``SiglipModel``: the image tower with its pooling by attention."""
    _tower(
        draft,
        (r"head\.probe", "attn_pool.latent"),
        (r"head\.attention\.in_proj_(.*)", r"attn_pool.in_proj.\1"),
        (r"head\.attention\.out_proj\.(.*)", r"attn_pool.proj.\1"),
        (r"head\.layernorm\.(.*)", r"attn_pool.norm.\1"),
        (r"head\.(mlp\..*)", r"attn_pool.\1"),
    )
    _join(draft, model)
    for leaf in ("weight", "bias"):
        key = f"attn_pool.in_proj.{leaf}"
        if key in draft.tensors:
            q, k, v = draft.tensors[key].chunk(3)
            parts = {f"attn_pool.q.{leaf}": q, f"attn_pool.kv.{leaf}": torch.cat([k, v])}
            draft.split(key, parts, "queries, and keys with values")
        if f"classifier.{leaf}" in draft.tensors:
            draft.drop(f"classifier.{leaf}", "a classifier of the mean of the patches")
    _say_activation(draft, model, "gelu_tanh")


def beit(draft: Draft, model: nn.Module) -> None:
    """``BeitModel`` and ``BeitForImageClassification``."""
    root, layer = r"(?:beit\.)?", rf"(?:beit\.)?{LAYER}"
    letters = {"query|q_proj": "q", "key|k_proj": "k", "value|v_proj": "v"}
    table = r"relative_position_bias\.relative_position_bias_table"
    draft.substitute(
        [
            (rf"{root}embeddings\.cls_token", "cls_token"),
            (rf"{root}embeddings\.position_embeddings", "pos_embed"),
            (rf"{root}embeddings\.patch_embeddings\.projection\.(.*)", r"patch_embed.proj.\1"),
            *(
                (rf"{layer}\.{ATTENTION}(?:{old})\.(.*)", rf"blocks.\1.attn.{new}.\2")
                for old, new in letters.items()
            ),
            (rf"{layer}\.(?:{ATTENTION})?{table}", r"blocks.\1.attn.relative_position_bias_table"),
            (rf"{root}(?:encoder\.)?{table}", "rel_pos_bias.relative_position_bias_table"),
            (rf"{layer}\.attention\.(?:output\.dense|o_proj)\.(.*)", r"blocks.\1.attn.proj.\2"),
            (rf"{layer}\.lambda_([12])", r"blocks.\1.gamma_\2"),
            (rf"{layer}\.layernorm_before\.(.*)", r"blocks.\1.norm1.\2"),
            (rf"{layer}\.layernorm_after\.(.*)", r"blocks.\1.norm2.\2"),
            (rf"{layer}\.(?:intermediate\.dense|mlp\.fc1)\.(.*)", r"blocks.\1.mlp.fc1.\2"),
            (rf"{layer}\.(?:output\.dense|mlp\.fc2)\.(.*)", r"blocks.\1.mlp.fc2.\2"),
            (rf"{root}pooler\.layernorm\.(.*)", r"fc_norm.\1"),
            (rf"{root}layernorm\.(.*)", r"norm.\1"),
            (r"classifier\.(.*)", r"head.\1"),
            (rf"{root}embeddings\.mask_token|.*relative_position_index", ""),
        ],
        why=OTHER_TASK,
    )
    _join(draft, model)
    draft.steps.append("epsilon of the norms: 1e-06, by default 1e-12 there")


def deit(draft: Draft, model: nn.Module) -> None:
    """``DeiTModel`` and ``DeiTForImageClassificationWithTeacher``."""
    from .transformers import vit

    draft.substitute(
        [
            (r"(?:deit\.)?embeddings\.distillation_token", "dist_token"),
            (r"cls_classifier\.(.*)", r"head.\1"),
            (r"distillation_classifier\.(.*)", r"head_dist.\1"),
            (r"deit\.(.*)", r"\1"),
        ]
    )
    vit(draft, model)


def regnet(draft: Draft, model: nn.Module) -> None:
    """``RegNetModel`` and ``RegNetForImageClassification``, X and Y."""
    del model
    block = r"(?:regnet\.)?encoder\.stages\.(\d+)\.layers\.(\d+)"
    gated = any(".attention." in key for key in draft.tensors)
    numbers = {0: 1, 1: 2, 3 if gated else 2: 3}

    def rules(old: str, new: str) -> list[Rule]:
        return [
            (rf"(?:regnet\.)?embedder\.embedder\.{old}\.(.*)", rf"stem.{new}.\1"),
            (rf"{block}\.shortcut\.{old}\.(.*)", rf"s#\1.b#\2.downsample.{new}.\3"),
            *(
                (rf"{block}\.layer\.{n}\.{old}\.(.*)", rf"s#\1.b#\2.conv{conv}.{new}.\3")
                for n, conv in numbers.items()
            ),
        ]

    draft.substitute(
        [
            *rules("convolution", "conv"),
            *rules("normalization", "bn"),
            (rf"{block}\.layer\.2\.attention\.0\.(.*)", r"s#\1.b#\2.se.fc1.\3"),
            (rf"{block}\.layer\.2\.attention\.2\.(.*)", r"s#\1.b#\2.se.fc2.\3"),
            (r"classifier\.1\.(.*)", r"head.fc.\1"),
        ]
    )

    def count_from_one(key: str) -> str:
        parts = [f"{p[0]}{int(p[2:]) + 1}" if p[1:2] == "#" else p for p in key.split(".")]
        return ".".join(parts)

    draft.rename(count_from_one)


MOBILENET = ("conv_stem", "first_conv", "expand_1x1", "conv_3x3", "reduce_1x1", "layer", "conv_1x1")


def mobilenet_v2(draft: Draft, model: Any) -> None:
    """``MobileNetV2Model`` and ``MobileNetV2ForImageClassification``: Google's, with TensorFlow's
    padding, which no file tells.

    Raises:
        CheckpointError: the network pads otherwise.
    """
    if not any(isinstance(module, SamePadding) for module in model.modules()):
        raise CheckpointError(
            "transformers' MobileNetV2 is Google's, which was trained with TensorFlow's padding: "
            'build it with pad_type="same". Where its config says tf_padding=False, save it with '
            "torchvision's names instead."
        )
    draft.rename(lambda key: key.removeprefix("mobilenet_v2."))

    def order(module: str) -> list[Any]:
        return [
            (MOBILENET.index(part) if part in MOBILENET else len(MOBILENET), natural(part))
            for part in module.split(".")
        ]

    theirs = sorted({key.rpartition(".")[0] for key in draft.tensors} - {"classifier"}, key=order)
    ours = list(dict.fromkeys(key.rpartition(".")[0] for key in model.state_dict()))
    names = dict(zip(theirs, [name for name in ours if name != "classifier"], strict=False))

    def new_name(key: str) -> str:
        module, _, leaf = key.rpartition(".")
        return f"{names.get(module, module)}.{leaf}"

    draft.rename(new_name)


def pvt_v2(draft: Draft, model: nn.Module) -> None:
    """``PvtV2ForImageClassification`` and the model inside."""
    del model
    layer = r"(?:pvt_v2\.)?encoder\.layers\.(\d+)"
    first = r"(?:pvt_v2\.)?encoder\.layers\.0"
    block = rf"{layer}\.blocks\.(\d+)"
    new = r"stages.\1.blocks.\2"
    draft.substitute(
        [
            (rf"{first}\.patch_embedding\.proj\.(.*)", r"patch_embed.proj.\1"),
            (rf"{first}\.patch_embedding\.layer_norm\.(.*)", r"patch_embed.norm.\1"),
            (rf"{layer}\.patch_embedding\.proj\.(.*)", r"stages.\1.downsample.proj.\2"),
            (rf"{layer}\.patch_embedding\.layer_norm\.(.*)", r"stages.\1.downsample.norm.\2"),
            (rf"{layer}\.layer_norm\.(.*)", r"stages.\1.norm.\2"),
            (rf"{block}\.layer_norm_([12])\.(.*)", rf"{new}.norm\3.\4"),
            (rf"{block}\.attention\.query\.(.*)", rf"{new}.attn.q.\3"),
            (rf"{block}\.attention\.(key|value|proj)\.(.*)", rf"{new}.attn.\3.\4"),
            (rf"{block}\.attention\.spatial_reduction\.(.*)", rf"{new}.attn.sr.\3"),
            (rf"{block}\.attention\.layer_norm\.(.*)", rf"{new}.attn.norm.\3"),
            (rf"{block}\.mlp\.dense([12])\.(.*)", rf"{new}.mlp.fc\3.\4"),
            (rf"{block}\.mlp\.dwconv\.dwconv\.(.*)", rf"{new}.mlp.dwconv.\3"),
            (r"classifier\.(.*)", r"head.\1"),
        ]
    )
    for key in [key for key in draft.tensors if ".attn.key." in key]:
        stem, leaf = key.split("key.")
        draft.concatenate(f"{stem}kv.{leaf}", [f"{stem}{x}.{leaf}" for x in ("key", "value")])


def hiera(draft: Draft, model: nn.Module) -> None:
    """``HieraForImageClassification`` and the model inside: blocks are counted by stage there."""
    del model
    stem = "hiera.encoder.stages."
    layers = {tuple(map(int, k.split(".")[3:6:2])) for k in draft.tensors if k.startswith(stem)}
    numbers = {place: number for number, place in enumerate(sorted(layers))}

    def new_name(key: str) -> str | None:
        key = key.removeprefix("hiera.")
        if key.startswith("encoder.stages."):
            _, _, stage, _, layer, rest = key.split(".", 5)
            rest = rest.replace("layernorm_before.", "norm1.").replace("layernorm_after.", "norm2.")
            return f"blocks.{numbers[int(stage), int(layer)]}.{rest}"
        for old, new in {
            "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
            "embeddings.position_embeddings": "pos_embed",
            "pooler.layernorm.": "head.norm.",
            "classifier.": "head.fc.",
        }.items():
            if key.startswith(old):
                return new + key.removeprefix(old)
        return None if key.startswith(("decoder.", "multiscale_fusion.")) else key

    draft.rename(new_name, why=OTHER_TASK)


PATCHES = "embeddings.patch_embeddings.projection.weight"
LAYOUTS = (
    *(
        Layout(
            "transformers' DINOv3",
            "Eva",
            ("embeddings.patch_embeddings.weight", f"{root}layer.0.layer_scale1.lambda1"),
            dinov3_vit,
        )
        for root in ("", "model.")
    ),
    *(
        Layout(
            "transformers' DINOv3 ConvNeXt",
            "ConvNeXt",
            (
                f"{root}stages.0.downsample_layers.0.weight",
                f"{root}stages.0.layers.0.depthwise_conv.weight",
                "layer_norm.weight",
            ),
            dinov3_convnext,
        )
        for root in ("", "model.")
    ),
    Layout(
        "transformers' CLIP",
        "VisionTransformer",
        ("vision_model.embeddings.class_embedding", "vision_model.pre_layrnorm.weight"),
        clip,
        root="vision_model.",
    ),
    Layout(
        "transformers' SigLIP",
        "VisionTransformer",
        (
            "vision_model.embeddings.position_embedding.weight",
            "vision_model.encoder.layers.0.self_attn.q_proj.weight",
            "vision_model.post_layernorm.weight",
        ),
        siglip,
        root="vision_model.",
    ),
    *(
        Layout(
            "transformers' BEiT",
            "Beit",
            (f"beit.{PATCHES}", f"beit.{blocks}.0.lambda_1"),
            beit,
            root="beit.",
        )
        for blocks in ("encoder.layer", "layers")
    ),
    *(
        Layout(
            "transformers' DeiT",
            "DistilledVisionTransformer",
            (
                f"deit.{PATCHES}",
                "deit.embeddings.distillation_token",
                f"deit.{blocks}.0.layernorm_before.weight",
            ),
            deit,
            root="deit.",
        )
        for blocks in ("encoder.layer", "layers")
    ),
    Layout(
        "transformers' RegNet",
        "RegNet",
        (
            "regnet.embedder.embedder.convolution.weight",
            "regnet.encoder.stages.0.layers.0.layer.0.convolution.weight",
        ),
        regnet,
        root="regnet.",
        eps=lambda draft: 1e-5,
    ),
    Layout(
        "transformers' MobileNetV2",
        "EfficientNet",
        (
            "mobilenet_v2.conv_stem.first_conv.convolution.weight",
            "mobilenet_v2.layer.0.expand_1x1.convolution.weight",
        ),
        mobilenet_v2,
        root="mobilenet_v2.",
        eps=lambda draft: 1e-3,
    ),
    Layout(
        "transformers' PVTv2",
        "PyramidVisionTransformerV2",
        (
            "pvt_v2.encoder.layers.0.patch_embedding.proj.weight",
            "pvt_v2.encoder.layers.0.blocks.0.layer_norm_1.weight",
        ),
        pvt_v2,
        root="pvt_v2.",
    ),
    Layout(
        "transformers' Hiera",
        "Hiera",
        (f"hiera.{PATCHES}", "hiera.encoder.stages.0.layers.0.layernorm_before.weight"),
        hiera,
        root="hiera.",
    ),
)
