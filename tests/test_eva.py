"""EVA, DINOv3, Perception Encoder, RoPE-ViT, Sapiens2, BEiT: positions of any grid, checkpoints."""

from __future__ import annotations

import copy
import functools
import pickle
import warnings
from typing import Any

import helpers
import pytest
import torch
from helpers import error, fill_noise, image_batch
from torch import nn

import featnet
from featnet.checkpoints.checkpoint import load
from featnet.errors import ArgumentError, CheckpointError, InputSizeError
from featnet.layers import (
    Augment,
    CentredRotaryEmbedding,
    MixedRotaryEmbedding,
    RelativePositions,
    RotaryEmbedding,
)
from featnet.layers.memo import Memo
from featnet.layers.relative_position import spread
from featnet.models import beit, eva

CPU = torch.device("cpu")
# What says how large a network is, not how it is made
SIZES = ("img_size", "embed_dim", "depth", "num_heads", "num_kv_heads", "mlp_ratio", "init_values")
ROWS = {**eva.VARIANTS, **beit.VARIANTS}


def kinds() -> list[str]:
    """One variant of each kind of row."""
    found: dict[str, str] = {}
    for name, row in ROWS.items():
        facts = {k: v for k, v in row.items() if k not in SIZES}
        found.setdefault(repr([name[:4] == "beit", sorted(facts.items())]), name)
    return list(found.values())


def options(name: str, depth: int = 2) -> dict[str, Any]:
    """A small form of a variant: a few narrow blocks for a grid of 4 x 4."""
    row = ROWS[name]
    small = {"depth": depth, "embed_dim": 64, "num_heads": 4, "num_classes": 7}
    if "sapiens2" in name:
        small["num_kv_heads"] = (4, 2, 1)[:depth]
    return {**small, "img_size": 4 * row.get("patch_size", 16)}


def small(name: str, *, depth: int = 2, **more: Any) -> Any:
    net = featnet.create_model(name, **{**options(name, depth), **more})
    return fill_noise(net).eval()


def turns(rope: RotaryEmbedding, size: tuple[int, int], prefix: int = 0, **more: Any) -> Any:
    return rope(size, prefix=prefix, depth=1, device=CPU, **more)[0]


# Parity -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", kinds())
def test_like_the_peer_at_any_size(timm: Any, name: str) -> None:
    """Logits, levels with and without the norm, the gradient; at the native and another size."""
    mine = small(name)
    patch, is_beit = mine.patch_embed.patch_size[0], name.startswith("beit")
    dynamic = {} if is_beit else {"dynamic_img_size": True}
    peer: Any = helpers.peer_model(name, **options(name), **dynamic)
    peer.load_state_dict(mine.state_dict())
    peer.eval()
    for size in ((4 * patch, 4 * patch), (3 * patch, 6 * patch)):
        if is_beit and size[0] != size[1]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                peer.set_input_size(size)
        pair = [image_batch(*size, batch=2).requires_grad_() for _ in range(2)]
        with torch.no_grad():
            ours, theirs = mine(pair[0]), peer(pair[1])
        assert theirs.std() > 1e-3
        assert error(ours, theirs) < 1e-5
        for norm in (False, True):
            maps = [
                net.forward_intermediates(x, norm=norm, intermediates_only=True)
                for net, x in zip((mine, peer), pair, strict=True)
            ]
            pairs = [[y.detach() for y in both] for both in zip(*maps, strict=True)]
            assert max(error(*both) for both in pairs) < 1e-5
        weighted = [sum((i + y.sin()).square().sum() for i, y in enumerate(m)) for m in maps]
        grads = [torch.autograd.grad(w, x)[0] for w, x in zip(weighted, pair, strict=True)]
        assert error(*grads) < 1e-5


