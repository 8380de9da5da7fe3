"""Checkpoints of EVA, BEiT and their kin in their authors' layouts, under this library's names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch

from ..layers import RelativePositions
from ._vit_keys import Layout, Rules, State, convert

PE: Rules = (
    (r"^conv1\.", "patch_embed.proj."),
    (r"^class_embedding$", "cls_token"),
    (r"^positional_embedding$", "pos_embed"),
    (r"^transformer\.resblocks\.", "blocks."),
    (r"^ln_pre\.", "norm_pre."),
    (r"^ln_post\.", "norm."),
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"\.ls_(\d)\.gamma$", r".gamma_\1"),
    (r"^attn_pool\.attn\.", "attn_pool."),
    (r"^attn_pool\.layernorm\.", "attn_pool.norm."),
    (r"^attn_pool\.probe$", "attn_pool.latent"),
    (r"\.in_proj_", ".qkv."),
    (r"\.out_proj\.", ".proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"^proj$", "head.weight"),
)
SAPIENS2: Rules = (
    (r"^storage_tokens$", "reg_token"),
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"\.attn\.w([qkv])\.", r".attn.\1_proj."),
    (r"\.attn\.gamma\.weight$", ".gamma_1"),
    (r"\.ffn\.", ".mlp."),
    (r"\.ln(\d)\.", r".norm\1."),
    (r"^ln1\.", "norm."),
)
DINOV3: Rules = ((r"^storage_tokens$", "reg_token"), (r"\.ls(\d)\.gamma$", r".gamma_\1"))
ROPE = r"\brope\w*\.(?!freqs$)|\brope_embed\b"  # tables, which are made anew

LAYOUTS = (
    Layout(r"^visual\.conv1\.", r"^visual\.", PE, ROPE),
    Layout(r"^conv1\.weight$", "", PE, ROPE),
    Layout(
        r"^visual\.trunk\.",
        r"^visual\.(trunk\.|(?=head\.proj))",
        ((r"^head\.proj\.weight$", "head.weight"), (r"^head\.proj\.bias$", "head.bias")),
        ROPE,
    ),
    Layout(r"^visual\.(pos_embed|cls_token|patch_embed\.)", r"^visual\.", (), ROPE),
    Layout(r"\.attn\.wq\.weight$", "", SAPIENS2, rf"^mask_token$|{ROPE}"),
    Layout(
        r"^storage_tokens$",
        "",
        DINOV3,
        rf"^mask_token$|^projectors\.|^local_cls_norm|\.bias_mask$|{ROPE}",
    ),
    Layout(  # pre-trained by filling masks; what follows is trained anew
        r"^(mask_token|lm_head\.\w+)$",
        "",
        ((r"^norm\.", "fc_norm."),),
        rf"^mask_token$|^lm_head\.|{ROPE}",
    ),
)
ANY: Rules = (
    (r"\.mlp\.ffn_ln\.", ".mlp.norm."),
    (r"\.attn\.inner_attn_ln\.", ".attn.norm."),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)


def convert_eva(state: Mapping[str, torch.Tensor], model: Any) -> State:
    """A checkpoint in any of the layouts, for a model of any grid and patch."""
    return convert(state, model, layouts=LAYOUTS, rules=ANY, adapt=_adapt)


def _adapt(converted: State, model: Any) -> None:
    target: Mapping[str, torch.Tensor] = model.state_dict()
    for key in list(converted):
        if re.search(ROPE, key) or key.endswith("relative_position_index"):
            del converted[key]
    for end in ("weight", "bias"):  # the norm where the model has it
        if f"fc_norm.{end}" in converted and f"fc_norm.{end}" not in target:
            converted[f"norm.{end}"] = converted.pop(f"fc_norm.{end}")
    _split_biases(converted, target)
    _split_pool(converted)
    _spread_tables(converted, target, model)


def _split_biases(converted: State, target: Mapping[str, torch.Tensor]) -> None:
    """Biases of queries and values under the names that the model has; keys have none."""
    for key in list(converted):
        match = re.fullmatch(r"(.+\.attn\.)(qkv\.bias|[qv]_bias)", key)
        if match is None or key in target:
            continue
        stem = match[1]
        if match[2] == "qkv.bias":
            if f"{stem}qkv.weight" not in target:
                continue  # goes with its weight
            q, _, v = converted[key].chunk(3)
            if f"{stem}q_bias" in target:
                converted[f"{stem}q_bias"], converted[f"{stem}v_bias"] = q, v
            elif q.any() or v.any():
                continue  # left over, as the model has no place for it
            del converted[key]
        elif f"{stem}{match[2][0]}_proj.bias" in target:
            converted[f"{stem}{match[2][0]}_proj.bias"] = converted.pop(key)


def _split_pool(converted: State) -> None:
    """A pool's projection: the learnt token's apart from the others'."""
    for end in ("weight", "bias"):
        joint = converted.pop(f"attn_pool.qkv.{end}", None)
        if joint is not None:
            third = joint.shape[0] // 3
            converted[f"attn_pool.q.{end}"], converted[f"attn_pool.kv.{end}"] = (
                joint[:third],
                joint[third:],
            )


def _spread_tables(converted: State, target: Mapping[str, torch.Tensor], model: Any) -> None:
    """A table of relative positions for every block, and for the model's grid."""
    name = "relative_position_bias_table"
    shared = converted.pop(f"rel_pos_bias.{name}", None)
    for key in (key for key in target if key.endswith(name)):
        table = converted.get(key, shared)
        if table is None:
            continue
        side = (math.isqrt(table.shape[0] - 3) + 1) // 2
        old = RelativePositions((side, side), prefix=True)
        grid = model.patch_embed.grid_size
        same = table.shape == target[key].shape and grid[0] == grid[1]
        # what fits no square grid is left, and refused for its shape
        fits = old.length == table.shape[0] and not same
        converted[key] = old.resample(table, grid) if fits else table
