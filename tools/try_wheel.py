"""Install a wheel into an environment of its own and run README.md there, outside of the checkout.

``python -m tools.try_wheel dist/featnet-0.1.0-py3-none-any.whl``, which ``make package`` runs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[str]:
    """The page's commands of featnet."""
    lines = (line for block in blocks(text, "sh") for line in block.splitlines())
    return [line for line in lines if line.startswith("featnet ")]


def try_wheel(wheel: Path) -> None:
    """Install the wheel and run the page; a CalledProcessError says what failed."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "place")
        place.mkdir()
        shutil.copytree(ROOT / "examples", place / "examples")
        environment = Path(folder, "environment")
        venv.create(environment, with_pip=True)
        binaries = environment / ("Scripts" if sys.platform == "win32" else "bin")
        python = binaries / "python"
        install = ["-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        constraints = ["-c", str(ROOT / "constraints.txt")]
        run([python, *install, *constraints, f"{wheel.resolve()}[demo]"], place)
        run(
            [python, "-c", f"import featnet\nassert {str(environment)!r} in featnet.__file__"],
            place,
        )
        before = sorted(place.rglob("*"))
        run([python, "-W", "error", "-c", "\n".join(blocks(page, "python"))], place)
        assert sorted(place.rglob("*")) == before, "README.md leaves files behind"
        for command in commands(page):
            run(["bash", "-c", f"{binaries}/{command}"], place)
        run([binaries / "featnet", "doctor"], place)
    print(f"{wheel.name}: installed outside of the checkout, README.md runs there")


def run(command: Sequence[str | Path], folder: Path) -> None:
    """Run a command in a folder, without what the caller's environment has of featnet."""
    subprocess.run(
        [str(word) for word in command], cwd=folder, check=True, env=clean(), stdout=sys.stderr
    )


def clean() -> dict[str, str]:
    """The environment's variables without Python's paths."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}


if __name__ == "__main__":
    for name in sys.argv[1:]:
        try_wheel(Path(name))
