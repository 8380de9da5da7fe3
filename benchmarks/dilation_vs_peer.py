"""How far timm's dilated networks are from featnet's, with the same weights.

    python -m benchmarks.dilation_vs_peer [NAME ...]

For one variant of each structural signature and output strides 16 and 8: the largest difference
of any level relative to its largest value (float64, eval, noise weights), and how far each library
misses the à trous law ``y_s[..., ::m, ::m] == y_32``. What sees the whole map is made inert (see
``helpers.Local``). Needs timm.
"""

from __future__ import annotations

import copy
import math
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import helpers

import featnet
from featnet.dilation.rule import set_output_stride

AGREE = 1e-10


def measure(name: str, stride: int) -> tuple[float, float, float]:
    """(difference, how far ours misses the law, how far the peer misses it); nan where the peer
    refuses."""
    ours: Any = helpers.fill_noise(featnet.create_model(name))
    theirs = helpers.peer_features(name, ours.state_dict(), stride)
    if theirs is None:
        return math.nan, 0.0, math.nan
    ours, theirs = (helpers.without_global(net).double().eval() for net in (ours, theirs))
    dense: Any = copy.deepcopy(ours)
    set_output_stride(dense, stride)
    wanted = theirs.feature_info.module_name()
    levels = [i for i, level in enumerate(ours._levels) if level.module in wanted]
    steps = [ours._levels[i].reduction // dense._levels[i].reduction for i in levels]
    x = helpers.image_batch(*helpers.law_sizes(ours, dense)[0], dtype=torch.float64)
    full = ours.forward_intermediates(x, levels, intermediates_only=True)
    a = dense.forward_intermediates(x, levels, intermediates_only=True)

    def law(maps: list[torch.Tensor]) -> float:
        try:
            return helpers.law_error(maps, full, steps)
        except AssertionError:
            return float("inf")  # another size

    try:
        b = theirs(x)
    except (AssertionError, RuntimeError):
        return math.nan, law(a), math.nan  # it cannot take a map of this size
    same = all(p.shape == q.shape for p, q in zip(a, b, strict=True))
    apart = max(helpers.error(q, p) for p, q in zip(a, b, strict=True)) if same else float("inf")
    return apart, law(a), law(b)


def figure(value: float) -> str:
    if math.isnan(value):
        return "refused"
    return "0" if value < AGREE else "other size" if value == float("inf") else f"{value:.2g}"


def smallest() -> list[str]:
    """The smallest variant of each combination of modules that dilation is exact for."""
    best: dict[frozenset[Any], str] = {}
    for name in sorted(featnet.list_models(), key=helpers.parameter_count):
        if "attention" not in helpers.meta_model(name).breaks_law:
            best.setdefault(helpers.signature(name), name)
    return sorted(best.values())


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    print("| variant | stands for | difference at 16 | at 8 | timm misses the law at 16 | at 8 |")
    print("|---|---|---|---|---|---|")
    exact, refused = [], []
    for name in sys.argv[1:] or smallest():
        with helpers.Local(helpers.meta_model(name).breaks_law):
            rows = [measure(name, stride) for stride in (16, 8)]
        assert all(ours < AGREE for _, ours, _ in rows), (name, rows)
        like = [n for n in featnet.list_models() if helpers.signature(n) == helpers.signature(name)]
        if all(apart < AGREE for apart, _, _ in rows):
            exact += like
            continue
        if all(math.isnan(apart) for apart, _, _ in rows):
            refused += like
            continue
        cells = [figure(rows[i][j]) for j in (0, 2) for i in (0, 1)]
        others = ", ".join(n for n in like if n != name) or "-"
        print(f"| {name} | {others} | {' | '.join(cells)} |", flush=True)
    print(f"\nRefused by timm at both strides ({len(refused)}): {', '.join(refused)}.")
    print(f"\nThe same in both libraries at both strides ({len(exact)}): {', '.join(exact)}.")


if __name__ == "__main__":
    main()
