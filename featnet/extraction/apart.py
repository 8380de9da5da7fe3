"""Keep a value that comes out of a network apart from what the network overwrites later.

The value that comes out stays within the network's graph: the network goes on with what is computed
from it, so that its values and its gradients are those of a network without in-place operations.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from ..tracing import trace


def keep_apart(value: object, inputs: object = (), *, certain: bool = True) -> tuple[Any, Any]:
    """Return the value to hand out, and the one that the network is to go on with.

    A tensor of its own is handed out as it is, and the network goes on with a copy. Of a tensor
    whose memory the network has under other names (an output that is the input, or a part of it) a
    copy is handed out, and what it holds is written back, so that all the names go on from it.
    Either way there is one tensor more than without.

    Args:
        value: a tensor, or tensors in any nesting.
        inputs: what the operation that put out the value was given. A value that is an input
            itself is given as both.
        certain: the value is known to be overwritten. If it only may be, nothing is written back,
            which autograd might not allow: the network goes on with a copy in any case.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> y, onwards = keep_apart(x * 2)
        >>> torch.autograd.grad(onwards.mul_(3).sum(), y)
        (tensor([3., 3.]),)
        >>> y
        tensor([2., 2.], grad_fn=<MulBackward0>)
    """
    parts = {id(tensor): tensor for tensor in trace.tensors(value)}
    copies = {key: tensor.clone() for key, tensor in parts.items()}
    if not _shared(list(parts.values()), list(trace.tensors(inputs))):
        return value, _replaced(value, copies)
    if not certain:
        return _replaced(value, copies), _replaced(value, {k: t.clone() for k, t in copies.items()})
    for key, tensor in parts.items():
        tensor.copy_(copies[key])
    return _replaced(value, copies), value


def _shared(values: list[torch.Tensor], inputs: list[torch.Tensor]) -> bool:
    """Tell if values lie in the memory of inputs, or of each other."""
    if torch.compiler.is_dynamo_compiling():  # which knows tensors, and no memory
        return any(tensor is other for tensor in values for other in inputs)
    own = [_storage(tensor) for tensor in values]
    return len(set(own)) < len(own) or not {_storage(t) for t in inputs}.isdisjoint(own)


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _replaced(value: Any, copies: dict[int, torch.Tensor]) -> Any:
    """A value with copies in the place of its tensors."""
    if isinstance(value, torch.Tensor):
        return copies[id(value)]
    if type(value) is dict:
        return {key: _replaced(item, copies) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_replaced(item, copies) for item in value)
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    return copy.deepcopy(value, dict[int, Any](copies))  # named tuples, records, a model's outputs
