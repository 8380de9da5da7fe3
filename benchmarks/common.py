"""How a figure is measured: in turn with the peer, many rounds, the spread beside the median.

Absolute times on a shared machine mean little. So every round calls each contender once, in an
order that is reversed from round to round; the ratio is taken within the round, and its median and
its middle half (25 to 75 %) are reported.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
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
    """One section of the report.

    Attributes:
        title: the section's heading, one of its own in the page.
        header, rows: cells; a row that failed may be shorter.
        note: a paragraph above the table.
        page: of docs/benchmarks, without its suffix; none where the table is only printed.
        measured: machine, versions, date and command, in a sentence.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    page: str = ""
    measured: str = ""

    def __str__(self) -> str:
        lines = [f"## {self.title}", ""]
        for paragraph in (self.note, self.measured):
            lines += [paragraph, ""] if paragraph else []
        for row in (self.header, ["---"] * len(self.header), *self.rows):
            cells = (" ".join(cell.split()).replace("|", r"\|") for cell in row)
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"

    def column(self, name: str, **where: str) -> dict[str, float]:
        """The numbers of a column by the first cell of their rows.

        Args:
            name: of the column, as in the header; without it there are no numbers.
            where: only the rows that have this value in the column of this name.
        """
        if not {name, *where} <= {*self.header}:
            return {}
        at = self.header.index(name)
        wanted = {self.header.index(key): value for key, value in where.items()}
        return {
            row[0]: float(row[at].replace(",", ""))
            for row in self.rows
            if len(row) > at
            and all(row[index] == value for index, value in wanted.items())
            and re.fullmatch(r"[\d,.]+", row[at])
        }


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
    contenders: Mapping[str, Work],
    *,
    rounds: int,
    device: str = "cpu",
    warmup: int = 2,
    enough: float | None = None,
) -> dict[str, Timing]:
    """Time contenders in turn; the first one is the peer.

    Args:
        contenders: by name.
        rounds: that each gets at least; 2 are for a look at all that works.
        device: that is waited for.
        warmup: calls before the first round.
        enough: seconds up to which short calls get more rounds, 30 at most: by default 6, or half
            a second where there are only 2 rounds.
    """
    enough = enough if enough is not None else 6.0 if rounds > 2 else 0.5
    for _ in range(warmup):
        for work in contenders.values():
            work()
    names = list(contenders)
    taken: list[dict[str, float]] = []
    spent = 0.0
    for index in range(max(2, rounds, 30)):
        if index >= max(2, rounds) and spent >= enough:
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
    own = {}
    for key in net.state_dict():
        name = key.replace(".", "_")  # TResNet's own names begin with body
        own[key] = flat[name if name in flat else re.sub("^(body|model)_", "", name)]
    net.load_state_dict(own)
    return net


def version_of(package: str) -> str | None:
    """The version of an installed distribution, None where it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine(device: str, packages: Sequence[str] = ()) -> str:
    """Date, processor, cores, threads and versions, in one sentence without its full stop."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8").splitlines()
        cpu = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), cpu)
    threads = torch.get_num_threads()
    where = f"{cpu}, {os.cpu_count()} cores, {threads} torch thread{'s' * (threads > 1)}"
    if device.startswith("cuda"):
        where += f", {torch.cuda.get_device_name(device)}"
    versions = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    versions += [f"{name} {version_of(name) or 'absent'}" for name in packages]
    return f"Measured on {datetime.date.today()}: {where}; {', '.join(versions)}"
