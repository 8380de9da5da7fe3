"""From an image to tokens."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import InputSizeError
from ..size import Size
from .factory import Layer
from .static import stride_of


def to_pair(value: int | tuple[int, ...]) -> Size:
    """A side as (height, width)."""
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


class PatchConv(nn.Conv2d):
    """One window for each patch, side by side; with an output stride they overlap.

    Each stays centred on the square of the image that its token stands for, whose sides are the
    stride's: positions that were learned for the patches can be interpolated.
    """

    def __init__(self, in_chans: int, dim: int, patch_size: Size, *, bias: bool = True) -> None:
        super().__init__(in_chans, dim, patch_size, patch_size, bias=bias)
        self.before: Size = (0, 0)
        self.after: Size = (0, 0)

    def dilate(self, density: int, stride: Size) -> nn.Module:
        """Overlapping windows, of which there is one every ``stride`` positions."""
        reach = [density * (k - 1) + 1 - s for k, s in zip(self.kernel_size, stride, strict=True)]
        self.before = (reach[0] // 2, reach[1] // 2)
        self.after = (reach[0] - self.before[0], reach[1] - self.before[1])
        self.stride, self.dilation = stride, (density, density)
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.stride != self.kernel_size:
            x = F.pad(x, (self.before[1], self.after[1], self.before[0], self.after[0]))
        return super().forward(x)


class PatchEmbed(nn.Module):
    """Patches to vectors; (N, C, H, W) -> (N, H / stride, W / stride, D).

    Args:
        patch_size: (height, width).
        img_size: (height, width) of the images that positions are made for.
        norm: norm ``f(channels)`` of the vectors.
        pad: pad an image that is no multiple of the patch, after its last row and column; otherwise
            it is refused.

    Attributes:
        first_conv: name of the convolution that reads the image.
    """

    first_conv = "proj"

    def __init__(
        self,
        patch_size: int | Size,
        *,
        img_size: int | Size,
        in_chans: int,
        embed_dim: int,
        bias: bool = True,
        norm: Layer | None = None,
        pad: bool = False,
    ) -> None:
        super().__init__()
        self.patch_size, self.img_size = to_pair(patch_size), to_pair(img_size)
        self.pad = pad
        self.proj = PatchConv(in_chans, embed_dim, self.patch_size, bias=bias)
        self.norm = norm(embed_dim) if norm else nn.Identity()

    @property
    def grid_size(self) -> Size:
        """(height, width) of the grid that positions are made for."""
        (height, width), (rows, columns) = self.img_size, self.patch_size
        return height // rows, width // columns

    @property
    def num_patches(self) -> int:
        """Positions of that grid."""
        return self.grid_size[0] * self.grid_size[1]

    @property
    def reduction(self) -> int:
        """Pixels of an image for a position, along its side, without an output stride."""
        return max(self.patch_size)

    @property
    def multiple(self) -> int:
        """The number that the sides of an image must be a multiple of."""
        return max(stride_of(self.proj))

    @property
    def dense(self) -> int:
        """Factor of the number of positions along each side that an output stride gives."""
        return self.reduction // self.multiple

    @property
    def output_strides(self) -> list[int]:
        """The output strides that there can be: what divides the patches."""
        side = math.gcd(*self.patch_size)
        strides = [s for s in range(1, side + 1) if side % s == 0]
        return strides if strides[-1] == self.reduction else [*strides, self.reduction]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = fit_to_patches(x, stride_of(self.proj), pad=self.pad, built_for=self.img_size)
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class VectorConv(nn.Module):
    """A convolution, and a norm of the vectors that it gives; (N, C, H, W) -> (N, H', W', D).

    Args:
        kernel, stride, padding: of the convolution.
    """

    def __init__(
        self, in_chs: int, dim: int, kernel: int, *, stride: int, padding: int = 0
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chs, dim, kernel, stride, padding)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


def fit_to_patches(
    x: torch.Tensor, patch: Size, *, pad: bool, built_for: Size | None = None
) -> torch.Tensor:
    """(N, C, H, W) whose sides are multiples of the patch: padded with zeros at the end, or
    checked.

    Raises:
        InputSizeError: they are not, and ``pad`` is not allowed; names the nearest sizes.
    """
    height, width = x.shape[-2], x.shape[-1]
    if pad:
        return F.pad(x, (0, -width % patch[1], 0, -height % patch[0]))
    check_multiple(height, width, patch, built_for=built_for)
    return x


def check_multiple(
    height: object, width: object, patch: Size, *, built_for: Size | None = None
) -> None:
    """Refuse an image whose sides are no multiples of a patch's, or that is smaller.

    ``built_for`` is taken as it is: some networks were trained on images whose last rows and
    columns make no patch and are left out, as SigLIP's of 384 pixels with patches of 14.

    Raises:
        InputSizeError: names the nearest sizes that are.
    """
    if torch.compiler.is_exporting() or not (isinstance(height, int) and isinstance(width, int)):
        return  # sizes are symbols, and the example was checked when it first ran
    if height % patch[0] == 0 and width % patch[1] == 0 and min(height, width) > 0:
        return
    if (height, width) == built_for and min(height // patch[0], width // patch[1]) > 0:
        return

    def near(side: int, step: int) -> str:
        below = side // step * step
        return " or ".join(str(s) for s in sorted({below, -(-side // step) * step}) if s)

    raise InputSizeError(
        f"An input of {height} x {width} has no whole number of patches of {patch[0]} x "
        f"{patch[1]}. "
        f"The nearest height is {near(height, patch[0])}, the nearest width "
        f"{near(width, patch[1])}; "
        "featnet.pad_to_divisor(x, net) pads, or build the network with dynamic_img_pad=True."
    )
