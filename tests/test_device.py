"""That a forward stays on its device. The meta device shows it as well as any other: what would
make a GPU wait for the host (or the host for it) is an operation on a tensor that lies elsewhere, a
tensor made of Python's values, or a value that is asked for, of which a meta tensor has none."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import helpers
import pytest
import torch
from helpers import families, strides
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import featnet
from featnet.dilation.rule import set_output_stride
from featnet.tracing.trace import tensors

COPIES = (torch.tensor, torch.as_tensor, torch.from_numpy, torch.Tensor.new_tensor)
INDEXING = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)


class _Operations(TorchDispatchMode):
    """Refuses an operation that takes or gives a tensor off the meta device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        elsewhere = {t.device.type for t in tensors([args, kwargs, found])} - {"meta"}
        assert not elsewhere, f"{func} on {elsewhere}"
        return found


class OnDevice(TorchFunctionMode):
    """A context in which nothing may cross between the meta device and the host."""

    def __enter__(self) -> Any:
        self.operations = _Operations()
        self.operations.__enter__()
        return super().__enter__()

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        self.operations.__exit__(*args)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in COPIES, f"{func.__name__} copies from the host"
        if func in INDEXING:
            where = args[1] if isinstance(args[1], tuple) else (args[1],)
            assert not any(isinstance(i, list) for i in where), "a list is an index from the host"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", families())
def test_a_forward_does_not_leave_its_device(name: str) -> None:
    """From its second call on: tables are made in the first."""
    model = helpers.shallow_model(name)
    x = torch.empty(2, 3, *helpers.sizes(name)[0], device="meta")
    dense = copy.deepcopy(model)
    set_output_stride(dense, strides(name)[-1])
    for net in (featnet.FeatureHookNet(model), featnet.FeatureListNet(dense, copy=False)):
        with torch.no_grad():
            net(x)
            with OnDevice():
                net(x)


WAYS: dict[str, Callable[[torch.Tensor], Any]] = {
    "constant": lambda x: x + torch.tensor([1.0, 2.0], device=x.device),
    "copy": lambda x: x + torch.ones(2).to(x.device),
    "beside": lambda x: torch.ones(2),
    "list": lambda x: x[[0, 1]],
    "back": lambda x: x.cpu(),
    "value": lambda x: x.sum().item(),
    "branch": lambda x: x if x.sum() > 0 else -x,
    "mask": lambda x: x[x > 0],
}


@pytest.mark.parametrize("way", WAYS)
def test_what_would_be_seen(way: str) -> None:
    """Each way to leave the device; what stays passes."""
    x = torch.empty(2, 2, device="meta")
    with OnDevice():
        assert (x[:1] + torch.arange(2, device=x.device) * 0.5).is_meta
        with pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
            WAYS[way](x)
