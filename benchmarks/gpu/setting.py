"""Where the checks and figures run, and on which networks."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

import featnet

from ..common import noise


@dataclasses.dataclass(frozen=True)
class Setting:
    """A device, and how much is made of it.

    Attributes:
        device: ``"cuda"``, or ``"cpu"`` to see that all works.
        quick: tiny networks and images, and a compiler that only looks at the code.
    """

    device: str = "cuda"
    quick: bool = False

    @property
    def cuda(self) -> bool:
        """The device is a GPU."""
        return torch.device(self.device).type == "cuda"

    @property
    def backend(self) -> str:
        """Of ``torch.compile``."""
        return "eager" if self.quick else "inductor"

    @property
    def half(self) -> torch.dtype:
        """The type of figures in half precision, for which a CPU may have no quick kernels."""
        return torch.float32 if self.quick else torch.bfloat16

    @property
    def names(self) -> tuple[str, ...]:
        """A ResNet, a ConvNeXt, a mobile network and a transformer."""
        if self.quick:
            return ("test_resnet", "test_convnext", "test_efficientnet", "test_vit")
        return ("resnet18", "convnext_atto", "mobilenetv3_small_050", "vit_tiny_patch16_224")

    def net(self, name: str, *, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
        """An extractor with seeded noise for weights, in eval mode."""
        net = featnet.create_model(name, features_only=True, **options)
        net.load_state_dict(noise(net))
        return net.eval().to(self.device, dtype)

    def images(
        self, name: str, *, dtype: torch.dtype = torch.float32, batch: int = 2
    ) -> torch.Tensor:
        """Seeded noise (N, 3, H, W) for a network, at most two images in the quick form."""
        side = 224 if not self.quick else 160 if "vit" in name else 64
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(min(batch, 2) if self.quick else batch, 3, side, side, generator=generator)
        return x.to(self.device, dtype)


def gap(found: Any, wanted: Any) -> float:
    """The largest difference of any map, relative to that map's largest value."""
    pairs = zip(found, wanted, strict=True)
    return max(float((a.float() - b.float()).abs().max() / b.float().abs().max()) for a, b in pairs)
