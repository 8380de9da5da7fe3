"""Networks that were made before, remembered as structures.

What takes long in making a network is the same each time: the constructor, the run on the meta
device that an extractor or an output stride needs, pruning. A blueprint keeps the result, without
the values of its parameters, and with what these are drawn by (:mod:`featnet.initial`). The next
one is a copy of the structure, whose values are drawn.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import threading
import types
from collections.abc import Callable, Hashable, Mapping

import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from .assembly import Place, build_network
from .initial import Notes, Plan, draw_seed, fill
from .tracing import structure

MOST = 32  # blueprints that are kept
LARGEST = 4 * 2**20  # bytes of the values that one holds: buffers, and parameters that are no draw

_kept: collections.OrderedDict[Hashable, Blueprint] = collections.OrderedDict()
_lock = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """A network without the values that are drawn.

    Attributes:
        structure: the network; parameters that are drawn are on the meta device.
        plans: how each of these is drawn, by its name.
        names: of each in the network that this was cut from.
        known: nothing else decides its values, so that it can be used again.
    """

    structure: nn.Module
    plans: Mapping[str, Plan]
    names: Mapping[str, str]
    known: bool

    @property
    def size(self) -> int:
        """Bytes of the values that it holds."""
        tensors = (*self.structure.parameters(), *self.structure.buffers())
        return sum(t.nbytes for t in tensors if not t.is_meta)

    def make(self, device: torch.device, dtype: torch.dtype | None, seed: int) -> nn.Module:
        """Make a network, with new values."""
        net = structure.clone(self.structure, functools.partial(_materialise, device=device))
        if device.type != "meta":
            fill(net, self.plans, seed, names=self.names)
        return net if dtype is None else net.to(dtype=dtype)


def _materialise(tensor: torch.Tensor, *, device: torch.device) -> torch.Tensor:
    """A tensor of its own on a device; without values, where it has none."""
    if tensor.is_meta or device.type == "meta":
        shape, stride = tensor.shape, tensor.stride()
        new = torch.empty_strided(shape, stride, dtype=tensor.dtype, device=device)
    else:
        new = tensor.detach().clone() if tensor.device == device else tensor.detach().to(device)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(new, requires_grad=tensor.requires_grad)
    return new


def create(
    key: Hashable | None,
    build: Callable[[], nn.Module],
    finish: Callable[[nn.Module], nn.Module],
    place: Place,
) -> nn.Module:
    """Make a network that no file is loaded into.

    Args:
        key: says all that ``build`` and ``finish`` depend on; None if nothing can.
        build: makes the whole network.
        finish: makes of it what was asked for; it asks for no values.
        place: where its tensors are to be.
    """
    if not _unwatched():  # who watches or replaces operations is to see them all
        return finish(build_network(build, None, place))
    device = place.device or torch.get_default_device()
    key = None if key is None else (key, torch.get_default_dtype())
    seed = 0 if device.type == "meta" else draw_seed()
    with _lock:
        blueprint = _kept.get(key)
        if blueprint is not None:
            _kept.move_to_end(key)
    if blueprint is None:
        blueprint = _draft(build, finish, seed)
        if key is not None and blueprint.known and blueprint.size <= LARGEST:
            with _lock:
                _kept[key] = blueprint
                while len(_kept) > MOST:
                    _kept.popitem(last=False)
    return blueprint.make(device, place.dtype, seed)


def _unwatched() -> bool:
    """Tell if operations are torch's own here."""
    modes = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    watched = any(not isinstance(mode, DeviceContext) for mode in modes)
    return not watched and not _get_current_dispatch_mode_stack()


def _draft(
    build: Callable[[], nn.Module], finish: Callable[[nn.Module], nn.Module], seed: int
) -> Blueprint:
    notes = Notes(seed)
    with torch.device("cpu"), notes:
        whole = build()
    plans = notes.of(whole)
    parameters = dict(whole.named_parameters())
    homes = {id(parameter): name for name, parameter in parameters.items()}
    net = finish(whole)
    names = {name: homes[id(p)] for name, p in net.named_parameters()}
    drawn = {id(parameters[home]) for home in names.values() if home in plans}
    kept = {name: plans[home] for name, home in names.items() if home in plans}

    def outline(tensor: torch.Tensor) -> torch.Tensor:
        return _materialise(tensor, device=torch.device("meta" if id(tensor) in drawn else "cpu"))

    return Blueprint(structure.clone(net, outline), kept, names, notes.complete)


def key_of(*values: object) -> Hashable | None:
    """Make a key of plain values, records, classes and functions; None if there are others.

    Example:
        >>> key_of("resnet18", {"in_chans": 1}) == key_of("resnet18", {"in_chans": True})
        False
    """
    try:
        return tuple(_key(value) for value in values)
    except TypeError:
        return None


def _key(value: object) -> Hashable:
    if isinstance(value, Mapping):
        return tuple((_key(k), _key(v)) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, *(_key(item) for item in value))
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, type)):
        return (type(value).__name__, value)
    if isinstance(value, (types.FunctionType, types.BuiltinFunctionType)):
        return value
    if isinstance(value, functools.partial):
        return ("partial", _key(value.func), _key(value.args), _key(value.keywords))
    if dataclasses.is_dataclass(value):
        return (type(value), _key(vars(value)))
    raise TypeError(f"no key for a {type(value).__name__}")
