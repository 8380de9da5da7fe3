"""That a forward stays on its device. The meta device shows it as well as any other: what would make
a GPU wait for the host (or the host for it) is an operation on a tensor that lies elsewhere, a
tensor made of Python's values, or a value that is asked for, of which a meta tensor has none."""

from __future__ import annotations

import copy
from typing import Any

import helpers
import pytest
import torch
from helpers import families, strides
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import featnet
from featnet.dilation import set_output_stride
from featnet.trace import tensors

COPIES = (torch.tensor, torch.as_tensor, torch.from_numpy, torch.Tensor.new_tensor)
INDEXING = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)


class _Operations(TorchDispatchMode):
    """Refuses operations with tensors on two devices, and on none but the first one's."""

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
    model = helpers.meta_model(name)
    x = torch.empty(2, 3, *helpers.sizes(name)[0], device="meta")
    dense = copy.deepcopy(model)
    set_output_stride(dense, strides(name)[-1])
    for net in (featnet.FeatureHookNet(model), featnet.FeatureListNet(dense, copy=False)):
        with torch.no_grad():
            net(x)
            with OnDevice():
                net(x)


class Crossing(nn.Module):
    """Leaves the device in one of many ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def forward(self, x: torch.Tensor) -> Any:
        ways = {
            "constant": lambda: x + torch.tensor([1.0, 2.0], device=x.device),
            "copy": lambda: x + torch.ones(2).to(x.device),
            "beside": lambda: torch.ones(2),
            "list": lambda: x[[0, 1]],
            "back": lambda: x.cpu(),
            "value": lambda: x.sum().item(),
            "branch": lambda: x if x.sum() > 0 else -x,
            "mask": lambda: x[x > 0],
            "stays": lambda: x[:1] + torch.arange(2, device=x.device) * 0.5,
        }
        return ways[self.way]()


@pytest.mark.parametrize(
    "way", ["constant", "copy", "beside", "list", "back", "value", "branch", "mask"]
)
def test_what_would_be_seen(way: str) -> None:
    x = torch.empty(2, 2, device="meta")
    with OnDevice():
        Crossing("stays")(x)
        with pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
            Crossing(way)(x)
