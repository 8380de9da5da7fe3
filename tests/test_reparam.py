"""Re-parameterisation: fewer layers, the same function; of models, extractors, dilated networks."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import error, fill_noise, image_batch, peer_model
from torch import nn

import featnet
from featnet import FeatureDictNet, FeatureHookNet, FeatureListNet, reparameterize
from featnet.dilation.rule import set_output_stride
from featnet.errors import ArgumentError, MissingFeatureError
from featnet.layers import Branches, ConvNormAct
from featnet.models.byobnet import ByobNet, MobileOneBlock, RepVggBlock, Row, Stem

TOLERANCE = 1e-4  # relative to the largest value, float32
KINDS = (FeatureListNet, FeatureDictNet, FeatureHookNet)


def small(block: Any, *, group_size: int = 0, **options: Any) -> Any:
    """Every kind of branch in a network that is quick: with and without identity, groups, SE."""
    stages = tuple(
        (Row(block, 1, width, group_size=0), Row(block, 2, width, group_size=group_size))
        for width in (16, 16, 32, 48)
    )
    return fill_noise(ByobNet(stages, Stem((16,), block=block), num_classes=5, **options)).eval()


def several(site: Any) -> nn.Module:
    """MobileOne's block with three branches."""
    return MobileOneBlock(site, branches=3)


CASES = {
    "repvgg": lambda: small(RepVggBlock),
    "grouped": lambda: small(RepVggBlock, group_size=4, attn_layer="se"),
    "mobileone": lambda: small(MobileOneBlock, group_size=1, attn_layer="se"),
    "several": lambda: small(several, group_size=8),
}
every_case = pytest.mark.parametrize("case", CASES)


def as_list(found: Any) -> list[torch.Tensor]:
    return list(found.values()) if isinstance(found, dict) else list(found)


def levels(model: Any, x: torch.Tensor) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [*model.forward_intermediates(x, intermediates_only=True), model(x)]


def assert_same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert b.std() > 1e-3 and error(a, b) < TOLERANCE


@every_case
def test_the_same_function_in_fewer_layers(case: str) -> None:
    model, x = CASES[case](), image_batch(65, 96)
    before, weights = levels(model, x), copy.deepcopy(model.state_dict())
    deployed = reparameterize(model)
    assert_same(levels(deployed, x), before)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in deployed.modules())
    sizes = [sum(p.numel() for p in net.parameters()) for net in (deployed, model)]
    assert sizes[0] < sizes[1]
    assert deployed.feature_info == model.feature_info
    # the caller's model is what it was
    assert list(model.state_dict()) == list(weights)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(levels(model, x), before, strict=True))


@every_case
@pytest.mark.parametrize("stride", [16, 8, 2])
def test_before_and_after_an_output_stride(case: str, stride: int) -> None:
    model, x = CASES[case](), image_batch(65, 64)
    dense = copy.deepcopy(model)
    set_output_stride(dense, stride)
    wanted = levels(dense, x)
    assert_same(levels(reparameterize(dense), x), wanted)
    deployed = reparameterize(model)
    set_output_stride(deployed, stride)
    assert_same(levels(deployed, x), wanted)


@every_case
@pytest.mark.parametrize("kind", KINDS)
def test_extractors(case: str, kind: Any) -> None:
    dense = CASES[case]()
    set_output_stride(dense, 16)
    net, x = kind(dense, (3, 0)).eval(), image_batch(64, 65)
    with torch.no_grad():
        wanted = as_list(net(x))
        deployed = reparameterize(net)
        found = as_list(deployed(x))
        assert_same(found, wanted)
        assert all(torch.equal(a, b) for a, b in zip(as_list(net(x)), wanted, strict=True))
        assert type(deployed) is kind and deployed.feature_info == net.feature_info
        assert deployed.feature_info.sizes((64, 65)) == [tuple(y.shape[2:]) for y in found]
        assert "stages.3.0" not in "".join(deployed.state_dict())  # still pruned
        for copied in (copy.deepcopy(deployed), pickle.loads(pickle.dumps(deployed))):
            assert all(torch.equal(a, b) for a, b in zip(as_list(copied(x)), found, strict=True))


def test_deployed_models_compile_and_train() -> None:
    net = reparameterize(FeatureListNet(CASES["mobileone"](), (1, 4)))
    x = image_batch(64, 64)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert_same(compiled(x), net(x))
    torch.compiler.reset()
    sum(y.sum() for y in net(x)).backward()
    assert all(p.grad is not None for p in net.parameters())
    assert not net.training and reparameterize(CASES["repvgg"]().train()).training


@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0", "ghostnetv3_050"])
def test_registered_models(name: str) -> None:
    with torch.device("meta"):
        model = featnet.create_model(name)
    deployed = reparameterize(model)
    assert deployed.feature_info == model.feature_info
    assert len(deployed.state_dict()) < len(model.state_dict()) / 2


@pytest.mark.parametrize(
    "name", ["mobileone_s4", "ghostnetv3_050", "lcnetv2_small", "repghostnet_050"]
)
def test_keys_of_the_deploy_form_are_the_peers(timm: Any, name: str) -> None:
    from timm.utils.model import reparameterize_model

    with torch.device("meta"):
        wanted = reparameterize_model(peer_model(name)).state_dict()
        deployed = reparameterize(featnet.create_model(name)).state_dict()
    assert {k: v.shape for k, v in deployed.items()} == {k: v.shape for k, v in wanted.items()}


