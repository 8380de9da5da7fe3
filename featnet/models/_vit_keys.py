"""Checkpoints of vision transformers as their authors wrote them, under this library's names."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..layers import resample_grid, resample_patches, resample_positions

State = dict[str, torch.Tensor]
Rules = tuple[tuple[str, str], ...]
Adapt = Callable[[State, Any], None]


@dataclasses.dataclass(frozen=True)
class Layout:
    """The names that one source gives its tensors.

    Attributes:
        marker: pattern of a key that no other source has.
        prefix: pattern of what stands before the keys; those without it are another network's.
        rules: patterns and their replacements, in this order.
        unused: pattern of keys (without the prefix) that are for training only.
    """

    marker: str
    prefix: str = ""
    rules: Rules = ()
    unused: str = r"$^"


CLIP: Rules = (
    (r"^conv1\.", "patch_embed.proj."),
    (r"^class_embedding$", "cls_token"),
    (r"^positional_embedding$", "pos_embed"),
    (r"^transformer\.resblocks\.", "blocks."),
    (r"^ln_pre\.", "norm_pre."),
    (r"^ln_post\.", "norm."),
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.out_proj\.", ".proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"^proj$", "head.weight"),
)
DINO2: Rules = (
    (r"^register_tokens$", "reg_token"),
    (r"^blocks\.\d+\.(\d+\.)", r"blocks.\1"),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)
AIM: Rules = (
    (r"^preprocessor\.patchifier\.", "patch_embed."),
    (r"^preprocessor\.pos_embed", "pos_embed"),
    (r"^trunk\.", ""),
    (r"^post_trunk_norm\.", "norm."),
    (r"\.norm_(\d)\.", r".norm\1."),
    (r"\.mlp\.fc1\.", ".mlp.fc1_g."),
    (r"\.mlp\.fc3\.", ".mlp.fc1_x."),
)
BEIT3: Rules = (
    (r"^vision_embed\.cls_token", "cls_token"),
    (r"^vision_embed\.", "patch_embed."),
    (r"^encoder\.", ""),
    (r"\bA\.", ""),
    (r"^embed_positions\.weight$", "pos_embed"),
    (r"^layers\.", "blocks."),
    (r"\bffn_layernorm\.", "norm."),
    (r"\bffn\.", "mlp."),
    (r"\bself_attn_layer_norm\.", "norm1."),
    (r"\bself_attn\.", "attn."),
    (r"\bfinal_layer_norm\.", "norm2."),
    (r"\binner_attn_ln\.", "norm."),
    (r"\bout_proj\.", "proj."),
    (r"^layer_norm\.", "norm."),
)
RADIO: Rules = (
    (r"^patch_generator\.embedder\.", "patch_embed.proj."),
    (r"^patch_generator\.pos_embed$", "pos_embed"),
    (r"^patch_generator\.cls_token\.token$", "cls_token"),
    (r"\.grandma$", ".gamma"),
)
MOBILECLIP: Rules = (
    (r"^patch_emb\.", "patch_embed.backbone."),
    (r"\bblock\.conv\b", "conv"),
    (r"\bblock\.norm\b", "bn"),
    (r"^post_transformer_norm\.", "norm."),
    (r"\bpre_norm_mha\.0\.", "norm1."),
    (r"\bpre_norm_mha\.1\.", "attn."),
    (r"\bpre_norm_ffn\.0\.", "norm2."),
    (r"\bpre_norm_ffn\.1\.", "mlp.fc1."),
    (r"\bpre_norm_ffn\.4\.", "mlp.fc2."),
    (r"\bqkv_proj\.", "qkv."),
    (r"\bout_proj\.", "proj."),
    (r"^transformer\.", "blocks."),
    (r"^pos_embed\.pos_embed\.pos_embed$", "pos_embed"),
    (r"^classifier\.proj$", "head.weight"),
)

LAYOUTS = (
    Layout(r"^(module\.)?visual\.class_embedding$", r"^(module\.)?visual\.", CLIP),
    Layout(
        r"^(module\.)?visual\.trunk\.",
        r"^(module\.)?visual\.(trunk\.|(?=head\.proj))",
        ((r"^head\.proj\.weight$", "head.weight"), (r"^head\.proj\.bias$", "head.bias")),
    ),
    Layout(r"^vision_encoder\.mask_token$", r"^vision_encoder\.", DINO2, r"^mask_token$"),
    Layout(r"^preprocessor\.patchifier\.", "", AIM),
    Layout(r"^beit3\.", r"^beit3\.", BEIT3, r"^text_embed|mask_token$|\bB\."),
    Layout(r"^radio_model\.model\.", r"^radio_model\.model\.", RADIO),
    Layout(r"^image_encoder\.model\.", r"^image_encoder\.model\.", MOBILECLIP),
    Layout(r"^image_encoder\.patch_embed\.", r"^image_encoder\.", ((r"\.lin(\d)\.", r".fc\1."),)),
    Layout(r"^mask_token$", "", DINO2, r"^mask_token$|^decoder_"),  # DINOv2, MAE
)
ANY: Rules = ((r"\.gamma_(\d)$", r".ls\1.gamma"),)  # DeiT III
UNUSED = r"^pre_logits\.|^head_dist\.|^dist_token$|^attn_pool\."


def convert(
    state: Mapping[str, torch.Tensor],
    model: Any,
    *,
    layouts: Sequence[Layout] = LAYOUTS,
    rules: Rules = ANY,
    adapt: Adapt | None = None,
) -> State:
    """A checkpoint in any of the layouts, for a model of any grid and patch.

    Args:
        layouts: the first one whose marker is converted says how keys are renamed.
        rules: for checkpoints of any layout, or none.
        adapt: ``f(converted, model)``, what else a family has to change, in place.
    """
    target: Mapping[str, torch.Tensor] = model.state_dict()
    layout = next((t for t in layouts if any(re.search(t.marker, key) for key in state)), None)
    converted = _rename(state, layout) if layout else dict(state)
    if not layout and not converted.keys() & {"pos_embed", "patch_embed.proj.weight", "cls_token"}:
        return converted  # of something else
    converted = {_replace(key, rules): value for key, value in converted.items()}
    if adapt is not None:
        adapt(converted, model)
    converted = {k: v for k, v in converted.items() if k in target or not re.search(UNUSED, k)}
    _join_projections(converted, target)
    _shape_tokens(converted, target)
    _shape_patches(converted, target)
    _shape_head(converted, target, foreign=layout is not None)
    _shape_positions(converted, target, model)
    return converted


def _replace(key: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _rename(state: Mapping[str, torch.Tensor], layout: Layout) -> State:
    converted: State = {}
    for key, value in state.items():
        match = re.search(layout.prefix, key)
        if match is None:
            continue
        key = key[match.end() :]
        if not re.search(layout.unused, key):
            converted[_replace(key, layout.rules)] = value
    return converted


def _join_projections(converted: State, target: Mapping[str, torch.Tensor]) -> None:
    """Queries', keys' and values' projections as one, or one as three, as the model has them."""
    for key in list(converted):
        match = re.fullmatch(r"(.+\.)q(_proj)?\.(weight|bias)", key)
        if match and key not in target:
            stem, tail, end = match[1], match[2] or "", match[3]
            parts = [f"{stem}{letter}{tail}.{end}" for letter in "qkv"]
            if f"{stem}qkv.{end}" in target and all(part in converted for part in parts):
                converted[f"{stem}qkv.{end}"] = torch.cat([converted.pop(part) for part in parts])
        match = re.fullmatch(r"(.+\.)qkv\.(weight|bias)", key)
        if match and key not in target and f"{match[1]}q_proj.{match[2]}" in target:
            thirds = converted.pop(key).chunk(3)
            names = (f"{match[1]}{letter}_proj.{match[2]}" for letter in "qkv")
            converted |= {n: t for n, t in zip(names, thirds, strict=True) if n in target}


