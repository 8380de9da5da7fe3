"""Networks whose parameters are not initialised, because a file is about to replace them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_IS_META = torch.Tensor.is_meta.__get__  # type: ignore[attr-defined]


class SkipInit(TorchFunctionMode):
    """Context: parameters are allocated, and their memory is not touched.

    Every in-place operation on a parameter is skipped, and initialisers are told that it has no
    values, so that none reads what was never written. Buffers are computed as always.

    Args:
        keep: shapes whose parameters are initialised nevertheless.
    """

    def __init__(self, keep: Collection[torch.Size] = ()) -> None:
        super().__init__()
        self.keep = frozenset(keep)

    def __torch_function__(
        self,
        func: Any,
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")  # the initialisers of nn.init
        if isinstance(target, nn.Parameter) and target.shape not in self.keep:
            if func == _IS_META:
                return True
            name = getattr(func, "__name__", "")
            if name.endswith("_") and not name.startswith("__") and name != "requires_grad_":
                return target
        return func(*args, **kwargs)


def meta_model(build: Callable[[], Any]) -> Any:
    """The network on the meta device: its structure and shapes. Initialisers are skipped, which
    torch would run there all the same, and import its compiler for."""
    with torch.device("meta"), SkipInit():
        return build()


@torch.no_grad()
def initialise(model: nn.Module, names: Collection[str], build: Callable[[], nn.Module]) -> None:
    """Give the named parameters the initial values that the network's constructor gives.

    Args:
        model: built under :class:`SkipInit`.
        names: of the parameters; other names are ignored.
        build: what built it.
    """
    parameters = {key: p for key, p in model.named_parameters() if key in names}
    if not parameters:
        return
    with SkipInit({p.shape for p in parameters.values()}):
        fresh = dict(build().named_parameters())
    for key, parameter in parameters.items():
        parameter.copy_(fresh[key])
