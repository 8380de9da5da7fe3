"""``optimize``: the same numbers, sooner; what cannot be folded stays and is reported."""

from __future__ import annotations

import copy
import pickle
import shutil
from typing import Any

import helpers
import pytest
import torch
import torch.nn.functional as F
from helpers import fill_noise, image_batch
from torch import nn

import featnet
from featnet.deploy import forms
from featnet.deploy.packed import (
    POST_OPS,
    Packed,
    PackedConv2d,
    PackedLinear,
    PackedPointwise,
    Pointwise,
)
from featnet.deploy.packing import can_pack
from featnet.errors import ArgumentError, CheckpointError, FeatnetError

TOLERANCE = 1e-4


def noisy(name: str, **options: Any) -> Any:
    return fill_noise(featnet.create_model(name, **options)).eval()


def maps(found: Any) -> list[torch.Tensor]:
    return list(featnet.tracing.trace.tensors(found)) if not isinstance(found, list) else found


@torch.inference_mode()
def assert_close(net: Any, other: Any, x: torch.Tensor) -> None:
    for a, b in zip(maps(net(x)), maps(other(x)), strict=True):
        assert a.shape == b.shape and helpers.error(a, b) <= TOLERANCE


def norms(net: nn.Module) -> list[str]:
    return [n for n, m in net.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize("kind", ["list", "dict", "hook"])
@pytest.mark.parametrize("stride", [32, 8])
def test_extractors(kind: str, stride: int) -> None:
    net = noisy("resnet18", features_only=True, feature_cls=kind, output_stride=stride)
    keys, x = list(net.state_dict()), image_batch(96, 64, batch=2)
    made = featnet.optimize(net)
    assert_close(made, net, x)
    assert_close(made, net, image_batch(65, 97))  # another size than the kernels were laid out for
    assert not norms(made) and made.feature_info == net.feature_info
    assert made.feature_info.sizes((96, 64)) == net.feature_info.sizes((96, 64))
    report = made.optimize_report
    assert len(report.folded) == 20 and not report.left and report.difference < TOLERANCE
    assert list(net.state_dict()) == keys and norms(net)  # the caller's is as it was
    assert not any(p.requires_grad for p in made.parameters())


@pytest.mark.parametrize(
    "name", ["resnet10t", "mobilenetv3_small_050", "densenet121", "repvgg_a0", "convnext_atto"]
)
def test_classifiers(name: str) -> None:
    model = noisy(name)
    made = featnet.optimize(model)
    x = image_batch(64, 96)
    assert_close(made, model, x)
    with torch.inference_mode():
        levels = zip(*(m.forward_intermediates(x)[1] for m in (made, model)), strict=True)
        assert all(helpers.error(a, b) <= TOLERANCE for a, b in levels)
    report = made.optimize_report
    assert set(norms(made)) == set(report.left)
    assert len(norms(model)) == len(report.left) + len(report.folded) or report.reparameterized


def test_with_an_example_the_forms_are_timed() -> None:
    net = noisy("resnet18", features_only=True, out_indices=(1,))
    report = featnet.optimize(net, example=image_batch(64, 64)).optimize_report
    assert {"contiguous", "channels_last"} <= set(report.milliseconds)
    assert bool(report.packed) == (
        min(report.milliseconds, key=report.milliseconds.__getitem__) == "packed"
    )
    assert "batch norms folded" in str(report) and " ms" in str(report)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "name", ["resnet10t", "mobilenetv3_small_050", "repvgg_a0", "convnext_atto"]
)
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    """Folded like any other, and not further from float32 than the network itself is."""
    net, x = noisy(name, features_only=True), image_batch(64, 96)
    with torch.inference_mode():
        exact = net(x)
        plain = net.to(dtype)(x.to(dtype))
        made = featnet.optimize(net)
        found = made(x.to(dtype))
    report = made.optimize_report
    assert not norms(made) and not report.left
    assert bool(report.packed) == can_pack(x.to(dtype))
    for a, b, c in zip(found, plain, exact, strict=True):
        assert a.dtype == dtype
        assert helpers.error(a.float(), c) <= 2 * helpers.error(b.float(), c)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "convnext_atto"])
