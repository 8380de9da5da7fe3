"""Transformers that give maps: any size, the norm that is asked for, tokens beside them, attention
in two forms, checkpoints of other layouts. On tiny networks; what all have in common is in the
laws and in the parity."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import helpers
import pytest
import torch
from helpers import error, fill_noise, image_batch
from torch import nn

import featnet
from featnet import FeatureDictNet, FeatureHookNet, FeatureListNet, create_model
from featnet.checkpoints.checkpoint import load
from featnet.errors import (
    ArgumentError,
    CheckpointError,
    InputSizeError,
    OutIndexError,
    OutputStrideError,
)
from featnet.layers import PatchConv, attend, resample_patches

TINY: dict[str, Any] = {"depth": 3, "embed_dim": 48, "num_heads": 3, "num_classes": 7}
KINDS = (FeatureListNet, FeatureDictNet, FeatureHookNet)


def tiny(name: str = "vit_tiny_patch16_224", **options: Any) -> Any:
    options = {**TINY, "img_size": 64, **options}
    return fill_noise(create_model(name, **options)).eval()


def as_list(found: Any) -> list[Any]:
    return list(found.values()) if isinstance(found, dict) else list(found)


# Sizes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_any_size_and_always_maps(kind: Any) -> None:
    net = kind(tiny(), (2, 0))
    for size in ((64, 64), (48, 96), (160, 16)):
        maps = as_list(net(image_batch(*size)))
        assert [y.shape for y in maps] == [(1, 48, size[0] // 16, size[1] // 16)] * 2
        assert net.feature_info.sizes(size) == [tuple(y.shape[2:]) for y in maps]
        assert all(y.is_contiguous() for y in maps)


def test_layouts_hold_the_same() -> None:
    model, x = tiny(), image_batch(48, 80)
    (y,) = FeatureListNet(model, (1,))(x)
    for kind in KINDS:
        (rows,) = as_list(kind(model, (1,), output_fmt="NHWC")(x))
        (tokens,) = as_list(kind(model, (1,), output_fmt="NLC")(x))
        assert torch.equal(rows.permute(0, 3, 1, 2), y)
        assert torch.equal(tokens, y.flatten(2).transpose(1, 2))


def test_positions_belong_to_places() -> None:
    """With positions that are a linear function of the place, another grid's are that function."""
    model = tiny(class_token=False, global_pool="avg", img_size=128)
    ramp = torch.arange(8.0)
    with torch.no_grad():
        model.pos_embed.copy_(
            (ramp[:, None] + 10 * ramp).flatten()[None, :, None].expand(1, 64, 48)
        )
    found = model.positions((16, 16)).reshape(16, 16, 48)[..., 0]
    places = (torch.arange(16.0) + 0.5) / 2 - 0.5
    wanted = places[:, None] + 10 * places
    assert (found - wanted)[4:-4, 4:-4].abs().max() < 0.05
    assert model.positions((8, 8)) is model.pos_embed


def test_padding_on_request() -> None:
    model, padding, x = tiny(), tiny(dynamic_img_pad=True), image_batch(50, 70)
    padded = featnet.pad_to_divisor(x, model)
    assert padded.shape == (1, 3, 64, 80) and torch.equal(padded[..., :50, :70], x)
    assert not padded[..., 50:, :].any() and not padded[..., 70:].any()
    assert torch.equal(padding(x), model(padded))
    net = FeatureListNet(padding, (1,))
    assert net.feature_info.sizes((50, 70)) == [(4, 5)] == [tuple(y.shape[2:]) for y in net(x)]
    assert net.size_divisibility == model.size_divisibility == 16
    y = image_batch(16, 20)
    assert featnet.unpad(y, x, padded=padded).shape == (1, 3, 13, 18)
    assert featnet.unpad(y, padded, padded=padded).shape == y.shape
    assert featnet.pad_to_divisor(x, create_model("test_resnet")) is not None


@pytest.mark.parametrize("kind", KINDS)
def test_a_size_without_whole_patches_names_the_nearest(kind: Any) -> None:
    net = kind(tiny(), (1,))
    for call in (lambda: net(image_batch(50, 100)), lambda: net.feature_info.sizes((50, 100))):
        with pytest.raises(InputSizeError, match=r"50 x 100.*48 or 64.*96 or 112.*dynamic_img_pad"):
            call()
    with pytest.raises(InputSizeError, match=r"height is 16,"):
        net(image_batch(8, 64))


