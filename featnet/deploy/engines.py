"""Engines of others, onnxruntime and OpenVINO, and programs that they run."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch

from ..errors import FeatnetError

# A batch (N, C, H, W), contiguous, to the outputs in the order of the program
Run = Callable[[torch.Tensor], list[torch.Tensor]]


@dataclasses.dataclass(frozen=True)
class Engine:
    """A runtime for ONNX programs.

    Attributes:
        name: of the engine, and of its package.
        extra: of featnet's, which installs it and what writes ONNX.
        start: a function of the program's bytes, the one shape that will come (None: any), and the
            number of threads; it makes a session, and a function that runs it.
        by_shape: it is quicker where it knows the shape.
    """

    name: str
    extra: str
    start: Callable[[bytes, Sequence[int] | None, int], Run]
    by_shape: bool

    def version(self) -> str:
        """Return the version that is installed."""
        return importlib.metadata.version(self.name)

    def missing(self, *, writing: bool = True) -> str:
        """Return the packages that are not installed and the command that installs them, or
        nothing.

        Args:
            writing: with those that write a program, beside the one that runs it.
        """
        packages = [*(("onnx", "onnxscript") if writing else ()), self.name]
        absent = [name for name in packages if importlib.util.find_spec(name) is None]
        if not absent:
            return ""
        verb = "is" if len(absent) == 1 else "are"
        return f"{', '.join(absent)} {verb} not installed: pip install 'featnet[{self.extra}]'"


def _onnxruntime(program: bytes, shape: Sequence[int] | None, threads: int) -> Run:
    """Start onnxruntime, which is as quick for any shape as for one."""
    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    session = runtime.InferenceSession(program, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(x: torch.Tensor) -> list[torch.Tensor]:
        return [torch.from_numpy(y) for y in session.run(None, {name: x.numpy()})]

    return run


def _openvino(program: bytes, shape: Sequence[int] | None, threads: int) -> Run:
    """Start OpenVINO. Threads of the caller have a request each, since one holds its outputs."""
    runtime: Any = importlib.import_module("openvino")
    core = runtime.Core()
    model = core.read_model(program)
    if shape is not None:
        model.reshape(list(shape))
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",  # by default it rounds where the processor can
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(model, "CPU", settings)
    own = threading.local()

    def run(x: torch.Tensor) -> list[torch.Tensor]:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        outputs = own.request.infer([x.numpy()], share_inputs=True)
        return [torch.from_numpy(y) for y in outputs.to_tuple()]

    return run


ENGINES: Mapping[str, Engine] = {
    engine.name: engine
    for engine in (
        Engine("onnxruntime", "onnx", _onnxruntime, by_shape=False),
        Engine("openvino", "openvino", _openvino, by_shape=True),
    )
}


class Program:
    """An ONNX program and an engine's sessions of it: one for the shape that most batches have, if
    that is quicker, and from the first other shape on one for all others.

    It never changes, so copies and threads share it; another process, forked or spawned, starts
    sessions of its own.

    Args:
        engine: a name of ``ENGINES``.
        content: the bytes of the program.
        shape: (N, C, H, W) that most batches will have.
        threads: of the engine, for one batch.

    Raises:
        FeatnetError: the engine is not installed.
    """

    def __init__(self, engine: str, content: bytes, shape: Sequence[int], threads: int) -> None:
        missing = ENGINES[engine].missing(writing=False)
        if missing:
            raise FeatnetError(f"engine={engine!r}: {missing}.")
        self.engine, self.content, self.shape = engine, content, tuple(shape)
        self.threads = threads
        self._sessions: dict[tuple[int, bool], Run] = {}
        self._lock = threading.Lock()

    def __call__(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Run a batch (N, C, H, W)."""
        return self.start(x.shape)(x.contiguous())

    def start(self, shape: Sequence[int] | None = None) -> Run:
        """Return the session for a shape, by default the one that most batches have; the first time
        it is made."""
        known = ENGINES[self.engine].by_shape and shape in (None, self.shape)
        key = (os.getpid(), known)
        if key not in self._sessions:
            with self._lock:
                if key not in self._sessions:
                    fixed = self.shape if known else None
                    run = ENGINES[self.engine].start(self.content, fixed, self.threads)
                    self._sessions[key] = run
        return self._sessions[key]

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Program, (self.engine, self.content, self.shape, self.threads)
