"""Training a part of a network: what is frozen stays so; rates and decay of parameter groups."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any

import helpers
import pytest
import torch
from helpers import fill_noise, image_batch, peer_model
from torch import nn

import featnet
from featnet import FrozenBatchNorm2d, freeze, param_groups, unfreeze
from featnet.errors import ArgumentError, MissingFeatureError
from featnet.training.groups import layer_ids


def snapshot(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: t.detach().clone() for name, t in net.state_dict().items()}


def step(net: Any, *sizes: int, forward: Any = None, steps: int = 3) -> None:
    """Some optimiser steps on inputs that are far from what statistics know."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.1)
    for seed in range(steps):
        x = image_batch(*sizes, batch=2, seed=seed) + 3
        loss = sum(y.float().square().mean() for y in maps(forward or net, x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def maps(net: Any, x: torch.Tensor) -> list[torch.Tensor]:
    y = net(x)
    return list(y.values()) if isinstance(y, dict) else y if isinstance(y, list) else [y]


def moved(before: dict[str, torch.Tensor], net: nn.Module) -> set[str]:
    """Names of the tensors that are not what they were, to the bit."""
    return {k for k, t in net.state_dict().items() if not torch.equal(t, before[k])}


@pytest.mark.parametrize("name", helpers.families())
def test_frozen_is_frozen(name: str) -> None:
    """Level 1 and what is before it: to the bit after train(), AdamW with weight decay, inputs
    shifted by 3. Something else moves."""
    net = featnet.FeatureListNet(helpers.create_shallow(name))
    frozen = freeze(net, until=1)
    assert frozen
    held = {n for n, p in net.named_parameters() if not p.requires_grad}
    assert held == set(frozen)
    net.train()
    before = snapshot(net)
    step(net, *helpers.sizes(name)[0])
    changed = moved(before, net)
    assert changed and not changed & held
    buffers = {n for n, _ in net.named_buffers()}
    owners = {n.rpartition(".")[0] for n in held}
    assert not {n for n in changed & buffers if n.rpartition(".")[0] in owners}


@pytest.mark.parametrize("kind", ["backbone", "list", "dict", "hook", "elsewhere", "graph"])
def test_every_kind_of_network(kind: str, torchvision: Any) -> None:
    torch.manual_seed(0)
    if kind == "backbone":
        net: Any = featnet.create_model("test_resnet", num_classes=3, drop_rate=0.1)
    elif kind == "elsewhere":
        net = torchvision.models.resnet18(num_classes=3)
    elif kind == "graph":
        model = torchvision.models.resnet18(num_classes=3)
        net = featnet.create_feature_extractor(model, {"layer1": "a", "layer3": "b"})
    else:
        net = featnet.create_model("test_resnet", features_only=True, feature_cls=kind)
    frozen = freeze(net, until=0 if kind == "graph" else 1)
    assert "layer1.0.conv1.weight" in frozen and not any("layer2" in n for n in frozen)
    net.train()
    early, late = (net.get_submodule(f"layer{i}.0.bn1") for i in (1, 2))
    assert not early.training and late.training
    before = snapshot(net)
    step(net, 64, 64)
    changed = moved(before, net)
    assert changed and all(n.startswith(("layer2", "layer3", "layer4", "fc")) for n in changed)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))])
def test_copies_are_frozen_too(copied: Any) -> None:
    net = featnet.create_model("test_resnet", features_only=True)
    freeze(net, until=1)
    other = copied(net)
    other.train()
    assert not other.layer1.training and other.layer2.training
    net.eval()
    assert other.layer2.training  # one does not switch the other
    before = snapshot(other)
    step(other, 32, 32)
    assert not any(n.startswith(("conv1", "bn1", "layer1")) for n in moved(before, other))
    unfreeze(other)
    assert other.train().layer1.training and not net.train().layer1.training


def test_extractor_of_a_frozen_network() -> None:
    model = featnet.create_model("test_resnet")
    freeze(model, until=1)
    net = featnet.FeatureListNet(model).train()
    assert not net.layer1.training and net.layer2.training and not model.layer1.training


def test_a_state_dict_goes_through(tmp_path: Any) -> None:
    net = featnet.create_model("test_resnet", features_only=True)
    freeze(net, until=2)
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    buffer.seek(0)
    net.load_state_dict(torch.load(buffer))
    assert not net.train().layer2.training and not net.layer2[0].conv1.weight.requires_grad