def test_copies_of_packed_networks(name: str, dtype: torch.dtype) -> None:
    made = featnet.optimize(noisy(name, features_only=True).to(dtype))
    kinds = {type(m) for m in made.modules()}
    x = image_batch(64, 64, dtype=dtype)
    if not can_pack(x):
        pytest.skip("oneDNN has no bfloat16 for this processor")
    assert PackedConv2d in kinds and {PackedPointwise, PackedLinear} & kinds
    assert {m.weight.dtype for m in made.modules() if isinstance(m, Packed)} == {dtype}
    for copied in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        with torch.inference_mode():
            assert all(torch.equal(a, b) for a, b in zip(copied(x), made(x), strict=True))


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "test_vit"])
def test_packed_layers_under_autocast(name: str) -> None:
    net, x = noisy(name, features_only=True), image_batch(64, 64)
    made = featnet.optimize(net)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found, plain = made(x), net(x)
    with torch.inference_mode():
        exact = net(x)
    for a, b, c in zip(found, plain, exact, strict=True):
        assert helpers.error(a.float(), c) <= 2 * helpers.error(b.float(), c)


def test_packed_layers_keep_their_type() -> None:
    made = featnet.optimize(nn.Sequential(nn.Conv2d(3, 8, 3)).eval())
    with pytest.raises(ArgumentError, match=r"packed in torch\.float32 was given torch\.bfloat16"):
        made(image_batch(8, 8, dtype=torch.bfloat16))


class Last(nn.Module):
    """Layers over the last axis, (N, C, H, W) outside."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("kind", POST_OPS)
@pytest.mark.parametrize("layer", [3, 1, 0])
def test_every_activation_that_is_packed(kind: Any, layer: int) -> None:
    act = kind(-0.3, 0.7) if kind is nn.Hardtanh else kind()
    if layer:
        net: Any = nn.Sequential(nn.Conv2d(3, 8, layer, bias=False), nn.BatchNorm2d(8), act)
    else:
        net = nn.Sequential(Last(nn.Linear(3, 8), act))
    made: Any = featnet.optimize(fill_noise(net.eval()))
    parts = list(made if layer else made[0].layers)
    assert type(parts[0]) is {3: PackedConv2d, 1: PackedPointwise, 0: PackedLinear}[layer]
    assert type(parts[-1]) is nn.Identity and f"act={kind.__name__}" in repr(parts[0])
    assert_close(made, net, image_batch(32, 48))
    assert_close(made, net, image_batch(5, 48, batch=3))
    assert made(image_batch(8, 8)[:0]).shape == net(image_batch(8, 8)[:0]).shape


class Twice(nn.Module):
    """Two read what a layer gives: its activation, and the network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 8, 1), nn.ReLU()
        self.fc, self.act = nn.Linear(8, 8), nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        y = self.relu(y) + y * self.conv.weight.sum() * self.conv.out_channels
        z = self.fc(y.permute(0, 2, 3, 1))
        return self.act(z) + z


def test_an_activation_stays_where_others_read_what_it_reads() -> None:
    net = fill_noise(Twice()).eval()
    made: Any = featnet.optimize(net)
    assert isinstance(made.fc, PackedLinear) and isinstance(made.conv, PackedPointwise)
    assert isinstance(made.act, nn.GELU) and isinstance(made.relu, nn.ReLU)
    assert_close(made, net, image_batch(16, 24))


def test_a_layer_that_somebody_watches_stays() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.SiLU()).eval()
    seen: list[str] = []
    for index in (0, 3):
        net[index].register_forward_hook(lambda m, args, y: seen.append(type(m).__name__))
    made: Any = featnet.optimize(net)
    assert [type(m) for m in made] == [nn.Conv2d, nn.ReLU, PackedPointwise, nn.SiLU]
    seen.clear()
    made(image_batch(8, 8))
    assert seen == ["Conv2d", "SiLU"]


