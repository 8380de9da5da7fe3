"""Re-parameterisation: blocks of several branches as the one layer that they equal."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

from ..errors import ArgumentError, MissingFeatureError
from ..extraction.hooks import FeatureHooks

Model = TypeVar("Model", bound=nn.Module)


def reparameterize(model: Model) -> Model:
    """The deploy form of a model, a copy: the same function in eval mode, in fewer layers.

    Every module that has a method ``reparameterized() -> nn.Module`` is replaced by what that
    gives; modules inside of it are not asked. Models, extractors (with the same levels, also where
    a level is such a module) and models with an output stride all work, and an output stride can
    still be set afterwards.

    Raises:
        ArgumentError: no module has that method, or one cannot be re-parameterised.
        MissingFeatureError: an extractor taps a module that disappears.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"The model is a {type(model).__name__}, not a torch.nn.Module.")
    outermost = reparameterizable(model)
    if not outermost:
        raise ArgumentError(
            f"{type(model).__name__} has nothing to re-parameterise: none of its modules has a "
            "method reparameterized() -> nn.Module."
        )
    hooks = getattr(model, "_hooks", None)
    for tap in hooks.taps if isinstance(hooks, FeatureHooks) else ():
        inside = [name for name in outermost if tap.module.startswith(f"{name}." if name else "")]
        if inside:
            raise MissingFeatureError(
                f"The extractor reads {tap.module!r}, of which nothing is left when {inside[0]!r} "
                "is re-parameterised."
            )
    copied = copy.deepcopy(model)
    made: dict[int, nn.Module] = {}
    for name in outermost:
        old = copied.get_submodule(name)
        if id(old) not in made:
            made[id(old)] = _deploy(old, name)
        if not name:
            return made[id(old)]  # type: ignore[return-value]
        parent, _, child = name.rpartition(".")
        setattr(copied.get_submodule(parent), child, made[id(old)])
    hooks = getattr(copied, "_hooks", None)
    if isinstance(hooks, FeatureHooks):
        hooks.bind()
    return copied


def reparameterizable(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that :func:`reparameterize` would replace, of which several may have
    one module."""
    sites = dict(model.named_modules(remove_duplicate=False))
    names = [name for name, module in sites.items() if hasattr(module, "reparameterized")]
    return tuple(name for name in names if not any(name.startswith(f"{other}.") for other in names))


def _deploy(module: nn.Module, name: str) -> nn.Module:
    try:
        deployed: nn.Module = module.reparameterized()  # type: ignore[operator]
    except ArgumentError as error:
        raise ArgumentError(f"{name}: {error}") from error
    return deployed.train(module.training)