@pytest.mark.parametrize("name", kinds())
def test_explicit_attention_is_the_fused_one(name: str) -> None:
    net, x = small(name), image_batch(48 // 16 * ROWS[name].get("patch_size", 16), 28 * 16)
    x = x[..., : x.shape[2] * 2]
    with torch.inference_mode():
        fused = net(x)
        net.set_fused_attn(False)
        assert error(net(x), fused) < 1e-5


# Rotary embeddings ------------------------------------------------------------------------

ROPES = {
    "index": functools.partial(RotaryEmbedding, 16, temperature=100),
    "half": functools.partial(RotaryEmbedding, 16, temperature=100, rotate_half=True),
    "centred": functools.partial(CentredRotaryEmbedding, 16, temperature=100, rotate_half=True),
    "mixed": functools.partial(MixedRotaryEmbedding, 16, heads=3, depth=1, temperature=10),
}


@pytest.mark.parametrize("kind", ROPES)
def test_rotary_products_depend_on_the_offset_alone(kind: str) -> None:
    """And turning changes no length, nor a prefix token."""
    torch.manual_seed(0)
    turn = turns(ROPES[kind](), (5, 6), prefix=2)
    q, k = torch.randn(2, 1, 3, 1, 16).expand(-1, -1, -1, 32, -1)
    both = [turn.turn(t) for t in (q, k)]
    torch.testing.assert_close(both[0].norm(dim=-1), q.norm(dim=-1))
    assert torch.equal(both[0][:, :, :2], q[:, :, :2])
    products = (both[0] @ both[1].mT)[0, :, 2:, 2:].unflatten(1, (5, 6)).unflatten(3, (5, 6))
    here, there = products[:, :-1, :-2, :-1, :-2], products[:, 1:, 2:, 1:, 2:]
    torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-4)
    assert products.std() > 0.1


def test_rotary_layouts_are_one_up_to_the_order_of_channels() -> None:
    apart, side = (turns(ROPES[kind](), (3, 4)) for kind in ("half", "index"))
    x = torch.randn(1, 2, 12, 16)
    order = torch.arange(16).unflatten(0, (2, 8)).T.flatten()  # of pairs side by side
    torch.testing.assert_close(apart.turn(x)[..., order], side.turn(x[..., order]))


@pytest.mark.parametrize("kind", ROPES)
@pytest.mark.parametrize("density", [2, 4])
def test_denser_patches_lie_within_the_others(kind: str, density: int) -> None:
    """The mean coordinate of the patches in the place of one is that one's, exactly."""
    rope = ROPES[kind]()
    one = rope.coordinates((3, 5), CPU, 1).reshape(3, 5, 2)
    many = rope.coordinates((3 * density, 5 * density), CPU, density)
    many = many.reshape(3, density, 5, density, 2).mean((1, 3))
    torch.testing.assert_close(many, one, rtol=0, atol=1e-6)


def test_reference_stretches_a_map_to_the_one_it_was_trained_with() -> None:
    rope = RotaryEmbedding(16, temperature=100, reference=(8, 8))
    large = rope.coordinates((16, 8), CPU, 1).reshape(16, 8, 2)
    same = rope.coordinates((8, 8), CPU, 1).reshape(8, 8, 2)
    torch.testing.assert_close(large[::2], same)


def test_augment_is_for_training() -> None:
    rope = RotaryEmbedding(16, temperature=100, augment=Augment(shift=0.5, jitter=1.2, rescale=2))
    plain = turns(rope.eval(), (3, 3))
    rope.train()
    torch.manual_seed(0)
    first, second = turns(rope, (3, 3)), turns(rope, (3, 3))
    assert not torch.equal(first.sin, second.sin)
    assert not torch.equal(first.sin, plain.sin)
    assert torch.equal(turns(rope.eval(), (3, 3)).sin, plain.sin)


def test_bad_rotary_arguments() -> None:
    with pytest.raises(ArgumentError, match="rope_jitter_coords=0.5"):
        Augment(jitter=0.5)
    with pytest.raises(ArgumentError, match="multiple of 4"):
        RotaryEmbedding(18, temperature=100)
    with pytest.raises(ArgumentError, match="'yx'"):
        RotaryEmbedding(16, temperature=100, indexing="yx")
    wrong = ("round", {}), ("centred", {"reference": (2, 2)}), ("mixed", {"offset": 1})
    for rope in (eva.Rope(kind, **more) for kind, more in wrong):
        with pytest.raises(ArgumentError, match="kind|mixed has no"):
            rope.build(16, heads=2, depth=1)


# Tables are kept, and never stale ---------------------------------------------------------


def test_memo_keeps_the_last_few() -> None:
    memo = Memo(2)
    first = memo.get(1, lambda: torch.zeros(1))
    assert memo.get(1, lambda: torch.ones(1)) is first
    memo.get(2, lambda: torch.zeros(1))
    memo.get(3, lambda: torch.zeros(1))
    assert memo.get(1, lambda: torch.ones(1)) is not first
    assert len(memo) == 2
    assert len(copy.deepcopy(memo)) == len(pickle.loads(pickle.dumps(memo))) == 0


