"""The laws of featnet, over the whole registry.

A new family is covered by being registered: every test takes its models from ``list_models`` and
what it expects from the model itself. Where numbers do not matter, all runs on the meta device.
A few small variants in which every kind of module occurs (``representatives``) go through
everything; of every other structure, a set of such kinds, one variant, as large as it is, through
one strided selection. All go through everything with FEATNET_EXHAUSTIVE=1.
"""

from __future__ import annotations

import copy
import functools
import gc
import os
import pickle
import random
import threading
import weakref
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
import torch.nn.functional as F
from helpers import (
    fill_noise,
    image_batch,
    law_error,
    noisy,
    representatives,
    shallow_model,
    strides,
)
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import featnet
from featnet import FeatureDictNet, FeatureHookNet, FeatureListNet, registry
from featnet.deploy.reparam import reparameterizable
from featnet.dilation.rule import Step, dilate, set_output_stride
from featnet.dilation.windows import DilatedAvgPool2d, PaddedConv2d
from featnet.errors import InputSizeError
from featnet.tracing import structure, trace

KINDS = (FeatureListNet, FeatureDictNet, FeatureHookNet)
ALL = tuple(featnet.list_models())
EXHAUSTIVE = os.environ.get("FEATNET_EXHAUSTIVE") == "1"
FULL = ALL if EXHAUSTIVE else representatives()
REST = () if EXHAUSTIVE else helpers.others()


def kind_for(name: str) -> Any:
    """Extractors differ in how they read levels, not in which: on the meta device each model has
    one of them, and all three where numbers are compared."""
    return KINDS[zlib.crc32(name.encode()) % len(KINDS)]


def as_list(found: Any) -> list[torch.Tensor]:
    return list(found.values()) if isinstance(found, dict) else list(found)


def meta(*size: int) -> torch.Tensor:
    return torch.empty(2, 3, *size, device="meta")


