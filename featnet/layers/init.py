"""First weights: named schemes, and one walk that applies them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from .mobile_conv import CondConv2d

Scheme = Callable[[Any], None]


def trunc_normal_(
    tensor: torch.Tensor,
    *,
    std: float = 0.02,
    cut: float | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Fill a tensor from a normal distribution that is cut at -2 and 2, or at ``cut`` times
    ``std``.

    It is torch's, as one operation for who watches operations on parameters.
    """
    if torch.overrides.has_torch_function_unary(tensor):
        passed: dict[str, Any] = dict(std=std, cut=cut, generator=generator)
        return torch.overrides.handle_torch_function(trunc_normal_, (tensor,), tensor, **passed)
    edge = 2.0 if cut is None else cut * std
    return nn.init.trunc_normal_(tensor, std=std, a=-edge, b=edge, generator=generator)


def he_fan_out(layer: Any) -> None:
    """He's normal distribution by the outputs of the whole layer
    (https://arxiv.org/abs/1502.01852)."""
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def he_fan_in(layer: Any) -> None:
    """He's normal distribution by the inputs (https://arxiv.org/abs/1502.01852)."""
    nn.init.kaiming_normal_(layer.weight)


def he_group_fan_out(layer: Any) -> None:
    """He's normal distribution by the outputs of one group, as TensorFlow's references have it."""
    fan_out = math.prod(layer.kernel_size) * layer.out_channels // layer.groups
    nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_out))


def xavier(layer: Any) -> None:
    """Glorot's uniform distribution."""
    nn.init.xavier_uniform_(layer.weight)


def uniform_fan_out(layer: Any) -> None:
    """A uniform distribution by the number of outputs of a linear layer."""
    bound = 1 / math.sqrt(layer.out_features)
    nn.init.uniform_(layer.weight, -bound, bound)


def trunc_normal(layer: Any, *, std: float = 0.02, cut: float | None = None) -> None:
    """A normal distribution, which is cut at -2 and 2; ViT's. Or at ``cut`` times ``std``, as
    TensorFlow's is at 2."""
    trunc_normal_(layer.weight, std=std, cut=cut)


def normal(layer: Any, *, std: float = 0.01) -> None:
    """A normal distribution."""
    nn.init.normal_(layer.weight, std=std)


def lecun_normal(layer: Any) -> None:
    """A truncated normal distribution by the inputs, of the variance that it has before it is
    cut."""
    fan_in = layer.weight[0].numel()
    std = math.sqrt(1 / fan_in) / 0.87962566  # of a normal distribution that is cut at two
    trunc_normal_(layer.weight, std=std, cut=2)


def zero_weight(layer: Any) -> None:
    """Zero the weights."""
    nn.init.zeros_(layer.weight)


def normal_bias(layer: Any, *, value: float = 0.0, std: float = 0.0) -> None:
    """A normal distribution of the bias, where there is one, around ``value``."""
    if getattr(layer, "bias", None) is not None:
        nn.init.normal_(layer.bias, mean=value, std=std)


def zero_bias(layer: Any) -> None:
    """Zero the bias, where there is one."""
    if getattr(layer, "bias", None) is not None:
        nn.init.zeros_(layer.bias)


def _nothing() -> None:
    """Do nothing, for a module without a start of its own."""


@torch.no_grad()
def initialize(
    model: nn.Module,
    *,
    conv: Iterable[Scheme] = (),
    linear: Iterable[Scheme] = (),
    zero_init_last: bool = False,
) -> None:
    """Give a network its first weights; a family calls this at the end of its constructor.

    Layers with no scheme keep torch's own. Modules that start in a way of their own then do so:
    those inside the network that have a method ``init_weights()``.

    Args:
        model: the network.
        conv: schemes for each convolution, applied in order: one for weights, ``zero_bias``.
        linear: schemes for each linear layer.
        zero_init_last: let blocks that have a method ``zero_init_last()`` start as their shortcut.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2))
        >>> initialize(net, conv=[he_fan_out], linear=[normal, zero_bias])
        >>> net[2].bias.tolist()
        [0.0, 0.0]
    """
    convs, linears = tuple(conv), tuple(linear)
    modules = list(model.modules())[1:]
    for module in modules:
        if isinstance(module, (nn.Conv1d, nn.Conv2d, CondConv2d)):
            schemes = convs
        else:
            schemes = linears if isinstance(module, nn.Linear) else ()
        for scheme in schemes:
            scheme(module)
    for module in modules:
        for method in ("init_weights", *(["zero_init_last"] if zero_init_last else [])):
            getattr(module, method, _nothing)()


@torch.no_grad()
def scale_with_depth(blocks: Iterable[nn.Module], *names: str) -> None:
    """Scale down what each block puts out with its depth, as BEiT does: by ``sqrt(2 * (i + 1))``.

    Args:
        blocks: of a transformer, in order.
        names: of the parameters of each block, dotted.
    """
    for index, block in enumerate(blocks):
        for name in names:
            block.get_parameter(name).div_(math.sqrt(2.0 * (index + 1)))


def init_tokens(*tokens: torch.Tensor | None, std: float = 0.02) -> None:
    """Give tables of positions (0.02) or tokens (1e-6) their first values, where there are any."""
    for token in tokens:
        if token is not None:
            trunc_normal_(token, std=std)
