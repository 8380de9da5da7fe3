"""Transforms that the workers of a cluster run: a file of its own, for workers to import little."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
import uuid
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import featnet


@dataclasses.dataclass(frozen=True)
class Witnessed(featnet.ImageTransform):
    """A transform that takes its time, and leaves a file in a folder for each time that a process
    loads it, and for each image."""

    folder: str = ""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._mark("loaded")

    def normalize(self, image: Image.Image) -> torch.Tensor:
        time.sleep(0.02)
        self._mark("image")
        return super().normalize(image)

    def _mark(self, kind: str) -> None:
        Path(self.folder, f"{kind}.{os.getpid()}.{uuid.uuid4()}").touch()


class Stillborn(featnet.ImageTransform):
    """A transform that ends the process which loads it."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Deadly(featnet.ImageTransform):
    """A transform that ends the process which runs it."""

    def normalize(self, image: Image.Image) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError
