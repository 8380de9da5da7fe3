"""Re-parameterisation: blocks of several branches as the one layer that they equal."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, cast

import torch
from torch import nn

from ..backbone import Backbone
from ..errors import ArgumentError, MissingFeatureError
from ..extraction.hooks import FeatureHooks
from ..values import checked

Model = TypeVar("Model", bound=nn.Module)


@checked
def reparameterize(model: Model) -> Model:
    """Copy a model in its form for inference: the same function in eval mode, in fewer layers.

    Every module that has a method ``reparameterize()``, which takes no argument, is asked, on the
    copy and children first: it gives the module that takes its place, or changes itself and gives
    None.
    An extractor keeps its levels, also where a level is such a module. An output stride may be set
    before or afterwards.

    Args:
        model: a Backbone, an extractor, or any module that holds such modules.

    Returns:
        A copy; the model itself stays as it is.

    Raises:
        ArgumentError: no module has that method, or one cannot be re-parameterised.
        MissingFeatureError: an extractor taps a module that disappears.

    Example:
        >>> net = featnet.create_model("repvgg_a0").eval()
        >>> deployed = featnet.reparameterize(net)
        >>> len(list(net.parameters())), len(list(deployed.parameters()))
        (168, 46)
        >>> x = torch.randn(1, 3, 32, 32)
        >>> torch.allclose(deployed(x), net(x), atol=1e-5)
        True
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"The model is a {type(model).__name__}, not a torch.nn.Module.")
    names = reparameterizable(model)
    if not names:
        raise ArgumentError(
            f"{type(model).__name__} has nothing to re-parameterise: none of its modules has a "
            "method reparameterize() -> nn.Module | None."
        )
    deployed = copy.deepcopy(model)
    hooks = getattr(deployed, "_hooks", None)
    taps = [tap.module for tap in hooks.taps] if isinstance(hooks, FeatureHooks) else []
    # kept alive, so that no id is used twice
    originals = {name: deployed.get_submodule(name) for name in (*names, *taps)}
    results: dict[int, nn.Module] = {}
    for name in names:
        old = originals[name]
        if id(old) not in results:
            inside = [tap for tap in taps if tap.startswith(f"{name}." if name else "")]
            results[id(old)] = _deploy(old, name, inside)
        if not name:
            deployed = results[id(old)]  # type: ignore[assignment]
            break
        parent, _, child = name.rpartition(".")
        setattr(deployed.get_submodule(parent), child, results[id(old)])
    modules = dict(deployed.named_modules(remove_duplicate=False))
    for tap in taps:
        if modules.get(tap) is not results.get(id(originals[tap]), originals[tap]):
            raise _lost(tap, next(n for n in names if tap.startswith(f"{n}.")))
    if isinstance(hooks, FeatureHooks):
        hooks.bind()
    body = deployed.__dict__.get("body", deployed)
    if isinstance(body, Backbone):  # a file of it says so
        body.model_args = {**body.model_args, "reparameterized": True}
    return deployed


def reparameterizable(model: nn.Module) -> tuple[str, ...]:
    """List the names of the modules that :func:`reparameterize` would ask, children first; one
    module may have several names."""
    return tuple(name for name, module in _children_first(model) if _method(module) is not None)


def _children_first(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    for child, inside in module._modules.items():
        if inside is not None:
            yield from _children_first(inside, f"{name}.{child}" if name else child)
    yield name, module


def _method(module: nn.Module) -> Callable[[], nn.Module | None] | None:
    """A module's ``reparameterize()``; one that takes arguments (as autoencoders') is none."""
    method = getattr(module, "reparameterize", None)
    if not callable(method) or isinstance(method, nn.Module):
        return None
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(method).parameters.values()
    if any(p.default is p.empty and p.kind in (*kinds, p.KEYWORD_ONLY) for p in parameters):
        return None
    return cast("Callable[[], nn.Module | None]", method)


def _deploy(module: nn.Module, name: str, taps: Sequence[str]) -> nn.Module:
    method = _method(module)
    assert method is not None
    try:
        with torch.no_grad():
            deployed = method()
    except ArgumentError as error:
        raise ArgumentError(f"{name}: {error}") from error
    except Exception as error:
        if not taps:
            raise
        raise _lost(taps[0], name) from error  # the extractor has cut the block behind its tap
    return (module if deployed is None else deployed).train(module.training)


def _lost(tap: str, name: str) -> MissingFeatureError:
    return MissingFeatureError(
        f"The extractor reads {tap!r}, of which nothing is left when {name!r} is re-parameterised."
    )