def test_what_it_was_built_for_may_leave_a_rest() -> None:
    """SigLIP was trained on images of 384 with patches of 14: their last 6 rows are never seen."""
    small = tiny("vit_tiny_patch16_224", img_size=38)
    net = FeatureListNet(small, (0,))
    assert small.patch_embed.grid_size == (2, 2) and net.feature_info.sizes((38, 38)) == [(2, 2)]
    x = image_batch(38, 38)
    assert torch.equal(net(x)[0], net(x[..., :32, :32])[0])
    with pytest.raises(InputSizeError, match="nearest width 32 or 48"):
        net(x[..., :37])


def test_one_size_only_if_asked() -> None:
    model = tiny(dynamic_img_size=False)
    assert model(image_batch(64, 64)).shape == (1, 7)
    with pytest.raises(InputSizeError, match=r"\(64, 64\), not \(48, 64\)"):
        model(image_batch(48, 64))


@pytest.mark.parametrize("size", [96, (48, 80)])
def test_img_size(size: Any) -> None:
    height, width = (size, size) if isinstance(size, int) else size
    model = tiny(img_size=size)
    assert model.pos_embed.shape[1] == 1 + height // 16 * (width // 16)
    assert model.img_size == (height, width) == model.patch_embed.img_size
    assert model.patch_embed.grid_size == (height // 16, width // 16)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "samvit_base_patch16", "test_vit_relpos"])
def test_set_input_size(name: str) -> None:
    model, x = tiny(name, use_rel_pos=False) if "sam" in name else tiny(name), image_batch(96, 80)
    before = model.forward_intermediates(x, intermediates_only=True)
    model.set_input_size((96, 80))
    assert model.img_size == (96, 80) and model.patch_embed.grid_size == (6, 5)
    after = model.forward_intermediates(x, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert model.pos_embed is None or isinstance(model.pos_embed, nn.Parameter)
    with pytest.raises(InputSizeError, match="100 x 80"):
        model.set_input_size((100, 80))


def test_the_checkpoint_says_the_size() -> None:
    with torch.device("meta"):
        assert create_model("vit_base_patch16_384").img_size == (384, 384)
        assert create_model("vit_small_patch14_dinov2").img_size == (518, 518)
        assert create_model("vit_small_patch14_dinov2", img_size=224).img_size == (224, 224)


# Output strides ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [8, 4])
def test_overlapping_patches(stride: int) -> None:
    model = tiny()
    net = tiny(features_only=True, out_indices=(0, 2), output_stride=stride)
    assert net.feature_info.reduction() == [stride] * 2 and net.size_divisibility == stride
    x = image_batch(48, 72)
    maps = net(x)
    assert [tuple(y.shape[2:]) for y in maps] == [(48 // stride, 72 // stride)] * 2
    assert net.feature_info.sizes((48, 72)) == [tuple(y.shape[2:]) for y in maps]
    assert list(net.state_dict()) == [k for k in model.state_dict() if not re.match("norm|head", k)]
    # the patch at (i, j) is the window of the image around the square that it stands for
    dense = create_model("vit_tiny_patch16_224", **TINY, img_size=64, output_stride=stride)
    dense.load_state_dict(model.state_dict())
    shift = (16 - stride) // 2
    rows = dense.patch_embed(x)[0]
    for i, j in ((3, 4), (2, 5)):
        window = x[..., i * stride - shift :, j * stride - shift :][..., :16, :16]
        assert torch.allclose(rows[i, j], model.patch_embed(window)[0, 0, 0], atol=1e-5)


def test_strides_of_odd_patches() -> None:
    net = tiny("vit_small_patch14_dinov2", features_only=True, output_stride=7, img_size=56)
    assert net.output_strides == [1, 2, 7, 14]
    assert [tuple(y.shape[2:]) for y in net(image_batch(28, 42))] == [(4, 6)] * 3


def test_strides_that_cannot_be() -> None:
    for stride in (32, 6):
        with pytest.raises(OutputStrideError, match=r"\[1, 2, 4, 8, 16\]"):
            tiny(output_stride=stride)


# Norms and tokens -------------------------------------------------------------------------------


def test_norm_policy() -> None:
    x = image_batch(64, 48)
    for name, default in (("vit_tiny_patch16_224", False), ("vit_small_patch14_reg4_dinov2", True)):
        model = tiny(name, img_size=56 if default else 64)
        x = image_batch(56, 42) if default else image_batch(64, 48)
        _, bare = model.forward_intermediates(x, norm=False)
        final, normed = model.forward_intermediates(x, norm=True)
        assert torch.equal(
            final[:, model.num_prefix_tokens :], normed[-1].flatten(2).transpose(1, 2)
        )
        assert error(normed[0], bare[0]) > 0.1
        by_hand = model.norm(bare[1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        assert error(by_hand, normed[1]) < 1e-5
        for kind in KINDS:
            for norm, wanted in (
                (None, normed if default else bare),
                (True, normed),
                (False, bare),
            ):
                net = kind(model, (1, 2), norm=norm)
                found = as_list(net(x))
                assert all(torch.equal(a, b) for a, b in zip(found, wanted[1:], strict=True))
                used = default if norm is None else norm
                assert any(k.startswith("norm.") for k in net.state_dict()) == used
        (again,) = create_model(
            name, **TINY, img_size=model.img_size, features_only=True, out_indices=(1,), norm=False
        )(x)
        assert again.shape == bare[1].shape


def test_norm_that_changes_the_channels() -> None:
    model = tiny("samvit_base_patch16", neck_chans=24)
    for norm, channels in ((True, 24), (False, 48)):
        for kind in KINDS:
            net = kind(model, (0, 2), norm=norm)
            assert net.feature_info.channels() == [channels] * 2
            assert [y.shape[1] for y in as_list(net(image_batch(64, 48)))] == [channels] * 2
    x = image_batch(64, 48)
    assert torch.equal(model.forward_features(x), FeatureListNet(model, (2,), norm=True)(x)[0])


def test_prefix_tokens() -> None:
    model, x = tiny("vit_small_patch14_reg4_dinov2", img_size=56), image_batch(56, 42)
    assert model.num_prefix_tokens == 5
    maps = model.forward_intermediates(x, (2, 0), intermediates_only=True)
    for kind in KINDS:
        found = as_list(kind(model, (2, 0), return_prefix_tokens=True)(x))
        for (y, tokens), alone in zip(found, maps, strict=True):
            assert torch.equal(y, alone) and tokens.shape == (1, 5, 48)
    final = model.forward_features(x)
    assert torch.equal(found[0][1], final[:, :5])
    pairs = model.get_intermediate_layers(x, 2, return_prefix_tokens=True)
    assert [(y.shape, t.shape) for y, t in pairs] == [((1, 12, 48), (1, 5, 48))] * 2
    assert torch.equal(pairs[1][0], final[:, 5:])


# Attention --------------------------------------------------------------------------------------

STRUCTURES = (
    "vit_tiny_patch16_224",
    "vit_dwee_patch16_reg1_gap_256",
    "vit_pwee_patch16_reg1_gap_256",
    "vit_dpwee_patch16_reg1_gap_256",
    "test_vit3",
    "samvit_base_patch16_224",
    "vit_relpos_small_patch16_224",
)


@pytest.mark.parametrize("name", STRUCTURES)
def test_both_forms_of_attention(name: str) -> None:
    model, x = tiny(name), image_batch(64, 48, batch=2)
    seen: list[torch.Tensor] = []
    for module_name, module in model.named_modules():
        if module_name.endswith("attn_drop"):
            module.register_forward_hook(lambda m, args, y: seen.append(y))
    with torch.no_grad():
        fused = model(x), *model.forward_intermediates(x, intermediates_only=True)
        assert not seen
        model.set_fused_attn(False)
        explicit = model(x), *model.forward_intermediates(x, intermediates_only=True)
        maps = list(seen)
        model.set_fused_attn()
        assert len(seen) == len(maps) and torch.equal(model(x), fused[0])
    assert max(error(a, b) for a, b in zip(explicit, fused, strict=True)) < 1e-5
    assert len(maps) >= 6 and all((y.sum(-1) - 1).abs().max() < 1e-5 for y in maps)


def test_an_extractor_switches_too() -> None:
    net = tiny(features_only=True, out_indices=(0, 1))
    x, seen = image_batch(32, 48), []
    net.blocks[0].attn.attn_drop.register_forward_hook(lambda m, args, y: seen.append(y.shape))
    fused = net(x)
    net.set_fused_attn(False)
    assert error(net(x)[1], fused[1]) < 1e-5 and seen == [(1, 3, 7, 7)]
    model = tiny()
    model.set_fused_attn(False)
    found = FeatureHookNet(model, taps=["blocks.*.attn.attn_drop"])(x)
    assert [y.shape for y in found.values()] == [(1, 3, 7, 7)] * 3
    with pytest.raises(ArgumentError, match="no attention"):
        create_model("test_resnet").set_fused_attn(False)


def test_dropout_in_training() -> None:
    model = tiny(attn_drop_rate=0.5).train()
    for enable in (True, False):
        model.set_fused_attn(enable)
        x = image_batch(32, 32)
        assert not torch.equal(model(x), model(x))
    left_out = tiny(patch_drop_rate=0.5).train()
    assert left_out(image_batch(64, 64)).shape == (1, 7)
    assert left_out.embed(image_batch(64, 64)).x.shape == (1, 1 + 8, 48)


# Heads, training, other forms -------------------------------------------------------------------


def test_pools() -> None:
    x = image_batch(64, 64)
    model = tiny("test_vit3")
    assert model(x).shape == (1, 7) and model.global_pool.pool_type == "map"
    model.reset_classifier(5, "avg")
    assert model(x).shape == (1, 5) and model.attn_pool is None
    with pytest.raises(ArgumentError, match="'map'.*'avg'"):
        model.reset_classifier(5, "map")
    with pytest.raises(ArgumentError, match="'token'"):
        tiny("test_vit2", global_pool="token")
    bare = tiny(num_classes=0, global_pool="")
    assert bare(x).shape == (1, 17, 48) == bare.forward_features(x).shape


def test_distilled() -> None:
    model, x = tiny("deit_tiny_distilled_patch16_224"), image_batch(64, 64)
    both = (
        model.head(model.forward_features(x)[:, 0]),
        model.head_dist(model.forward_features(x)[:, 1]),
    )
    assert error(model(x), (both[0] + both[1]) / 2) < 1e-6
    model.train().set_distilled_training()
    assert len(model(x)) == 2
    model.reset_classifier(3)
    assert model.eval()(x).shape == (1, 3) and model.head_dist.out_features == 3


def test_checkpointed_gradients_are_the_same() -> None:
    net, x = tiny(features_only=True), image_batch(32, 48)

    def gradient() -> torch.Tensor:
        net.zero_grad()
        sum(y.square().sum() for y in net.train()(x)).backward()
        return net.patch_embed.proj.weight.grad.clone()

    plain = gradient()
    net.set_grad_checkpointing()
    assert torch.equal(gradient(), plain)


def test_initialisation() -> None:
    torch.manual_seed(0)
    model = create_model("vit_giant_patch14_dinov2", **{**TINY, "embed_dim": 96}, img_size=56)
    model.requires_grad_(False)
    assert abs(float(model.blocks[0].attn.qkv.weight.std()) - 0.02) < 1e-3
    assert abs(float(model.pos_embed.std()) - 0.02) < 2e-3
    assert model.cls_token.abs().max() < 1e-4
    assert torch.equal(model.blocks[0].ls1.gamma, torch.full((96,), 1e-5))
    gate = model.blocks[0].mlp.fc1
    half = gate.out_features // 2
    assert gate.weight[half:].abs().max() < 1e-4 and torch.equal(gate.bias[half:], torch.ones(half))


def test_groups_for_layer_wise_rates() -> None:
    model = tiny("vit_small_patch14_reg4_dinov2", img_size=56)
    matcher, names = model.group_matcher(), dict(model.named_parameters())
    assert model.no_weight_decay() >= {"cls_token", "pos_embed", "reg_token"}
    stem = [n for n in names if re.search(matcher["stem"], n)]
    assert stem == [
        "cls_token",
        "reg_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
    ]
    patterns = [pattern for pattern, _ in matcher["blocks"]]
    rest = [n for n in names if n not in stem and not any(re.search(p, n) for p in patterns)]
    assert all(n.startswith("head") for n in rest)


@pytest.mark.parametrize("kind", [FeatureListNet, FeatureHookNet])
def test_compiled_and_exported(kind: Any) -> None:
    net, x = kind(tiny(), (0, 2), norm=True), image_batch(64, 96, batch=2)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    for other in (x, image_batch(32, 48), image_batch(64, 64, batch=3)):
        # the table of positions is resampled by matrices there, in another order of sums
        for a, b in zip(as_list(compiled(other)), as_list(net(other)), strict=True):
            assert torch.equal(a, b) if other.shape[2:] == (64, 64) else error(a, b) < 1e-6
    dim = torch.export.Dim
    shapes = {"x": {0: dim("n"), 2: 16 * dim("h", max=64), 3: 16 * dim("w", max=64)}}
    program = torch.export.export(
        net, (x,), dynamic_shapes=shapes, strict=kind is not FeatureHookNet
    )
    other = image_batch(48, 80, batch=3)
    for a, b in zip(as_list(program.module()(other)), as_list(net(other)), strict=True):
        assert error(a, b) < 1e-5


# The pyramid ------------------------------------------------------------------------------------


def test_pyramid() -> None:
    net = tiny(features_only=True, out_indices=1)
    pyramid = featnet.SimplePyramid(net.feature_info, out_channels=8)
    assert pyramid.channels == [8] * 4 and pyramid.strides == [4, 8, 16, 32]
    maps = pyramid(net(image_batch(64, 96)))
    assert [tuple(y.shape) for y in maps] == [(1, 8, 64 // s, 96 // s) for s in (4, 8, 16, 32)]
    sum(y.sum() for y in maps).backward()
    assert all(p.grad is not None for p in (*pyramid.parameters(), *net.parameters()))
    odd = tiny("vit_small_patch14_dinov2", features_only=True, img_size=56)
    assert featnet.SimplePyramid(odd.feature_info, scales=(4, 1)).strides == [3.5, 14]
    with pytest.raises(ArgumentError, match="3"):
        featnet.SimplePyramid(net.feature_info, scales=(3,))


# Bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"norm": "final"}, ArgumentError, "'final'.*True, False or None"),
        ({"norm": 1}, ArgumentError, "norm=1"),
        ({"output_fmt": "NCL"}, ArgumentError, "'NCL'.*NLC"),
        ({"out_indices": (3,)}, OutIndexError, "-3 to 2.*3 levels.*blocks.2"),
        ({"feature_cls": "hook", "taps": ["blocks.0"], "norm": True}, ArgumentError, "norm=True"),
        ({"feature_cls": "hook", "taps": ["blocks.0"], "output_fmt": "NLC"}, ArgumentError, "NLC"),
        ({"num_heads": 5}, ArgumentError, "num_heads=5.*48"),
        ({"norm_layer": "layernrm"}, ArgumentError, "'layernorm'"),
    ],
)
def test_bad_arguments(options: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        create_model("vit_tiny_patch16_224", **{**TINY, **options}, features_only=True)


def test_prefix_tokens_of_what_has_none() -> None:
    for name in ("test_resnet", "vit_base_patch16_siglip_224"):
        with torch.device("meta"), pytest.raises(ArgumentError, match="no prefix tokens"):
            create_model(name, features_only=True, return_prefix_tokens=True)
    with pytest.raises(ArgumentError, match="needs? features_only|features_only=True"):
        create_model("test_vit", return_prefix_tokens=True)


# Checkpoints ------------------------------------------------------------------------------------

State = dict[str, torch.Tensor]


def clip(state: State) -> State:
    """As OpenAI's: no patch bias, a projection in place of the head."""
    names = {
        "cls_token": "class_embedding",
        "pos_embed": "positional_embedding",
        "patch_embed.proj.weight": "conv1.weight",
    }
    rules = (
        ("norm_pre", "ln_pre"),
        ("^norm", "ln_post"),
        (r"\.norm", ".ln_"),
        ("blocks", "transformer.resblocks"),
        (r"attn\.qkv\.", "attn.in_proj_"),
        (r"attn\.proj", "attn.out_proj"),
        (r"mlp\.fc1", "mlp.c_fc"),
        (r"mlp\.fc2", "mlp.c_proj"),
    )
    found: State = {"logit_scale": torch.ones(()), "token_embedding.weight": torch.ones(3, 2)}
    for key, value in state.items():
        if key.startswith("head."):
            continue
        name = names.get(key, key)
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        found[f"visual.{name}"] = value[0, 0] if key == "cls_token" else value
    found["visual.positional_embedding"] = state["pos_embed"][0]
    found["visual.proj"] = state["head.weight"].T.contiguous()
    return found


def open_clip(state: State) -> State:
    found = {f"visual.trunk.{k}": v for k, v in state.items() if not k.startswith("head.")}
    return {**found, "visual.head.proj.weight": state["head.weight"], "text.x": torch.ones(1)}


def dinov2(state: State) -> State:
    found = {k: v for k, v in state.items() if not k.startswith(("head", "reg_token", "pos_embed"))}
    found = {
        k.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): v for k, v in found.items()
    }
    found["mask_token"] = torch.zeros(1, 48)
    found["register_tokens"] = state["reg_token"]
    first = torch.full((1, 1, 48), 0.25)
    found["cls_token"] = state["cls_token"] - first
    found["pos_embed"] = torch.cat((first, state["pos_embed"]), 1)
    return {re.sub(r"^blocks\.(\d)", r"blocks.0.\1", k): v for k, v in found.items()}


def mae(state: State) -> State:
    found = {k: v for k, v in state.items() if not k.startswith("head")}
    return {
        **found,
        "mask_token": torch.ones(1, 1, 4),
        "decoder_blocks.0.norm1.weight": torch.ones(4),
    }


def split_qkv(state: State) -> State:
    found: State = {}
    for key, value in state.items():
        if ".qkv." in key:
            found.update(
                {
                    key.replace("qkv", f"{x}_proj"): t
                    for x, t in zip("qkv", value.chunk(3), strict=True)
                }
            )
        else:
            found[key] = value
    return found


def deit3(state: State) -> State:
    return {re.sub(r"\.ls(\d)\.gamma", r".gamma_\1", k): v for k, v in state.items()}


def distilled(state: State) -> State:
    first, rest = state["pos_embed"][:, :1], state["pos_embed"][:, 1:]
    return {
        **state,
        "dist_token": torch.ones(1, 1, 48),
        "head_dist.weight": torch.ones(7, 48),
        "head_dist.bias": torch.ones(7),
        "pos_embed": torch.cat((first, first + 9, rest), 1),
    }


def sam(state: State) -> State:
    found = {f"image_encoder.{k.replace('mlp.fc', 'mlp.lin')}": v for k, v in state.items()}
    return {
        **{k: v for k, v in found.items() if ".head." not in k},
        "mask_decoder.x": torch.ones(1),
    }


def linear_patches(state: State) -> State:
    return {**state, "patch_embed.proj.weight": state["patch_embed.proj.weight"].flatten(1)}


LAYOUTS: list[tuple[str, Callable[[State], State], bool]] = [
    ("vit_base_patch16_clip_224", clip, True),
    ("vit_base_patch16_clip_224", open_clip, True),
    ("vit_small_patch14_reg4_dinov2", dinov2, False),
    ("vit_tiny_patch16_224", mae, False),
    ("vit_tiny_patch16_224", split_qkv, True),
    ("deit3_small_patch16_224", deit3, True),
    ("vit_tiny_patch16_224", distilled, True),
    ("vit_tiny_patch16_224", linear_patches, True),
    ("samvit_base_patch16", sam, False),
]


@pytest.mark.parametrize(
    ("name", "foreign", "headed"), LAYOUTS, ids=lambda v: getattr(v, "__name__", str(v))
)
def test_layouts_of_others(name: str, foreign: Callable[[State], State], headed: bool) -> None:
    options: dict[str, Any] = {"img_size": 56 if "patch14" in name else 64}
    if not headed:
        options["num_classes"] = 0
    model, other = tiny(name, **options), create_model(name, **{**TINY, **options}).eval()
    if headed and foreign in (clip, open_clip):
        nn.init.zeros_(model.head.bias)
    report = load(other, foreign(dict(model.state_dict())), source="theirs")
    x = image_batch(56, 42) if "patch14" in name else image_batch(48, 80)
    assert error(other(x), model(x)) < 1e-5
    assert not report.initial


def test_positions_of_another_grid() -> None:
    model = tiny(img_size=128)
    other = create_model("vit_tiny_patch16_224", **TINY, img_size=(64, 96)).eval()
    report = load(other, model.state_dict(), source="theirs")
    assert "pos_embed" in report.converted
    x = image_batch(64, 96)
    assert error(other(x), model(x)) < 1e-5  # resampled once, or in every forward
    no_class = tiny("vit_base_patch16_siglip_gap_224", img_size=128)
    bare = create_model("vit_base_patch16_siglip_gap_224", **TINY, img_size=64).eval()
    load(bare, no_class.state_dict(), source="theirs")
    assert error(bare(image_batch(64, 64)), no_class(image_batch(64, 64))) < 1e-5


def test_positions_of_another_grid_peer() -> None:
    """The peer's conversion of the same checkpoint."""
    timm = helpers.peer("timm")
    state = tiny(img_size=128).state_dict()
    ours = create_model("vit_tiny_patch16_224", **TINY, img_size=96).eval()
    theirs = timm.create_model("vit_tiny_patch16_224", **TINY, img_size=96).eval()
    load(ours, state, source="theirs")
    theirs.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(dict(state), theirs))
    assert torch.equal(ours(image_batch(96, 96)), theirs(image_batch(96, 96)))


def test_patches_of_another_size() -> None:
    """On an image that is enlarged alike, a resized patch gives nearly what the original gave."""
    weight = torch.nn.functional.interpolate(torch.randn(8, 3, 4, 4), size=16, mode="bilinear")
    small, large = PatchConv(3, 8, (16, 16), bias=False), PatchConv(3, 8, (32, 32), bias=False)
    with torch.no_grad():
        small.weight.copy_(weight)
        large.weight.copy_(resample_patches(weight, (32, 32)))
        x = image_batch(16, 16)
        big = torch.nn.functional.interpolate(x, size=32, mode="bicubic", antialias=True)
        assert error(large(big), small(x)) < 1e-3
    model = tiny("vit_base_patch32_224", img_size=128)
    load(model, tiny(img_size=64).state_dict(), source="theirs")


def test_a_checkpoint_that_does_not_fit() -> None:
    state = tiny().state_dict()
    with pytest.raises(CheckpointError, match=r"blocks\.3"):
        load(create_model("vit_tiny_patch16_224", **{**TINY, "depth": 4}), state, source="theirs")
    with pytest.raises(CheckpointError, match="dist_token"):
        load(
            create_model("deit_tiny_distilled_patch16_224", **TINY, img_size=64), state, source="x"
        )


@pytest.mark.parametrize("windows", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_the_same_in_every_form(dtype: torch.dtype, windows: bool) -> None:
    """With gradients, on the CPU, torch's kernel may have been left for the explicit form, whose
    map no hook sees; dropout and gradients are as they were."""
    q, k, v, bias = image_batch(16, 16, batch=4).to(dtype)  # (3, 16, 16) each
    seen: list[Any] = []
    drop = nn.Dropout(0.0)
    drop.register_forward_hook(lambda *args: seen.append(args))
    found = {}
    for fused in (True, False):
        given = [t.clone().requires_grad_() for t in (q, k, v, bias)]
        y = attend(*given[:3], drop=drop, fused=fused, bias=given[3], windows=windows)
        assert bool(seen) == (not fused)
        y.float().square().sum().backward()
        found[fused] = [y, *(t.grad for t in given)]
    with torch.no_grad():
        found["kernel"] = [attend(q, k, v, drop=drop, fused=True, bias=bias, windows=windows)]
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    for form in (True, "kernel"):
        for a, b in zip(found[form], found[False], strict=False):
            assert error(a.float(), b.float()) <= tolerance
    for learnt in (q, bias):  # by the kernel, and by the explicit form that stands in for it
        learnt.requires_grad_()
        lost = attend(q, k, v, drop=nn.Dropout(0.999), fused=True, bias=bias, windows=windows)
        assert (lost == 0).float().mean() > 0.5
