"""A network that an engine of others runs, with the interface of the one it was made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, TypeAlias

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..errors import ArgumentError, InputSizeError
from ..extraction import layout
from ..extraction.extractors import FeatureNet
from ..features import Feature, FeatureInfo
from ..size import Size
from ..tracing import trace
from ..weights import Weights
from .engines import Program

Json: TypeAlias = dict[str, Any]
STEPS = 256  # the largest step between the sides that a network takes which is looked for


@dataclasses.dataclass(frozen=True)
class Interface:
    """The interface of a network, without the network.

    Attributes:
        name: of its class.
        channels: of its input.
        size: (H, W) of an input that it takes.
        steps: for each side, the step from that size to others that it takes; 0: to none.
        outputs: the structure of its output, as ``torch.utils._pytree`` writes it.
        levels: of an extractor, all of its network's.
        indices: of an extractor, the levels that come out.
        output_fmt: of an extractor, the layout of the maps.
        weights: what the checkpoint says about its inputs.
    """

    name: str
    channels: int
    size: Size
    steps: Size
    outputs: str
    levels: tuple[Feature, ...] = ()
    indices: tuple[int, ...] = ()
    output_fmt: str = "NCHW"
    weights: Weights | None = None

    @classmethod
    def of(cls, net: nn.Module, x: torch.Tensor, output: object) -> Interface:
        """Read the interface of a network.

        Args:
            net: the network.
            x: an input (N, C, H, W).
            output: its output.

        Raises:
            ArgumentError: the output holds what is no tensor.
        """
        leaves, spec = pytree.tree_flatten(output)
        strange = next((leaf for leaf in leaves if not isinstance(leaf, torch.Tensor)), None)
        if strange is not None:
            raise ArgumentError(f"its output holds a {type(strange).__name__}, which is no tensor")
        size = (x.shape[-2], x.shape[-1])
        steps = (
            _step(net, size[0], lambda side: (side, size[1])),
            _step(net, size[1], lambda side: (size[0], side)),
        )
        facts: Json = {}
        if isinstance(net, FeatureNet):
            info = net.feature_info
            indices = tuple(level.index for level in info)
            facts = dict(levels=info.info, indices=indices, output_fmt=net.output_fmt)
        weights = getattr(net, "pretrained_cfg", None)
        if isinstance(weights, Weights):
            facts["weights"] = weights
        return cls(
            type(net).__name__, x.shape[1], size, steps, pytree.treespec_dumps(spec), **facts
        )

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Interface:
        """Read an interface that was written as JSON, as a dict of its fields."""
        fields = _fields(row)
        fields["levels"] = tuple(Feature(**_fields(level)) for level in row["levels"])
        fields["weights"] = row["weights"] and Weights(**_fields(row["weights"]))
        return cls(**fields)


def _fields(row: Mapping[str, Any]) -> Json:
    return {key: tuples(value) for key, value in row.items()}


def tuples(value: Any) -> Any:
    """Return JSON's lists as the tuples that they were."""
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def _step(net: nn.Module, side: int, size: Callable[[int], Size]) -> int:
    """Return the smallest divisor of a side by which it may grow, or 0: on the meta device."""
    for step in range(1, min(side, STEPS) + 1):
        if side % step:
            continue
        try:
            if isinstance(net, FeatureNet):
                net.observe(size(side + step))
            else:
                trace.run(net, size(side + step), watched=trace.no_modules)
        except (RuntimeError, ValueError, ZeroDivisionError):
            continue
        return step
    return 0


