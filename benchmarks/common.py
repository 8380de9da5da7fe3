"""How a figure is measured: in turn with the peer, many rounds, the spread beside the median.

Absolute times on a shared machine mean little. So every round calls each contender once, in an
order that is reversed from round to round; the ratio is taken within the round, and its median and
its middle half (25 to 75 %) are reported.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

Work = Callable[[], object]
State = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one contender, and how many times faster than the peer it is."""

    seconds: float
    ratio: float
    low: float
    high: float

    @property
    def cells(self) -> list[str]:
        """Milliseconds, ratio and the middle half of the ratios, as cells of a table."""
        spread = f"{self.low:.2f} to {self.high:.2f}" if self.low < self.high else "-"  # the peer
        return [f"{self.seconds * 1e3:,.1f}", f"{self.ratio:.2f}", spread]


@dataclasses.dataclass(frozen=True)
class Table:
    """One section of the report."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def __str__(self) -> str:
        lines = [f"## {self.title}", ""]
        lines += [self.note, ""] if self.note else []
        lines += [
            "| " + " | ".join(row) + " |" for row in (self.header, ["---"] * len(self.header))
        ]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n".join(lines) + "\n"


TIMES = ("median ms", "times timm's speed", "middle half")


def seconds_of(work: Work, device: str) -> float:
    """Wall-clock seconds of one call, until the device has finished."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def summarise(rounds: Sequence[Mapping[str, float]], peer: str) -> dict[str, Timing]:
    """Seconds of every contender in every round -> its Timing against the peer of its round."""
    found = {}
    for name in rounds[0]:
        ratios = [seconds[peer] / seconds[name] for seconds in rounds]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        found[name] = Timing(statistics.median(s[name] for s in rounds), middle, low, high)
    return found


def alternate(
    contenders: Mapping[str, Work], *, rounds: int, device: str = "cpu", warmup: int = 2
) -> dict[str, Timing]:
    """Time contenders in turn; the first one is the peer. Short calls get more rounds."""
    for _ in range(warmup):
        for work in contenders.values():
            work()
    names = list(contenders)
    taken: list[dict[str, float]] = []
    spent = 0.0
    for index in range(max(2, rounds, 30)):
        if index >= max(2, rounds) and spent > 6.0:
            break
        order = names if index % 2 == 0 else names[::-1]
        seconds = {name: seconds_of(contenders[name], device) for name in order}
        taken.append({name: seconds[name] for name in names})
        spent += sum(seconds.values())
    return summarise(taken, names[0])


def noise(model: nn.Module, seed: int = 0) -> State:
    """A state dict of seeded noise whose activations stay finite through a deep network."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}
    for name, tensor in model.state_dict().items():
        value = torch.randn(tensor.shape, generator=generator)
        if not tensor.is_floating_point():
            state[name] = tensor.clone()
        elif tensor.ndim > 1:  # a weight: the variance that keeps the variance
            state[name] = value * (2.0 / tensor[0].numel()) ** 0.5
        elif name.endswith(("bias", "running_mean")):
            state[name] = value * 0.1
        else:  # scales and variances: positive
            state[name] = 1.0 + 0.1 * value.tanh()
    return state


def load_noise(net: nn.Module, state: State) -> nn.Module:
    """The same weights in any extractor of the network, whatever prefix it gives the names, and
    whether or not it flattens them.

    Raises:
        KeyError: the extractor has a tensor that the network has not.
    """
    flat = {key.replace(".", "_"): value for key, value in state.items()}
    own = {key: re.sub(r"^(body|model)\.", "", key).replace(".", "_") for key in net.state_dict()}
    net.load_state_dict({key: flat[flattened] for key, flattened in own.items()})
    return net


def machine(device: str) -> str:
    """Processor, cores, versions and date, in one paragraph."""
    import timm

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8").splitlines()
        cpu = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), cpu)
    where = f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} torch thread(s)"
    if device.startswith("cuda"):
        where += f", {torch.cuda.get_device_name(device)}"
    return (
        f"Measured on {datetime.date.today().isoformat()}: {where}; Python "
        f"{platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}."
    )
