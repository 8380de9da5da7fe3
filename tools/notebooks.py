"""Run the notebooks of ``examples/notebooks`` and write what their cells show into them.

    python -m tools.notebooks

The tests run them in the same way and compare. The cells are plain Python, so that neither a kernel
nor Jupyter is needed. Text that is printed and the value of a cell's last line are kept, Pillow
images as JPEG.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def read(path: Path) -> dict[str, Any]:
    """Read a notebook, in format 4."""
    return json.loads(path.read_text(encoding="utf-8"))


def run(notebook: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Run the code cells in one name space, in the current folder.

    Args:
        notebook: what :func:`read` gives; it is not changed.

    Returns:
        The outputs of each code cell, as a notebook holds them.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = (cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    return [_outputs("".join(cell["source"]), names) for cell in cells]


def _outputs(source: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    body, value, printed = ast.parse(source).body, None, io.StringIO()
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(body, []), "<cell>", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        text = printed.getvalue().splitlines(keepends=True)
        outputs.append({"name": "stdout", "output_type": "stream", "text": text})
    if value is not None:
        data = {"text/plain": [f"<{type(value).__name__}>"]}
        if hasattr(value, "save"):
            file = io.BytesIO()
            value.save(file, "JPEG", quality=75)
            data["image/jpeg"] = base64.b64encode(file.getvalue()).decode()
        else:
            data["text/plain"] = repr(value).splitlines(keepends=True)
        outputs.append({"data": data, "metadata": {}, "output_type": "display_data"})
    return outputs


def main() -> None:
    """Write the outputs of all notebooks."""
    for path in NOTEBOOKS:
        os.chdir(path.parent)
        notebook = read(path)
        outputs = iter(run(notebook))
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                cell["outputs"] = next(outputs)
        text = json.dumps(notebook, indent=1, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
        print(f"{path.name}: {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