def _shape_tokens(converted: State, target: Mapping[str, torch.Tensor]) -> None:
    """Tokens as (1, n, C), positions as the model's number of dimensions."""
    token, table = converted.get("cls_token"), converted.get("pos_embed")
    if token is not None and token.ndim < 3:
        token = token.reshape(1, -1, token.shape[-1])
        converted["cls_token"] = token[:, :1]
        if token.shape[1] > 1:  # of several teachers, and registers
            converted["reg_token"] = token[:, 1:]
    if table is not None and "pos_embed" in target:
        wanted = target["pos_embed"].ndim
        while table.ndim > wanted and table.shape[0] == 1:
            table = table[0]
        converted["pos_embed"] = table[None] if table.ndim == wanted - 1 else table


def _shape_patches(converted: State, target: Mapping[str, torch.Tensor]) -> None:
    key = "patch_embed.proj.weight"
    weight, wanted = converted.get(key), target.get(key)
    if weight is None or wanted is None:
        return
    if weight.ndim == 2:  # a linear layer over (C, h, w)
        chans = wanted.shape[1]
        side = math.isqrt(weight.shape[1] // chans)
        weight = weight.reshape(weight.shape[0], chans, side, -1)
    converted[key] = resample_patches(weight, (wanted.shape[-2], wanted.shape[-1]))
    if "patch_embed.proj.bias" in target and "patch_embed.proj.bias" not in converted:
        converted["patch_embed.proj.bias"] = weight.new_zeros(weight.shape[0])


def _shape_head(converted: State, target: Mapping[str, torch.Tensor], *, foreign: bool) -> None:
    """A projection (width, out) without a bias, as CLIP's, to a linear layer."""
    weight, wanted = converted.get("head.weight"), target.get("head.weight")
    if not foreign or weight is None or "head.bias" in converted:
        return
    width = converted["norm.weight"].shape[0] if "norm.weight" in converted else weight.shape[1]
    if weight.shape[1] != width or (wanted is not None and weight.T.shape == wanted.shape):
        converted["head.weight"] = weight = weight.T
    converted["head.bias"] = weight.new_zeros(weight.shape[0])


def _shape_positions(converted: State, target: Mapping[str, torch.Tensor], model: Any) -> None:
    """Positions of another grid, with or without those of the tokens before them."""
    for key in [k for k in converted if k.endswith((".rel_pos_h", ".rel_pos_w"))]:
        if key in target and target[key].shape[0] != converted[key].shape[0]:
            rows, length = converted[key].float().T[None], target[key].shape[0]
            resized = F.interpolate(rows, size=length, mode="linear")[0].T
            converted[key] = resized.to(converted[key].dtype)
    table, wanted = converted.get("pos_embed"), target.get("pos_embed")
    if table is None or wanted is None or table.shape == wanted.shape:
        return
    grid = model.patch_embed.grid_size
    if wanted.ndim == 4:
        converted["pos_embed"] = resample_grid(table, grid)
        return
    own = wanted.shape[1] - grid[0] * grid[1]  # positions of tokens before the patches'
    if own == 0 and table.shape[1] == wanted.shape[1] + 1 and "cls_token" in converted:
        had, old = 1, grid
    else:
        had, old = _grid_of(table.shape[1], own, model.num_prefix_tokens)
    first, rest = table[:, :had], table[:, had:]
    if had > own:  # a class token without a position of its own holds what it had
        if own == 0 and "cls_token" in converted:
            converted["cls_token"] = converted["cls_token"] + first[:, :1]
        first = first[:, :own]
    elif had < own:
        first = torch.cat((first, first.new_zeros(1, own - had, first.shape[2])), 1)
    converted["pos_embed"] = torch.cat((first, resample_positions(rest, grid, old=old)), 1)


def _grid_of(length: int, own: int, prefix: int) -> tuple[int, tuple[int, int]]:
    """The number of positions before a square grid, and its sides."""
    for before in dict.fromkeys((own, prefix, 0, 1, 2)):
        side = math.isqrt(max(0, length - before))
        if side and side * side == length - before:
            return before, (side, side)
    return own, (length - own, 1)  # no square: its shape will be refused