def test_a_table_made_in_inference_can_be_trained_with() -> None:
    net, x = small("vit_small_patch16_dinov3_qkvb"), image_batch(32, 48)
    with torch.inference_mode():
        before = net(x)
    after = net(x)
    after.sum().backward()
    assert torch.equal(before, after)


@pytest.mark.parametrize(
    "name", ["eva02_tiny_patch14_224", "vit_small_patch16_rope_mixed_224", "beit_base_patch16_224"]
)
def test_built_on_meta_then_loaded(name: str) -> None:
    """No table, bias or index is left empty."""
    net = small(name)
    with torch.device("meta"):
        empty = featnet.create_model(name, **options(name)).eval()
    empty.load_state_dict(net.state_dict(), assign=True)
    assert not list(empty.buffers())
    x = image_batch(*(5 * side for side in net.patch_embed.patch_size))
    with torch.inference_mode():
        assert torch.equal(empty(x), net(x))


@pytest.mark.parametrize("name", ["vit_small_patch16_rope_mixed_ape_224", "beit_base_patch16_224"])
def test_exported_for_any_size(name: str) -> None:
    net = featnet.FeatureListNet(small(name, depth=1)).eval()
    rows, columns = (torch.export.Dim(side, min=2, max=20) for side in "hw")
    shapes = ({2: 16 * rows, 3: 16 * columns},)
    with torch.no_grad():
        program = torch.export.export(
            net, (image_batch(48, 80),), dynamic_shapes=shapes, strict=True
        ).module()
        for size in ((48, 80), (64, 64), (80, 48)):  # 64 is the native one
            x = image_batch(*size)
            assert error(program(x)[0], net(x)[0]) < 1e-5


def test_compiled_for_several_sizes() -> None:
    net = small("vit_small_patch16_rope_mixed_ape_224", depth=1)
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    with torch.no_grad():
        for x in (image_batch(48, 80), image_batch(64, 64)):
            assert error(compiled(x), net(x)) < 1e-5


# Relative positions -----------------------------------------------------------------------


