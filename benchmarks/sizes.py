"""How long a family's code is, beside the peer's: ``python -m benchmarks.sizes`` prints the table.

Counted are the lines of a family file without its tables: everything but assignments at the top
level. Of the peer's modules, what remains without entry points (functions under
``@register_model``), ``default_cfgs`` and the functions that make their rows. Imports, blank lines,
comments and docstrings count on both sides. Layers that families share are on neither side.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import featnet
from featnet import registry


def lines_of(nodes: list[ast.stmt]) -> int:
    """Lines from each node's first (its decorators included) to its last."""
    total = 0
    for node in nodes:
        decorators = getattr(node, "decorator_list", [])
        first = min([node.lineno, *(d.lineno for d in decorators)])
        total += (node.end_lineno or first) - first + 1
    return total


def ours(path: Path) -> int:
    """Lines of a family's code."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return lines_of([node for node in body if not isinstance(node, (ast.Assign, ast.AnnAssign))])


def theirs(path: Path) -> int:
    """Lines of a peer's module without entry points and configurations."""
    kept = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = [ast.unparse(d) for d in getattr(node, "decorator_list", [])]
        is_row = isinstance(node, ast.FunctionDef) and node.name.endswith("cfg")
        if "register_model" in names or is_row or isinstance(node, (ast.Assign, ast.AnnAssign)):
            continue
        if isinstance(node, ast.Expr) and "register_model_deprecations" in ast.unparse(node):
            continue
        kept.append(node)
    return lines_of(kept)


def main() -> None:
    """Print one row for each family."""
    import timm

    spec = importlib.util.find_spec("timm")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent / "models"
    print("| family | variants | lines | timm's modules | their lines | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    total = [0, 0]
    for module in featnet.list_modules():
        names = featnet.list_models(module=module)
        modules = sorted({timm.model_entrypoint(n).__module__.rpartition(".")[2] for n in names})
        own = ours(registry.MODELS / f"{module}.py")
        peer = sum(theirs(folder / f"{name}.py") for name in modules)
        total = [total[0] + own, total[1] + peer]
        row = [
            module,
            str(len(names)),
            str(own),
            ", ".join(modules),
            str(peer),
            f"{own / peer:.2f}",
        ]
        print(f"| {' | '.join(row)} |")
    for path in sorted(registry.MODELS.glob("_[a-z]*.py")):  # what some families share
        own = ours(path)
        total[0] += own
        print(f"| {path.stem} | | {own} | | | |")
    print(f"| all | | {total[0]} | | {total[1]} | {total[0] / total[1]:.2f} |")


if __name__ == "__main__":
    main()