def test_dropout_and_drop_path_are_off() -> None:
    net = featnet.create_model(
        "test_vit", features_only=True, drop_path_rate=0.9, proj_drop_rate=0.5
    )
    freeze(net, until=-1)
    net.train()
    x = image_batch(160, 160)
    assert torch.equal(net(x)[-1], net(x)[-1])


@pytest.mark.parametrize(
    ("norm", "statistics", "weights"),
    [("freeze", False, False), ("eval", False, True), ("train", True, True)],
)
def test_norms(norm: Any, statistics: bool, weights: bool) -> None:
    net = featnet.create_model("test_resnet", features_only=True)
    frozen = freeze(net, until=1, norm=norm)
    assert ("layer1.0.bn1.weight" in frozen) != weights
    assert "layer1.0.conv1.weight" in frozen
    before = snapshot(net.train())
    step(net, 32, 32)
    changed = moved(before, net)
    assert ("layer1.0.bn1.running_mean" in changed) == statistics
    assert ("layer1.0.bn1.weight" in changed) == weights
    assert "layer1.0.conv1.weight" not in changed


def test_unfreeze() -> None:
    net = featnet.create_model("test_resnet", features_only=True)
    own = net.layer1[0].conv1.weight.requires_grad_(False)  # somebody's own: stays
    every = freeze(net)
    assert not any(p.requires_grad for p in net.parameters())
    assert not any(m.training for m in net.train().modules())
    back = unfreeze(net, last=1)
    assert back and all(n.startswith("layer4") for n in back)
    back += unfreeze(net, last=3)
    assert {n.split(".")[0] for n in back} == {"layer2", "layer3", "layer4"}
    back += unfreeze(net)
    assert sorted(back) == sorted(every) and not own.requires_grad
    assert all(m.training for m in net.train().modules())


def test_names_and_patterns() -> None:
    net = featnet.create_model("test_vit", features_only=True)
    frozen = freeze(net, until=["patch_embed", "pos_embed", "blocks.*.attn"])
    tops = {n.split(".")[0] for n in frozen}
    assert tops == {"patch_embed", "pos_embed", "blocks"}
    assert all(".attn." in n for n in frozen if n.startswith("blocks"))
    assert not net.train().blocks[0].attn.training and net.blocks[0].mlp.training
    assert set(unfreeze(net)) == set(frozen)


@pytest.mark.parametrize(
    ("until", "kind", "words"),
    [
        (9, ArgumentError, "until=9"),
        (-9, ArgumentError, "until=-9"),
        (True, ArgumentError, "until=True"),
        (1.0, ArgumentError, "until=1.0"),
        ([], ArgumentError, r"until=\[\]"),
        ("layer9", MissingFeatureError, "Did you mean 'layer"),
        ("blokcs.*", MissingFeatureError, "blokcs"),
    ],
)
def test_what_cannot_be_frozen(until: Any, kind: Any, words: str) -> None:
    net = featnet.create_model("test_resnet", features_only=True)
    with pytest.raises(kind, match=words):
        freeze(net, until=until)
    assert all(p.requires_grad for p in net.parameters())
    with pytest.raises(ArgumentError, match="last=6"):
        unfreeze(net, last=6)
    with pytest.raises(ArgumentError, match="norm='evil'.*'eval'"):
        freeze(net, norm="evil")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="not a torch.nn.Module"):
        freeze(None)  # type: ignore[arg-type]


def test_compiled() -> None:
    net = featnet.create_model("test_resnet", features_only=True)
    freeze(net, until=1)
    net.train()
    before = snapshot(net)
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step(net, 32, 32, forward=torch.compile(net, backend="aot_eager"))
    changed = moved(before, net)
    assert changed and not any(n.startswith(("conv1", "bn1", "layer1")) for n in changed)


def test_lightning() -> None:
    """Its fit calls train(), and its own freezing lets statistics move."""
    lightning = helpers.peer("lightning.pytorch")
    finetuning = helpers.peer("lightning.pytorch.callbacks").BackboneFinetuning

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.backbone = featnet.create_model("test_resnet", features_only=True)
            freeze(self.backbone, until=1)
            self.head = nn.Linear(self.backbone.feature_info.channels()[-1], 2)

        def training_step(self, batch: torch.Tensor) -> torch.Tensor:
            return self.head(self.backbone(batch)[-1].mean((2, 3))).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.head.parameters(), lr=1e-2, weight_decay=0.1)

    module = Module()
    before = snapshot(module)
    data = torch.utils.data.DataLoader(image_batch(32, 32, batch=6) + 3, batch_size=2)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[finetuning(unfreeze_backbone_at_epoch=9)],
        )
        trainer.fit(module, data)
    changed = moved(before, module)
    frozen = ("backbone.conv1", "backbone.bn1", "backbone.layer1")
    assert "backbone.layer2.0.bn1.running_mean" in changed
    assert "head.weight" in changed and not any(n.startswith(frozen) for n in changed)


