"""Numbers of a network in another form, compared with its own."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ..errors import FeatnetError
from ..tracing import trace

TOLERANCE = 1e-4  # of float32, relative to the largest value


def _outputs(net: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    return [y.clone() for y in trace.tensors(net(x))]


def verified(
    net: nn.Module, result: nn.Module, x: torch.Tensor, wanted: list[torch.Tensor]
) -> tuple[float, tuple[float, float] | None]:
    """Compare with the original's outputs; return the difference, and see
    :attr:`OptimizeReport.rounding`."""
    with torch.inference_mode():
        gaps = _gaps(_outputs(result, x), wanted)
    return max(gaps, default=0.0), _check_numbers(net, result, x, gaps)


def _gaps(outputs: list[torch.Tensor], wanted: list[torch.Tensor]) -> list[float]:
    """Return the largest difference in each output, relative to its largest value."""
    pairs = list(zip(outputs, wanted, strict=True))
    return [float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in pairs]


@torch.inference_mode()
def _check_numbers(
    net: nn.Module, result: nn.Module, x: torch.Tensor, gaps: list[float]
) -> tuple[float, float] | None:
    """Refuse numbers that are wrong. Those that differ only as the network's own rounding does,
    which its values in float64 show, pass; see :attr:`OptimizeReport.rounding`."""
    limit = max(TOLERANCE, torch.finfo(x.dtype).eps * 8)
    far = [i for i, gap in enumerate(gaps) if not gap <= limit]
    if not far:
        return None
    try:
        exact = copy.deepcopy(net).double()
        errors = torch.zeros(2, len(far))
        # What one input makes of rounding is left to chance: others, turned over, may tell more
        for count, axes in enumerate(((), (3,), (2,), (2, 3)), 1):
            turned = x.flip(axes) if axes else x
            wanted = _outputs(exact, turned.double())
            for row, model in zip(errors, (result, net), strict=True):
                outputs = _outputs(model, turned)
                row += torch.tensor([_error(outputs[i], wanted[i]) for i in far])
            ours, own = (errors / count).sqrt()
            if bool((ours <= 2 * own).all()):
                worst = int(ours.argmax())
                return float(ours[worst]), float(own[worst])
        worst = int((ours / own.clamp(min=1e-12)).argmax())
        why = (
            f"Its error against float64 is {float(ours[worst]):.1e}, the original's "
            f"{float(own[worst]):.1e}: not only rounding."
        )
    except Exception as error:  # it casts its values, or the device has no float64
        why = f"Whether that is rounding is not known, as in float64 it does not run: {error}"
    raise FeatnetError(
        f"The optimised {type(net).__name__} differs from the original by {max(gaps):.1e} of the "
        f"largest value, more than {limit:.0e}. {why}"
    )


def _error(output: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the mean square of the differences, relative to that of the values."""
    square = (output.double() - exact).square().mean() / exact.square().mean().clamp(min=1e-24)
    return float(square)
