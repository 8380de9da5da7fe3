"""``optimize``: the same numbers, sooner; what cannot be folded stays and is reported."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import helpers
import pytest
import torch
from helpers import fill_noise, picture
from torch import nn

import featnet
from featnet.errors import ArgumentError, FeatnetError
from featnet.packed import POST_OPS, PackedConv2d

TOLERANCE = 1e-4


def noisy(name: str, **options: Any) -> Any:
    return fill_noise(featnet.create_model(name, **options)).eval()


def maps(found: Any) -> list[torch.Tensor]:
    return list(featnet.trace.tensors(found)) if not isinstance(found, list) else found


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
    keys, x = list(net.state_dict()), picture(96, 64, batch=2)
    made = featnet.optimize(net)
    assert_close(made, net, x)
    assert_close(made, net, picture(65, 97))  # another size than the kernels were laid out for
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
    x = picture(64, 96)
    assert_close(made, model, x)
    with torch.inference_mode():
        levels = zip(*(m.forward_intermediates(x)[1] for m in (made, model)), strict=True)
        assert all(helpers.error(a, b) <= TOLERANCE for a, b in levels)
    report = made.optimize_report
    assert set(norms(made)) == set(report.left)
    assert len(norms(model)) == len(report.left) + len(report.folded) or report.reparameterized


def test_with_an_example_the_forms_are_timed() -> None:
    net = noisy("resnet18", features_only=True, out_indices=(1,))
    report = featnet.optimize(net, example=picture(64, 64)).optimize_report
    assert {"contiguous", "channels_last"} <= set(report.milliseconds)
    assert bool(report.packed) == (
        min(report.milliseconds, key=report.milliseconds.__getitem__) == "packed"
    )
    assert "batch norms folded" in str(report) and " ms" in str(report)


def test_copies_of_packed_networks() -> None:
    made = featnet.optimize(noisy("resnet18", features_only=True))
    assert any(isinstance(m, PackedConv2d) for m in made.modules())
    x = picture(64, 64)
    for copied in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        with torch.inference_mode():
            assert all(torch.equal(a, b) for a, b in zip(copied(x), made(x), strict=True))


@pytest.mark.parametrize("kind", POST_OPS)
def test_every_activation_that_is_packed(kind: Any) -> None:
    act = kind(-0.3, 0.7) if kind is nn.Hardtanh else kind()
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), act).eval()
    fill_noise(net)
    made = featnet.optimize(net)
    assert isinstance(made[0], PackedConv2d) and isinstance(made[2], nn.Identity)
    assert_close(made, net, picture(32, 48))


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
    assert "feeds it alone" in report.left["read_twice"] and "feeds it alone" in report.left["shared"]
    assert "computed" in report.left["after_computed"]
    assert_close(made, net, picture(16, 24, batch=2))


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
    assert_close(made, net, picture(16, 24))


def test_what_is_tapped_stays() -> None:
    model = noisy("resnet18")
    net = featnet.FeatureHookNet(model, taps=["layer1.0.conv1", "layer1.0.bn2"]).eval()
    made = featnet.optimize(net)
    assert_close(made, net, picture(64, 64))
    assert "layer1.0.bn1" in made.optimize_report.left
    assert "layer1.0.bn2" in made.optimize_report.folded


def test_foreign_models(torchvision: Any, timm: Any) -> None:
    net = fill_noise(torchvision.models.mobilenet_v3_small()).eval()
    made: Any = featnet.optimize(net)
    assert made.optimize_report.folded and not norms(made)
    assert_close(made, net, picture(64, 96))
    other = fill_noise(helpers.peer_model("resnet10t")).eval()
    assert_close(featnet.optimize(other), other, picture(64, 96))


def test_double_and_compile_take_no_packed_kernels() -> None:
    net = noisy("resnet18", features_only=True, out_indices=(0,))
    made = featnet.optimize(net.double())
    assert not made.optimize_report.packed and made.optimize_report.folded
    assert_close(made, net, picture(32, 32, dtype=torch.float64))
    made = featnet.optimize(net.float(), compile="eager")
    assert made.optimize_report.compiled and not made.optimize_report.packed
    assert_close(made, net, picture(32, 32))


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
