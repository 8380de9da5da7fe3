"""Swin, Hiera and PVT v2: what attention within windows means, sizes, strides, checkpoints,
peers."""

from __future__ import annotations

import copy
import itertools
import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import helpers
import pytest
import torch
from helpers import fill_noise, image_batch, law_error
from torch import nn

import featnet
from featnet.dilation.rule import set_output_stride
from featnet.errors import ArgumentError, InputSizeError, OutputStrideError
from featnet.layers import Phased, relative_bias, shift_mask, split_windows
from featnet.models.hiera import UnitAttention
from featnet.models.swin import PatchMerging, WindowAttention

SWIN = dict(embed_dim=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 4), num_classes=5)
HIERA = dict(embed_dim=16, stages=(1, 2, 2, 2), num_classes=5)
PVT = dict(depths=(1, 1, 1, 1), embed_dims=(8, 16, 20, 32), num_classes=5)

# name of a variant, what makes it small; one for each way that the code can go
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "swin": ("swin_tiny_patch4_window7_224", dict(SWIN, window_size=4, img_size=(96, 64))),
    "swin_whole": (
        "swin_s3_tiny_224",
        dict(SWIN, window_size=((2, 4), (3, 5), 14, 7), head_dim=12, always_partition=True),
    ),
    "swin_v2": (
        "swinv2_base_window12to16_192to256",
        dict(SWIN, window_size=(6, 4), img_size=(96, 64), pretrained_window_sizes=(12, 12, 12, 6)),
    ),
    "swin_v2_cr": (
        "swinv2_cr_tiny_ns_224",
        dict(SWIN, img_size=(96, 64), extra_norm_period=2, window_ratio=(6, 4, 4, 4)),
    ),
    "hiera": ("hiera_tiny_224", dict(HIERA, img_size=(96, 64))),
    "hiera_abswin": (
        "hiera_small_abswin_256",
        dict(HIERA, img_size=(96, 64), q_pool=2, mask_unit_attn=(True, False, True, False)),
    ),
    "pvt_v2": ("pvt_v2_b0", dict(PVT, qkv_bias=False)),
    "pvt_v2_li": ("pvt_v2_b2_li", dict(PVT, linear=True)),
}
EACH = pytest.mark.parametrize("kind", SMALL)


def make(kind: str, **more: Any) -> Any:
    name, options = SMALL[kind]
    return fill_noise(featnet.create_model(name, **{**options, **more})).eval()


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return helpers.error(a.detach(), b.detach())


def step(kind: str) -> int:
    return 4 if kind.startswith("swin") else 1


# Windows ----------------------------------------------------------------------------------


def test_relative_bias_has_the_row_of_each_distance() -> None:
    height, width = 2, 3
    table = torch.arange(float((2 * height - 1) * (2 * width - 1) * 2)).view(3, 5, 2)
    bias = relative_bias(table, (height, width))
    places = list(itertools.product(range(height), range(width)))
    for (i, q), (j, k) in itertools.product(enumerate(places), repeat=2):
        wanted = table[q[0] - k[0] + height - 1, q[1] - k[1] + width - 1]
        assert torch.equal(bias[:, i, j], wanted)


@pytest.mark.parametrize("shift", [(2, 1), (0, 3), (1, 0)])
def test_a_shift_mask_parts_what_the_map_has_apart(shift: tuple[int, int]) -> None:
    """Positions of a window see each other just if the shift did not carry one around the map."""
    size, window = (8, 12), (4, 6)
    places = torch.stack(torch.meshgrid(*(torch.arange(side) for side in size), indexing="ij"), -1)[
        None
    ]
    rolled = places.roll((-shift[0], -shift[1]), (1, 2))
    rolled = split_windows(rolled, window).reshape(-1, window[0] * window[1], 2)
    apart = (rolled[:, :, None] - rolled[:, None]).abs()  # within a window nothing else is so far
    wanted = (apart[..., 0] >= window[0]) | (apart[..., 1] >= window[1])
    mask = shift_mask(size, window, shift, like=torch.zeros(()))
    assert torch.equal(mask != 0, wanted) and wanted.any()


