"""A normalisation that holds its activation, where a level's name is the normalisation's."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import ArgumentError
from .channel_norm import LayerNorm2d
from .norm import GroupNorm


class NormAct:
    """Mixin of a normalisation: its child ``act`` follows.

    torch's ``SyncBatchNorm.convert_sync_batchnorm`` keeps the child and forgets the class: check
    that it is still of this one.
    """

    act: nn.Module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.act(super().forward(x))  # type: ignore[misc]
        return y


class BatchNormAct2d(NormAct, nn.BatchNorm2d):
    """Batch norm and an activation."""


class SyncBatchNormAct(NormAct, nn.SyncBatchNorm):
    """Batch norm over all processes and an activation."""


class InstanceNormAct2d(NormAct, nn.InstanceNorm2d):
    """Instance norm and an activation."""


class GroupNormAct(NormAct, GroupNorm):
    """Group norm and an activation."""


class LayerNormAct2d(NormAct, LayerNorm2d):
    """Layer norm over the channels and an activation."""


class IdentityAct(NormAct, nn.Identity):
    """An activation alone, where there is no norm."""


FORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: BatchNormAct2d,
    nn.SyncBatchNorm: SyncBatchNormAct,
    nn.InstanceNorm2d: InstanceNormAct2d,
    GroupNorm: GroupNormAct,
    LayerNorm2d: LayerNormAct2d,
    nn.Identity: IdentityAct,
}


def with_act(norm: nn.Module, act: nn.Module) -> nn.Module:
    """A normalisation with the same tensors, after which the activation follows.

    Raises:
        ArgumentError: a normalisation of a class that has no such form.
    """
    if isinstance(act, nn.Identity):
        return norm
    if type(norm) not in FORMS:
        raise ArgumentError(
            f"norm_layer builds a {type(norm).__name__}, which cannot hold an activation here; "
            f"{', '.join(kind.__name__ for kind in FORMS)} can."
        )
    form = FORMS[type(norm)]
    joined: Any = form.__new__(form)
    joined.__dict__.update(norm.__dict__)
    joined.act = act
    return joined
