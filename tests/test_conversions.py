"""What torch and its libraries put in a layer's place: a module that has tensors is called, and
never read past its call; a norm does nothing but normalise, so that another norm can replace it."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import helpers
import pytest
import torch
from helpers import image_batch, noisy
from torch import nn
from torch.nn.utils import parametrize

from featnet.layers import PatchConv
from featnet.tracing import structure, trace

LAYERS = (nn.Linear, nn.Conv2d, PatchConv, nn.BatchNorm2d, nn.LayerNorm)


class Opaque(nn.Module):
    """A layer of which nothing but the call is known, as an adapter or a quantised layer is."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.calls = layer, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        result: torch.Tensor = self.layer(x)
        return result


def swap(model: nn.Module, kinds: tuple[type, ...], make: Callable[[Any], nn.Module]) -> Any:
    """Another module in the place of each of these classes (not of their subclasses)."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in kinds:
                setattr(parent, name, make(child))
    return model


@pytest.mark.parametrize("name", helpers.representatives())
def test_layers_are_called_and_not_read(name: str) -> None:
    """Every layer that runs in the network runs through the module that stands in its place."""
    model: Any = structure.clone(helpers.shallow_model(name))
    x = torch.empty(2, model.in_chans, *trace.probe_size(model), device="meta")
    counts: dict[str, int] = {}

    def count(at: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counts[at] = counts.get(at, 0) + 1

        return hook

    handles = [
        module.register_forward_hook(count(at))
        for at, module in model.named_modules()
        if type(module) in LAYERS
    ]
    with torch.no_grad():
        model(x)
        for handle in handles:
            handle.remove()
        swap(model, LAYERS, Opaque)
        model(x)
    opaque = {at: m.calls for at, m in model.named_modules() if isinstance(m, Opaque)}
    assert {at: n for at, n in opaque.items() if n} == counts


def frozen(norm: Any) -> nn.Module:
    """torchvision's frozen batch norm, which detectors put in each batch norm's place."""
    from torchvision.ops import FrozenBatchNorm2d

    other = FrozenBatchNorm2d(norm.num_features, eps=norm.eps)
    state = {k: v for k, v in norm.state_dict().items() if k != "num_batches_tracked"}
    other.load_state_dict(state)
    return other


def parametrized(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", nn.Identity())
    return layer


@functools.lru_cache(maxsize=2)  # in both precisions
def unchanged(name: str, dtype: torch.dtype) -> tuple[Any, torch.Tensor, list[torch.Tensor]]:
    """A network of noise, an image, and its logits and levels. Nobody may change them."""
    model = noisy(lambda: helpers.create_shallow(name)).eval().to(dtype)
    x = image_batch(*(model.img_size or ((128, 160) if model.border else (64, 64))), dtype=dtype)
    return model, x, outputs(model, x)


def outputs(model: Any, x: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return [model(x), *model.forward_intermediates(x, intermediates_only=True)]


def same(
    name: str,
    change: Callable[[Any], Any],
    *,
    tolerance: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> None:
    """The classifier and its levels before and after a change, which has to change something."""
    model, x, before = unchanged(name, dtype)
    with torch.no_grad():
        changed = change(copy.deepcopy(model)).eval().to(dtype)
    types = [[type(module) for module in each.modules()] for each in (changed, model)]
    assert types[0] != types[1], "nothing was changed"
    for a, b in zip(before, outputs(changed, x), strict=True):
        assert helpers.error(b, a) <= tolerance


def having(kind: type) -> Iterator[str]:
    """One network of each family that has such a layer."""
    for name in helpers.families():
        if helpers.facts(name).has(kind):
            yield name


NORMALISED, PROJECTED = (tuple(having(kind)) for kind in (nn.BatchNorm2d, nn.Linear))


@pytest.mark.parametrize("name", NORMALISED)
def test_sync_batch_norm(name: str) -> None:
    same(name, nn.SyncBatchNorm.convert_sync_batchnorm)


@pytest.mark.parametrize("name", NORMALISED)
def test_frozen_batch_norm(name: str, torchvision: Any) -> None:
    same(name, lambda m: swap(m, (nn.BatchNorm2d,), frozen), tolerance=1e-9, dtype=torch.float64)


@pytest.mark.parametrize("name", helpers.families())
def test_parametrized_weights(name: str) -> None:
    same(name, lambda m: swap(m, (nn.Linear, nn.Conv2d), parametrized))


@pytest.mark.parametrize("name", PROJECTED)
def test_dynamic_quantisation(name: str) -> None:
    """Eight bits for each weight change the numbers a little, and nothing else: by 0.3, or by twice
    what rounded weights make of a network that amplifies rounding."""

    def quantise(model: nn.Module) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch.ao.quantization import quantize_dynamic

            return quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)

    model, x, before = unchanged(name, torch.float32)
    rounded = copy.deepcopy(model)
    for layer in rounded.modules():
        if isinstance(layer, nn.Linear):
            step = layer.weight.detach().abs().max() / 127
            layer.weight.data.div_(step).round_().mul_(step)
    gaps = [helpers.error(b, a) for a, b in zip(before, outputs(rounded, x), strict=True)]
    same(name, quantise, tolerance=max(0.3, 2 * max(gaps)))


@pytest.mark.parametrize("name", helpers.families())
def test_fx_quantisation(name: str) -> None:
    """What is put in to observe changes no number: in every network without attention, and where
    torch.fx traces one with it."""
    model = helpers.create_shallow(name, device="meta").eval()
    try:
        torch.fx.symbolic_trace(model)
    except (torch.fx.proxy.TraceError, TypeError) as error:
        assert helpers.attends(model), f"torch.fx does not trace {name}: {error}"
        pytest.skip(f"torch.fx does not go through Python that looks at sizes: {error}")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import get_default_qconfig_mapping
        from torch.ao.quantization.quantize_fx import prepare_fx

        model, x, before = unchanged(name, torch.float64)
        mapping = get_default_qconfig_mapping("onednn")
        mapping.set_object_type(nn.ConvTranspose2d, None)  # torch observes none by channels
        observed = prepare_fx(copy.deepcopy(model), mapping, (x,))
        assert helpers.error(observed(x), before[0]) < 1e-9


ATTENTIVE = tuple(name for name in helpers.families() if helpers.facts(name).attends)


@pytest.mark.parametrize("name", ATTENTIVE)
def test_adapters_by_name(name: str) -> None:
    """LoRA on each linear layer that attention reads: its adapter runs, and changes nothing yet."""
    peft = helpers.peer("peft")
    model, x, (before, *_) = unchanged(name, torch.float32)
    parts = ("qkv", "q_proj", "k_proj", "v_proj", "q", "kv", "in_proj", "pwise")
    names = [
        at
        for at, module in model.named_modules()
        if type(module) in (nn.Linear, nn.Conv2d) and at.rpartition(".")[2] in parts
    ]
    assert names
    config = peft.LoraConfig(target_modules=names, r=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.inject_adapter_in_model(config, copy.deepcopy(model)).eval()
    calls = dict.fromkeys(names, 0)
    for at in names:
        adapter = adapted.get_submodule(f"{at}.lora_A")
        adapter.default.register_forward_hook(
            lambda *_, at=at: calls.__setitem__(at, calls[at] + 1)
        )
    with torch.inference_mode():
        assert torch.equal(adapted(x), before)
    assert all(calls.values()), [at for at, n in calls.items() if not n]
