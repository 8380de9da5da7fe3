"""Parameter groups for an optimiser: lower rates for early layers, no decay of norms and tokens."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from ..errors import ArgumentError, MissingFeatureError, nearest
from ..extraction.extractors import FeatureNet
from ..extraction.hooks import matching
from ..tracing import structure
from ..values import checked
from .parts import levels_of, up_to

Group = dict[str, Any]
JOINS_THE_ONE_BEFORE = 99999.0  # in a group matcher, as timm writes it


@checked
def param_groups(
    net: nn.Module | Mapping[str, nn.Module],
    *,
    lr: float,
    weight_decay: float = 0.0,
    layer_decay: float = 1.0,
    no_weight_decay: Sequence[str] = (),
) -> list[Group]:
    """Sort the trainable parameters of a network, or of a system, into groups for an optimiser.

    Layers count from the image: the last one has the rate ``lr``, each one before it
    ``layer_decay`` times the rate of the next. The layers of featnet's networks are those of their
    ``group_matcher``; of others what lies between the levels that they declare or that
    :func:`featnet.discover` finds. A part of a system without levels, such as a head, has the rate
    ``lr`` throughout.

    Norms, biases, scales (all that has one dimension), tokens and tables of positions (what the
    network's ``no_weight_decay()`` names, and what has a first dimension of one for the batch) have
    no weight decay. Frozen parameters are in no group, each other one is in exactly one.

    Args:
        net: a network, or a mapping from names to the parts of a system,
            ``{"backbone": net, "head": head}``.
        lr: rate of the last layer.
        weight_decay: of what decays.
        layer_decay: over 0 and up to 1; 1 gives all layers the same rate.
        no_weight_decay: further names or patterns (``*`` within a dotted part, ``**`` across) of
            parameters without weight decay; of a system with the part's name before them.

    Returns:
        Dicts with ``params``, ``lr``, ``weight_decay``, and ``lr_scale``, the layer's share of
        ``lr``, for schedulers that set ``lr``.

    Raises:
        ArgumentError: a value out of its range; no trainable parameter; a ``layer_decay`` below 1
            where no levels are found.
        MissingFeatureError: a name in ``no_weight_decay`` that no parameter has.

    Example:
        >>> net = featnet.create_model("test_vit", features_only=True)
        >>> groups = featnet.param_groups(net, lr=1e-3, weight_decay=0.05, layer_decay=0.5)
        >>> sorted({group["lr"] for group in groups})[-2:]
        [0.0005, 0.001]
        >>> optimizer = torch.optim.AdamW(groups)
    """
    for name, value, low in (("lr", lr, 0.0), ("weight_decay", weight_decay, -math.inf)):
        if not _is_number(value) or not (value > low and value >= 0):
            raise ArgumentError(
                f"{name}={value!r}: a finite number {'over' if low == 0 else 'from'} 0."
            )
    if not _is_number(layer_decay) or not 0 < layer_decay <= 1:
        raise ArgumentError(
            f"layer_decay={layer_decay!r}: a number over 0 and up to 1 is expected."
        )
    parts = net if isinstance(net, Mapping) else {"": net}
    if layer_decay < 1:
        _check_levels(parts, layer_decay)
    rows = [row for prefix, part in parts.items() for row in _rows(prefix, part, layer_decay)]
    spared = _spared([name for name, *_ in rows], no_weight_decay)
    groups: dict[tuple[float, float], Group] = {}
    taken: set[int] = set()
    for name, parameter, scale, decays in rows:
        if not parameter.requires_grad or id(parameter) in taken:
            continue
        taken.add(id(parameter))
        decay = float(weight_decay) if decays and name not in spared else 0.0
        group = groups.setdefault(
            (scale, decay),
            {"params": [], "lr": lr * scale, "weight_decay": decay, "lr_scale": scale},
        )
        group["params"].append(parameter)
    if not groups:
        raise ArgumentError("No parameter is trainable: all are frozen, or there are none.")
    return list(groups.values())


def layer_ids(net: nn.Module) -> dict[str, int]:
    """Return the number of each parameter's layer, from 0, the one that sees the image.

    Args:
        net: a network; one without a ``group_matcher`` is run on the meta device.

    Raises:
        ArgumentError: a network from elsewhere in which no levels can be found.

    Example:
        >>> net = featnet.create_model("test_resnet", features_only=True)
        >>> ids = layer_ids(net)
        >>> ids["conv1.0.weight"] < ids["layer1.0.conv1.weight"] < ids["layer4.0.conv1.weight"]
        True
    """
    names = [name for name, _ in net.named_parameters()]
    matcher = getattr(net, "group_matcher", None)
    if callable(matcher):
        keys = {name: _group_key(name, matcher()) for name in names}
    else:
        levels = levels_of(net)
        keys = dict.fromkeys(names, (float(len(levels)),))
        known = {id(parameter): name for name, parameter in net.named_parameters()}
        for i in reversed(range(len(levels))):
            _, read = up_to(net, levels[i])
            keys.update((known[each], (float(i),)) for each in read if each in known)
    return _numbered(keys)


def _numbered(keys: Mapping[str, tuple[float, ...]]) -> dict[str, int]:
    """Group keys as numbers from 0, in the order of the keys."""
    numbers: dict[tuple[float, ...], int] = {}
    number = -1
    for key in sorted(set(keys.values())):
        if number < 0 or key[-1] != JOINS_THE_ONE_BEFORE:
            number += 1
        numbers[key] = number
    return {name: numbers[key] for name, key in keys.items()}


def _group_key(name: str, matcher: Mapping[str, Any]) -> tuple[float, ...]:
    """The place of a parameter, by a matcher in timm's form: patterns, whose groups are numbers."""
    for ordinal, rule in enumerate(matcher.values()):
        if rule is None:
            continue
        for pattern, suffix in [(rule, None)] if isinstance(rule, str) else rule:
            if match := re.match(pattern, name):
                numbers = [g for g in match.groups() if g is not None]
                return (float(ordinal), *map(float, numbers), *map(float, suffix or ()))
    return (math.inf,)  # a head


def _rows(
    prefix: str, part: nn.Module, layer_decay: float
) -> Iterator[tuple[str, nn.Parameter, float, bool]]:
    """(name, parameter, share of the rate, whether it decays) of each parameter of a part."""
    structure.check_module(part)
    body = part.body if isinstance(part, FeatureNet) else part
    named = getattr(body, "no_weight_decay", None)
    tokens = set(named()) if callable(named) else set()
    layers: dict[str, int] = {}
    if layer_decay < 1 and _has_levels(part):
        layers = layer_ids(part)
    last = max(layers.values(), default=0)
    for name, parameter in part.named_parameters():
        scale = layer_decay ** (last - layers.get(name, last))
        of_batch = parameter.ndim >= 3 and len(parameter) == 1 and not _is_layer(part, name)
        decays = parameter.ndim > 1 and not of_batch and name not in tokens
        yield (f"{prefix}.{name}" if prefix else name), parameter, scale, decays


def _has_levels(part: nn.Module) -> bool:
    return _why_no_levels(part) is None


def _why_no_levels(part: nn.Module) -> Exception | None:
    if not callable(getattr(part, "group_matcher", None)):
        try:
            levels_of(part)
        except (ArgumentError, ValueError) as error:
            return error
    return None


def _check_levels(parts: Mapping[str, nn.Module], layer_decay: float) -> None:
    """Refuse a decay from layer to layer where no part has layers.

    Raises:
        ArgumentError: with the reason that each part gives.
    """
    reasons = [_why_no_levels(part) for part in parts.values()]
    if None not in reasons:
        first = next(iter(reasons), None)
        raise ArgumentError(
            f"layer_decay={layer_decay!r} has no layers to act on: {first} Give an extractor "
            "that was made with input_size=, or a module with a group_matcher."
        ) from first


def _is_layer(part: nn.Module, name: str) -> bool:
    """Tell if a parameter is the weight of a module that holds no others, not a free table."""
    owner = part.get_submodule(name.rpartition(".")[0])
    return not list(owner.children()) and name.endswith("weight")


def _spared(names: Sequence[str], patterns: Iterable[str]) -> set[str]:
    """The parameters that the caller's names fit."""
    spared: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        fits = matching(pattern, names)
        if not fits:
            raise MissingFeatureError(
                f"no_weight_decay: no parameter {pattern!r}.{nearest(pattern, names)}"
            )
        spared.update(fits)
    return spared


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
