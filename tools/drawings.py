"""The drawings of the documentation: ``python -m tools.drawings`` writes them into docs/drawings.

Plain SVG on white, readable in a light and in a dark page.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "docs" / "drawings"
INK, PALE, BLUE, RED = "#1f2937", "#cbd5e1", "#2563eb", "#dc2626"


def text(x: float, y: float, words: str, *, size: int = 14, anchor: str = "middle") -> str:
    """A line of text, centred at (x, y) or beginning there."""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{INK}">'
        f"{escape(words)}</text>"
    )


def line(
    x1: float, y1: float, x2: float, y2: float, *, colour: str = PALE, head: bool = False
) -> str:
    """A straight line, with or without the head of an arrow."""
    end = ' marker-end="url(#head)"' if head else ""
    return (
        f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{colour}" '
        f'stroke-width="1.5"{end}/>'
    )


def dot(x: float, y: float, colour: str, *, filled: bool = True) -> str:
    """A position of a map."""
    fill = colour if filled else "white"
    return (
        f'<circle cx="{x:g}" cy="{y:g}" r="7" fill="{fill}" stroke="{colour}" stroke-width="1.5"/>'
    )


def box(
    x: float, y: float, width: float, words: str, *, colour: str = INK, dash: bool = False
) -> str:
    """A box, 34 high, with a line of text in it."""
    dashed = ' stroke-dasharray="4 3"' if dash else ""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="34" rx="5" fill="white" '
        f'stroke="{colour}" stroke-width="1.5"{dashed}/>' + text(x + width / 2, y + 22, words)
    )


def drawing(width: int, height: int, title: str, parts: Iterable[str]) -> str:
    """A whole file."""
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="Helvetica, Arial, sans-serif">\n<title>{escape(title)}</title>\n'
        '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" '
        f'markerHeight="8" orient="auto"><path d="M0 0 8 4 0 8z" fill="{INK}"/></marker></defs>\n'
        f'<rect width="{width}" height="{height}" fill="white"/>\n{body}\n</svg>\n'
    )


def panel(left: float, name: str, *, dense: bool) -> list[str]:
    """A layer of stride 2 and the 3-tap layer behind it, on a row of 13 positions."""
    step, rows = 30, (90, 170, 250)

    def x(position: int) -> float:
        return left + position * step

    parts = [text(x(6), 30, name, size=16)]
    outputs = range(13) if dense else range(0, 13, 2)
    lines = [(p, q) for p in outputs for q in (p - 1, p, p + 1) if 0 <= q < 13]
    parts += [line(x(q), rows[0], x(p), rows[1]) for p, q in lines]
    parts += [line(x(q), rows[1], x(6), rows[2], colour=BLUE) for q in (4, 6, 8)]
    parts += [dot(x(p), rows[0], INK, filled=False) for p in range(13)]
    for row in rows[1:]:
        parts += [dot(x(p), row, BLUE if p % 2 == 0 else RED, filled=p % 2 == 0) for p in outputs]
    last = "the next layer: dilation 2" if dense else "the next layer: dilation 1"
    first = "stride 1, where 2 was" if dense else "a layer of stride 2"
    words = ((66, "input"), (201, first), (282, last))
    return [*parts, *(text(left - 7, y, each, anchor="start") for y, each in words)]


def dilation() -> str:
    """The à trous rule in one dimension."""
    note = "Blue positions hold the same numbers on both sides. Red ones are new, between them."
    parts = [*panel(30, "as trained", dense=False), *panel(480, "output_stride halved", dense=True)]
    title = "A stride becomes a dilation: every second position of the dense map is the original's"
    return drawing(870, 340, title, [*parts, text(435, 325, note)])


def generator() -> str:
    """One forward that yields levels, and where an extractor stops."""
    names = ("stem", "layer1", "layer2", "layer3", "layer4", "finish, head")
    parts = [text(20, 30, "forward_levels(x): a generator", size=16, anchor="start")]
    for i, name in enumerate(names):
        x = 10 + i * 150
        gone = i > 3
        parts.append(box(x, 60, 95, name, colour=PALE if gone else INK, dash=gone))
        if i < 5:
            parts.append(line(x + 95, 77, x + 149, 77, colour=INK, head=True))
            wanted = i in (1, 3)
            colour = BLUE if wanted else PALE
            parts.append(line(x + 110, 77, x + 110, 128, colour=colour))
            parts.append(dot(x + 110, 135, colour, filled=wanted))
            parts.append(text(x + 110, 165, f"level {i}"))
    stop = 10 + 4 * 150 - 10
    parts += [
        line(stop, 45, stop, 180, colour=RED),
        text(stop, 200, "an extractor with out_indices=(1, 3) stops here"),
        text(
            435,
            228,
            "Grey modules after it are removed. Blue maps come out, in the order asked for.",
        ),
    ]
    return drawing(870, 245, "A network yields its levels; an extractor stops at the last", parts)


def meta_run() -> str:
    """What one run without numbers shows, and who asks."""
    facts = (
        ("modules that ran, tensors used", "pruning: the rest is removed"),
        ("channels and size of each level", "the declaration is checked"),
        ("sizes for any other input", "feature_info.sizes((H, W))"),
        ("maps that are overwritten later", "only these are cloned"),
    )
    parts = [
        box(20, 118, 130, "network"),
        line(150, 135, 199, 135, colour=INK, head=True),
        box(200, 118, 190, "run on the meta device"),
        text(295, 175, "shapes only: no numbers,"),
        text(295, 193, "no memory for maps"),
    ]
    for i, (fact, use) in enumerate(facts):
        y = 20 + i * 66
        parts.append(line(390, 135, 429, y + 17, colour=INK, head=True))
        parts.append(box(430, y, 250, fact))
        parts.append(line(680, y + 17, 709, y + 17, colour=INK, head=True))
        parts.append(box(710, y, 240, use, colour=BLUE))
    return drawing(970, 272, "Facts that one run on the meta device shows, and their use", parts)


DRAWINGS = {"dilation": dilation, "generator": generator, "meta_run": meta_run}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, draw in DRAWINGS.items():
        (FOLDER / f"{name}.svg").write_text(draw(), encoding="utf-8")
