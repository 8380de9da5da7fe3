"""Freeze a part of a network for good: no gradient, no moving statistics, no dropout."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from torch import nn

from ..errors import ArgumentError, MissingFeatureError, check_choice, nearest
from ..extraction.extractors import FeatureNet
from ..extraction.hooks import matching
from ..tracing import structure
from ..values import checked
from .parts import levels_of, up_to

Norm = Literal["freeze", "eval", "train"]
NORM_MODES = ("freeze", "eval", "train")
NAMES = "_frozen_parameters"  # of a module: those of its own parameters that were frozen
NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)


@checked
def freeze(
    net: nn.Module, until: int | str | Sequence[str] | None = None, *, norm: Norm = "freeze"
) -> list[str]:
    """Freeze, in place, a network up to a level, or the modules of some names.

    The parameters of the frozen part get no gradient. Its modules stay in eval mode, also after
    ``net.train()``, in deep copies and pickles: batch-norm statistics, dropout and drop path do not
    act there. A second call adds to what is frozen. Freeze before the optimiser is made, and before
    the network is sharded.

    An extractor shares its parameters with a network that you keep: they get no gradient there
    either. The modules are the extractor's own, so the mode of the kept network's modules stays.

    Args:
        net: a Backbone, an extractor, or any module.
        until: the last level that is frozen, with all that runs before it, as an index into the
            full list of levels (negative ones count from the end); or names or patterns (``*``
            within a dotted part of a name, ``**`` across) of modules and parameters; None is the
            whole network. A network from elsewhere that declares no levels has those that
            :func:`featnet.discover` finds.
        norm: normalisation layers of the frozen part: ``"freeze"`` as all else; ``"eval"`` with
            fixed statistics and trained weights; ``"train"`` as if they were not frozen.

    Returns:
        The names of the parameters that are frozen now and were not.

    Raises:
        ArgumentError: a level that does not exist, another ``norm``, or a sharded network.
        MissingFeatureError: a name or pattern that nothing fits.

    Example:
        >>> net = featnet.create_model("test_resnet", features_only=True)
        >>> names = featnet.freeze(net, until=1)
        >>> net.train().layer1.training, net.layer2.training, net.conv1[0].weight.requires_grad
        (False, True, False)
    """
    structure.check_module(net)
    check_choice("norm", norm, NORM_MODES)
    _refuse_sharded(net)
    modules, parameters = _part(net, until)
    if norm != "freeze":
        norms = [module for module in net.modules() if isinstance(module, NORMS)]
        parameters -= {id(p) for module in norms for p in module.parameters(recurse=False)}
        modules -= {id(module) for module in norms} if norm == "train" else set()
    frozen: list[str] = []
    for name, module in _modules(net):
        if id(module) in modules:
            # in the instance, so that its class stays; a partial, so that copies bind to themselves
            module.train = functools.partial(_stay_in_eval, module)  # type: ignore[method-assign]
            module.training = False
        for key, parameter in module.named_parameters(recurse=False):
            if id(parameter) in parameters and parameter.requires_grad:
                parameter.requires_grad_(False)
                parameter.grad = None  # an optimiser would take one more step with it
                module.__dict__[NAMES] = (*module.__dict__.get(NAMES, ()), key)
                frozen.append(_join(name, key))
    return frozen


@checked
def unfreeze(net: nn.Module, last: int | None = None) -> list[str]:
    """Undo :func:`freeze`, in place, for all or for the last levels.

    Parameters that :func:`freeze` did not freeze are left as they are. Give the returned parameters
    to the optimiser where it was made without them.

    Args:
        net: a network of which :func:`freeze` froze a part.
        last: how many levels at the end are to be trained, with all that runs after the level
            before them; None is all that is frozen.

    Returns:
        The names of the parameters that get a gradient again.

    Raises:
        ArgumentError: more levels than there are.

    Example:
        >>> net = featnet.create_model("test_resnet", features_only=True)
        >>> _ = featnet.freeze(net)
        >>> _ = featnet.unfreeze(net, last=2)
        >>> [name for name, module in net.train().named_children() if module.training]
        ['layer3', 'layer4']
    """
    structure.check_module(net)
    modules: set[int] = set()
    parameters: set[int] = set()
    if last is not None:
        levels = levels_of(net)
        if isinstance(last, bool) or not isinstance(last, int) or not 0 <= last <= len(levels):
            raise ArgumentError(
                f"last={last!r}: {type(net).__name__} has {len(levels)} levels; an int from 0 to "
                f"{len(levels)} is expected."
            )
        if last < len(levels):
            modules, parameters = _part(net, levels[len(levels) - 1 - last].index)
    restored: list[str] = []
    for name, module in _modules(net):
        if _is_frozen(module) and id(module) not in modules:
            del module.__dict__["train"]
            module.training = net.training and not _is_frozen(net)
        stay: list[str] = []
        for key in module.__dict__.pop(NAMES, ()):
            parameter = module._parameters.get(key)
            if id(parameter) in parameters:
                stay.append(key)
            elif parameter is not None:
                parameter.requires_grad_(True)
                restored.append(_join(name, key))
        if stay:
            module.__dict__[NAMES] = tuple(stay)
    return restored


# What is frozen ---------------------------------------------------------------------------------


def _part(net: nn.Module, until: object) -> tuple[set[int], set[int]]:
    """ids of the modules and of the parameters up to a level, or of those that are named."""
    if until is None:
        return {id(module) for _, module in _modules(net)}, {id(p) for p in net.parameters()}
    if isinstance(until, str) or (
        isinstance(until, Sequence) and until and all(isinstance(item, str) for item in until)
    ):
        return _named(net, [until] if isinstance(until, str) else until)
    if isinstance(until, bool) or not isinstance(until, int):
        raise ArgumentError(
            f"until={until!r}: the index of a level, or names of modules or parameters, are "
            "expected."
        )
    levels = levels_of(net)
    indices = {level.index: level for level in levels}
    index = until + max(indices, default=-1) + 1 if until < 0 else until
    if index not in indices:
        raise ArgumentError(
            f"until={until}: {type(net).__name__} has the levels "
            + ", ".join(f"{level.index} ({level.module})" for level in levels)
            + "."
        )
    return up_to(net, indices[index])


def _named(net: nn.Module, patterns: Iterable[str]) -> tuple[set[int], set[int]]:
    """Return the modules that the patterns fit, with all modules inside."""
    modules: set[int] = set()
    parameters: set[int] = set()
    named = dict(net.named_modules(remove_duplicate=False))
    tensors = dict(net.named_parameters(remove_duplicate=False))
    for pattern in patterns:
        inside = [named[name] for name in matching(pattern, filter(None, named))]
        alone = [tensors[name] for name in matching(pattern, tensors)]
        if not inside and not alone:
            raise MissingFeatureError(
                f"{type(net).__name__} has no module or parameter {pattern!r}."
                + nearest(pattern, [*named, *tensors])
            )
        modules.update(id(inner) for module in inside for inner in module.modules())
        parameters.update(id(p) for module in inside for p in module.parameters())
        parameters.update(map(id, alone))
    return modules, parameters


def _modules(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module once; of an extractor also the network itself, which is no child of it."""
    yield from net.named_modules()
    if isinstance(net, FeatureNet):
        yield "", net.body


def _refuse_sharded(net: nn.Module) -> None:
    for name, parameter in net.named_parameters():
        if hasattr(parameter, "device_mesh"):
            raise ArgumentError(
                f"{name} is sharded (a {type(parameter).__name__}): freeze before fully_shard."
            )


# How it stays so --------------------------------------------------------------------------------


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    """Stand in for ``train`` of a frozen module; its children decide for themselves."""
    module.training = False
    for child in module.children():
        child.train(mode)
    return module


def _is_frozen(module: nn.Module) -> bool:
    train = module.__dict__.get("train")
    return isinstance(train, functools.partial) and train.func is _stay_in_eval


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix and name else prefix or name