@pytest.mark.parametrize("name", ["lcnetv2_small", "repghostnet_050"])
def test_deploy_checkpoints_of_the_peer_load(timm: Any, name: str, tmp_path: Path) -> None:
    """Its re-parameterised network's file, into ours of that form; under an output stride, folded
    by optimize, and re-parameterised here it is the same function."""
    from timm.utils.model import reparameterize_model

    theirs: Any = fill_noise(peer_model(name)).eval()
    state, x = theirs.state_dict(), image_batch(64, 96)
    torch.save(reparameterize_model(theirs).state_dict(), tmp_path / "deploy.pth")
    loaded: Any = featnet.create_model(
        name, reparameterized=True, checkpoint_path=str(tmp_path / "deploy.pth")
    ).eval()
    ours: Any = featnet.create_model(name).eval()
    ours.load_state_dict(state)
    branches = [n for n, _ in ours.named_parameters() if "dw_conv_list" in n or "fusion_bn" in n]
    assert branches and not set(branches) & {n for n, _ in loaded.named_parameters()}
    with torch.no_grad():
        assert_same([loaded(x)], [theirs(x)])
    for form in (loaded, reparameterize(ours), featnet.optimize(ours)):
        assert_same(levels(form, x), levels(ours, x))
    dense: Any = copy.deepcopy(ours)
    set_output_stride(dense, 8)
    assert_same(levels(reparameterize(dense), x), levels(dense, x))


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ArgumentError, match="nothing to re-parameterise"):
        reparameterize(featnet.create_model("resnet10t"))
    with pytest.raises(ArgumentError, match="not a torch.nn.Module"):
        reparameterize("repvgg_a0")  # type: ignore[type-var]
    model = CASES["repvgg"]()
    with pytest.raises(ArgumentError, match="nothing to re-parameterise"):
        reparameterize(reparameterize(model))
    with pytest.raises(ArgumentError, match=r"stem: GroupNorm"):
        reparameterize(small(RepVggBlock, norm_layer=partial(nn.GroupNorm, 1)))
    taps = FeatureHookNet(model, taps=["stages.0.0.conv_1x1"])
    with pytest.raises(MissingFeatureError, match=r"'stages\.0\.0\.conv_1x1'"):
        reparameterize(taps)


class Fold(Branches):
    """Branches in every form, and a norm of their sum: one convolution."""

    def __init__(self, channels: int, groups: int = 1) -> None:
        super().__init__()
        conv = partial(nn.Conv2d, channels, channels, groups=groups)
        self.large = nn.Sequential(conv(5, padding=2, bias=False), nn.BatchNorm2d(channels))
        self.flat = conv((1, 3), padding=(0, 1))
        self.small = ConvNormAct(channels, channels, act=None)
        self.scale = nn.BatchNorm2d(channels, affine=False)
        self.norm = nn.BatchNorm2d(channels)

    def branches(self) -> list[nn.Module]:
        small = [self.small] if self.flat.groups == 1 else []
        return [self.flat, self.large, self.scale, nn.Identity(), *small]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(super().forward(x))

    def reparameterize(self) -> nn.Module:
        return self.merged(norm=self.norm)


class Around(nn.Module):
    """A block of such blocks that changes itself, after they have changed."""

    def __init__(self) -> None:
        super().__init__()
        self.first: nn.Module = Fold(8)
        self.second: nn.Module = Fold(8, groups=8)
        self.again = self.first
        self.last: nn.Module = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.again(self.second(self.first(x))))

    def reparameterize(self) -> None:
        assert type(self.first) is type(self.second) is nn.Conv2d
        self.last = nn.Identity()


class Encoder(nn.Module):
    """Has a method of that name that is something else."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.inside = Around()

    def reparameterize(self, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
        return mean + log_variance.exp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inside(self.stem(x))


def test_children_first_and_in_place() -> None:
    model, x = fill_noise(Encoder()).eval(), image_batch(33, 32)
    deployed = reparameterize(model)
    assert type(deployed) is Encoder and type(deployed.inside) is Around
    assert deployed.inside.again is deployed.inside.first is not model.inside.first
    assert isinstance(deployed.inside.last, nn.Identity)
    assert isinstance(model.inside.second, Fold) and isinstance(model.inside.last, nn.Dropout)
    with torch.inference_mode():
        assert_same([deployed(x)], [model(x)])


def test_taps_of_what_is_replaced_and_of_what_is_lost() -> None:
    model, x = fill_noise(Encoder()).eval(), image_batch(33, 32)
    net = FeatureHookNet(model, taps=["inside.second"])
    with torch.inference_mode():
        assert_same(as_list(reparameterize(net)(x)), as_list(net(x)))
    lost = FeatureHookNet(model, taps=["inside.second.norm"])
    with pytest.raises(MissingFeatureError, match=r"'inside\.second\.norm'.*'inside\.second'"):
        reparameterize(lost)


def test_branches_that_are_no_linear_layer_are_refused() -> None:
    model = Around()
    model.second = Fold(8)
    model.second.large.append(nn.PReLU())
    with pytest.raises(ArgumentError, match=r"second: A branch of Conv2d, BatchNorm2d, PReLU"):
        reparameterize(model)


def test_ghostnet_under_an_output_stride_and_its_authors_keys() -> None:
    """Blocks that run in phases hold branches; the authors' files name norms and count
    operations."""
    model: Any = fill_noise(featnet.create_model("ghostnetv3_050")).eval()
    x = image_batch(64, 96)
    dense: Any = copy.deepcopy(model)
    set_output_stride(dense, 8)
    assert_same(levels(reparameterize(dense), x), levels(dense, x))
    state = model.state_dict()
    theirs = {k.replace(".bn1.", ".bn.") if "_rpr_" in k else k: v for k, v in state.items()}
    assert theirs.keys() != state.keys()
    theirs["blocks.0.0.total_ops"] = torch.zeros(1)
    converted = model.convert_state_dict(theirs)
    assert converted.keys() == state.keys() and "blocks.0.0.total_ops" in theirs
