"""What only a CUDA device can show: the checks of ``python -m benchmarks.gpu``, one a test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.gpu.checks import Check, listed
from benchmarks.gpu.setting import Setting

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:TensorFloat32"),  # of inductor, about torch's own default
]
SETTING = Setting("cuda")


@pytest.fixture(autouse=True)
def _compiled_anew() -> Iterator[None]:
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("check", listed(SETTING), ids=str)
def test_on_a_gpu(check: Check) -> None:
    check.run(SETTING)
