"""The registry, the factory, and the surface of every Backbone and extractor."""

from __future__ import annotations

import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import helpers
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import featnet
from featnet import (
    Backbone,
    Family,
    Feature,
    FeatureDictNet,
    FeatureHookNet,
    FeatureInfo,
    FeatureListNet,
    Weights,
    build_model_with_cfg,
    create_model,
    register,
    register_model,
    registry,
)
from featnet.errors import ArgumentError, OutIndexError, UnknownModelError
from featnet.models.resnet import BasicBlock, ResNet

NAME = "test_resnet"
KINDS = {"list": FeatureListNet, "dict": FeatureDictNet, "hook": FeatureHookNet}
X = (64, 64)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Names that a test registers are gone after it."""
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    yield


def build(name: str = NAME, **options: Any) -> Any:
    return helpers.fill_noise(create_model(name, **options)).eval()


def meta(name: str = NAME, **options: Any) -> Any:
    with torch.device("meta"):
        return create_model(name, **options)


def listed(maps: Any) -> list[torch.Tensor]:
    return list(maps.values()) if isinstance(maps, dict) else list(maps)


def equal(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(listed(a), listed(b), strict=True))


# Names ------------------------------------------------------------------------------------------


def test_list_models_filters() -> None:
    everything = featnet.list_models()
    assert len(everything) == len(set(everything)) >= 81
    assert featnet.list_models("resnet18") == ["resnet18"]
    some = featnet.list_models("resnet*")
    assert some == [n for n in everything if n.startswith("resnet")]
    assert featnet.list_models("*resnet50*", exclude_filters="resnet50*") == [
        n for n in featnet.list_models("*resnet50*") if not n.startswith("resnet50")
    ]
    both = featnet.list_models(["resnet18*", "seresnet*"], exclude_filters=["*d", "*_*"])
    assert "resnet18" in both and "seresnet18" in both
    assert not [n for n in both if n.endswith("d") or "_" in n]
    assert featnet.list_models("nothing*") == []


def test_list_models_is_in_natural_order() -> None:
    names = featnet.list_models("resnet??") + featnet.list_models("resnet???")
    plain = [n for n in featnet.list_models("resnet*") if n in names and n[6:].isdigit()]
    assert plain == sorted(plain, key=lambda n: int(n[6:]))


def test_list_models_by_module() -> None:
    with pytest.raises(ArgumentError, match=r"module='resnets': one of beit, .* 'resnet'"):
        featnet.list_models(module="resnets")
    by_module = [n for m in featnet.list_modules() for n in featnet.list_models(module=m)]
    assert sorted(by_module) == sorted(featnet.list_models())
    assert featnet.list_models("*18", module=["resnet"]) == featnet.list_models(
        "*18", module="resnet"
    )


def test_pretrained_names_have_tags_that_resolve() -> None:
    names = featnet.list_models(pretrained=True)
    assert names == featnet.list_pretrained()
    assert "resnet18.a1_in1k" in names and "resnet18" not in names
    for name in names:
        weights = featnet.get_weights(name)
        assert weights is not None and weights.has_weights
        assert name == f"{weights.architecture}.{weights.tag}".rstrip(".")
    bare = featnet.list_models(pretrained=True, include_tags=False)
    assert set(bare) == {n.partition(".")[0] for n in names}
    assert featnet.list_pretrained("resnet18.*") == featnet.list_pretrained("resnet18")


def test_is_model_and_entrypoint() -> None:
    assert featnet.is_model("resnet18")
    for name in ("resnet51", "", None, 3, "resnet18 "):
        assert not featnet.is_model(name)  # type: ignore[arg-type]
    with torch.device("meta"):
        made = featnet.model_entrypoint(NAME)(num_classes=3)
    assert isinstance(made, Backbone) and made.num_classes == 3
    assert "resnet" in featnet.list_modules()


def test_a_tag_chooses_the_checkpoint_not_the_model() -> None:
    first, other = meta("resnet18"), meta("resnet18.tv_in1k")
    assert first.pretrained_cfg.tag == "a1_in1k" and other.pretrained_cfg.tag == "tv_in1k"
    assert meta("resnet18", pretrained_cfg="tv_in1k").pretrained_cfg == other.pretrained_cfg
    assert list(first.state_dict()) == list(other.state_dict())


# Registration -----------------------------------------------------------------------------------


class Tiny(nn.Module):
    def __init__(self, num_classes: int = 5, in_chans: int = 3, width: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, width, 3, 2, 1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.head = nn.Linear(2 * width, num_classes)
        self.feature_info = [
            dict(num_chs=width, reduction=2, module="conv1"),
            dict(num_chs=2 * width, reduction=4, module="conv2"),
        ]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.conv2(self.conv1(x)).mean((2, 3)))
        return y


@pytest.mark.usefixtures("registered")
def test_a_plain_function() -> None:
    @register_model
    def tiny_plain(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        """Its own words."""
        return Tiny(**kwargs)

    assert tiny_plain.__doc__ == "Its own words."
    assert featnet.is_model("tiny_plain") and "tiny_plain" in featnet.list_models()
    assert "tiny_plain" not in featnet.list_models(pretrained=True, include_tags=False)
    assert featnet.list_models(module="test_factory") == ["tiny_plain"]
    assert create_model("tiny_plain", num_classes=3, width=8).head.out_features == 3
    net = create_model("tiny_plain", features_only=True, out_indices=(1, 0))
    assert [y.shape[1] for y in net(torch.zeros(1, 3, 16, 16))] == [8, 4]
    assert net.feature_info.channels() == [8, 4] and "head.weight" not in net.state_dict()
    with pytest.raises(UnknownModelError, match="Did you mean 'tiny_plain'"):
        create_model("tiny_plan")
    with pytest.raises(TypeError):
        create_model("tiny_plain", widht=3)


@pytest.mark.usefixtures("registered")
def test_timms_way() -> None:
    @register_model
    def tiny_timm(pretrained: bool = False, **kwargs: Any) -> Any:
        return build_model_with_cfg(Tiny, "tiny_timm", pretrained, **dict(dict(width=6), **kwargs))

    assert create_model("tiny_timm").conv1.out_channels == 6
    assert create_model("tiny_timm", width=7).conv1.out_channels == 7
    net = create_model("tiny_timm", features_only=True, out_indices=(-1,))
    assert isinstance(net, FeatureListNet) and net.feature_info.channels() == [12]
    direct = tiny_timm(features_only=True, out_indices=(0,), feature_cls="dict")
    assert list(direct(torch.zeros(1, 3, 16, 16))) == ["conv1"]
    with pytest.raises(ArgumentError, match="features_only=True"):
        tiny_timm(out_indices=(0,))


@pytest.mark.usefixtures("registered")
def test_mindcvs_way() -> None:
    cfg = {"url": "", "num_classes": 5, "mean": [0.5, 0.5, 0.5], "dataset_transform": {}}

    @register_model
    def tiny_mindcv(
        pretrained: bool = False, num_classes: int = 5, in_channels: int = 3, **kwargs: Any
    ) -> Any:
        args = dict(default_cfg=cfg, num_classes=num_classes, in_chans=in_channels, **kwargs)
        return build_model_with_cfg(Tiny, pretrained, **args)

    model = create_model("tiny_mindcv", num_classes=2)
    assert model.head.out_features == 2 and model.default_cfg["mean"] == (0.5, 0.5, 0.5)
    assert len(create_model("tiny_mindcv", features_only=True)(torch.zeros(1, 3, 16, 16))) == 2


@pytest.mark.usefixtures("registered")
def test_names_collide_unless_overridden() -> None:
    def resnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return Tiny(**kwargs)

    with pytest.raises(ArgumentError, match="'resnet18' exists already.*override=True"):
        register_model(resnet18)
    assert isinstance(create_model(NAME), ResNet)
    register_model(override=True)(resnet18)
    assert isinstance(create_model("resnet18"), Tiny)
    assert featnet.list_models("resnet18") == ["resnet18"]
    register_model(resnet18)  # the same function again: a notebook's cell


@pytest.mark.usefixtures("registered")
def test_a_family() -> None:
    family = Family(
        model=ResNet,
        variants={
            "mine_a": dict(block=BasicBlock, depths=(1, 1, 1, 1)),
            "mine_b": dict(block=BasicBlock, depths=(1, 1, 1, 1), planes=(8, 16, 24, 32)),
        },
        weights={
            "mine_a.x": Weights("mine_a", "x", file="mine.pth", num_classes=7),
            "mine_a.y": Weights("mine_a", "y"),
        },
    )
    assert register(family) is family
    assert featnet.list_models("mine*") == ["mine_a", "mine_b"]
    assert featnet.list_pretrained("mine*") == ["mine_a.x"]
    assert meta("mine_a").num_classes == 7, "of its checkpoint"
    assert meta("mine_a.y").num_classes == 1000
    assert meta("mine_b", features_only=True).feature_info.channels() == [64, 8, 16, 24, 32]
    with pytest.raises(ArgumentError, match="exists already"):
        register(Family(model=ResNet, variants={"mine_a": {}}))
    with pytest.raises(UnknownModelError, match="x, y"):
        meta("mine_a.z")


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", ["a.b", "a b", ""])
def test_a_name_that_cannot_be_one(name: str) -> None:
    with pytest.raises(ArgumentError, match="word without dots"):
        register(Family(model=ResNet, variants={name: {}}))


# Arguments --------------------------------------------------------------------------------------

NONE = (
    "out_indices",
    "out_strides",
    "output_stride",
    "feature_cls",
    "in_chans",
    "num_classes",
    "global_pool",
    "checkpoint_path",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "cache_dir",
    "scriptable",
    "exportable",
    "no_jit",
    "drop_rate",
    "drop_path_rate",
    "act_layer",
    "norm_layer",
    "output_fmt",
    "out_map",
)


@pytest.mark.parametrize("features_only", [False, True])
def test_none_means_not_given(features_only: bool) -> None:
    bare = meta(features_only=features_only)
    full = meta(features_only=features_only, **dict.fromkeys(NONE))
    assert repr(full) == repr(bare) and full.pretrained_cfg == bare.pretrained_cfg


def test_model_name_and_harmless_arguments() -> None:
    model = meta(model_name := NAME, exportable=True, scriptable=False, no_jit=True)
    assert isinstance(model, ResNet)
    with torch.device("meta"):
        assert isinstance(create_model(model_name=model_name, features_only=None), ResNet)


def test_layers_by_callable() -> None:
    model = meta(act_layer=nn.SiLU, norm_layer=lambda c: nn.GroupNorm(2, c))
    kinds = {type(m) for m in model.modules()}
    assert nn.SiLU in kinds and nn.GroupNorm in kinds
    assert not kinds & {nn.ReLU, nn.BatchNorm2d}


@pytest.mark.parametrize("in_chans", [1, 4])
@pytest.mark.parametrize("options", [{}, {"features_only": True}])
def test_in_chans(in_chans: int, options: dict[str, Any]) -> None:
    model = build(in_chans=in_chans, **options)
    assert model.in_chans == in_chans
    model(torch.zeros(1, in_chans, *X))


# The classifier ---------------------------------------------------------------------------------


def test_forward_is_head_of_features() -> None:
    model, x = build(), helpers.image_batch(*X)
    with torch.no_grad():
        y = model.forward_features(x)
        assert torch.equal(model(x), model.forward_head(y))
        before = model.forward_head(y, pre_logits=True)
        assert torch.equal(model.get_classifier()(before), model(x))
    assert before.shape == (1, model.head_hidden_size)
    assert y.shape[1] == model.num_features == model.feature_info[-1].channels


POOLS = {
    "avg": lambda y: y.mean((2, 3)),
    "max": lambda y: y.amax((2, 3)),
    "avgmax": lambda y: (y.mean((2, 3)) + y.amax((2, 3))) / 2,
    "catavgmax": lambda y: torch.cat([y.mean((2, 3)), y.amax((2, 3))], 1),
}


@pytest.mark.parametrize("fast", ["", "fast"])
@pytest.mark.parametrize("kind", POOLS)
def test_every_pooling(kind: str, fast: str) -> None:
    model, x = build(global_pool=fast + kind, num_classes=3), helpers.image_batch(*X)
    with torch.no_grad():
        pooled = POOLS[kind](model.forward_features(x))
        torch.testing.assert_close(model.forward_head(model.forward_features(x), True), pooled)
        wanted = F.linear(pooled, model.fc.weight, model.fc.bias)
        torch.testing.assert_close(model(x), wanted)
    assert model.head_hidden_size == pooled.shape[1]
    assert model.global_pool.pool_type == fast + kind


def test_fast_alone_is_the_average() -> None:
    model, x = build(global_pool="fast"), helpers.image_batch(*X)
    with torch.no_grad():
        torch.testing.assert_close(
            model.forward_head(model.forward_features(x), pre_logits=True),
            model.forward_features(x).mean((2, 3)),
        )


def test_without_classes_and_without_pooling() -> None:
    x = helpers.image_batch(*X)
    with torch.no_grad():
        model = build(num_classes=0)
        assert model.num_classes == 0 and isinstance(model.get_classifier(), nn.Identity)
        assert torch.equal(model(x), model.forward_head(model.forward_features(x), pre_logits=True))
        model = build(num_classes=0, global_pool="")
        assert torch.equal(model(x), model.forward_features(x)) and model(x).ndim == 4


def test_reset_classifier() -> None:
    model, x = build(), helpers.image_batch(*X)
    features = model.forward_features(x)
    model.reset_classifier(7)
    assert model(x).shape == (1, 7) and model.num_classes == 7
    assert model.get_classifier() is model.fc
    model.reset_classifier(7, "catavgmax")
    assert model.fc.in_features == model.head_hidden_size == 2 * model.num_features
    model.reset_classifier(5)
    assert model.global_pool.pool_type == "catavgmax" and model(x).shape == (1, 5)
    model.reset_classifier(0, "")
    assert torch.equal(model(x), features)
    with pytest.raises(ArgumentError, match="num_classes=0"):
        model.reset_classifier(5)
    assert torch.equal(model(x), features), "a refused change changes nothing"
    model.double().reset_classifier(5, "avg")
    assert model.fc.weight.dtype == torch.float64 and not model.fc.training
    assert list(model.state_dict())[-2:] == ["fc.weight", "fc.bias"]


@pytest.mark.parametrize("features_only", [False, True])
def test_attributes_can_be_set_to_none(features_only: bool) -> None:
    net, x = build(features_only=features_only), helpers.image_batch(*X)
    for name in ("fc", "classifier", "global_pool", "anything"):
        setattr(net, name, None)
        assert getattr(net, name) is None
    if features_only:
        assert len(net(x)) == 5
    else:
        assert net.forward_features(x).ndim == 4


# forward_intermediates --------------------------------------------------------------------------


@pytest.mark.parametrize("indices", [None, 1, 3, (4, 0, 2), (-1, 1), [2]])
@pytest.mark.parametrize("norm", [False, True])
def test_forward_intermediates(indices: Any, norm: bool) -> None:
    model, x = build(), helpers.image_batch(*X)
    with torch.no_grad():
        every = [y.clone() for y in model.forward_levels(x)]
        order = featnet.features.resolve(indices, model.feature_info.info)  # type: ignore[attr-defined]
        wanted = [every[i] for i in order]
        final, maps = model.forward_intermediates(x, indices, norm=norm)
        assert equal(maps, wanted) and torch.equal(final, model.forward_features(x))
        assert equal(model.forward_intermediates(x, indices, intermediates_only=True), wanted)
        stopped, maps = model.forward_intermediates(x, indices, stop_early=True)
        assert equal(maps, wanted) and torch.equal(stopped, every[max(order)])
        for fmt, permute in (
            ("NHWC", lambda y: y.permute(0, 2, 3, 1)),
            ("NLC", lambda y: y.flatten(2).transpose(1, 2)),
        ):
            _, maps = model.forward_intermediates(x, indices, output_fmt=fmt)
            assert equal(maps, [permute(y) for y in wanted])


def test_forward_intermediates_stops_early() -> None:
    model, x = build(), helpers.image_batch(*X)
    model.layer3.register_forward_hook(lambda *a: pytest.fail("layer3 ran"))
    model.forward_intermediates(x, (1, 2), stop_early=True)
    model.forward_intermediates(x, (2,), intermediates_only=True)


def test_the_earliest_map_is_not_overwritten_by_what_follows() -> None:
    model, x = build("resnet10t"), helpers.image_batch(*X)
    with torch.no_grad():
        alone = model.forward_intermediates(x, (0,), intermediates_only=True)[0]
        beside = model.forward_intermediates(x)[1][0]
    assert torch.equal(alone, beside)


# Training ---------------------------------------------------------------------------------------


def gradients(model: Any, x: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    out = model(x)
    sum(y.square().mean() for y in (listed(out) if not torch.is_tensor(out) else [out])).backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("feature_cls", [None, *KINDS])
def test_grad_checkpointing_recomputes_the_same_gradients(feature_cls: str | None) -> None:
    options = {"features_only": True, "feature_cls": feature_cls} if feature_cls else {}
    model = helpers.fill_noise(create_model("resnet10t", **options)).train()
    for module in model.modules():  # a second pass in training moves statistics a second time
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    x, calls = helpers.image_batch(*X, batch=2), []
    model.layer1[0].conv1.register_forward_hook(lambda *a: calls.append(1))
    wanted = gradients(model, x)
    assert len(calls) == 1
    model.set_grad_checkpointing()
    found = gradients(model, x)
    assert len(calls) == 3, "forward, and again in the backward pass"
    assert equal(found, wanted)
    model.set_grad_checkpointing(False)
    assert equal(gradients(model, x), wanted) and len(calls) == 4


def test_drop_rates_act_in_training_only() -> None:
    x = helpers.image_batch(*X, batch=8)
    plain = build("resnet10t")
    for rate in ("drop_rate", "drop_path_rate", "drop_block_rate"):
        model = build("resnet10t", **{rate: 0.5})
        assert getattr(model, rate, 0.5) == 0.5
        with torch.no_grad():
            assert torch.equal(model(x), plain(x)), "in eval nothing is dropped"
            for module in (model.train(), plain.train()):
                for norm in module.modules():
                    if isinstance(norm, nn.BatchNorm2d):
                        norm.eval()
            assert torch.equal(plain(x), plain(x))
            assert not torch.equal(model(x), model(x)), rate
        plain.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_train_and_eval_reach_the_network(kind: str) -> None:
    net = create_model(NAME, features_only=True, feature_cls=kind)
    for mode in (False, True):
        net.train(mode)
        assert {m.training for m in net.modules()} == {mode} and net.body.training is mode


# pretrained_cfg ---------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"features_only": True}])
def test_pretrained_cfg_is_a_mapping(options: dict[str, Any]) -> None:
    model = meta("resnet18", **options)
    cfg = model.pretrained_cfg
    assert model.default_cfg is cfg
    assert cfg["mean"] == (0.485, 0.456, 0.406) and len(cfg["std"]) == 3
    assert cfg["input_size"] == (3, 224, 224) and cfg["pool_size"] == (7, 7)
    assert cfg["fixed_input_size"] is False and cfg["interpolation"] and cfg["crop_pct"]
    assert cfg.get("nothing", 3) == 3 and "mean" in cfg and "nothing" not in cfg
    assert dict(**cfg)["first_conv"] == "conv1"
    with pytest.raises(KeyError):
        cfg["nothing"]
    with pytest.raises(TypeError):
        cfg["mean"] = (0, 0, 0)


def test_the_full_models_cfg_names_its_head() -> None:
    cfg = meta("resnet18").pretrained_cfg
    assert cfg["classifier"] == "fc" and cfg["num_classes"] == 1000
    assert meta("resnet10t").pretrained_cfg["first_conv"] == "conv1.0"


def test_pretrained_cfg_of_ones_own() -> None:
    model = meta("resnet18", pretrained_cfg={"mean": [0.5] * 3, "num_classes": 9})
    assert model.pretrained_cfg["mean"] == (0.5, 0.5, 0.5) and model.num_classes == 9
    overlaid = meta("resnet18", pretrained_cfg_overlay={"crop_pct": 0.5})
    assert overlaid.pretrained_cfg["crop_pct"] == 0.5
    assert overlaid.pretrained_cfg["tag"] == "a1_in1k"
    assert meta("resnet18").pretrained_cfg["crop_pct"] != 0.5, "the table is nobody's to write"


# FeatureInfo ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"out_indices": (3, 1)},
        {"out_indices": 2},
        {"output_stride": 8},
        {"out_strides": (16, 4)},
        {"feature_cls": "hook", "out_indices": (-1, 0)},
        {"feature_cls": "dict", "in_chans": 1, "output_stride": 16},
    ],
    ids=str,
)
def test_feature_info_without_the_weights(options: dict[str, Any]) -> None:
    asked = featnet.feature_info(NAME, **options)
    built = create_model(NAME, features_only=True, **options)
    assert asked == built.feature_info and asked.out_indices == built.feature_info.out_indices
    assert asked.sizes((70, 33)) == built.feature_info.sizes((70, 33))
    with torch.no_grad():
        maps = listed(built.eval()(torch.zeros(1, built.in_chans, 70, 33)))
    assert asked.sizes((70, 33)) == [tuple(y.shape[-2:]) for y in maps]
    assert asked.channels() == [y.shape[1] for y in maps]


def test_feature_info_of_a_huge_network_and_input_costs_nothing() -> None:
    info = featnet.feature_info("resnet152", pretrained=True, checkpoint_path="/nowhere.pth")
    assert info.sizes((100_000, 32))[-1] == (3125, 1)


def test_the_interface_of_feature_info() -> None:
    info = meta(features_only=True, out_indices=(-1, 1)).feature_info
    every = meta().feature_info
    assert len(info) == 2 and len(every) == len(info.info) == 5
    assert info.out_indices == (-1, 1), "as given"
    assert info.channels() == [every.channels()[4], every.channels()[1]] == info.get("num_chs")
    assert info.reduction() == [32, 4] and info.module_name() == ["layer4", "layer1"]
    assert info.channels(0) == info.channels()[0] and info.channels([1, 0]) == info.channels()[::-1]
    assert info.get("reduction", 1) == 4 and info.get("module", -1) == "layer1"
    level = info[0]
    assert isinstance(level, Feature) and level["num_chs"] == level["chs"] == level.channels
    assert level["module"] == level["name"] == "layer4" and level["index"] == level.index == 4
    assert dict(level) == {
        "num_chs": level.channels,
        "reduction": 32,
        "module": "layer4",
        "index": 4,
    }
    assert info[-1].module == "layer1" and [f.module for f in info[:1]] == ["layer4"]
    assert info.get_dicts()[0] == dict(level) and len(info.get_dicts()) == 2
    assert info.get_dicts(keys=["reduction"]) == [{"reduction": 32}, {"reduction": 4}]
    assert info.get_dicts(["module"], 1) == {"module": "layer1"}
    assert info.get_dicts(["module"], [1]) == [{"module": "layer1"}]
    with pytest.raises(IndexError):
        info[2]
    other = FeatureInfo.from_other(info, out_indices=(0,))
    assert other.module_name() == ["act1"] and other.info == info.info
    assert other.sizes((64, 64)) == [(32, 32)] and len(FeatureInfo.from_other(info)) == 5
    lines = repr(info).split("\n")
    assert lines[0].split() == ["level", "module", "channels", "reduction"] and len(lines) == 3
    assert lines[1].split() == ["4", "layer4", str(level.channels), "32"]


def test_a_bare_declaration() -> None:
    info = FeatureInfo([dict(chs=4, reduction=2, name="a"), Feature(8, 4, "b")], (1,))
    assert info.channels() == [8] and info[0].index == 1
    with pytest.raises(ArgumentError, match="needs a network"):
        info.sizes((8, 8))
    with pytest.raises(OutIndexError, match="2 levels"):
        FeatureInfo(info.info, (2,))


@pytest.mark.parametrize("given", [range(1, 3), [1, 2], (1, 2), iter((1, 2)), torch.tensor([1, 2])])
def test_sequences_of_every_kind(given: Any) -> None:
    net = create_model(NAME, features_only=True, out_indices=given)
    assert net.feature_info.module_name() == ["layer1", "layer2"] and len(net) == 2


@pytest.mark.parametrize(("stride", "module"), [(2, "act1"), (8, "layer2"), (32, "layer4")])
def test_out_strides(stride: int, module: str) -> None:
    assert featnet.feature_info(NAME, out_strides=(stride,)).module_name() == [module]
    assert featnet.feature_info(NAME, out_strides=(8, 2)).reduction() == [8, 2]


def test_out_strides_take_the_deepest() -> None:
    info = featnet.feature_info(NAME, out_strides=(4, 8), output_stride=8)
    assert info.module_name() == ["layer1", "layer4"]


# Extractors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS.values())
def test_a_subclass_adds_to_forward(kind: Any) -> None:
    class Mine(kind):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> Any:
            return [2 * y for y in listed(super().forward(x))]

    model, x = build(), helpers.image_batch(*X)
    with torch.no_grad():
        wanted = [2 * y for y in model.forward_intermediates(x, (1, 3), intermediates_only=True)]
        assert equal(Mine(model, (1, 3))(x), wanted)
        net = create_model(NAME, features_only=True, feature_cls=Mine, out_indices=(1, 3))
        net.load_state_dict(model.state_dict(), strict=False)
        assert equal(net.eval()(x), wanted)


def test_feature_cls_is_any_callable() -> None:
    def wrap(model: nn.Module, out_indices: Any) -> nn.Module:
        return nn.Sequential(OrderedDict(model=model, indices=nn.Identity()))

    assert isinstance(meta(features_only=True, feature_cls=wrap, out_indices=(1,)), nn.Sequential)


def snapshot(model: nn.Module) -> Any:
    return (
        [
            (n, id(m), type(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks))
            for n, m in model.named_modules()
        ],
        [(n, id(p), p.requires_grad, p._version) for n, p in model.named_parameters()],
        [(n, id(b)) for n, b in model.named_buffers()],
        sorted(model.__dict__),
        repr(model),
    )


@pytest.mark.parametrize("kind", KINDS.values())
def test_a_model_that_the_caller_keeps_stays_as_it_was(kind: Any) -> None:
    model, x = build(), helpers.image_batch(*X)
    with torch.no_grad():
        wanted = model(x)
    before = snapshot(model)
    net = kind(model, (1, 0))
    assert not hasattr(net, "layer4") or net.layer4 is None, "pruned"
    net(x)
    assert snapshot(model) == before
    with torch.no_grad():
        assert torch.equal(model(x), wanted)
    for name, parameter in net.named_parameters():
        assert parameter is model.get_parameter(name), "the tensors are shared"
    net.train()
    assert not model.training and not model.layer1.training, "own structure"
    model.train()(helpers.image_batch(*X, batch=2)).sum().backward()
    assert all(p.grad is not None for p in model.parameters()), "it still trains"


@pytest.mark.parametrize("kind", KINDS.values())
def test_an_extractor_of_an_extractor(kind: Any) -> None:
    model, x = build(), helpers.image_batch(*X)
    with torch.no_grad():
        wanted = model.forward_intermediates(x, (2, 1), intermediates_only=True)
        for first in KINDS.values():
            assert equal(kind(first(model), (2, 1))(x), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_children_are_named_and_ordered_as_in_the_model(kind: str) -> None:
    net = meta(features_only=True, feature_cls=kind, out_indices=(1, 3))
    names = [name for name, _ in net.named_children()]
    full = [name for name, _ in meta().named_children()]
    assert names == [name for name in full if name in names]
    assert names == ["conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3"]
    assert len(net) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_an_extractor_runs_child_by_child(kind: str) -> None:
    """As torchvision's IntermediateLayerGetter and RT-DETR run it."""
    net, x = build(features_only=True, feature_cls=kind), helpers.image_batch(*X)
    with torch.no_grad():
        wanted, y, seen = listed(net(x)), x, []
        for name, child in net.named_children():
            y = child(y)
            if name in net.feature_info.module_name():
                seen.append(y.clone())
    assert equal(seen, wanted)


