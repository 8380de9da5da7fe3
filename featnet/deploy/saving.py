"""Optimised networks in folders: an engine's program, and what of the network is not in it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import __version__
from ..checkpoints.writing import staged
from ..errors import ArgumentError, CheckpointError, FeatnetError
from ..values import checked, is_int
from .enginenet import EngineNet, Interface, Json, tuples
from .engines import ENGINES, Program
from .optimizing import OptimizeReport

FORMAT = 1  # of the folder
CARD, PROGRAM = "featnet.json", "program.onnx"


@checked
def save_optimized(net: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Write a network that onnxruntime or OpenVINO runs to a folder.

    The folder holds the program (``program.onnx``), and the network's interface, its
    ``feature_info`` and the report (``featnet.json``). It needs neither this machine nor the
    network's code.

    Args:
        net: what :func:`featnet.optimize` made for such an engine.
        folder: to write to; made where it is not there, and what was saved there before is
            replaced.

    Raises:
        ArgumentError: the network is torch's.
        OutputError: the folder cannot be written.

    Example:
        >>> net = torch.nn.Conv2d(3, 8, 3, stride=2).eval()
        >>> featnet.save_optimized(featnet.optimize(net, engine="onnxruntime"), "fast")
        >>> sorted(path.name for path in Path("fast").iterdir())
        ['featnet.json', 'program.onnx']
    """
    if not isinstance(net, EngineNet):
        raise ArgumentError(
            f"A {type(net).__name__} runs in torch: a folder holds what optimize() made with "
            f"engine={' or '.join(map(repr, ENGINES))}. For torch export() writes a program."
        )
    program, report = net.program, net.optimize_report
    card: Json = {
        "format": FORMAT,
        "featnet": __version__,
        "engine": program.engine,
        "sha256": hashlib.sha256(program.content).hexdigest(),
        "shape": program.shape,
        "interface": dataclasses.asdict(net.interface),
        "report": report and dataclasses.asdict(report),
    }
    with staged(Path(folder) / CARD) as draft:
        draft.with_name(PROGRAM).write_bytes(program.content)
        draft.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


@checked
def load_optimized(folder: str | os.PathLike[str], *, threads: int | None = None) -> EngineNet:
    """Read a network that :func:`featnet.save_optimized` wrote; no network is built.

    Args:
        folder: that was written.
        threads: that the engine uses for a batch; by default as many as torch.

    Returns:
        The network, ready to run.

    Raises:
        CheckpointError: the folder holds no such network, was written in another format or changed,
            or the engine that is installed cannot read the program.
        FeatnetError: the engine is not installed (with the command that does it).

    Example:
        >>> net = torch.nn.Conv2d(3, 8, 3, stride=2).eval()
        >>> featnet.save_optimized(featnet.optimize(net, engine="onnxruntime"), "fast")
        >>> featnet.load_optimized("fast")(torch.randn(1, 3, 65, 97)).shape
        torch.Size([1, 8, 32, 48])
    """
    if threads is not None and (not is_int(threads) or threads < 1):
        raise ArgumentError(f"threads={threads!r}: a positive int or None is expected.")
    place = Path(folder)
    try:
        card = json.loads((place / CARD).read_text(encoding="utf-8"))
        content = (place / PROGRAM).read_bytes()
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"folder={str(place)!r} holds no network of save_optimized(), {CARD} and {PROGRAM}: "
            f"{error}."
        ) from error
    card = card if isinstance(card, dict) else {}
    if card.get("format") != FORMAT:
        raise CheckpointError(
            f"folder={str(place)!r} has format {card.get('format')!r}, written by featnet "
            f"{card.get('featnet')}; featnet {__version__} reads format {FORMAT}: make and save "
            "it again."
        )
    return _opened(place, card, content, threads or torch.get_num_threads())


def _opened(place: Path, card: Json, content: bytes, threads: int) -> EngineNet:
    if hashlib.sha256(content).hexdigest() != card.get("sha256"):
        raise CheckpointError(
            f"{str(place / PROGRAM)!r} is not the file that was saved with {CARD}: copy both again."
        )
    try:
        interface = Interface.from_json(card["interface"])
        report: Any = {name: tuples(value) for name, value in (card["report"] or {}).items()}
        report = OptimizeReport(**report) if report else None
        program = Program(card["engine"], content, card["shape"], threads)
        net = EngineNet(program, interface, report)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, FeatnetError):
            raise
        raise CheckpointError(f"{str(place / CARD)!r} is damaged: {error!r}.") from error
    try:
        program.start()
    except Exception as error:
        versions = {} if report is None else report.versions
        raise CheckpointError(
            f"{program.engine} {ENGINES[program.engine].version()} cannot read "
            f"{str(place / PROGRAM)!r}, which was made for version "
            f"{versions.get(program.engine, '?')}: {error}"
        ) from error
    return net
