"""``export``: write a network as a file for other runtimes, and check the file."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.export import ExportedProgram

from ..checkpoints.writing import staged
from ..errors import ArgumentError, FeatnetError, InputSizeError, nearest
from ..extraction.extractors import FeatureNet, probe_size
from ..tracing import trace
from ..values import checked
from .packed import Packed

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram

FORMATS = {".onnx": "onnx", ".pt2": "pt2"}
AXES = {"batch": 0, "height": 2, "width": 3}
TOLERANCE = {"onnx": 1e-3, "pt2": 1e-5, "aoti": 1e-3}  # float32, relative to the largest value
NEEDED = {"onnx": ("onnx", "onnxscript")}


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """The file that :func:`export` wrote, and how far its numbers are from the network's.

    Attributes:
        path: of the file; ONNX weights beyond 2 GB lie beside it.
        format: ``onnx``, ``pt2`` or ``aoti``.
        bytes: size of the file.
        inputs: names of the inputs.
        outputs: names of the outputs; of an extractor those of its levels.
        dynamic: axes whose sizes are free.
        checked: sizes (N, C, H, W) at which the file was run and compared; empty where the runtime
            is not installed.
        difference: largest difference of its outputs from the network's, relative to the largest
            value.

    Example:
        >>> net = torch.nn.Conv2d(3, 8, 3).eval()
        >>> report = featnet.export(net, "conv.pt2", dynamic=("batch",))
        >>> report.format, report.inputs, report.dynamic, report.difference < 1e-5
        ('pt2', ('image',), ('batch',), True)
    """

    path: Path
    format: str
    bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic: tuple[str, ...]
    checked: tuple[tuple[int, ...], ...]
    difference: float

    def __str__(self) -> str:
        sizes = ", ".join("x".join(map(str, size)) for size in self.checked)
        proof = f"differs by {self.difference:.1e} at {sizes}" if sizes else "not run: no runtime"
        return (
            f"{self.path}: {self.format}, {self.bytes:,} bytes, {', '.join(self.inputs)} -> "
            f"{', '.join(self.outputs)}; free: {', '.join(self.dynamic) or 'nothing'}; {proof}"
        )


@checked
def export(
    net: nn.Module,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    example: torch.Tensor | None = None,
    dynamic: Sequence[str] = ("batch", "height", "width"),
) -> ExportReport:
    """Write a network as a file for another runtime, and check the numbers that the file gives.

    The file is ONNX (``.onnx``), a torch.export program (``.pt2``), or a library compiled by
    AOTInductor (``format="aoti"``). It is run beside the network at the size of the example and at
    another one.

    Args:
        net: a Backbone, an extractor, or any module that takes (N, C, H, W), in eval mode.
        path: of the file, which is replaced only when the new one gives the right numbers.
        format: ``onnx``, ``pt2`` or ``aoti``; by default the path's suffix says it.
        example: a batch of at least two images (N, C, H, W), on the network's device. By default
            noise of a size that the network takes.
        dynamic: axes whose sizes stay free, among ``batch``, ``height`` and ``width``.

    Returns:
        A report: names of inputs and outputs, the sizes that were checked, and the difference.

    Raises:
        ArgumentError: an unknown format or axis, training mode, or a network packed by
            :func:`featnet.optimize`, which runs on this machine only.
        InputSizeError: the network cannot take the example.
        FeatnetError: a package is missing (with how to get it), the network cannot be exported with
            these axes (with the reason), or the file gives other numbers.

    Example:
        >>> net = featnet.create_model("resnet18", features_only=True, out_indices=(0,)).eval()
        >>> report = featnet.export(net, "stem.pt2", example=torch.randn(2, 3, 32, 32))
        >>> report.outputs, report.dynamic
        (('act1',), ('batch', 'height', 'width'))
    """
    path = Path(path)
    kind = _format(path, format)
    for axis in dynamic:
        if axis not in AXES:
            raise ArgumentError(
                f"dynamic={tuple(dynamic)}: {axis!r} is none of {', '.join(AXES)}."
                + nearest(axis, AXES)
            )
    _check(net)
    missing = [name for name in NEEDED.get(kind, ()) if importlib.util.find_spec(name) is None]
    if missing:
        raise FeatnetError(
            f"Writing {kind} needs {', '.join(missing)}: pip install 'featnet[{kind}]'."
        )
    x = _example(net, example)
    outputs = _names(net)
    program = _exported(net, x, dynamic)
    if not path.parent.is_dir():
        raise FeatnetError(f"{path.parent} is not a folder to write to.")
    with staged(path) as draft:
        with torch.no_grad(), _quiet():
            WRITERS[kind](program, x, draft, outputs)
            run = _runner(kind, draft)
            pairs = [(x, net(x)), other_size(net, x, dynamic)] if run is not None else []
            try:
                worst = max((_difference(run(y), want) for y, want in pairs if run), default=0.0)
            except Exception as error:
                raise FeatnetError(
                    f"The {kind} file does not run at {' or '.join(_sides(y) for y, _ in pairs)}; "
                    "it was "
                    f"not kept: {_first_line(error)}"
                ) from error
        if not worst <= TOLERANCE[kind]:
            raise FeatnetError(
                f"The {kind} file differs from the network by {worst:.1e} of the largest value; it "
                "was not kept."
            )
    checked = tuple(dict.fromkeys(tuple(y.shape) for y, _ in pairs))
    return ExportReport(
        path, kind, path.stat().st_size, ("image",), outputs, tuple(dynamic), checked, worst
    )


def onnx_program(net: nn.Module, x: torch.Tensor) -> bytes:
    """Return the bytes of an ONNX program with free batch, height and width.

    Args:
        net: a network that :func:`export` takes.
        x: a batch (N, C, H, W) that it takes.

    Raises:
        FeatnetError: the network cannot be exported (with the reason).
    """
    x = torch.cat([x, x])[:2]  # an axis of size one is taken for a constant
    program = _exported(net, x, tuple(AXES))
    with torch.no_grad(), _quiet():
        try:
            proto = _to_onnx(program, x, _names(net)).model_proto
            content = proto.SerializeToString()
        except Exception as error:
            raise FeatnetError(
                f"{type(net).__name__} cannot be written as ONNX: {_first_line(error)}"
            ) from error
    return bytes(content)


def _exported(net: nn.Module, x: torch.Tensor, dynamic: Sequence[str]) -> ExportedProgram:
    axes = {AXES[axis]: torch.export.Dim.DYNAMIC for axis in dynamic}
    with torch.no_grad(), _quiet():
        try:
            return torch.export.export(net, (x,), dynamic_shapes=(axes,), strict=True)
        except Exception as error:
            raise FeatnetError(
                f"{type(net).__name__} cannot be exported with {', '.join(dynamic) or 'no axis'} "
                f"free: {_first_line(error)}"
            ) from error


def _sides(x: torch.Tensor) -> str:
    return " x ".join(map(str, x.shape))


def _format(path: Path, format: str | None) -> str:
    if format is None and path.suffix not in FORMATS:
        raise ArgumentError(
            f"path={str(path)!r}: the suffix says no format; {', '.join(FORMATS)} do, or give "
            "format=."
        )
    kind = FORMATS[path.suffix] if format is None else format
    if kind not in WRITERS:
        raise ArgumentError(
            f"format={format!r}: one of {', '.join(WRITERS)} is expected.{nearest(kind, WRITERS)}"
        )
    return kind


def _check(net: object) -> None:
    if not isinstance(net, nn.Module):
        raise ArgumentError(f"The network is a {type(net).__name__}, not a torch.nn.Module.")
    if any(module.training for module in net.modules()):
        raise ArgumentError(
            "The network is in training mode, which no file for inference can hold: call eval()."
        )
    if any(isinstance(module, Packed) for module in net.modules()):
        raise ArgumentError(
            "The network's weights are packed for this machine: export it before optimize()."
        )


def _example(net: nn.Module, example: torch.Tensor | None) -> torch.Tensor:
    """Return two images, since torch.export takes an axis of size one for a constant."""
    if example is None:
        body = net.body if isinstance(net, FeatureNet) else net
        like = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
        generator = torch.Generator().manual_seed(0)
        shape = (2, trace.channels_of(body), *probe_size(net))
        return torch.randn(shape, generator=generator).to(like)
    if not isinstance(example, torch.Tensor) or example.ndim != 4 or len(example) < 2:
        what = tuple(example.shape) if isinstance(example, torch.Tensor) else type(example).__name__
        raise ArgumentError(f"example={what}: a tensor (N, C, H, W) with N >= 2 is expected.")
    try:
        with torch.no_grad():
            net(example)
    except InputSizeError:
        raise
    except RuntimeError as error:
        raise InputSizeError(
            f"{type(net).__name__} cannot take an example of {tuple(example.shape)}: {error}"
        ) from error
    return example


def _names(net: nn.Module) -> tuple[str, ...]:
    if isinstance(net, FeatureNet):
        return tuple(net.feature_info.module_name())
    return ("logits",) if hasattr(net, "forward_head") else ()


def other_size(
    net: nn.Module, x: torch.Tensor, dynamic: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a batch of another size along the free axes, and the network's output for it: one
    image, half as much higher and wider, of odd sides if the network takes them."""
    for halves, odd in ((3, 1), (3, 0), (4, 0), (1, 0)):
        shape = list(x.shape)
        for axis in dynamic:
            shape[AXES[axis]] = 1 if axis == "batch" else shape[AXES[axis]] * halves // 2 | odd
        y = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(x)
        with contextlib.suppress(RuntimeError, ValueError, AssertionError):  # no size for it
            return y, net(y)
    y = x[:1] if "batch" in dynamic else x
    return y, net(y)


