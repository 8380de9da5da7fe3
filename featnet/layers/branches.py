"""Parallel convolutions that can become one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce

import torch
from torch import nn

from ..errors import ArgumentError
from .fuse import Affine, fold_norm, identity_kernel, merge_branches


class Branches(nn.Module):
    """A sum of parallel branches, each a convolution, a norm, or both in this order.

    A family derives its block from this, adds the branches under the names that checkpoints have,
    and says in :meth:`branches` which they are. :meth:`merged` is the one convolution that equals
    their sum in eval mode, of which ``reparameterize`` makes what takes the block's place.

    Example:
        >>> class Block(Branches):
        ...     def __init__(self, channels):
        ...         super().__init__()
        ...         self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        ...         self.norm = nn.BatchNorm2d(channels)
        ...
        ...     def branches(self):
        ...         return [self.conv, self.norm]
        ...
        ...     def reparameterize(self):
        ...         return self.merged()
        >>> block, x = Block(4).eval(), torch.rand(1, 4, 5, 5)
        >>> torch.allclose(block.reparameterize()(x), block(x), atol=1e-5)
        True
    """

    def branches(self) -> Sequence[nn.Module]:
        """Return the parallel branches: a Conv2d, a batch norm, an Identity, or a module whose only
        children with tensors are a Conv2d and the batch norm behind it."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return add_branches(self.branches(), x)

    def merged(self, *, norm: nn.Module | None = None) -> nn.Conv2d:
        """Return the one convolution, with a bias, that equals the branches in eval mode.

        Args:
            norm: a batch norm of their sum, which then becomes part of it.

        Raises:
            ArgumentError: a branch, or the norm, is no linear layer.
        """
        merged = merge_parallel(self.branches())
        if norm is None:
            return merged
        return merge_branches(merged, [fold_norm(merged.weight, norm, bias=merged.bias)])


def add_branches(branches: Iterable[nn.Module], x: torch.Tensor) -> torch.Tensor:
    """Return the sum of what branches make of the same map; the map itself where there are none."""
    return reduce(torch.add, [branch(x) for branch in branches] or [x])


def merge_parallel(branches: Iterable[nn.Module]) -> nn.Conv2d:
    """Return the one convolution, with a bias, that equals the sum of branches in eval mode.

    Args:
        branches: as :meth:`Branches.branches` has them.

    Raises:
        ArgumentError: a branch is no linear layer.
    """
    branches = list(branches)
    convs = [m for b in branches for m in b.modules() if isinstance(m, nn.Conv2d)]
    main = max(convs, key=lambda conv: conv.kernel_size[0] * conv.kernel_size[1])
    return merge_branches(main, [_affine(branch, main) for branch in branches])


def _affine(branch: nn.Module, main: nn.Conv2d) -> Affine:
    """Kernel and bias of a branch, as a convolution that is placed as ``main`` is."""
    layers = [m for m in branch.modules() if m._parameters or m._buffers]
    convs = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in layers if layer not in convs]
    if len(convs) > 1 or len(norms) > 1:
        kinds = ", ".join(type(layer).__name__ for layer in (*convs, *norms))
        raise ArgumentError(
            f"A branch of {kinds} cannot be re-parameterised: a convolution and then a norm can."
        )
    kernel = convs[0].weight if convs else identity_kernel(main)
    bias = convs[0].bias if convs else None
    if norms:
        return fold_norm(kernel, norms[0], bias=bias)
    return kernel.double(), kernel.new_zeros(
        len(kernel)
    ).double() if bias is None else bias.double()
