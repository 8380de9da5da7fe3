"""Google's vision transformers as JAX keeps them: of the ViT paper and AugReg, and of big_vision.

Kernels are (height, width, in, out) or (in, out) there, and those of attention have an axis of
heads; an archive has the blocks one by one, or each tensor of all blocks stacked.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import nn

from ...layers import resample_patches, resample_positions
from ...layers.positions import bilinear
from .draft import Draft, Layout

BLOCK, NEW = r"Transformer/encoderblock_(\d+)", r"blocks.\1"
POOL = "MAPHead_0"
UNIT = r"block(\d+)/unit(\d+)"


def _leaves(old: str, new: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """Rules for a module's tensors: kernel or scale, and bias."""
    return (rf"{old}/(?:kernel|scale)", f"{new}.weight"), (rf"{old}/bias", f"{new}.bias")


RULES = (
    ("cls", "cls_token"),
    (r"(?:Transformer/posembed_input/)?pos_embedding", "pos_embed"),
    *_leaves("embedding", "patch_embed.proj"),
    *_leaves("head", "head"),
    *_leaves("Transformer/encoder_norm", "norm"),
    *_leaves(rf"{BLOCK}/LayerNorm_0", rf"{NEW}.norm1"),
    *_leaves(rf"{BLOCK}/LayerNorm_[12]", rf"{NEW}.norm2"),
    *(
        rule
        for letter, name in zip("qkv", ("query", "key", "value"), strict=True)
        for rule in _leaves(
            rf"{BLOCK}/MultiHeadDotProductAttention_\d/{name}", rf"{NEW}.attn.{letter}"
        )
    ),
    *_leaves(rf"{BLOCK}/MultiHeadDotProductAttention_\d/out", rf"{NEW}.attn.proj"),
    *(
        rule
        for i in (0, 1)
        for rule in _leaves(rf"{BLOCK}/MlpBlock_\d/Dense_{i}", rf"{NEW}.mlp.fc{i + 1}")
    ),
    # the pooling by attention, of SigLIP
    (f"{POOL}/probe", "attn_pool.latent"),
    *_leaves(f"{POOL}/LayerNorm_0", "attn_pool.norm"),
    *(
        rule
        for old, new in {"query": "q", "key": "k", "value": "v", "out": "proj"}.items()
        for rule in _leaves(f"{POOL}/MultiHeadDotProductAttention_0/{old}", f"attn_pool.{new}")
    ),
    *(
        rule
        for i in (0, 1)
        for rule in _leaves(f"{POOL}/MlpBlock_0/Dense_{i}", f"attn_pool.mlp.fc{i + 1}")
    ),
    # the trunk of a hybrid
    *_leaves("conv_root", "trunk.stem.conv"),
    *_leaves("gn_root", "trunk.stem.norm"),
    *_leaves(rf"{UNIT}/conv_proj", r"trunk.stages.#\1.blocks.#\2.downsample.conv"),
    *_leaves(rf"{UNIT}/gn_proj", r"trunk.stages.#\1.blocks.#\2.downsample.norm"),
    *_leaves(rf"{UNIT}/conv(\d)", r"trunk.stages.#\1.blocks.#\2.conv\3"),
    *_leaves(rf"{UNIT}/gn(\d)", r"trunk.stages.#\1.blocks.#\2.norm\3"),
)


def vit(draft: Draft, model: nn.Module) -> None:
    """ViT, SigLIP's image tower, and the hybrids with a ResNet before."""
    stacked = "Transformer/encoderblock/"
    for key in [key for key in draft.tensors if key.startswith(stacked)]:
        rest = key.removeprefix(stacked)
        parts = draft.tensors[key].unbind()
        draft.split(
            key,
            {f"Transformer/encoderblock_{i}/{rest}": p for i, p in enumerate(parts)},
            "of the stack of all blocks",
        )
    for key, value in draft.tensors.items():
        new = _turned(key, value)
        if new is not value:
            draft.put(key, new, f"{list(value.shape)} as {list(new.shape)}")
    if any(key.startswith("pre_logits/") for key in draft.tensors):
        for key in [key for key in draft.tensors if key.startswith(("pre_logits/", "head/"))]:
            draft.drop(key, "a classifier behind a layer that the model has not")
        draft.left_out |= {"head.weight", "head.bias"}
    draft.substitute(RULES)
    here = "patch_embed.backbone."
    stem = "stem." if f"{here}stem.conv.weight" in model.state_dict() else ""

    def trunk(key: str) -> str:
        if not key.startswith("trunk."):
            return key
        key = re.sub(r"#(\d+)", lambda match: str(int(match[1]) - 1), key.removeprefix("trunk."))
        return here + (stem + key.removeprefix("stem.") if key.startswith("stem.") else key)

    draft.rename(trunk)
    for key in [key for key in draft.tensors if re.search(r"\.q\.(weight|bias)$", key)]:
        root, leaf = key.split(".q.")
        letters = "kv" if root == "attn_pool" else "qkv"
        draft.concatenate(f"{root}.{letters}.{leaf}", [f"{root}.{x}.{leaf}" for x in letters])
    _fit(draft, model)


def _fit(draft: Draft, model: Any) -> None:
    """Patches and positions of another size, resampled as the JAX code does it: bilinearly."""
    target, fitted = model.state_dict(), {}
    patches, wanted = (t.get("patch_embed.proj.weight") for t in (draft.tensors, target))
    if patches is not None and wanted is not None:
        size = (wanted.shape[-2], wanted.shape[-1])
        fitted["patch_embed.proj.weight"] = resample_patches(patches, size, resize=bilinear)
    table, wanted = (t.get("pos_embed") for t in (draft.tensors, target))
    if table is not None and wanted is not None and table.shape != wanted.shape:
        grid = model.patch_embed.grid_size
        before = wanted.shape[1] - math.prod(grid)  # of tokens before the patches
        side = math.isqrt(max(0, table.shape[1] - before))
        if before + side * side == table.shape[1]:
            fitted["pos_embed"] = resample_positions(
                table, grid, old=(side, side), prefix=before, resize=bilinear
            )
    for key, value in fitted.items():
        old = draft.tensors[key]
        if value is not old:
            draft.put(key, value, f"{list(old.shape)} to {list(value.shape)}")


def _turned(key: str, value: torch.Tensor) -> torch.Tensor:
    """A kernel with its output first, heads as one, scales without empty axes."""
    module, _, leaf = key.rpartition("/")
    of_heads = module.endswith(("/query", "/key", "/value"))
    if leaf == "kernel" and of_heads and value.ndim == 3:  # (in, heads, width)
        return value.flatten(1).T.contiguous()
    if leaf == "kernel" and value.ndim == 3:  # (heads, width, out)
        return value.flatten(0, 1).T.contiguous()
    if leaf == "kernel" and value.ndim == 4:
        return value.permute(3, 2, 0, 1).contiguous()
    if leaf == "kernel" and value.ndim == 2:
        return value.T.contiguous()
    return value.flatten() if leaf in ("bias", "scale") and value.ndim > 1 else value


LAYOUTS = (
    *(
        Layout("JAX's ViT", "VisionTransformer", ("embedding/kernel", f"Transformer/{first}"), vit)
        for first in ("encoderblock_0/LayerNorm_0/scale", "encoderblock/LayerNorm_0/scale")
    ),
)
