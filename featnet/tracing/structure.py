"""Copies of a network's structure; tensors are shared."""

from __future__ import annotations

import contextlib
import copy
import functools
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from ..errors import ArgumentError, MissingFeatureError, nearest
from .rebinding import rebound, refers_to

Module = TypeVar("Module", bound=nn.Module)
Convert = Callable[[torch.Tensor], torch.Tensor]
HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def view(model: nn.Module) -> nn.Module:
    """Return a :func:`clone` that shares the tables of buffers, too.

    A conversion of either (``model.double()``) puts other buffers into these, and the other one has
    them as well.
    """
    return clone(model, tables=True)


def clone(
    model: nn.Module, convert: Convert = lambda tensor: tensor, *, tables: bool = False
) -> nn.Module:
    """A model of the same structure whose tensors are ``convert(tensor)``; shared by default.

    Hooks that somebody put on it are shared too: a copy of a hook would tell nobody. Those of an
    extractor within it are the copy's own. Methods and closures that refer to modules of the model,
    a forward replaced on an instance or a hook, refer to those of the copy. What
    ``module.compile()`` made is left out, as it would run the original.

    Raises:
        ArgumentError: the model is scripted or compiled, so that it has no forward to look into.
    """
    check_module(model)
    memo: dict[int, Any] = {}
    modules = modules_of(model)
    for module in modules:
        if tables:
            for table in (module._buffers, module._non_persistent_buffers_set):
                memo[id(table)] = table
        for kind in HOOKS:
            if hooks := getattr(module, kind):
                memo |= {id(hook): hook for hook in hooks.values() if not _is_ours(hook)}
        for owned in (module._parameters, module._buffers, module.__dict__):
            for tensor in owned.values():
                if type(tensor) in _NO_TENSORS:  # most of what a module holds
                    continue
                if isinstance(tensor, torch.Tensor) and id(tensor) not in memo:
                    memo[id(tensor)] = convert(tensor)
    if any(_copies_itself(kind) for kind in {type(module) for module in modules}):
        copied_model = copy.deepcopy(model, memo)
        _rebind(copied_model, memo)
        return copied_model
    for module in modules:  # all of them first: any may refer to any other
        memo[id(module)] = object.__new__(type(module))
    for module in modules:
        copied = memo[id(module)].__dict__
        copied.update(module.__dict__)
        for key, value in module.__dict__.items():
            if (held := type(value)) in _VALUES:
                continue
            if held in _CONTAINERS and not value:
                copied[key] = memo.setdefault(id(value), held())
            else:
                copied[key] = _copied(value, memo)
        copied.pop("_compiled_call_impl", None)
    _rebind(memo[id(model)], memo)
    return memo[id(model)]


def modules_of(model: nn.Module) -> list[nn.Module]:
    """``list(model.modules())``, several times as fast."""
    found: dict[nn.Module, None] = {}
    ahead = [model]
    while ahead:
        module = ahead.pop()
        if module not in found:
            found[module] = None
            if children := module._modules:
                ahead += [child for child in reversed(children.values()) if child is not None]
    return list(found)


def _rebind(copied: nn.Module, memo: Mapping[int, Any]) -> None:
    """Let functions of a copy refer to its own modules."""
    for module in modules_of(copied):
        for kind in HOOKS:
            if hooks := getattr(module, kind):
                for key, hook in hooks.items():
                    hooks[key] = rebound(hook, memo)
        for key, value in module.__dict__.items():
            if type(value) not in _NO_CODE and isinstance(value, _FUNCTIONS):
                module.__dict__[key] = rebound(value, memo)


def _copies_itself(kind: object) -> bool:
    """Tell if copying a module of this class is more than copying what it holds."""
    own = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__copy__", "__slots__")
    return any(getattr(kind, name, None) is not getattr(nn.Module, name, None) for name in own)


_FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial)
_CONTAINERS = frozenset({dict, OrderedDict, set})
_VALUES = frozenset(
    {bool, int, float, str, type(None), torch.dtype, torch.Size, types.FunctionType}
)
_NO_TENSORS = _VALUES | _CONTAINERS
_NO_CODE = _NO_TENSORS - {types.FunctionType}


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """``copy.deepcopy(value, memo)``, in a fraction of the time for what modules mostly hold."""
    kind = type(value)
    if kind in _VALUES:
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind is dict or kind is OrderedDict:
        duplicate = memo[id(value)] = kind()
        for key, held in value.items():
            duplicate[key] = held if type(held) in _VALUES else _copied(held, memo)
        return duplicate
    if kind is tuple and all(type(held) in _VALUES for held in value):
        return value
    return copy.deepcopy(value, memo)


