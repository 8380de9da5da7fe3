"""First values that are drawn for what is kept: noted while a network is built, drawn afterwards.

Constructors fill every parameter, some of them twice, before it is known which ones an extractor
keeps. Here they only note what they would do. Each parameter is then filled from a random stream of
its own, which torch's seed and the parameter's name decide: a pruned network gets the values that
the whole one gets, whatever is left out and in whatever order.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Operations that replace all values of a parameter; of those in RANDOM, with drawn ones
RANDOM = _words(
    """uniform_ normal_ trunc_normal_ kaiming_uniform_ kaiming_normal_ xavier_uniform_
    xavier_normal_ random_ exponential_"""
)
REPLACING = RANDOM | _words("fill_ zero_ constant_ ones_ zeros_ copy_ eye_ dirac_")
# Functions that make tensors of drawn values, or change others than parameters
DRAWS = RANDOM | _words(
    """rand randn randint randperm rand_like randn_like randint_like normal bernoulli multinomial
    poisson bernoulli_ orthogonal_ sparse_ cauchy_ log_normal_ geometric_ dropout"""
)
# What does not ask for values: attributes and methods of a tensor
ATTRIBUTES = _words(
    """shape dtype device ndim requires_grad is_meta is_leaf layout grad grad_fn is_cuda is_cpu
    is_sparse is_quantized is_nested itemsize nbytes names"""
)
METHODS = _words(
    """dim size numel nelement stride new_empty new_tensor new_zeros new_ones new_full
    is_floating_point is_complex is_contiguous element_size requires_grad_ __len__ __hash__"""
)
VIEWS = _words("__getitem__ data detach view flatten unflatten t T")


@dataclasses.dataclass(frozen=True)
class Operation:
    """A change of a parameter, or of a part of it.

    Attributes:
        function: of torch; the tensor is its first argument.
        path: functions that lead from the parameter to the part.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    path: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = ()

    def __call__(self, parameter: torch.Tensor, generator: torch.Generator) -> None:
        part = parameter
        for step in self.path:
            part = step(part)
        kwargs = dict(self.kwargs)
        if self.function.__name__ in RANDOM:
            kwargs["generator"] = generator
        self.function(part, *self.args, **kwargs)


Plan = Sequence[Operation]


class Notes(TorchFunctionMode):
    """Context: operations on parameters are noted in place of being run.

    Where values are asked for, the parameter is filled at once, and the notes do not describe how
    it came to what it is: ``complete`` is False then.

    Args:
        seed: of values that are asked for.

    Attributes:
        plans: what was noted, by the parameter's ``id``.
        complete: the notes say all.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.plans: dict[int, list[Operation]] = {}
        self.complete = True
        self._parameters: dict[int, nn.Parameter] = {}
        # a part is kept, or its id could be another's
        self._parts: dict[int, tuple[torch.Tensor, nn.Parameter, tuple[Any, ...]]] = {}
        self._seed = seed

    def __torch_function__(
        self,
        func: Any,
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if not args and "tensor" in kwargs:  # as torch.nn.init calls its own functions
            args = (kwargs.pop("tensor"),)
        name = getattr(func, "__name__", "")
        if name == "__get__":
            name = getattr(func.__self__, "__name__", "")
            if name in ATTRIBUTES:
                return func(*args, **kwargs)
        if name in METHODS:
            return func(*args, **kwargs)
        target = args[0] if args else None
        parameter, path = self._place(target)
        rest = (*args[1:], *kwargs.values())
        if parameter is None and name in DRAWS:
            self.complete = False
        if parameter is None or any(self._place(value)[0] is not None for value in rest):
            self._fill_those_in((*args, *kwargs.values()))
            return func(*args, **kwargs)
        if name in DRAWS - RANDOM:  # it takes no generator, or none that is passed on
            self._fill(parameter)
            return func(*args, **kwargs)
        if name == "__setitem__" or (name.endswith("_") and not name.startswith("_")):
            self._note(parameter, Operation(func, tuple(args[1:]), kwargs, path))
            return None if name == "__setitem__" else target
        if name in VIEWS:
            part = func(*args, **kwargs)
            step = _Step(func, tuple(args[1:]), kwargs)
            self._parts[id(part)] = (part, parameter, (*path, step))
            return part
        self._fill_those_in(args)
        return func(*args, **kwargs)

    def _place(self, value: object) -> tuple[nn.Parameter | None, tuple[Any, ...]]:
        """The parameter that a value is, or is a part of, and the way to the part."""
        if id(value) in self._parts:
            _, parameter, path = self._parts[id(value)]
            return parameter, path
        return (value, ()) if isinstance(value, nn.Parameter) else (None, ())

    def _note(self, parameter: nn.Parameter, operation: Operation) -> None:
        plan = self.plans.setdefault(id(parameter), [])
        self._parameters[id(parameter)] = parameter
        if not operation.path and operation.function.__name__ in REPLACING:
            plan.clear()
        plan.append(operation)

    def _fill_those_in(self, values: Iterable[Any]) -> None:
        for value in values:
            if isinstance(value, (tuple, list)):
                self._fill_those_in(value)
            elif (parameter := self._place(value)[0]) is not None:
                self._fill(parameter)

    def _fill(self, parameter: nn.Parameter) -> None:
        """Give a parameter its values now."""
        self.complete = False
        plan = self.plans.pop(id(parameter), [])
        self._seed = (self._seed + 1) % 2**63
        generator = torch.Generator(parameter.device).manual_seed(self._seed)
        with torch._C.DisableTorchFunction(), torch.no_grad():
            for operation in plan:
                operation(parameter, generator)

    def of(self, model: nn.Module) -> dict[str, Plan]:
        """Return the plans by the names of a network's parameters."""
        named = {id(p): name for name, p in model.named_parameters()}
        homes = {p.untyped_storage().data_ptr(): p for p in self._parameters.values()}
        for tensor in (*model.parameters(), *model.buffers()):
            home = homes.get(tensor.untyped_storage().data_ptr())
            if home is not None and tensor is not home:  # another tensor of the same memory
                self._fill(home)
        return {named[key]: tuple(plan) for key, plan in self.plans.items() if key in named}


@dataclasses.dataclass(frozen=True)
class _Step:
    """A call that gives a part of a tensor."""

    function: Callable[..., torch.Tensor]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.function(tensor, *self.args, **self.kwargs)


def draw_seed() -> int:
    """Draw the number that a network's values come from, by torch's own generator."""
    return int(torch.empty((), dtype=torch.int64, device="cpu").random_())


@torch.no_grad()
def fill(
    model: nn.Module, plans: Mapping[str, Plan], seed: int, *, names: Mapping[str, str]
) -> None:
    """Fill the parameters of a network that have plans.

    Args:
        model: a network, or what was kept of one.
        plans: of its parameters, by name; those of others are left out.
        seed: see :func:`draw_seed`.
        names: of the parameters in the whole network, by the name here.
    """
    generators: dict[torch.device, torch.Generator] = {}
    for name, parameter in model.named_parameters():
        plan = plans.get(name)
        if plan is None:
            continue
        generator = generators.get(parameter.device)
        if generator is None:
            generator = generators[parameter.device] = torch.Generator(parameter.device)
        spread = zlib.crc32(names[name].encode()) * 0x9E3779B97F4A7C15
        generator.manual_seed((seed ^ spread) % 2**63)
        for operation in plan:
            operation(parameter, generator)