def _difference(outputs: Sequence[torch.Tensor], wanted: object) -> float:
    pairs = zip(outputs, trace.tensors(wanted), strict=True)
    gaps = [(a.to(b) - b).abs().max() / b.abs().max().clamp(min=1e-12) for a, b in pairs]
    return max((float(gap) for gap in gaps), default=0.0)


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence exporters, which warn of their own deprecations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# Formats ----------------------------------------------------------------------------------


def _write_onnx(
    program: ExportedProgram, x: torch.Tensor, path: Path, outputs: Sequence[str]
) -> None:
    _to_onnx(program, x, outputs).save(path)


def _to_onnx(program: ExportedProgram, x: torch.Tensor, outputs: Sequence[str]) -> ONNXProgram:
    names = list(outputs) or None
    written = torch.onnx.export(
        program, (x,), dynamo=True, input_names=["image"], output_names=names, verbose=False
    )
    assert written is not None
    return written


def _write_pt2(
    program: ExportedProgram, x: torch.Tensor, path: Path, outputs: Sequence[str]
) -> None:
    content = io.BytesIO()  # torch's own writer ends the process where a disk is full
    torch.export.save(program, content)
    path.write_bytes(content.getbuffer())


def _write_aoti(
    program: ExportedProgram, x: torch.Tensor, path: Path, outputs: Sequence[str]
) -> None:
    from torch._inductor import aoti_compile_and_package

    package = path.with_suffix(".pt2")
    try:
        aoti_compile_and_package(program, package_path=str(package))
    except Exception as error:
        raise FeatnetError(
            f"AOTInductor could not compile the network ({_first_line(error)}). It needs a C++ "
            "compiler; the pt2 format does not."
        ) from error
    os.replace(package, path)


WRITERS: dict[str, Callable[[ExportedProgram, torch.Tensor, Path, Sequence[str]], None]] = {
    "onnx": _write_onnx,
    "pt2": _write_pt2,
    "aoti": _write_aoti,
}


def _runner(kind: str, path: Path) -> Callable[[torch.Tensor], list[torch.Tensor]] | None:
    """Return a function that runs the file; None where its runtime is not installed."""
    if kind == "onnx":
        if importlib.util.find_spec("onnxruntime") is None:
            return None
        import onnxruntime  # type: ignore[import-untyped]

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda x: [
            torch.from_numpy(y) for y in session.run(None, {"image": x.cpu().numpy()})
        ]
    loaded: Callable[[torch.Tensor], object]
    if kind == "aoti":
        from torch._inductor import aoti_load_package

        loaded = aoti_load_package(str(path))
    else:
        loaded = torch.export.load(path).module()
    return lambda x: list(trace.tensors(loaded(x)))