def test_what_has_one_position_is_for_torch() -> None:
    """A product with one row takes oneDNN longer to begin than torch to end."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(8, 4, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4, 5),
        nn.ReLU(),
    ).eval()
    made: Any = featnet.optimize(fill_noise(net))
    assert isinstance(made[2], Pointwise) and type(made[3]) is nn.ReLU
    assert type(made[5]) is nn.Linear and type(made[6]) is nn.ReLU
    assert_close(made, net, image_batch(32, 32, batch=2))
    wide = Pointwise(net[2])  # at another size there may be more
    assert_close(wide, net[2], torch.randn(2, 8, 6, 5))


def test_kernels_are_laid_out_for_each_size_that_comes() -> None:
    """With a kernel that lies as another size wants it oneDNN may take fifty times as long."""
    conv = nn.Conv2d(32, 64, 2, 2).eval()
    made = PackedConv2d(conv, None, size=(1, 32, 64, 64))
    ops: Any = torch.ops.mkldnn
    for side in (14, 64, 28, 14):
        x = torch.randn(1, 32, side, side)
        assert_close(made, conv, x)
        wanted = ops._reorder_convolution_weight(
            conv.weight.detach(), *made.kernel.geometry, list(x.shape)
        )
        mds = [
            bytes(ops._get_mkldnn_serialized_md(kernel)[112:].tolist())
            for kernel in (made.kernel.for_size(x.shape), wanted)
        ]
        assert mds[0] == mds[1]
    distinct = {id(kernel) for kernel in made.kernel.by_size.values()}
    assert len(made.kernel.by_size) == 3 and len(distinct) == len(made.kernel.layouts) <= 3
    for side in range(2, 300):  # what is remembered has a limit
        made.kernel.for_size(torch.Size((1, 32, side, 2)))
    assert len(made.kernel.by_size) <= 256 and len(made.kernel.layouts) <= 4
    assert_close(made, conv, torch.randn(1, 32, 30, 30))
    assert torch.equal(made.weight, conv.weight)


class Amplifies(nn.Module):
    """Makes of rounding a thousand times as much."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.norm(self.conv(x)) * 3000).sin()