def check_info(net: Any, size: tuple[int, int]) -> list[torch.Tensor]:
    """Law 2 on one extractor and one input size; returns the maps."""
    x = meta(*size)
    assert x.shape[-2:] == size
    info = net.feature_info
    with helpers.Cheap(), helpers.LostPixels(net, size[0]) as lost:
        maps = as_list(net(x))
    predicted = list(zip(info.channels(), info.sizes(size), strict=True))
    assert [(y.shape[1], tuple(y.shape[2:])) for y in maps] == predicted
    for y, reduction in zip(maps, info.reduction(), strict=True):
        for side, out in zip(size, y.shape[2:], strict=True):
            most, least = -(-side // reduction), (side - lost.pixels) // reduction
            most += -most % getattr(net.body, "map_multiple", 1)
            assert least <= out <= most, (side, out, reduction)
    assert len(net) == len(info) == len(maps)
    return maps


def check_subset(net: nn.Module, model: nn.Module) -> None:
    """Law 3: keys in the classifier's order, with its shapes."""
    ours = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    theirs = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert list(ours.items()) == [item for item in theirs.items() if item[0] in ours]


def check_gradients(net: Any, maps: list[torch.Tensor]) -> None:
    """Law 4: every parameter that is stored is used by what comes out."""
    named = dict(net.named_parameters())
    assert named
    grads = torch.autograd.grad(sum(y.sum() for y in maps), list(named.values()), allow_unused=True)
    idle = [name for name, grad in zip(named, grads, strict=True) if grad is None]
    assert not idle, f"parameters without a gradient: {idle}"


@pytest.mark.parametrize("name", ALL)
def test_its_structure_is_known(name: str) -> None:
    """Every kind of module that it is made of is in some representative, and in it if that is
    said; and its structure is the one by which it was or was not chosen."""
    family = helpers.chosen().get(registry._module_of(name), {})
    kinds, command = (
        helpers.signature(name),
        f"run: python tests/helpers.py {registry._module_of(name)}",
    )
    assert kinds <= helpers.kinds_chosen(), (
        f"{name} has modules that no representative has; {command}"
    )
    assert kinds >= {*family.get(name, ())}, (
        f"{name} is not what golden/representatives.json says; {command}"
    )
    known = helpers.structures().get(name)
    assert helpers.structure(name) == known, (
        f"{name} is not what golden/structures.json says; {command}"
    )
    if name in FULL:
        seen = helpers.facts_of(helpers.meta_model(name))
        assert helpers.facts(name) == seen, f"golden/facts.json is not of {name}; {command}"


@functools.lru_cache(maxsize=2)
def noisy_model(name: str) -> Any:
    """It with few blocks, filled with noise. Nobody may change it."""
    return noisy(lambda: helpers.create_shallow(name)).eval()


# Law 1 ------------------------------------------------------------------------------------


def selections(total: int) -> list[Any]:
    shuffled = list(range(total))
    random.Random(0).shuffle(shuffled)
    return [None, 2, tuple(shuffled), (total - 2, -total)]


@pytest.mark.parametrize("name", representatives())
def test_one_truth(name: str) -> None:
    model = noisy_model(name)
    x = image_batch(*helpers.sizes(name)[0])
    with torch.inference_mode():
        features, every = model.forward_intermediates(x)
        assert torch.equal(model.forward_features(x), features)
        assert all(y.std() > 1e-3 and torch.isfinite(y).all() for y in every)
        for out_indices in selections(len(every)):
            wanted = every
            if isinstance(out_indices, int):
                wanted = every[-out_indices:]
            elif out_indices is not None:
                wanted = [every[i] for i in out_indices]
            found = {
                "intermediates": model.forward_intermediates(
                    x, out_indices, intermediates_only=True
                )
            }
            # all kinds in one selection: what makes them differ is not which levels they read
            for kind in KINDS if len(wanted) == len(every) and out_indices else KINDS[:1]:
                net = kind(model, out_indices).eval()
                found[kind.__name__] = as_list(net(x))
                assert net.feature_info.channels() == [y.shape[1] for y in wanted]
            for source, maps in found.items():
                assert len(maps) == len(wanted), (source, out_indices)
                same = [torch.equal(a, b) for a, b in zip(maps, wanted, strict=True)]
                assert all(same), (source, out_indices, same)
        if reparameterizable(model):
            model, x = copy.deepcopy(model).double(), x.double()
            every = model.forward_intermediates(x, intermediates_only=True)
            deployed: Any = featnet.reparameterize(model)
            maps = deployed.forward_intermediates(x, intermediates_only=True)
            gaps = [helpers.error(a, b) for a, b in zip(maps, every, strict=True)]
            assert max(gaps) < 1e-10
            changed = deployed.state_dict().keys() != model.state_dict().keys()
            assert changed or not reparameterizable(deployed)


# Laws 2, 3, 4 -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", FULL)
def test_info_is_true(name: str) -> None:
    full = {level.module: level for level in shallow_model(name)._levels}
    every, keys = strides(name), set[tuple[str, ...]]()
    for stride in every if EXHAUSTIVE else sorted({every[0], every[-1]}, reverse=True):
        dense: Any = structure.clone(shallow_model(name))
        set_output_stride(dense, stride)
        net = FeatureListNet(dense)
        for size in helpers.sizes(name) if stride == every[0] else helpers.sizes(name)[:1]:
            check_info(net.eval(), size)
        for level in net.feature_info:
            assert level.channels == full[level.module].channels
            assert level.reduction == min(full[level.module].reduction, stride)
        check_subset(net, shallow_model(name))
        keys.add(tuple(net.state_dict()))
    assert len(keys) == 1  # law 5: parameters stay with any output stride
    info = featnet.feature_info(name, output_stride=stride, **helpers.small(name))
    assert info == net.feature_info
    options = dict(features_only=True, output_stride=stride, device="meta")
    made: Any = featnet.create_model(name, **options, **helpers.small(name))
    assert made.feature_info == info
    check_subset(made, helpers.meta_model(name))
    net = kind_for(name)(shallow_model(name), (len(full) - 1, 0))
    check_info(net, helpers.sizes(name)[-1])
    check_subset(net, shallow_model(name))
    assert not any(key.startswith(shallow_model(name).last_fc) for key in net.state_dict())


def price(net: nn.Module, size: tuple[int, int]) -> tuple[tuple[int, int], list[torch.Tensor]]:
    """(parameters, FLOPs) of a network, and what it puts out."""
    counted = helpers.Cheap(F.linear, torch.conv2d, F.scaled_dot_product_attention)
    with FlopCounterMode(display=False) as counter, counted:
        found = net(meta(*size))
    parameters = sum(p.numel() for p in net.parameters())
    return (parameters, counter.get_total_flops()), as_list(found)


@pytest.mark.parametrize("name", FULL)
def test_pay_for_what_you_take(name: str) -> None:
    model, size = shallow_model(name), helpers.sizes(name)[0]
    whole, before = price(model, size)[0], (0, 0)
    total = len(model._levels)
    for index in range(total) if EXHAUSTIVE else sorted({0, 1, total - 2, total - 1}):
        level = model._levels[index]
        net = FeatureListNet(model, (index,))
        cost, maps = price(net, size)
        check_gradients(net, maps)
        check_subset(net, model)
        headless = index == len(model._levels) - 1 and not model.num_classes
        assert headless or all(c < w for c, w in zip(cost, whole, strict=True)), (cost, whole)
        # What is computed from the level before costs more; what beside it, something else
        if not index or model._levels[index - 1].module in dict(net.named_modules()):
            weighs = any(True for _ in model.get_submodule(level.module).parameters())
            more = [c > b or (c == b and not weighs) for c, b in zip(cost, before, strict=True)]
            assert all(more), (level, cost, before)
        if index == 1:  # the same layers, whatever reads them
            assert price(kind_for(name)(model, (index,)), size)[0] == cost
        before = cost


@pytest.mark.parametrize("name", REST)
def test_every_other_variant(name: str) -> None:
    """Laws 2 to 4 once, with a stride and a selection that leave something away."""
    model = helpers.full_model(name)
    stride = sorted(model.output_strides)[-3:][0]
    wanted = (len(model._levels) - 2, 0)
    dense: Any = structure.clone(model)
    set_output_stride(dense, stride)
    net = FeatureListNet(dense, wanted).eval()
    maps = check_info(net, trace.probe_size(model))
    reductions = [min(model._levels[i].reduction, stride) for i in wanted]
    assert net.feature_info.reduction() == reductions
    check_subset(net, model)
    check_gradients(net, maps)
    assert sum(p.numel() for p in net.parameters()) < sum(p.numel() for p in model.parameters())


# Law 5 ------------------------------------------------------------------------------------


def breaks_law(name: str) -> tuple[str, ...]:
    """The kinds of operations that break the law, as the class says."""
    kinds: tuple[str, ...] = registry.find(name).build.breaks_law  # type: ignore[attr-defined]
    return kinds


@pytest.mark.parametrize("name", [n for n in representatives() if "attention" not in breaks_law(n)])
def test_a_trous(name: str) -> None:
    original: Any = helpers.without_global(copy.deepcopy(noisy_model(name))).double()
    breaks = breaks_law(name)
    reductions = original.feature_info.reduction()
    count = sum(p.numel() for p in original.parameters())
    full: dict[tuple[int, int], list[torch.Tensor]] = {}
    for stride in strides(name)[1:]:
        if not EXHAUSTIVE and stride != 8 and count > 12_000_000:
            continue  # one rule for all strides, and the blocks are those of smaller variants
        dense: Any = structure.clone(original)
        set_output_stride(dense, stride)
        assert dense.feature_info.reduction() == [min(r, stride) for r in reductions]
        steps = [r // min(r, stride) for r in reductions]
        sizes = helpers.law_sizes(original, dense)
        for height, width in sizes if EXHAUSTIVE else sizes[:1]:
            if stride < 8 and height < 100:
                height, width = (side // 64 * 32 + side % 2 for side in (height, width))
            x = image_batch(height, width, dtype=torch.float64)
            with torch.inference_mode(), helpers.Local(breaks):
                maps = dense.forward_intermediates(x, intermediates_only=True)
                if (height, width) not in full:
                    full[height, width] = original.forward_intermediates(x, intermediates_only=True)
            assert law_error(maps, full[height, width], steps) < 1e-10, (height, width, stride)


def test_who_breaks_the_law_says_so() -> None:
    """Every kind that a class names is one of the page's, and without silencing it the law is
    missed, by as much as the page says."""
    page = (Path(__file__).parents[1] / "docs" / "dilation.md").read_text(encoding="utf-8")
    named = {kind for name in representatives() for kind in breaks_law(name)}
    assert named == {"attention", "resampling"} and all(f"`{kind}`" in page for kind in named)
    name = "hrnet_w18_small_v2"
    original: Any = noisy(lambda: featnet.create_model(name)).double().eval()
    dense: Any = structure.clone(original)
    set_output_stride(dense, 8)
    x = image_batch(64, 96, dtype=torch.float64)
    with torch.inference_mode(), helpers.Local():
        pairs = zip(
            *(m.forward_intermediates(x, intermediates_only=True) for m in (dense, original)),
            strict=True,
        )
        steps = [
            a.reduction // b.reduction for a, b in zip(original._levels, dense._levels, strict=True)
        ]
        misses = [
            helpers.error(d[..., ::m, ::m], f) for (d, f), m in zip(pairs, steps, strict=True)
        ]
    assert misses[0] < 1e-10 and all(0.05 < miss < 1 for miss in misses[1:]), misses


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("count_include_pad", [False, True])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("size", [8, 9])
def test_dilated_average_is_the_average(
    ceil_mode: bool, count_include_pad: bool, padding: int, size: int
) -> None:
    """On every ``d``-th position the dilated pool is torch's pool of those positions."""
    pool = nn.AvgPool2d(3, 1, padding, ceil_mode=ceil_mode, count_include_pad=count_include_pad)
    x = image_batch(size, size + 1, dtype=torch.float64)
    for dilation in (1, 2, 3):
        dilated = DilatedAvgPool2d(
            (3, 3),
            (1, 1),
            (padding * dilation,) * 2,
            (dilation,) * 2,
            pad_end=(0, 0),
            count_include_pad=count_include_pad,
            divisor=None,
        )
        ours, d = dilated(x), dilation
        for top in range(d):
            for left in range(d):
                part = x[..., top::d, left::d]
                if min(part.shape[2:]) + 2 * padding < 3:
                    continue
                got, wanted = ours[..., top::d, left::d], pool(part)
                torch.testing.assert_close(got, wanted)


def test_what_pads_itself_is_the_convolution() -> None:
    """A depthwise convolution whose padding torch has no quick kernel for; forward and backward."""
    model = nn.Conv2d(6, 6, 5, padding=2, groups=6).double()
    step = Step(density=4, stride=(1, 1), scale=Fraction(1))
    padded = dilate(copy.deepcopy(model), step)
    assert isinstance(padded, PaddedConv2d) and list(padded.state_dict()) == list(
        model.state_dict()
    )
    x = image_batch(19, 22, dtype=torch.float64).repeat(1, 2, 1, 1).requires_grad_()
    found = padded(x)
    wanted = F.conv2d(x, model.weight, model.bias, padding=8, dilation=4, groups=6)
    torch.testing.assert_close(found, wanted)
    pairs = [torch.autograd.grad((y * y).sum(), x)[0] for y in (found, wanted)]
    torch.testing.assert_close(*pairs)
    near = dilate(copy.deepcopy(model), Step(density=2, stride=(1, 1), scale=Fraction(1)))
    assert type(near) is nn.Conv2d  # which torch is quick at


# Law 8 ------------------------------------------------------------------------------------

# Of the families whose smallest variant may be any: quick, convolutions and norms, five levels
SMALLEST = "test_resnet"


def two_levels(kind: type[featnet.FeatureListNet]) -> Any:
    return kind(fill_noise(featnet.create_model(SMALLEST)), (-1, 1)).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_threads(kind: Any) -> None:
    net = two_levels(kind)
    inputs = [image_batch(32 + 8 * (i % 5), 40 + 8 * (i % 3), seed=i) for i in range(48)]
    with torch.inference_mode():
        wanted = [as_list(net(x)) for x in inputs]
    results: dict[int, Any] = {}
    start = threading.Barrier(8)

    def work(worker: int) -> None:
        start.wait()
        for i in range(worker, len(inputs), 8):
            try:
                with torch.inference_mode():
                    results[i] = as_list(net(inputs[i]))
            except Exception as error:
                results[i] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, maps in enumerate(wanted):
        assert isinstance(results[i], list), results[i]
        assert all(torch.equal(a, b) for a, b in zip(results[i], maps, strict=True)), i


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies(kind: Any, how: str) -> None:
    net, x = two_levels(kind), image_batch(48, 64)
    copied = copy.deepcopy(net) if how == "deepcopy" else pickle.loads(pickle.dumps(net))
    with torch.inference_mode():
        before = as_list(net(x))
        assert all(torch.equal(a, b) for a, b in zip(as_list(copied(x)), before, strict=True))
        assert list(copied.state_dict()) == list(net.state_dict())
        assert copied.feature_info == net.feature_info
        with torch.no_grad():  # what happens to the copy happens to the copy alone
            for parameter in copied.parameters():
                parameter.mul_(0.5)
        assert not torch.equal(as_list(copied(x))[0], before[0])
        assert all(torch.equal(a, b) for a, b in zip(as_list(net(x)), before, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_failed_call_leaves_nothing(kind: Any) -> None:
    net = two_levels(kind)
    x = image_batch(48, 64)
    before = [y.detach() for y in as_list(net(x))]
    late = net.get_submodule(net.feature_info.module_name(0))  # the deepest: the other is there
    seen: list[weakref.ref[torch.Tensor]] = []

    class Failure(Exception):
        pass

    def fail(module: nn.Module, args: tuple[torch.Tensor]) -> None:
        seen.append(weakref.ref(args[0]))
        raise Failure

    handle = late.register_forward_pre_hook(fail)
    probe = image_batch(48, 64)
    seen.append(weakref.ref(probe))
    try:
        net(probe)
    except Failure:
        pass
    else:
        pytest.fail("the hook did not raise")
    handle.remove()
    with pytest.raises(InputSizeError):
        net(image_batch(48, 64)[:, :2])
    del probe
    gc.collect()
    assert len(seen) == 2 and all(ref() is None for ref in seen)
    after = as_list(net(x))
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    kept = [weakref.ref(y) for y in after]
    del after
    gc.collect()
    assert all(ref() is None for ref in kept)


def test_callers_model_is_left_alone() -> None:
    model = fill_noise(featnet.create_model(SMALLEST)).eval()
    keys, x = list(model.state_dict()), image_batch(48, 64)
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    with torch.inference_mode():
        before = model(x)
        nets = [kind(model, (0,)).eval() for kind in KINDS]
        assert torch.equal(model(x), before)
    assert list(model.state_dict()) == keys
    assert hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    shared = {p.data_ptr() for p in model.parameters()}
    assert all(p.data_ptr() in shared for net in nets for p in net.parameters())