def test_bias_is_the_table_at_the_offset() -> None:
    near = RelativePositions((3, 4), prefix=True)
    table = torch.randn(near.length, 2)
    bias = near.bias(table, (3, 4))
    grid = table[:-3].unflatten(0, (5, 7))
    for q in range(12):
        for k in range(12):
            offset = grid[q // 4 - k // 4 + 2, q % 4 - k % 4 + 3]
            assert torch.equal(bias[:, 1 + q, 1 + k], offset)
    assert torch.equal(bias[:, 0, 1:], table[-3][:, None].expand(-1, 12))
    assert torch.equal(bias[:, 1:, 0], table[-2][:, None].expand(-1, 12))
    assert torch.equal(bias[:, 0, 0], table[-1])


def test_resampled_tables_are_mixtures_of_neighbours() -> None:
    for old, new in ((4, 9), (9, 4), (5, 5), (1, 3)):
        weights = spread(old, new, density=1, same=False, device=CPU)
        assert weights.shape == (2 * new - 1, 2 * old - 1)
        torch.testing.assert_close(weights.sum(1), torch.ones(2 * new - 1))
        assert (weights >= 0).all() and ((weights > 0).sum(1) <= 2).all()
        torch.testing.assert_close(weights, weights.flip(0, 1))
        assert weights[new - 1, old - 1] == 1  # no distance stays none


def test_denser_patches_have_the_biases_of_the_others() -> None:
    near = RelativePositions((4, 3), prefix=True)
    table = torch.randn(near.length, 2)
    full, dense = near.bias(table, (4, 3)), near.bias(table, (8, 6), density=2)
    every = torch.arange(48).reshape(8, 6)[::2, ::2].flatten() + 1
    torch.testing.assert_close(dense[:, every][:, :, every], full[:, 1:, 1:])


@pytest.mark.parametrize(
    "name", ["vit_small_patch16_dinov3", "vit_small_patch16_rope_ape_224", "beit_base_patch16_224"]
)
def test_output_stride(name: str) -> None:
    net = small(name, features_only=True, output_stride=8, out_indices=(0, 1))
    assert net.feature_info.reduction() == [8, 8]
    assert [y.shape[2:] for y in net(image_batch(64, 48))] == [(8, 6)] * 2
    assert net.feature_info.sizes((64, 48)) == [(8, 6)] * 2


# Behaviour --------------------------------------------------------------------------------


def test_norm_is_what_the_authors_give() -> None:
    for name, normed in (("vit_small_patch16_dinov3", True), ("eva02_tiny_patch14_224", False)):
        net = small(name, features_only=True, out_indices=(0,))
        plain = small(name, features_only=True, out_indices=(0,), norm=False)
        x = image_batch(*(4 * side for side in net.body.patch_embed.patch_size))
        assert torch.equal(net(x)[0], plain(x)[0]) is not normed


@pytest.mark.parametrize(
    "name",
    ["vit_small_patch16_rope_mixed_224", "vit_small_patch16_dinov3", "beit_base_patch16_224"],
)
def test_what_weight_decay_leaves_alone_is_the_peers(timm: Any, name: str) -> None:
    peer: Any = helpers.peer_model(name, **options(name))
    assert small(name).no_weight_decay() == peer.no_weight_decay()


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    net, x = small("vit_small_patch16_rope_mixed_224").train(), image_batch(32, 32)
    grads = []
    for enable in (False, True):
        net.set_grad_checkpointing(enable)
        grads.append(torch.autograd.grad(net(x).sum(), list(net.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_bad_arguments() -> None:
    for given, why in (
        ({"num_kv_heads": (4, 4, 4)}, "3 entries for 2 blocks"),
        ({"num_kv_heads": 3}, "3 kv_heads"),
        ({"num_kv_heads": 2, "attn_layer": eva.KeylessAttention}, "num_kv_heads.*kv_heads"),
        ({"global_pool": "token", "class_token": False}, "token"),
    ):
        with pytest.raises(ArgumentError, match=why):
            small("vit_base_patch16_sapiens2", **given)
    with pytest.raises(ArgumentError, match="no scales"):
        small("eva02_enormous_patch14_clip_224", init_values=0.1)
    with pytest.raises(InputSizeError, match="nearest height is 32 or 48"):
        small("beit_base_patch16_224")(image_batch(40, 64))


# Checkpoints ------------------------------------------------------------------------------


def converted(name: str, state: dict[str, torch.Tensor], **more: Any) -> Any:
    net = featnet.create_model(name, **{**options(name), **more}).eval()
    load(net, state, source="test")
    return net


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def renamed(net: nn.Module, *pairs: tuple[str, str]) -> dict[str, torch.Tensor]:
    state = {}
    for key, value in net.state_dict().items():
        for mine, theirs in pairs:
            key = key.replace(mine, theirs)
        state[key] = value
    return state


def test_dinov3_checkpoint() -> None:
    net = small("vit_small_plus_patch16_dinov3_qkvb")
    state = renamed(
        net,
        ("gamma_1", "ls1.gamma"),
        ("gamma_2", "ls2.gamma"),
        ("reg_token", "storage_tokens"),
        ("mlp.fc1_g", "mlp.w1"),
        ("mlp.fc1_x", "mlp.w2"),
        ("mlp.fc2", "mlp.w3"),
    )
    for i in range(2):
        q, v = (state.pop(f"blocks.{i}.attn.{letter}_bias") for letter in "qv")
        state[f"blocks.{i}.attn.qkv.bias"] = torch.cat((q, torch.full_like(q, 9.0), v))
        state[f"blocks.{i}.attn.qkv.bias_mask"] = torch.zeros(3 * len(q))
    state |= {"rope_embed.periods": torch.ones(4), "mask_token": torch.zeros(1, 64)}
    state["local_cls_norm.weight"] = torch.ones(64)
    assert same(converted("vit_small_plus_patch16_dinov3_qkvb", state), net)
    with pytest.raises(CheckpointError, match="qkv.bias"):  # biases that would be lost
        converted("vit_small_plus_patch16_dinov3", state)
    for key in state:
        if key.endswith("qkv.bias"):
            state[key] = torch.zeros_like(state[key])
    converted("vit_small_plus_patch16_dinov3", state)


def test_perception_encoder_checkpoint() -> None:
    net = small("vit_pe_core_base_patch16_224", init_values=0.1)
    state = renamed(
        net,
        ("patch_embed.proj", "conv1"),
        ("norm_pre", "ln_pre"),
        ("attn_pool.norm", "attn_pool.ln"),
        ("norm1", "ln_1"),
        ("norm2", "ln_2"),
        ("blocks.", "transformer.resblocks."),
        ("attn_pool.ln", "attn_pool.layernorm"),
        ("attn_pool.latent", "attn_pool.probe"),
        ("attn.qkv.", "attn.in_proj_"),
        ("attn.proj.", "attn.out_proj."),
        ("gamma_1", "ls_1.gamma"),
        ("attn_pool.proj.", "attn_pool.attn.out_proj."),
        ("gamma_2", "ls_2.gamma"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
    )
    state = {f"ln_post.{k[5:]}" if k.startswith("norm.") else k: v for k, v in state.items()}
    for end in ("weight", "bias"):
        joint = [state.pop(f"attn_pool.{part}.{end}") for part in ("q", "kv")]
        state[f"attn_pool.attn.in_proj_{end}"] = torch.cat(joint)
    state["class_embedding"] = state.pop("cls_token").flatten()
    state["positional_embedding"] = state.pop("pos_embed")[0]
    state["proj"] = state.pop("head.weight").T
    del state["head.bias"]
    nn.init.zeros_(net.head.bias)
    state = {f"visual.{key}": value for key, value in state.items()}
    state["transformer.resblocks.0.ln_1.weight"] = torch.ones(3)  # the text's
    found = converted("vit_pe_core_base_patch16_224", state, init_values=0.1)
    assert same(found, net)


def test_sapiens2_checkpoint() -> None:
    name = "vit_base_patch16_sapiens2"
    net = small(name)
    state = renamed(
        net,
        ("norm1.", "ln1."),
        ("norm2.", "ln2."),
        ("q_proj", "wq"),
        ("k_proj", "wk"),
        ("v_proj", "wv"),
        ("gamma_1", "attn.gamma.weight"),
        ("mlp.fc1", "ffn.w12"),
        ("mlp.fc2", "ffn.w3"),
        ("reg_token", "storage_tokens"),
        ("embed.proj", "embed.projection"),
    )
    state = {f"ln1.{k[5:]}" if k.startswith("norm.") else k: v for k, v in state.items()}
    state["mask_token"] = torch.zeros(1)
    assert same(converted(name, state), net)


def test_eva_clip_checkpoint_of_another_grid() -> None:
    name = "eva02_base_patch16_clip_224"
    net = small(name)
    state = renamed(
        net,
        ("mlp.norm", "mlp.ffn_ln"),
        ("attn.norm", "attn.inner_attn_ln"),
        ("fc1_g", "w1"),
        ("fc1_x", "w2"),
        ("mlp.fc2", "mlp.w3"),
        ("q_proj.bias", "q_bias"),
        ("v_proj.bias", "v_bias"),
    )
    state |= {"rope.freqs_cos": torch.ones(2), "blocks.0.attn.rope.freqs_sin": torch.ones(2)}
    state = {f"visual.{key}": value for key, value in state.items()}
    state |= {"text.token": torch.ones(2), "logit_scale": torch.ones(())}
    assert same(converted(name, state), net)
    larger = converted(name, state, img_size=96)
    assert larger.pos_embed.shape == (1, 37, 64)
    x = image_batch(96, 96)
    with torch.inference_mode():  # positions resampled at once, or in every forward
        assert error(larger(x), net(x)) < 1e-5


def test_beit_checkpoints() -> None:
    name = "beit_base_patch16_224"
    net, key = small(name), "relative_position_bias_table"
    with torch.inference_mode():
        x, larger = image_batch(80, 80), converted(name, net.state_dict(), img_size=80)
        assert error(larger(x), net(x)) < 1e-5
    state = {k: v for k, v in net.state_dict().items() if not k.endswith(key)}
    state |= {"mask_token": torch.zeros(1), "lm_head.weight": torch.zeros(2, 64)}
    state |= {"norm.weight": state.pop("fc_norm.weight"), "norm.bias": state.pop("fc_norm.bias")}
    table = state[f"rel_pos_bias.{key}"] = net.blocks[0].attn.relative_position_bias_table
    state["rel_pos_bias.relative_position_index"] = torch.zeros(2)
    found = converted(name, state)
    assert torch.equal(found.fc_norm.weight, net.fc_norm.weight)
    tables = [block.attn.relative_position_bias_table for block in found.blocks]
    assert all(torch.equal(each, table) for each in tables)
    with pytest.raises(CheckpointError, match=key):
        converted(name, {**net.state_dict(), f"blocks.0.attn.{key}": torch.zeros(17, 4)})