def test_frozen_batch_norm() -> None:
    plain = fill_noise(featnet.create_model("test_resnet")).eval()
    model: Any = FrozenBatchNorm2d.convert_frozen_batchnorm(copy.deepcopy(plain)).train()
    x = image_batch(32, 48)
    with torch.inference_mode():
        assert torch.equal(plain(x), model(x))
    assert plain.state_dict().keys() == model.state_dict().keys()
    plain.load_state_dict(model.state_dict(), strict=True)
    model.load_state_dict(plain.state_dict(), strict=True)
    before = snapshot(model)
    step(model, 32, 32)
    assert not any("bn" in n for n in moved(before, model))
    fast = featnet.optimize(featnet.FeatureListNet(model.eval()), example=x)
    wanted = featnet.FeatureListNet(model)(x)
    assert all(helpers.error(a, b) < 1e-4 for a, b in zip(fast(x), wanted, strict=True))
    assert not any(isinstance(m, FrozenBatchNorm2d) for m in fast.modules())
    with pytest.raises(ValueError, match="track_running_stats"):
        FrozenBatchNorm2d.of(nn.BatchNorm2d(3, track_running_stats=False))


# Rates ------------------------------------------------------------------------------------------


def rates(groups: list[Any], net: nn.Module) -> dict[str, tuple[float, float]]:
    """(share of the rate, weight decay) of each parameter."""
    of = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    return {name: of[id(p)] for name, p in net.named_parameters()}


@pytest.mark.parametrize("name", helpers.families())
def test_groups_are_the_peers(name: str, timm: Any) -> None:
    model = helpers.full_model(name)
    with torch.device("meta"), helpers.Unset():
        peer: Any = peer_model(name)
    groups = param_groups(model, lr=0.1, weight_decay=0.05, layer_decay=0.7)
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    if not hasattr(peer, "group_matcher"):  # it takes each layer with weights for one
        ids = layer_ids(model)
        levels = [next(i for n, i in ids.items() if n.startswith(f.module)) for f in model.levels]
        assert levels == sorted(set(levels)) and max(ids.values()) > levels[-1]
        return
    named = getattr(peer, "no_weight_decay", set)()
    theirs = helpers.peer("timm.optim").param_groups_layer_decay(
        peer, weight_decay=0.05, no_weight_decay_list=named, layer_decay=0.7
    )
    ours, wanted = rates(groups, model), rates(theirs, peer)
    assert {k: v[0] for k, v in ours.items()} == pytest.approx({k: v[0] for k, v in wanted.items()})
    # of tokens and tables that the peer forgets there may be more without decay
    assert {k for k, v in wanted.items() if not v[1]} <= {k for k, v in ours.items() if not v[1]}
    assert {k for k, v in ours.items() if not v[1] and wanted[k][1]} <= model.no_weight_decay() | {
        k for k, p in model.named_parameters() if p.ndim > 2 and len(p) == 1
    }


def test_groups_of_networks_from_elsewhere(torchvision: Any) -> None:
    model = torchvision.models.resnet18()
    ids = layer_ids(model)
    order = [ids[n] for n in ("conv1.weight", "layer1.0.conv1.weight", "layer4.0.conv1.weight")]
    assert order == sorted(set(order)) and ids["fc.weight"] > order[-1]


