"""A Backbone is held to its declaration: every way of being wrong, and what is said about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import featnet
from featnet import Backbone, FeatureDictNet, FeatureHookNet, FeatureListNet
from featnet.errors import ArgumentError, DeclarationError, FeatnetError
from featnet.layers import Tokens
from featnet.tracing import trace

KINDS = (FeatureListNet, FeatureDictNet, FeatureHookNet)
X = torch.zeros(1, 3, 64, 64)


def conv(in_chs: int, out_chs: int, stride: int = 2, padding: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_chs, out_chs, 3, stride, padding)


class Right(Backbone):
    """Three levels; what is wrong with a subclass is all that it overrides."""

    first_conv, last_fc = "stem", "fc"
    channels = (4, 8, 16)
    reductions = (2, 4, 8)

    def __init__(self) -> None:
        super().__init__()
        (a, b, c), (p, q, r) = self.channels, self.reductions
        self.add_stage("stem", conv(3, 4), channels=a, reduction=p)
        self.stages = nn.Sequential()
        self.add_stage("stages.0", conv(4, 8), channels=b, reduction=q)
        self.add_stage("stages.1", conv(8, 16), channels=c, reduction=r)
        self.add_head(16, num_classes=5, global_pool="avg")

    def forward_levels(self, x: torch.Tensor) -> Iterator[Any]:
        x = self.stem(x)
        yield x
        yield from self.through("stages", x)


class Channels(Right):
    channels = (4, 99, 16)


class Coarser(Right):
    reductions = (2, 4, 16)


class Finer(Right):
    reductions = (1, 4, 8)


class Swapped(Right):
    def forward_levels(self, x: torch.Tensor) -> Iterator[Any]:
        x = self.stem(x)
        y = self.stages[0](x)
        yield y
        yield x
        yield self.stages[1](y)


class Few(Right):
    def forward_levels(self, x: torch.Tensor) -> Iterator[Any]:
        x = self.stem(x)
        yield x
        yield self.stages[0](x)


class Many(Right):
    def forward_levels(self, x: torch.Tensor) -> Iterator[Any]:
        for y in super().forward_levels(x):
            yield y
        yield y


class Returns(Right):
    def forward_levels(self, x: torch.Tensor) -> Any:
        x = self.stem(x)
        return [x, y := self.stages[0](x), self.stages[1](y)]


class Forgets(Right):
    """Returns nothing: not one yield."""

    def forward_levels(self, x: torch.Tensor) -> Any:
        self.stages(self.stem(x))


class Flat(Right):
    def forward_levels(self, x: torch.Tensor) -> Iterator[Any]:
        first, *rest = super().forward_levels(x)
        yield first
        yield rest[0].flatten(2)
        yield rest[1]


class Pairs(Right):
    def forward_levels(self, x: torch.Tensor) -> Iterator[Any]:
        first, *rest = super().forward_levels(x)
        yield {"map": first}
        yield from rest


class BareTokens(Right):
    """The grid says less than there are tokens, in another layout than declared."""

    def forward_levels(self, x: torch.Tensor) -> Iterator[Any]:
        first, *rest = super().forward_levels(x)
        yield first
        n, c, h, w = rest[0].shape
        yield Tokens(rest[0].reshape(n, c, h * w), (c // 2, 2))
        yield rest[1]


# Class, and what its error says
WRONG: list[tuple[type[Right], str]] = [
    (
        Channels,
        r"Channels: level 1, 'stages\.0', is declared with 99 channels at reduction 4; for an "
        r"input of 256 x 256 its map is \(1, 8, 64, 64\): 8 channels at reduction 4\.",
    ),
    (
        Coarser,
        r"Coarser: level 2, 'stages\.1', .* reduction 16; .* \(1, 16, 32, 32\).* reduction 8",
    ),
    (Finer, r"Finer: level 0, 'stem', .* at reduction 1; .* 4 channels at reduction 2\."),
    (
        Swapped,
        r"Swapped.* another order .* as level 0, 'stem', it yields the output of 'stages\.0'\."
        r" Declared are 0: 'stem', 1: 'stages\.0', 2: 'stages\.1'\.",
    ),
    (Few, r"Few.forward_levels yields only 2 of the 3 levels.* Yield level 2, 'stages\.1', too"),
    (Many, r"Many.forward_levels yields more than the 3 levels .* belongs in finish\."),
    (Returns, r"Returns.forward_levels returns a list: it must be a generator"),
    (Forgets, r"Forgets.forward_levels returns a NoneType: it must be a generator"),
    (Flat, r"Flat: level 1, 'stages\.0', is no map .*a Tensor, of which .* \(1, 8, 4096\)\. Yield"),
    (Pairs, r"Pairs: level 0, 'stem', is no map \(N, C, H, W\): forward_levels yields a dict\. "),
    (BareTokens, r"BareTokens: level 1, 'stages\.0', .* its map is \(1, 4096, 4, 2\)"),
]
COUNTS = (Few, Many, Returns, Forgets)
IDS = [kind.__name__ for kind, _ in WRONG]


@pytest.mark.parametrize(("kind", "words"), WRONG, ids=IDS)
def test_all_ways_in_say_it(kind: type[Right], words: str) -> None:
    model = kind().eval()
    ways: list[Callable[[], object]] = [
        *(lambda net=net: net(model) for net in KINDS),
        lambda: model.feature_info,
        lambda: model.measure((256, 256)),
        lambda: FeatureListNet(kind(), prune=False, copy=False),
        lambda: featnet.extract(model),
    ]
    for way in ways:
        with pytest.raises(DeclarationError, match=words):
            way()
    with pytest.raises(DeclarationError, match=f"^{kind.__name__}[.:]"):
        model.forward_intermediates(X)
    if kind in COUNTS:
        for call in (model, model.forward_features):
            with pytest.raises(DeclarationError, match=words):
                call(X)


def test_the_right_one_passes() -> None:
    model = Right().eval()
    assert model(X).shape == (1, 5)
    assert [level.channels for level in model.levels] == [4, 8, 16]
    assert model.feature_info.sizes((64, 96)) == [(32, 48), (16, 24), (8, 12)]
    for kind in KINDS:
        maps = kind(model)(X)
        maps = list(maps.values()) if isinstance(maps, dict) else maps
        assert [tuple(y.shape[1:]) for y in maps] == [(4, 32, 32), (8, 16, 16), (16, 8, 8)]


def test_the_error_is_of_all_the_kinds_that_callers_catch() -> None:
    for kind in (FeatnetError, ArgumentError, TypeError, ValueError):
        assert issubclass(DeclarationError, kind)


def test_only_what_comes_out_is_run() -> None:
    """A level that is wrong is found when it is asked for, or before."""
    assert FeatureListNet(Coarser(), (0, 1)).feature_info.reduction() == [2, 4]
    with pytest.raises(DeclarationError, match="level 2"):
        FeatureListNet(Coarser(), (0, 2))
    with pytest.raises(DeclarationError, match="another order"):
        FeatureHookNet(Swapped(), (1,))
    with pytest.raises(DeclarationError, match="only 2 of the 3"):
        FeatureHookNet(Few(), (2,))


def test_no_run_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    run = trace._run
    monkeypatch.setattr(trace, "_run", lambda *a, **k: (runs.append(0), run(*a, **k))[1])
    model = Right()
    for kind in KINDS:
        runs.clear()
        kind(model, (0, 2))
        assert len(runs) == 1, kind
    runs.clear()
    assert model.feature_info == model.feature_info
    assert len(runs) == 1  # once for a declaration


# Hooks read what modules put out ----------------------------------------------------------------


class Functional(Right):
    """Its first level is computed by no module."""

    def forward_levels(self, x: torch.Tensor) -> Iterator[Any]:
        x = self.stem(x).relu()
        yield x
        yield from self.through("stages", x)


def test_a_hook_would_read_something_else() -> None:
    assert FeatureListNet(Functional()).feature_info.channels() == [4, 8, 16]
    with pytest.raises(
        DeclarationError, match=r"Functional: level 0, 'stem', .* in as_map or in a mod"
    ):
        FeatureHookNet(Functional())


# While it is built ------------------------------------------------------------------------------


def build(body: Callable[[Any], None], **names: Any) -> Callable[[], Backbone]:
    def init(self: Any) -> None:
        Backbone.__init__(self)
        body(self)

    return type("Net", (Backbone,), {"__init__": init, **names})


def plain(self: Any) -> None:
    self.add_stage("stem", conv(3, 4), channels=4, reduction=2)


def with_head(self: Any) -> None:
    plain(self)
    self.add_head(4, num_classes=2, global_pool="avg")


def named(call: str, *args: Any, **options: Any) -> Callable[[Any], None]:
    def body(self: Any) -> None:
        plain(self)
        getattr(self, call)(*args, channels=4, reduction=2, **options)

    return body


@pytest.mark.parametrize(
    ("body", "names", "words"),
    [
        (with_head, {"first_conv": "stem"}, r"Net does not say last_fc: .* num_classes acts"),
        (with_head, {"last_fc": "fc"}, r"Net does not say first_conv: .* in_chans acts"),
        (
            named("add_stage", "stages.0", nn.Identity()),
            {},
            r"Net.add_stage\('stages\.0'\): there is no module 'stages'; .* There are stem\.",
        ),
        (
            named("add_level", "stam"),
            {},
            r"Net.add_level\('stam'\): there is no module 'stam'; .* Did you mean 'stem'\?",
        ),
        (
            named("add_stage", "measure", nn.Identity()),
            {},
            r"Net.add_stage\('measure'\): .*'measure' is an attribute of",
        ),
        (named("add_level", "stem", hook_type="before"), {}, r"hook_type 'before'; .* forward_pre"),
        (
            lambda self: self.add_stage("a", nn.Identity(), channels=0, reduction=2),
            {},
            r"has channels 0; it must be a positive int",
        ),
        (
            with_head,
            {"first_conv": "stam", "last_fc": "fc"},
            r"Net.first_conv='stam': there is no module 'stam'.* Did you mean 'stem'",
        ),
        (with_head, {"first_conv": "stem", "last_fc": 3}, r"Net does not say last_fc"),
    ],
)
def test_while_it_is_built(body: Any, names: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        build(body, **names)()


def test_what_was_left_out() -> None:
    names = {"first_conv": "stem", "last_fc": "fc"}
    bare = build(plain, **names)()
    for way in (bare, FeatureListNet, FeatureHookNet):
        with pytest.raises(
            DeclarationError, match=r"Net has no forward_levels: a Backbone defines"
        ):
            way(X if way is bare else bare)
    assert not bare.training or bare.levels  # declared all the same

    def levels(self: Any, x: torch.Tensor) -> Iterator[Any]:
        yield self.stem(x)

    headless = build(plain, forward_levels=levels, **names)()
    assert [y.shape[1] for y in FeatureListNet(headless)(X)] == [4]
    for call in (headless, lambda x: headless.get_classifier(), headless.forward_head):
        with pytest.raises(DeclarationError, match=r"Net has no head: .* add_head\(num_features"):
            call(X)

    nothing = build(lambda self: None, forward_levels=levels, **names)()
    for way in (*KINDS, lambda model: model.feature_info, lambda model: model.forward_features(X)):
        with pytest.raises(DeclarationError, match="Net declares no level: add_stage"):
            way(nothing)


# What is not wrong ------------------------------------------------------------------------------


class Unpadded(Right):
    """299 -> 149 -> 74 -> 36, and so on: fewer positions than size / reduction."""

    def __init__(self) -> None:
        super().__init__()
        for _ in range(2):
            self.stages.insert(0, nn.Conv2d(4, 4, 5))  # takes four
        self._levels = tuple(
            featnet.Feature(level.channels, level.reduction, name, i)
            for i, (level, name) in enumerate(
                zip(self._levels, ("stem", "stages.2", "stages.3"), strict=True)
            )
        )


def test_borders_may_be_lost_and_odd_sizes_round() -> None:
    model = Unpadded().eval()
    for kind in KINDS:
        net = kind(model)
        assert net.feature_info.reduction() == [2, 4, 8]
        for size in ((64, 64), (65, 97), (75, 75), (31, 33)):
            sizes = net.feature_info.sizes(size)
            model.forward_intermediates(torch.zeros(1, 3, *size))
            assert sizes[0] == ((size[0] + 1) // 2, (size[1] + 1) // 2)
            assert sizes[2][0] < size[0] / 8 - 0.5  # not what the declaration says
    for size in ((63, 65), (1, 1), (7, 250), (33, 31)):
        Right().eval().forward_intermediates(torch.zeros(1, 3, *size))


def test_at_an_output_stride() -> None:
    model = featnet.create_model("resnet18", output_stride=8, device="meta")
    assert model.feature_info.reduction() == [2, 4, 8, 8, 8]
    assert featnet.FeatureHookNet(model).feature_info.reduction() == [2, 4, 8, 8, 8]


def test_what_runs_behind_the_last_level_is_kept_by_none() -> None:
    class Tail(Right):
        def __init__(self) -> None:
            super().__init__()
            self.tail = conv(16, 2)

        def forward_levels(self, x: torch.Tensor) -> Iterator[Any]:
            for x in super().forward_levels(x):
                yield x
            self.tail(x)

    assert Tail()(X).shape == (1, 5)
    for kind in KINDS:
        assert not [key for key in kind(Tail()).state_dict() if key.startswith("tail")]


def test_a_child_may_be_called_levels() -> None:
    class Nest(Backbone):
        first_conv, last_fc = "levels.0", "head"

        def __init__(self) -> None:
            super().__init__()
            self.levels = nn.Sequential()
            self.add_stage("levels.0", conv(3, 4), channels=4, reduction=2)
            self.add_stage("levels.1", conv(4, 8), channels=8, reduction=4)
            self.add_head(8, num_classes=2, global_pool="avg")

        def forward_levels(self, x: torch.Tensor) -> Iterator[Any]:
            yield from self.through("levels", x)

    model = Nest().eval()
    assert len(model.levels) == 2 and isinstance(model.levels, nn.Sequential)
    assert next(iter(model.state_dict())) == "levels.0.weight"
    for kind in KINDS:
        net = kind(model, (0,))
        assert net.feature_info.module_name() == ["levels.0"]
        assert list(net.state_dict()) == ["levels.0.weight", "levels.0.bias"]
    assert model(X).shape == (1, 2)