def test_return_layers_can_be_rewritten() -> None:
    net, x = build(features_only=True, feature_cls="dict"), helpers.image_batch(*X)
    with torch.no_grad():
        maps = net(x)
        assert net.return_layers == {n: n for n in ("act1", "layer1", "layer2", "layer3", "layer4")}
        net.return_layers = {"layer3": "c4", "layer1": "c2"}
        found = net(x)
    assert list(found) == ["c4", "c2"]
    assert torch.equal(found["c4"], maps["layer3"]) and torch.equal(found["c2"], maps["layer1"])
    assert net.feature_info.module_name() == ["layer3", "layer1"] and len(net) == 2
    with pytest.raises(ArgumentError, match="Did you mean 'layer2'"):
        net.return_layers = {"layre2": "x"}


def test_return_layers_of_what_was_pruned() -> None:
    net = build(features_only=True, feature_cls="dict", out_indices=(1,))
    with pytest.raises(ArgumentError, match="'layer4'"):
        net.return_layers = {"layer4": "c5"}
    assert net.return_layers == {"layer1": "layer1"}
    # transformers asks for every level of .info; those that are there come
    net.return_layers = {level.module: str(level.index) for level in net.feature_info.info}
    assert list(net(helpers.image_batch(*X))) == ["0", "1"]