class Casts(Amplifies):
    """Cannot run in float64."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.dtype != torch.float64, "no doubles"
        return super().forward(x)


def test_rounding_that_the_network_amplifies_is_no_error() -> None:
    net = fill_noise(Amplifies()).eval()
    report = featnet.optimize(net).optimize_report
    assert report.difference > TOLERANCE and report.rounding is not None
    ours, own = report.rounding
    assert TOLERANCE / 2 < ours <= 2 * own and "amplifies rounding" in str(report)
    assert featnet.optimize(noisy("resnet10t")).optimize_report.rounding is None
    with pytest.raises(FeatnetError, match=r"differs .* in float64 it does not run: no doubles"):
        featnet.optimize(fill_noise(Casts()).eval())


@pytest.mark.parametrize(
    ("amplified", "dtype", "factor"),
    [(True, torch.float32, 1.001), (False, torch.float32, 1.001), (False, torch.bfloat16, 1.2)],
)
def test_a_wrong_fold_is_refused(
    amplified: bool, dtype: torch.dtype, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16))
    net = fill_noise(Amplifies() if amplified else plain).eval().to(dtype)

    def wrong(model: Any, feeds: Any) -> Any:
        done = fold(model, feeds)
        with torch.no_grad():
            (model.conv if amplified else model[0]).weight *= factor
        return done

    fold = forms.fold
    monkeypatch.setattr(forms, "fold", wrong)
    with pytest.raises(FeatnetError, match=r"differs from the original by .* not only rounding"):
        featnet.optimize(net)


class Odd(nn.Module):
    """What must stay: a norm that reads what others read too, one that is shared, one before its
    convolution, one behind a weight that is computed; and what may go, whatever it is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.read_twice = nn.BatchNorm2d(8)
        self.shared_conv = nn.Conv2d(8, 8, 1)
        self.shared = nn.BatchNorm2d(8)
        self.first = nn.BatchNorm2d(8)
        self.second_conv = nn.Conv2d(8, 8, 1, groups=4)
        self.computed = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))
        self.after_computed = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 8, 2, 2, groups=2)
        self.after_up = nn.BatchNorm2d(8)
        self.up_plain = nn.ConvTranspose2d(8, 6, 2, 2)
        self.after_up_plain = nn.BatchNorm2d(6, affine=False)
        self.fc = nn.Linear(6, 5, bias=False)
        self.after_fc = nn.BatchNorm1d(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        y = self.read_twice(y) + y
        y = self.shared(self.shared_conv(self.shared(y)))
        y = self.second_conv(self.first(y).relu())
        y = self.after_computed(self.computed(y))
        y = self.after_up_plain(self.up_plain(self.after_up(self.up(y))))
        return self.after_fc(self.fc(y.mean((2, 3))))


def test_only_where_it_is_exact() -> None:
    net = fill_noise(Odd()).eval()
    made: Any = featnet.optimize(net)
    report = made.optimize_report
    assert {"after_up_plain", "after_fc"} <= set(report.folded)
    assert set(report.left) == {"read_twice", "shared", "first", "after_computed", "after_up"}
    assert (
        "feeds it alone" in report.left["read_twice"] and "feeds it alone" in report.left["shared"]
    )
    assert "computed" in report.left["after_computed"]
    assert_close(made, net, image_batch(16, 24, batch=2))


class Halved(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True)


class Branches(nn.Module):
    """Goes another way for other values, which no graph can."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x.relu() if x.sum() > 0 else x))


def test_what_does_not_compile_says_why() -> None:
    net, x = Branches().eval(), torch.ones(1, 3, 8, 8)
    with pytest.raises(FeatnetError, match=r"(?s)Branches does not compile: .*Without compile="):
        featnet.optimize(net, example=x, compile="eager")
    made: Any = featnet.optimize(net, example=x)
    assert "meta device" in made.optimize_report.left["norm"]
    assert_close(made, net, x)


class Scaled(nn.Conv2d):
    """Does something else with its weight than torch's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.weight / self.weight.norm(), self.bias)


class Shifted(nn.BatchNorm2d):
    """Does something after the norm."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


@pytest.mark.parametrize("parts", [(Scaled, nn.BatchNorm2d), (nn.Conv2d, Shifted)])
def test_subclasses_that_do_more_stay(parts: Any) -> None:
    conv, norm = parts
    net = fill_noise(nn.Sequential(conv(3, 8, 3), norm(8), nn.ReLU())).eval()
    made: Any = featnet.optimize(net)
    assert list(made.optimize_report.left) == ["1"]
    assert_close(made, net, image_batch(16, 24))


def test_what_is_tapped_stays() -> None:
    model = noisy("resnet18")
    net = featnet.FeatureHookNet(model, taps=["layer1.0.conv1", "layer1.0.bn2"]).eval()
    made = featnet.optimize(net)
    assert_close(made, net, image_batch(64, 64))
    assert "layer1.0.bn1" in made.optimize_report.left
    assert "layer1.0.bn2" in made.optimize_report.folded


def test_foreign_models(torchvision: Any, timm: Any) -> None:
    net = fill_noise(torchvision.models.mobilenet_v3_small()).eval()
    made: Any = featnet.optimize(net)
    assert made.optimize_report.folded and not norms(made)
    assert_close(made, net, image_batch(64, 96))
    for name in ("resnet10t", "convnext_atto"):
        other = fill_noise(helpers.peer_model(name)).eval()
        fast: Any = featnet.optimize(other)
        assert len(fast.optimize_report.packed) > 10
        assert_close(fast, other, image_batch(64, 96))


def test_double_and_compile_take_no_packed_kernels() -> None:
    net = noisy("resnet18", features_only=True, out_indices=(0,))
    made = featnet.optimize(net.double())
    assert not made.optimize_report.packed and made.optimize_report.folded
    assert_close(made, net, image_batch(32, 32, dtype=torch.float64))
    made = featnet.optimize(net.float(), compile="eager")
    assert made.optimize_report.compiled == "eager" and not made.optimize_report.packed
    assert_close(made, net, image_batch(32, 32))


def test_compiled_is_one_more_form() -> None:
    """Torch allows eight graphs of a class; more networks than that, and sizes, are no reason to
    stop."""
    net, x = noisy("resnet10t", features_only=True, out_indices=(0,)), image_batch(32, 32)
    report = featnet.optimize(net, example=x, compile="eager").optimize_report
    assert set(report.milliseconds) == {"contiguous", "channels_last", "packed", "compiled"}
    best = min(report.milliseconds, key=report.milliseconds.__getitem__)
    assert report.compiled == ("eager" if best == "compiled" else "")
    for _ in range(9):
        made = featnet.optimize(net, compile="eager")
    for size in ((32, 32), (64, 32), (48, 80)):
        for x in (image_batch(*size), image_batch(*size, batch=2)):
            with torch.enable_grad():
                assert_close(made, net, x)
            with torch.inference_mode():
                assert_close(made, net, x)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # inductor's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor() -> None:
    """Frozen and wrapped in C++, with the 1x1 convolutions behind a pooling as linear layers; for
    what torch cannot write in C++ (an antialiased resize), in Python."""
    net = noisy("mobilenetv3_small_050", features_only=True, out_indices=(1,))
    made = featnet.optimize(net, compile=True)
    assert made.optimize_report.compiled == "inductor, frozen, in C++"
    assert {type(m) for m in made.modules()} >= {Pointwise, nn.Conv2d}
    assert_close(made, net, image_batch(64, 96))
    resized = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), Halved())
    made = featnet.optimize(fill_noise(resized).eval(), compile=True)
    assert made.optimize_report.compiled == "inductor, frozen"


def test_packed_linear_layers_are_not_exported(tmp_path: Any) -> None:
    made = featnet.optimize(noisy("test_vit", features_only=True))
    assert {type(m) for m in made.modules()} & {PackedLinear, PackedConv2d} == {PackedLinear}
    with pytest.raises(ArgumentError, match="packed.*before optimize"):
        featnet.export(made, tmp_path / "a.pt2")


def test_errors() -> None:
    net = noisy("resnet18", features_only=True)
    with pytest.raises(ArgumentError, match=r"layer2\.0\.bn1 is in training mode.*eval\(\)"):
        net.layer2[0].bn1.train()
        featnet.optimize(net)
    net.eval()
    with pytest.raises(ArgumentError, match=r"example=\(3, 8, 8\).*\(N, C, H, W\)"):
        featnet.optimize(net, example=torch.zeros(3, 8, 8))
    with pytest.raises(ArgumentError, match="is a str, not"):
        featnet.optimize("resnet18")  # type: ignore[type-var]
    with pytest.raises(ArgumentError, match="compile='fast'.*eager"):
        featnet.optimize(net, compile="fast")


def packed_pair(name: str = "test_resnet") -> tuple[Any, Any]:
    """Two packed networks of other weights."""
    made: list[Any] = [
        featnet.optimize(fill_noise(featnet.create_model(name), seed=seed).eval())
        for seed in (0, 1)
    ]
    assert all(any(isinstance(m, Packed) for m in net.modules()) for net in made)
    return made[0], made[1]


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "mobilenetv3_small_100"])
def test_the_state_of_a_packed_network_is_whole(name: str) -> None:
    first, second = packed_pair(name)
    size = featnet.create_model(name).img_size or (64, 64)
    x = image_batch(*size)
    state = first.state_dict()
    assert sum(v.numel() for v in state.values()) > 0.9 * sum(
        p.numel() for p in featnet.create_model(name).parameters()
    )
    with torch.inference_mode():
        wanted, before = first(x), second(x)
        assert not torch.equal(wanted, before)
        second.load_state_dict(state)
        assert torch.equal(second(x), wanted)
        third = packed_pair(name)[1]
        featnet.load_checkpoint(third, {f"module.{k}": v for k, v in state.items()})
        assert torch.equal(third(x), wanted)


def test_a_state_that_is_not_whole_is_refused() -> None:
    first, second = packed_pair()
    x = image_batch(64, 64)
    key = next(f"{n}.weight" for n, m in first.named_modules() if isinstance(m, Packed))
    with pytest.raises(RuntimeError, match=f'Missing.*"{key}"'):
        second.load_state_dict({k: v for k, v in first.state_dict().items() if k != key})
    with pytest.raises(RuntimeError, match="size mismatch"):
        second.load_state_dict({**first.state_dict(), key: torch.ones(3)})
    with torch.inference_mode():
        before = second(x)
    with pytest.raises(CheckpointError, match="does not fit"):
        featnet.load_checkpoint(second, featnet.create_model("test_resnet").state_dict())
    with torch.inference_mode():
        assert torch.equal(second(x), before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda net, x: net.half(), "cannot become torch.float16"),
        (lambda net, x: net.to(torch.float64), "convert the network before optimize"),
        (lambda net, x: net.to("meta"), "on meta: convert"),
        (lambda net, x: net(x.requires_grad_()), "no gradients: train the one"),
        (lambda net, x: torch.jit.trace(net, x), "trace the network that optimize"),
    ],
)
def test_what_a_packed_network_cannot_do(use: Any, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        use(packed_pair()[0], image_batch(64, 64))


class Described(torch.utils.data.Dataset[torch.Tensor]):
    """Data that go through a network in the worker."""

    def __init__(self, net: Any) -> None:
        self.net = net

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> torch.Tensor:
        with torch.inference_mode():
            out: torch.Tensor = self.net(image_batch(64, 64) * index)
        return out.clone()


def test_a_packed_network_in_a_spawned_worker() -> None:
    net = packed_pair()[0]
    data = Described(net)
    loader = torch.utils.data.DataLoader(
        data, batch_size=None, num_workers=1, multiprocessing_context="spawn"
    )
    with torch.inference_mode():
        for index, y in enumerate(loader):
            torch.testing.assert_close(y, data[index])