class EngineNet(nn.Module):
    """A network that onnxruntime or OpenVINO runs, made by :func:`featnet.optimize` or
    :func:`featnet.load_optimized`.

    It takes what the original takes, float32 on the CPU, and returns the same structure of tensors.
    It has no modules and no parameters. Copies share the program; a pickle holds it; threads may
    call it at once.

    Args:
        program: what is run.
        interface: of the original.
        report: of :func:`featnet.optimize`.

    Attributes:
        optimize_report: the report.
        pretrained_cfg: the original's, for :func:`featnet.create_transform`; or None.

    Example:
        >>> net = featnet.create_model("test_resnet", features_only=True, out_indices=(0,)).eval()
        >>> fast = featnet.optimize(net, engine="onnxruntime")
        >>> [tuple(y.shape) for y in fast(torch.randn(2, 3, 48, 64))], fast.feature_info.channels()
        ([(2, 32, 24, 32)], [32])
    """

    optimize_report: Any

    def __init__(self, program: Program, interface: Interface, report: object = None) -> None:
        super().__init__()
        self.program, self.interface, self.optimize_report = program, interface, report
        self.pretrained_cfg = interface.weights
        self._spec = pytree.treespec_loads(interface.outputs)
        super().train(False)

    def forward(self, x: torch.Tensor) -> Any:
        """(N, C, H, W) -> the original's output."""
        self._check(x)
        if not len(x):  # engines refuse no images
            one = self(x.new_zeros(1, *x.shape[1:]))
            return pytree.tree_map(lambda y: y[:0], one)
        try:
            outputs = self.program(x)
        except Exception as error:
            raise InputSizeError(
                f"{self.interface.name} cannot take an input of {tuple(x.shape)} in "
                f"{self.program.engine}: {error}"
            ) from error
        return pytree.tree_unflatten(outputs, self._spec)

    def _check(self, x: torch.Tensor) -> None:
        known = self.interface
        if not isinstance(x, torch.Tensor) or x.ndim != 4 or x.shape[1] != known.channels:
            what = tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
            raise InputSizeError(f"The input is {what}: (N, {known.channels}, H, W) is expected.")
        if x.dtype != torch.float32 or x.device.type != "cpu":
            raise ArgumentError(
                f"The input is {x.dtype} on {x.device}: {self.program.engine} runs float32 on the "
                "CPU."
            )
        if x.requires_grad and torch.is_grad_enabled():
            raise ArgumentError(
                f"A network in {self.program.engine} has no gradients: train the one that it was "
                "made from."
            )
        axes = zip(x.shape[2:], ("height", "width"), known.size, known.steps, strict=True)
        for side, axis, own, step in axes:
            if side != own and (not step or side % step):
                allowed = f"a multiple of {step}" if step else f"only {own}"
                near = f" The nearest is {max(step, round(side / step) * step)}." if step else ""
                raise InputSizeError(
                    f"{known.name} cannot take an input of {x.shape[2]} x {x.shape[3]}: its {axis} "
                    f"must be {allowed}.{near}"
                )

    @property
    def feature_info(self) -> FeatureInfo:
        """The levels that an extractor puts out, in their order; their sizes are those of a run on
        zeros.

        Raises:
            AttributeError: the original is no extractor.
        """
        known = self.interface
        if not known.levels:
            raise AttributeError(f"A {known.name} in {self.program.engine} has no feature_info.")
        return FeatureInfo(known.levels, known.indices, measure=self._measure)

    def _measure(self, size: Size) -> list[Size]:
        known = self.interface
        sizes: list[Size] = [(0, 0)] * len(known.levels)
        output = self(torch.zeros(1, known.channels, *size))
        items = output.values() if isinstance(output, Mapping) else output
        for index, item in zip(known.indices, items, strict=True):
            shape, level = next(trace.tensors(item)).shape, known.levels[index]
            if len(shape) == 4 or known.output_fmt == "NLC":
                level = dataclasses.replace(level, layout=known.output_fmt, prefix=0)
            sizes[index] = layout.sides(shape, level, size)
        return sizes

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode.

        Raises:
            ArgumentError: training mode is asked for.
        """
        if mode:
            raise ArgumentError(
                f"A network in {self.program.engine} does not train: train the one that it was "
                "made from."
            )
        return self

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Refuse another type or device; conversions of modules come here."""
        after = fn(torch.empty(0))
        if after.dtype != torch.float32 or after.device.type != "cpu":
            raise ArgumentError(
                f"A network in {self.program.engine} cannot become {after.dtype} on "
                f"{after.device}: convert the network before optimize()."
            )
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.program, self.interface, self.optimize_report)

    def extra_repr(self) -> str:
        known = self.interface
        shape: Sequence[int] = self.program.shape
        return f"{known.name} in {self.program.engine}, for {' x '.join(map(str, shape))}"