@pytest.mark.parametrize(
    ("out_map", "keys"),
    [
        (["a", "b"], ["a", "b"]),
        ({"layer3": "deep"}, ["deep", "layer1"]),
        (None, ["layer3", "layer1"]),
    ],
)
@pytest.mark.parametrize("kind", ["dict", "hook"])
def test_out_map(kind: str, out_map: Any, keys: list[str]) -> None:
    net = build(features_only=True, feature_cls=kind, out_indices=(3, 1), out_map=out_map)
    maps = net(helpers.image_batch(*X))
    assert (kind == "hook" and out_map is None) or list(maps) == keys
    assert net.feature_info.module_name() == ["layer3", "layer1"]


@pytest.mark.parametrize("kind", KINDS)
def test_output_fmt(kind: str) -> None:
    x, model = helpers.image_batch(*X), build()
    for fmt in ("NCHW", "NHWC", "NLC"):
        net = KINDS[kind](model, (1,), output_fmt=fmt)
        assert net.output_fmt == fmt
        wanted = model.forward_intermediates(x, (1,), output_fmt=fmt, intermediates_only=True)
        assert equal(net(x), wanted)


def test_an_unpruned_extractor_has_the_whole_network() -> None:
    net = meta(features_only=True, out_indices=(0,), prune=False)
    assert list(net.state_dict()) == list(meta().state_dict())


def test_a_module_named_like_a_family_of_ones_own_does_not_matter() -> None:
    fake = types.ModuleType("models")
    sys.modules.setdefault("models", fake)
    try:
        assert isinstance(meta("resnet18"), ResNet)
    finally:
        if sys.modules.get("models") is fake:
            del sys.modules["models"]
