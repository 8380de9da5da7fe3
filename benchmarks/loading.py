"""``python -m benchmarks.loading``: a checkpoint from a local file, and the names without one.

Every measurement is a process of its own, which has imported torch. Its time is that of importing
the library and of creating the model; its memory the peak above what it had after the import. The
file is in the page cache: read once before, and written by neither library's code that is measured.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .command import add_device, parsed, parser_of, report
from .common import TIMES, Table, Timing, noise, summarise

ROOT = Path(__file__).parents[1]
MODELS = ("resnet50", "convnext_base", "vit_large_patch16_224")

# Linux keeps the peak since the process began, or since a 5 was written here.
MEASURE = """
import json, sys, time, torch
torch.set_num_threads(1)
name, file = sys.argv[1:]

def memory(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))

start = time.perf_counter()
{prepare}
seconds = time.perf_counter() - start
with open("/proc/self/clear_refs", "w") as refs:
    refs.write("5")
before, start = memory("VmRSS"), time.perf_counter()
{work}
seconds += time.perf_counter() - start
print(json.dumps([seconds, memory("VmHWM") - before]))
"""
TOUCH = """
for value in model.state_dict().values():
    value.view(-1).view(torch.uint8)[::4096].sum()
"""
READ = """
data = torch.empty(size, dtype=torch.uint8)
with open(file, "rb", buffering=0) as source:
    source.readinto(memoryview(data.numpy()))
"""
# contender: what is imported, and what it then does
WORK = {
    "timm": ("import timm", "model = timm.create_model(name, checkpoint_path=file)"),
    "featnet": (
        "import featnet; featnet.create_model",
        "model = featnet.create_model(name, checkpoint_path=file)",
    ),
    "featnet, mmap=True": (
        "import featnet; featnet.create_model",
        "model = featnet.create_model(name, checkpoint_path=file, mmap=True)",
    ),
    "featnet, mmap=True, and every page touched": (
        "import featnet; featnet.create_model",
        "model = featnet.create_model(name, checkpoint_path=file, mmap=True)" + TOUCH,
    ),
    "the limit: the file read into memory": ("import os; size = os.path.getsize(file)", READ),
}


def _python(code: str, *arguments: str) -> Any:
    """What a new interpreter prints last, as JSON."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def _measure(name: str, file: Path, rounds: int) -> tuple[dict[str, Timing], dict[str, float]]:
    """Seconds, and the median peak in bytes, of each contender."""
    codes = {
        who: MEASURE.format(prepare=prepare, work=work) for who, (prepare, work) in WORK.items()
    }
    taken: list[dict[str, float]] = []
    peaks: dict[str, list[int]] = {who: [] for who in codes}
    names = list(codes)
    for index in range(max(2, rounds)):
        seconds = {}
        for who in names if index % 2 == 0 else names[::-1]:
            seconds[who], peak = _python(codes[who], name, str(file))
            peaks[who].append(peak)
        taken.append({who: seconds[who] for who in names})
    return summarise(taken, "timm"), {who: statistics.median(peak) for who, peak in peaks.items()}


def from_a_file(rounds: int, models: Sequence[str] = MODELS) -> Table:
    """create_model with a safetensors file that is there."""
    import timm
    from safetensors.torch import save_file

    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in models:
            file = Path(folder) / f"{name}.safetensors"
            save_file(noise(timm.create_model(name)), file)
            file.read_bytes()
            size = file.stat().st_size
            times, peaks = _measure(name, file, rounds)
            for who, timing in times.items():
                memory = [f"{peaks[who] / 2**20:,.0f}", f"{peaks[who] / size:.2f}"]
                rows.append([f"{name}, {size / 2**20:,.0f} MiB", who, *timing.cells, *memory])
            file.unlink()
    note = (
        "`import` of the library and `create_model(name, checkpoint_path=file)`, each in a new "
        "process that has imported torch, one thread, the file in the page cache. Memory: the peak "
        "above what the process had after the import; pages of a mapped file count when they have "
        "been touched."
    )
    header = ("weights", "contender", *TIMES, "peak MiB", "peak / size of the file")
    return Table("Loading a local safetensors file", header, rows, note, "start")


COLD = """
import json, sys, time
start = time.perf_counter()
{statement}
seconds = time.perf_counter() - start
print(json.dumps([seconds, sorted({{"torch", "huggingface_hub", "socket"}} & set(sys.modules))]))
"""
STATEMENTS: Mapping[str, str] = {
    "timm: list_pretrained()": "import timm; timm.list_pretrained()",
    "timm: get_pretrained_cfg(name)": "import timm; timm.get_pretrained_cfg('resnet50.a1_in1k')",
    "featnet: list_pretrained()": "import featnet; featnet.list_pretrained()",
    "featnet: get_weights(name)": "import featnet; featnet.get_weights('resnet50.a1_in1k')",
}


def names(rounds: int) -> Table:
    """What checkpoints there are, and what one is, in a process that has imported nothing."""
    taken, modules = [], {}
    for _ in range(max(2, rounds)):
        seconds = {}
        for name, statement in STATEMENTS.items():
            seconds[name], modules[name] = _python(COLD.format(statement=statement))
        taken.append(seconds)
    times = summarise(taken, next(iter(STATEMENTS)))
    rows = [[f"`{n}`", *times[n].cells, ", ".join(modules[n]) or "none"] for n in STATEMENTS]
    note = (
        "Imports included, in a new interpreter; what of torch, huggingface_hub and socket it "
        "loads."
    )
    return Table("Names and tables, cold", ("statement", *TIMES, "loads"), rows, note, "start")


def run(device: str, *, quick: bool) -> Iterator[Table]:
    """Every section in turn; ``quick`` measures two rounds, of the smallest model."""
    if device != "cpu" or not Path("/proc/self/clear_refs").exists():
        return  # the peak of a process is Linux's to say
    yield names(2 if quick else 9)
    yield from_a_file(2 if quick else 5, MODELS[:1] if quick else MODELS)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, report."""
    parser = parser_of("benchmarks.loading", __doc__)
    add_device(parser)
    args = parsed(parser, argv)
    return report(args, run(args.device, quick=args.quick))


if __name__ == "__main__":
    sys.exit(main())