@pytest.mark.parametrize("shift", [(0, 0), (2, 1)])
def test_window_attention_is_attention_to_ones_own_window(shift: tuple[int, int]) -> None:
    """Against one attention over the whole map that forbids all other windows."""
    window, (height, width) = (4, 3), (8, 9)
    attention = WindowAttention(16, 2, window=window, shift=shift).double().eval()
    fill_noise(attention)
    x = torch.randn(2, height, width, 16, dtype=torch.float64)
    rows = (torch.arange(height) - shift[0]).div(window[0], rounding_mode="floor")
    columns = (torch.arange(width) - shift[1]).div(window[1], rounding_mode="floor")
    group = (rows[:, None] * 100 + columns).flatten()
    there = group[:, None] == group
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    apart = places[:, None] - places  # from key to query
    reach = torch.tensor([window[0] - 1, window[1] - 1])
    near = (apart.abs() <= reach).all(-1)
    index = (apart + reach).clamp(min=0) @ torch.tensor([2 * window[1] - 1, 1])
    table = attention.relative_position_bias_table
    bias = table[index.clamp(max=len(table) - 1)].permute(2, 0, 1)
    bias = bias.masked_fill(~(there & near), -math.inf)
    q, k, v = attention.qkv(x).reshape(2, -1, 3, 2, 8).permute(2, 0, 3, 1, 4)
    y = ((q * 8**-0.5) @ k.transpose(-2, -1) + bias).softmax(-1) @ v
    wanted = attention.proj(y.transpose(1, 2).flatten(2)).view_as(x)
    assert error(attention(x), wanted) < 1e-10


