"""What a checkpoint is: where its bytes are, how its input is prepared, who owns it.

The tables live beside the family files (``featnet/models/<family>.json``: ``"variant.tag"`` to the
fields that differ from the defaults below), so that they can be read without importing torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Weights(Mapping[str, Any]):
    """One checkpoint of one architecture; also readable as a mapping (``weights["mean"]``).

    Field names are timm's ``PretrainedCfg``'s, the field's exchange format. Sizes are
    ``(channels, height, width)``, ``mean`` and ``std`` are per channel for inputs in [0, 1].
    """

    architecture: str = ""
    tag: str = ""
    # where the bytes are
    url: str | None = None
    file: str | None = None
    hf_hub_id: str | None = None
    hf_hub_filename: str | None = None
    custom_load: bool = False
    sha256: str | None = None  # of the file, or its first digits (8 or more); compared when given
    # input
    input_size: tuple[int, int, int] = (3, 224, 224)
    test_input_size: tuple[int, int, int] | None = None
    min_input_size: tuple[int, int, int] | None = None
    fixed_input_size: bool = False
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    test_crop_pct: float | None = None
    crop_mode: str = "center"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    # head
    num_classes: int = 1000
    label_offset: int | None = None
    pool_size: tuple[int, int] | None = None
    first_conv: str | tuple[str, ...] | None = None
    classifier: str | tuple[str, ...] | None = None
    # provenance
    license: str | None = None
    description: str | None = None
    origin_url: str | None = None
    paper_name: str | None = None
    paper_ids: str | tuple[str, ...] | None = None
    notes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name, value in list(vars(self).items()):  # JSON has lists, the fields are tuples
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))

    @property
    def has_weights(self) -> bool:
        """Whether there is a place to load from."""
        return bool(self.url or self.file or self.hf_hub_id)

    def replace(self, **changes: Any) -> Weights:
        """A copy with some fields changed.

        Raises:
            ArgumentError: a field that does not exist.
        """
        from .errors import ArgumentError, nearest

        names = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in names:
                raise ArgumentError(
                    f"{name!r} is not a field of pretrained_cfg; it has {', '.join(names)}."
                    + nearest(name, names)
                )
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The fields that have a value; ``pool_size``, ``first_conv``, ``classifier`` always."""
        always = ("pool_size", "first_conv", "classifier")
        fields = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        return {name: value for name, value in fields if value is not None or name in always}

    # Mapping, over the fields that have a value
    def __getitem__(self, key: str) -> Any:
        return self.to_dict()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_dict())

    def __len__(self) -> int:
        return len(self.to_dict())

    __hash__ = object.__hash__