def check_module(model: object) -> None:
    """Refuse what is no module, or one that cannot be looked into.

    Raises:
        ArgumentError: with what to give instead.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"The model is a {type(model).__name__}, not a torch.nn.Module.")
    if isinstance(model, torch.jit.ScriptModule):
        raise ArgumentError(
            "The model is scripted or traced by torch.jit, and its modules cannot be tapped: give "
            "the module that it was made from."
        )
    if hasattr(model, "_orig_mod"):
        raise ArgumentError(
            f"The model is a compiled {type(model._orig_mod).__name__}: give model._orig_mod, and "
            "compile what you get."
        )
    scripted = [m for m in modules_of(model) if isinstance(m, torch.jit.ScriptModule)]
    for name, module in model.named_modules() if scripted else ():
        if module in scripted:
            raise ArgumentError(
                f"{name} of the {type(model).__name__} is scripted or traced by torch.jit, and "
                "cannot be looked into: put the module that it was made from in its place."
            )


def _is_ours(hook: object) -> bool:
    return type(hook).__module__.partition(".")[0] == __name__.partition(".")[0]


def _to_meta(tensor: torch.Tensor) -> torch.Tensor:
    # not empty_like, which torch writes in Python there
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty


def meta_clone(model: nn.Module, hooks: str = "own") -> nn.Module:
    """Return a copy on the meta device, in eval mode, with the :data:`HOOK_CHOICES` of its
    hooks."""
    return _probe(clone(model, _to_meta), hooks)


def real_clone(model: nn.Module, hooks: str = "own") -> nn.Module:
    """Return a copy with the same parameters and buffers of its own, in eval mode."""
    return _probe(clone(model, _alias), hooks)


def _alias(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory of a parameter, whose ``requires_grad`` is another one's; a buffer's copy."""
    if type(tensor) is nn.Parameter:
        return nn.Parameter(tensor.detach(), requires_grad=tensor.requires_grad)
    return tensor if isinstance(tensor, nn.Parameter) else tensor.clone()


def _probe(copied: nn.Module, hooks: str) -> nn.Module:
    keep_hooks(copied, hooks)
    copied.eval()  # which need not return anything
    return copied


def in_mode(model: Module, training: bool) -> Module:
    """Put a model into a mode and return it. Its own ``train`` need not return anything; what that
    freezes is not frozen by this."""
    grads = [(p, p.requires_grad) for p in model.parameters()]
    model.train(training)
    for parameter, wanted in grads:
        if parameter.requires_grad != wanted:
            parameter.requires_grad_(wanted)
    return model


# Hooks of a forward that are kept on a copy: those that are part of the network, all, or none
HOOK_CHOICES = ("own", "all", "none")


def hook_choices(model: nn.Module) -> tuple[str, ...]:
    """Return the choices that make a difference for a model, in the order in which to try them."""
    kinds = {
        _is_own(hook, model)
        for module in modules_of(model)
        for kind in HOOKS
        for hook in getattr(module, kind).values()
        if not _computes_weights(hook) and not _initialises(hook)
    }
    if not kinds:
        return ("own",)
    return HOOK_CHOICES if len(kinds) == 2 else ("own", "none" if True in kinds else "all")


def _computes_weights(hook: object) -> bool:
    return type(hook).__module__.startswith("torch.nn.utils.") or _is_ours(hook)


def _initialises(hook: object) -> bool:
    """Tell if a hook makes the parameters of a lazy module: the caller's have none yet."""
    return getattr(hook, "__module__", None) == "torch.nn.modules.lazy"


def _is_own(hook: object, model: nn.Module) -> bool:
    """Tell if a hook is part of a network: it refers to its modules, or comes from the library that
    its modules come from."""
    function = hook
    while isinstance(function, functools.partial):
        function = function.func
    home = str(getattr(function, "__module__", None) or type(function).__module__)
    libraries = {type(module).__module__.partition(".")[0] for module in modules_of(model)} - {
        "torch"
    }
    return ("." in home and home.partition(".")[0] in libraries) or refers_to(hook, model)


def keep_hooks(model: nn.Module, hooks: str) -> None:
    """Take hooks of a forward off the modules of one's own copy, but for those of
    ``torch.nn.utils``, which compute a weight, those of extractors within it, and the choice."""
    for module in modules_of(model):
        for kind in HOOKS:
            there = getattr(module, kind)
            if not there:
                continue
            kept = {
                key: hook
                for key, hook in there.items()
                if _computes_weights(hook)
                or (
                    hooks != "none"
                    and not _initialises(hook)
                    and (hooks == "all" or _is_own(hook, model))
                )
            }
            setattr(module, kind, OrderedDict(kept))


def eagerly(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Parts of a model that are compiled run as they were written meanwhile."""
    if any(hasattr(module, "_orig_mod") for module in modules_of(model)):
        return torch.compiler.set_stance("force_eager")
    return contextlib.nullcontext()


def submodule(model: nn.Module, name: str) -> nn.Module:
    """``model.get_submodule(name)``, whose error has the nearest names.

    Raises:
        MissingFeatureError: no such module.
    """
    try:
        return model.get_submodule(name)
    except AttributeError:
        names = [n for n, _ in model.named_modules() if n]
        raise MissingFeatureError(
            f"{type(model).__name__} has no module {name!r}.{nearest(name, names)}"
        ) from None