def test_windows_of_hiera_do_not_see_what_fills_them_up() -> None:
    """A map of parts of windows, each of which attends as a map of its own."""
    attention = fill_noise(UnitAttention(16, 32, num_heads=4, window=(4, 4), stride=2)).double()
    alone = copy.deepcopy(attention)
    alone.window = None
    x = torch.randn(2, 7, 9, 16, dtype=torch.float64)
    y = attention(x)
    assert y.shape == (2, 4, 5, 32)
    for top, left in itertools.product((0, 4), (0, 4, 8)):
        part = alone(x[:, top : top + 4, left : left + 4])
        found = y[:, top // 2 :, left // 2 :][:, : part.shape[1], : part.shape[2]]
        assert error(found, part) < 1e-10


# Two forms of attention -------------------------------------------------------------------


@EACH
def test_fused_and_explicit_attention_agree(kind: str) -> None:
    model, x = make(kind), image_batch(64, 96)
    with torch.inference_mode():
        fused = model(x)
        model.set_fused_attn(False)
        seen: list[torch.Tensor] = []
        for name, module in model.named_modules():
            if name.endswith("attn_drop"):
                module.register_forward_hook(lambda m, args, out: seen.append(args[0]))
        assert error(model(x), fused) <= 1e-5
    attentions = [m for m in model.modules() if hasattr(m, "fused_attn")]
    assert len(seen) == len(attentions)
    for found in seen:
        torch.testing.assert_close(found.sum(-1), torch.ones_like(found[..., 0]))


# Sizes and strides ------------------------------------------------------------------------


@EACH
def test_any_size(kind: str) -> None:
    model = make(kind)
    for size in ((32, 32), (36, 100), (132, 60), *(((33, 47),) * (step(kind) == 1))):
        with torch.inference_mode():
            maps = model.forward_intermediates(image_batch(*size), intermediates_only=True)
        predicted = model.feature_info.sizes(size)
        assert [tuple(y.shape[2:]) for y in maps] == predicted
        assert predicted == [
            tuple(-(-s // r) for s in size) for r in model.feature_info.reduction()
        ]
        assert [y.shape[1] for y in maps] == model.feature_info.channels()


@EACH
def test_all_output_strides_hold_the_law(kind: str) -> None:
    original = make(kind).double()
    sizes = {(36, 52): (16, 4)} if step(kind) > 1 else {(36, 52): (16, 4), (33, 47): (8,)}
    for size, strides in sizes.items():
        x = image_batch(*size, dtype=torch.float64)
        with torch.inference_mode():
            full = original.forward_intermediates(x, intermediates_only=True)
            for stride in strides:
                dense = copy.deepcopy(original)
                set_output_stride(dense, stride)
                assert dense.feature_info.sizes(size)[-1] == tuple(-(-s // stride) for s in size)
                steps = [r // min(r, stride) for r in original.feature_info.reduction()]
                maps = dense.forward_intermediates(x, intermediates_only=True)
                assert law_error(maps, full, steps) < 1e-10


def test_an_output_stride_twice_is_the_finer_one() -> None:
    once, twice, x = make("swin"), make("swin"), image_batch(64, 96)
    set_output_stride(once, 8)
    set_output_stride(twice, 16)
    set_output_stride(twice, 8)
    with torch.inference_mode():
        assert torch.equal(once(x), twice(x))


def test_phases_of_a_block_with_a_stride() -> None:
    """Each place to start from gives what the block gives of the map from there on."""
    merging = fill_noise(PatchMerging(4, 6, norm=nn.LayerNorm))
    dense = copy.deepcopy(merging).dilate(3, (1, 1))
    x = torch.randn(2, 13, 8, 4)
    y = dense(x)
    assert isinstance(dense, Phased) and y.shape == (2, 13, 8, 6)
    for top, left in itertools.product(range(6), repeat=2):
        wanted = merging(x[:, top::3, left::3])
        torch.testing.assert_close(y[:, top::6, left::6], wanted)


def test_strides_that_cannot_be_are_answered() -> None:
    for kind, stride in itertools.product(("swin", "hiera", "pvt_v2"), (2, 6, 64)):
        with pytest.raises(OutputStrideError, match=r"\[4, 8, 16, 32\]"):
            set_output_stride(make(kind), stride)


@pytest.mark.parametrize("kind", ["swin", "swin_v2", "swin_v2_cr"])
def test_a_size_that_is_no_multiple_of_the_patch(kind: str) -> None:
    model, x = make(kind), image_batch(62, 97)
    with pytest.raises(InputSizeError, match=r"60 or 64.*96 or 100"):
        model(x)
    padded = featnet.pad_to_divisor(x, model)
    assert padded.shape[-2:] == (64, 100)
    with torch.inference_mode():
        assert torch.equal(make(kind, dynamic_img_pad=True)(x), model(padded))


def test_small_inputs_of_pvt_are_answered() -> None:
    with pytest.raises(InputSizeError, match="29 x 29"):
        make("pvt_v2")(image_batch(20, 64))


# How a model is made ----------------------------------------------------------------------


@EACH
def test_nothing_is_lost_on_the_meta_device(kind: str) -> None:
    """No table lives outside the state dict: built on meta and loaded is built and loaded."""
    model, x = make(kind), image_batch(64, 96)
    name, options = SMALL[kind]
    for assign in (True, False):
        with torch.device("meta"):
            other = featnet.create_model(name, **options)
        other = other if assign else other.to_empty(device="cpu")
        other.load_state_dict(model.state_dict(), assign=assign)
        with torch.inference_mode():
            assert torch.equal(other.eval()(x), model(x))


SHORT = dict(depths=(2, 2), num_heads=(1, 2))
SHORTER: dict[str, dict[str, Any]] = {
    "swin_v2": SHORT,
    "hiera": dict(stages=(1, 2), q_pool=1, mask_unit_attn=(True, False)),
    "pvt_v2": dict(SHORT, embed_dims=(8, 16), sr_ratios=(2, 1), mlp_ratios=(2, 2)),
}


@pytest.mark.parametrize("kind", SHORTER)
def test_compile_and_export(kind: str) -> None:
    model, x = make(kind, **SHORTER[kind]), image_batch(64, 96)
    net = featnet.FeatureListNet(model, (0, 1))
    with torch.inference_mode():
        wanted = net(x)
        compiled = torch.compile(net, fullgraph=True, backend="eager")(x)
        exported = torch.export.export(net, (x,), strict=True).module()(x)
    torch._dynamo.reset()
    for found in (compiled, exported):
        assert all(error(a, b) <= 1e-6 for a, b in zip(found, wanted, strict=True))


@EACH
def test_gradients_are_the_same_with_checkpointing(kind: str) -> None:
    model = make(kind).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    x, found = image_batch(32, 64), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        missing = [name for name, p in model.named_parameters() if p.grad is None]
        assert not missing
        found.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*found, strict=True))


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("swin_tiny_patch4_window7_224", dict(window_size=0), "window_size=0"),
    ("swin_tiny_patch4_window7_224", dict(window_size=(7, 7, 7)), "each of the 4 stages"),
    ("swin_tiny_patch4_window7_224", dict(num_heads=(5, 6, 12, 24)), "num_heads=5"),
    ("swinv2_cr_tiny_224", dict(window_ratio=(8, 8)), "each of the 4 stages"),
    ("hiera_tiny_224", dict(mask_unit_size=12), "a multiple of 8"),
    ("hiera_tiny_224", dict(q_pool=4), "from 0 to 3"),
    ("hiera_tiny_224", dict(use_expand_proj=False, dim_mul=1.5), "not twice as many"),
    ("hiera_tiny_224", dict(weight_init="moco"), "'jax'"),
    ("pvt_v2_b0", dict(num_heads=(3, 2, 5, 8)), "num_heads=3"),
    ("twins_svt_small", dict(wss=(7, 7)), "equally many"),
    ("twins_svt_small", dict(num_heads=(3, 4, 8, 16)), "num_heads=3"),
    ("davit_tiny", dict(attn_types=("spacial",)), "'spatial'"),
    ("davit_tiny", dict(num_heads=(3, 6, 12)), "equally many"),
    ("focalnet_tiny_srf", dict(focal_levels=(2, 2)), "equally many"),
    ("pit_ti_224", dict(heads=(2, 4)), "equally many"),
    ("pit_ti_224", dict(global_pool="avg"), "'token'"),
    ("caformer_s18", dict(token_mixers="atention"), "'attention'"),
    ("caformer_s18", dict(norm_layers="layernorm"), "layernorm_nobias"),
    ("edgenext_small", dict(stem_type="patches"), "'patch'"),
    ("mambaout_femto", dict(downsample="conv_fn"), "'conv_nf'"),
    ("mambaout_femto", dict(head_fn="mlp"), "norm_mlp"),
    ("convmixer_768_32", dict(kernel_size=8), "an odd number"),
    ("inception_next_atto", dict(mlp_ratios=(4, 4)), "equally many"),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD)
def test_bad_arguments(name: str, options: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(ArgumentError, match=re.escape(message)):
        featnet.create_model(name, **options)


# Checkpoints of other layouts -------------------------------------------------------------

Convert = Callable[[str], str]


def swin_original(key: str) -> str:
    """Downsampling at the end of a stage, a bare head."""
    key = re.sub(r"layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key)
    return key.replace("head.fc.", "head.")


def pvt_original(key: str) -> str:
    """Numbered names at the top."""
    key = re.sub(r"^stages\.(\d)\.downsample", lambda m: f"patch_embed{int(m[1]) + 1}", key)
    key = re.sub(r"^stages\.(\d)\.blocks", lambda m: f"block{int(m[1]) + 1}", key)
    key = re.sub(r"^stages\.(\d)\.norm", lambda m: f"norm{int(m[1]) + 1}", key)
    return key.replace("patch_embed.", "patch_embed1.").replace("dwconv.", "dwconv.dwconv.")


def hiera_original(key: str) -> str:
    return key.replace("head.fc.", "head.projection.").replace("head.norm.", "encoder_norm.")


@pytest.mark.parametrize(
    ("kind", "name_of"),
    [
        ("swin", swin_original),
        ("swin_v2", swin_original),
        ("pvt_v2", pvt_original),
        ("hiera", hiera_original),
    ],
)
def test_original_names_load(tmp_path: Any, kind: str, name_of: Convert) -> None:
    model, x = make(kind), image_batch(64, 96)
    state = {name_of(key): value for key, value in model.state_dict().items()}
    assert list(state) != list(model.state_dict())
    if kind.startswith("swin"):
        state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(3)
        state["layers.0.blocks.1.attn_mask"] = torch.zeros(3)
    name, options = SMALL[kind]
    torch.save({"model": state}, tmp_path / "original.pth")
    other = featnet.create_model(name, checkpoint_path=tmp_path / "original.pth", **options).eval()
    with torch.inference_mode():
        assert torch.equal(other(x), model(x))


def test_the_inverse_of_a_factor_loads() -> None:
    model = make("swin_v2_cr")
    old = {
        k.replace("logit_scale", "tau"): (-v).exp() if "logit_scale" in k else v
        for k, v in model.state_dict().items()
    }
    found = model.convert_state_dict(old)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(found[key], value)


def test_tables_of_other_windows(timm: Any) -> None:
    name = "swin_tiny_patch4_window7_224"
    state = make("swin", img_size=128).state_dict()
    for window in (7, (2, 6), 3):
        options = dict(SMALL["swin"][1], window_size=window, img_size=224)
        peer = helpers.peer_model(name, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = timm.models.swin_transformer.checkpoint_filter_fn(dict(state), peer)
        model = featnet.create_model(name, **options)
        found = model.convert_state_dict(state)
        assert {k: v.shape for k, v in found.items()} == {
            k: v.shape for k, v in model.state_dict().items()
        }
        for key, value in wanted.items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5)


def test_positions_of_another_grid() -> None:
    """A network for another size gives what the first gives of that size."""
    model, x = make("hiera", img_size=64), image_batch(96, 32)
    other = make("hiera", img_size=(96, 32))
    other.load_state_dict(other.convert_state_dict(model.state_dict()))
    with torch.inference_mode():
        assert error(other(x), model(x)) < 1e-5


# The peer ---------------------------------------------------------------------------------


@EACH
def test_numbers_of_the_peer(timm: Any, kind: str) -> None:
    """Logits, levels, and the gradient of the features, in float64, natively and elsewhere."""
    name, options = SMALL[kind]
    ours = make(kind).double()
    limit = 1e-6 if kind == "hiera_abswin" else 1e-10  # positions are resampled in float32
    more = dict(strict_img_size=False) if kind.startswith("swin") else {}
    for size in ((96, 64), (64, 160)):
        if kind.startswith("hiera"):
            more = dict(img_size=size)
        peer = helpers.peer_model(name, **{**options, **more}).double().eval()
        state = ours.state_dict()
        if kind == "hiera":
            state["pos_embed"] = ours.positions((size[0] // 4, size[1] // 4)).flatten(1, 2)
        peer.load_state_dict(state)
        x = image_batch(*size, batch=2, dtype=torch.float64).requires_grad_()
        assert error(ours(x), peer(x)) < limit
        sums = []
        for model in (ours, peer):
            maps = model.forward_intermediates(x, intermediates_only=True)
            sums.append((maps, sum((y * y).mean() for y in maps)))
        assert all(error(a, b) < limit for a, b in zip(sums[0][0], sums[1][0], strict=True))
        wanted, found = (torch.autograd.grad(total, x)[0] for _, total in sums)
        assert error(wanted, found) < limit
