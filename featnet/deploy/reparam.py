"""Re-parameterisation: blocks of several branches as the one layer that they equal."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

from ..errors import ArgumentError, MissingFeatureError
from ..extraction.hooks import FeatureHooks

Model = TypeVar("Model", bound=nn.Module)


def reparameterize(model: Model) -> Model:
    """Copy a model in its form for inference: the same function in eval mode, in fewer layers.

    The result of its method ``reparameterized() -> nn.Module`` takes the place of every module that
    has one; the modules inside of it are not asked. An extractor keeps its levels, also where a
    level is such a module. An output stride may be set before or afterwards.

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
    deployed: dict[int, nn.Module] = {}
    for name in outermost:
        old = copied.get_submodule(name)
        if id(old) not in deployed:
            deployed[id(old)] = _deploy(old, name)
        if not name:
            return deployed[id(old)]  # type: ignore[return-value]
        parent, _, child = name.rpartition(".")
        setattr(copied.get_submodule(parent), child, deployed[id(old)])
    hooks = getattr(copied, "_hooks", None)
    if isinstance(hooks, FeatureHooks):
        hooks.bind()
    return copied


def reparameterizable(model: nn.Module) -> tuple[str, ...]:
    """List the names of the modules that :func:`reparameterize` would replace; one module may have
    several names."""
    modules = dict(model.named_modules(remove_duplicate=False))
    names = [name for name, module in modules.items() if hasattr(module, "reparameterized")]
    return tuple(name for name in names if not any(name.startswith(f"{other}.") for other in names))


def _deploy(module: nn.Module, name: str) -> nn.Module:
    try:
        deployed: nn.Module = module.reparameterized()  # type: ignore[operator]
    except ArgumentError as error:
        raise ArgumentError(f"{name}: {error}") from error
    return deployed.train(module.training)
