"""Turn maps into vectors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from ..errors import ArgumentError, check_choice
from ..values import checked

POOLS = ("avg", "max", "gem", "cls")
_POWER, _LEAST = 3.0, 1e-6  # of the generalised mean


@checked
def pool_features(maps: object, pool: str = "avg", *, normalize: bool = True) -> torch.Tensor:
    """Make one vector of each image's maps; of several levels, the vectors one after the other.

    The vector that a network's own classifier is given is another one, and needs no maps:
    ``create_model(name, num_classes=0)`` returns it.

    Args:
        maps: what an extractor returns: a map (N, C, H, W), a list or a dict of maps, or with
            ``return_prefix_tokens=True`` pairs of a map and its tokens (N, T, C).
        pool: ``"avg"`` and ``"max"`` over all positions; ``"gem"``, the generalised mean with
            exponent 3; ``"cls"``, the first prefix token, which is the class token of networks
            that have one.
        normalize: to Euclidean length 1, so that a product of two vectors is their cosine.

    Returns:
        (N, sum of the levels' channels), at least in float32.

    Raises:
        ArgumentError: an unknown pool, no maps, or ``"cls"`` without prefix tokens.

    Example:
        >>> import featnet, torch
        >>> maps = [torch.rand(2, 8, 4, 4), torch.rand(2, 16, 2, 2)]
        >>> vectors = featnet.pool_features(maps)
        >>> vectors.shape
        torch.Size([2, 24])
        >>> torch.allclose(vectors.norm(dim=1), torch.ones(2))
        True
    """
    check_choice("pool", pool, POOLS)
    levels = as_levels(maps)
    vectors = torch.cat([_vector(x, tokens, pool) for x, tokens in levels], dim=1)
    return F.normalize(vectors, dim=1) if normalize else vectors


def as_levels(maps: object) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Turn an extractor's output into pairs of a map (N, C, H, W) and its prefix tokens or None.

    Raises:
        ArgumentError: something else.
    """
    if isinstance(maps, Mapping):
        items = list(maps.values())
    elif isinstance(maps, torch.Tensor) or _is_pair(maps):
        items = [maps]
    elif hasattr(maps, "feature_maps"):  # transformers' backbones
        items = list(maps.feature_maps)
    else:
        items = list(maps) if isinstance(maps, (list, tuple)) else [maps]
    pairs = [item if _is_pair(item) else (item, None) for item in items]
    if not pairs:
        raise ArgumentError("There are no maps.")
    for x, _ in pairs:
        if not isinstance(x, torch.Tensor):
            raise ArgumentError(
                f"{type(x).__name__} is no map: a tensor (N, C, H, W), or a list or dict of them "
                "is expected."
            )
        if x.ndim != 4 or 0 in x.shape:
            raise ArgumentError(
                f"A map has the shape {tuple(x.shape)}: (N, C, H, W) is expected."
                + (" Add the batch dimension: x[None]." if x.ndim == 3 else "")
            )
    return pairs


def _is_pair(item: object) -> bool:
    """A map and its prefix tokens (N, T, C); two maps are no pair."""
    return (
        isinstance(item, tuple)
        and len(item) == 2
        and all(isinstance(x, torch.Tensor) for x in item)
        and item[1].ndim == 3
    )


def _vector(x: torch.Tensor, tokens: torch.Tensor | None, pool: str) -> torch.Tensor:
    """(N, C, H, W) -> (N, C)."""
    if pool == "cls":
        if tokens is None or not tokens.shape[1]:
            raise ArgumentError(
                'pool="cls": there is no class token beside the maps. Transformers that have one '
                'give it with create_model(..., return_prefix_tokens=True); "avg", "max" and '
                '"gem" need none.'
            )
        x = tokens[:, 0]
        return x.to(torch.promote_types(x.dtype, torch.float32))
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if pool == "avg":
        return x.mean((2, 3))
    if pool == "max":
        return x.amax((2, 3))
    return x.clamp(min=_LEAST).pow(_POWER).mean((2, 3)).pow(1 / _POWER)
