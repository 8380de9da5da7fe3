"""Batch norm whose statistics and weights are constants."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn

from ..values import checked


class FrozenBatchNorm2d(nn.Module):
    """Batch norm with constant statistics and weights, as detectors are trained with.

    All tensors are buffers under the names of a batch norm's, so that state dicts interchange; the
    values are those of ``nn.BatchNorm2d`` in eval mode, to the bit, in train mode too. The class
    and its ``convert_frozen_batchnorm`` follow detectron2
    (https://github.com/facebookresearch/detectron2).

    Args:
        num_features: channels.
        eps: added to the variance.

    Example:
        >>> norm = FrozenBatchNorm2d(8).train()
        >>> norm(torch.ones(1, 8, 2, 2)).shape
        torch.Size([1, 8, 2, 2])
        >>> list(norm.parameters())
        []
    """

    weight: torch.Tensor
    bias: torch.Tensor
    running_mean: torch.Tensor
    running_var: torch.Tensor

    @checked
    def __init__(self, num_features: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features, self.eps = num_features, eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    @classmethod
    def of(cls, norm: nn.Module) -> Self:
        """Return a frozen norm with the values of a batch norm.

        Args:
            norm: with running statistics.

        Returns:
            A frozen norm with the same numbers.

        Raises:
            ValueError: it has no running statistics.
        """
        source: Any = norm
        if source.running_mean is None:
            raise ValueError(
                "A batch norm without running statistics (track_running_stats=False) cannot be "
                "frozen: it normalises by each batch."
            )
        frozen = cls(source.num_features, eps=source.eps).to(source.running_mean.device)
        for name, value in [*source.named_parameters(), *source.named_buffers()]:
            setattr(frozen, name, value.detach().clone())
        return frozen

    @classmethod
    def convert_frozen_batchnorm(cls, module: nn.Module) -> nn.Module:
        """Replace, in place, every 2-d batch norm of a network by a frozen one.

        Subclasses of torch's classes that do more than they are left as they are.

        Args:
            module: a network, or a batch norm.

        Returns:
            The network; of a batch norm its frozen form.

        Example:
            >>> import featnet
            >>> net = featnet.create_model("test_resnet", features_only=True)
            >>> net = featnet.FrozenBatchNorm2d.convert_frozen_batchnorm(net)
            >>> any(isinstance(m, torch.nn.BatchNorm2d) for m in net.modules())
            False
        """
        if type(module) in (nn.BatchNorm2d, nn.SyncBatchNorm):
            return cls.of(module)
        for name, child in module.named_children():
            setattr(module, name, cls.convert_frozen_batchnorm(child))
        return module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"