def test_groups_of_a_system() -> None:
    net = featnet.create_model("test_vit", features_only=True)
    freeze(net, until=["patch_embed"])
    head = nn.Sequential(nn.Linear(64, 8), nn.LayerNorm(8))
    groups = param_groups(
        {"backbone": net, "head": head},
        lr=1.0,
        weight_decay=0.1,
        layer_decay=0.5,
        no_weight_decay=["head.0.weight"],
    )
    every = [p for g in groups for p in g["params"]]
    assert len({id(p) for p in every}) == len(every)
    wanted = [p for m in (net, head) for p in m.parameters() if p.requires_grad]
    assert {id(p) for p in wanted} == {id(p) for p in every}
    of = {id(p): g for g in groups for p in g["params"]}
    assert of[id(head[0].weight)]["weight_decay"] == 0 and of[id(head[0].weight)]["lr"] == 1.0
    assert of[id(net.pos_embed)]["weight_decay"] == 0
    assert of[id(net.blocks[0].attn.qkv.weight)]["weight_decay"] == 0.1
    torch.optim.SGD(groups, lr=1.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layer_decay": 0}, "layer_decay=0"),
        ({"layer_decay": 1.5}, r"layer_decay=1\.5"),
        ({"lr": 0}, "lr=0"),
        ({"lr": "1e-3"}, "lr='1e-3'"),
        ({"weight_decay": -1}, "weight_decay=-1"),
        ({"no_weight_decay": ["pos_embedding"]}, "Did you mean 'pos_embed'"),
    ],
)
def test_groups_that_cannot_be(options: dict[str, Any], words: str) -> None:
    net = featnet.create_model("test_vit", features_only=True)
    with pytest.raises(ValueError if "no_weight" not in str(options) else LookupError, match=words):
        param_groups(net, **{"lr": 0.1, **options})
    freeze(net)
    with pytest.raises(ArgumentError, match="No parameter is trainable"):
        param_groups(net, lr=0.1)


# Higher derivatives -----------------------------------------------------------------------------


FUSED = tuple(name for name in helpers.families() if helpers.facts(name).has_kernel)


def penalty(net: Any, x: torch.Tensor, *, fused: bool) -> dict[str, torch.Tensor]:
    net.set_fused_attn(fused)
    net.zero_grad()
    (first,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
    first.square().sum().backward()
    return {k: p.grad for k, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", FUSED)
def test_a_gradient_penalty(name: str) -> None:
    """The gradient of a gradient is that of the explicit form, though torch's kernel has none."""
    net = fill_noise(helpers.create_shallow(name)).double().eval()
    x = image_batch(*helpers.sizes(name)[0], dtype=torch.float64)
    with torch.no_grad():
        helpers.settle(net, x, limit=10.0)
    x.requires_grad_()
    wanted = penalty(net, x, fused=False)
    assert all(value.isfinite().all() for value in wanted.values())
    found = penalty(net, x, fused=True)
    assert found.keys() == wanted.keys()
    largest = max(float(value.norm()) for value in wanted.values())
    for key, value in wanted.items():  # a bias of keys has none but what rounding leaves of it
        gap = float((found[key] - value).norm())
        assert gap <= 1e-6 * float(value.norm()) or gap <= 1e-14 * largest, key


def test_accelerate() -> None:
    """Its prepare wraps the network and the optimiser."""
    accelerate = helpers.peer("accelerate")
    net = featnet.create_model("test_resnet", features_only=True)
    freeze(net, until=1)
    accelerator = accelerate.Accelerator(cpu=True)
    trained = [p for p in net.parameters() if p.requires_grad]
    prepared, optimizer = accelerator.prepare(net, torch.optim.AdamW(trained, weight_decay=0.1))
    before = snapshot(net)
    prepared.train()
    accelerator.backward(sum(y.square().mean() for y in prepared(image_batch(32, 32, batch=2) + 3)))
    optimizer.step()
    changed = moved(before, net)
    assert changed and not any(n.startswith(("conv1", "bn1", "layer1")) for n in changed)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto", "resnet18"])
def test_taps_inside_of_blocks_that_are_recomputed(name: str) -> None:
    """A block that is recomputed runs twice; its tap gives the first output, with its gradient."""
    model = helpers.create_shallow(name).eval()
    tap = next(
        n
        for n, m in model.named_modules()
        if n.count(".") >= 2 and isinstance(m, nn.Linear | nn.Conv2d)
    )
    x = helpers.image_batch(*helpers.sizes(name)[0])
    results = []
    for recompute in (False, True):
        net = featnet.FeatureHookNet(model, taps=[tap])
        net.set_grad_checkpointing(recompute)
        (y,) = net(x).values()
        results.append(
            [y, *torch.autograd.grad(y.square().sum(), list(net.parameters()), allow_unused=True)]
        )
    for plain, recomputed in zip(*results, strict=True):
        assert (plain is None) == (recomputed is None)
        if plain is not None:
            torch.testing.assert_close(recomputed, plain)
