"""Checkpoints as records: where the bytes are, how inputs are prepared, who owns them.

The tables live beside the family files (``featnet/models/<family>.json``: ``"variant.tag"`` to the
fields that differ from the defaults below), so that they can be read without importing torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


# Fields that decide what is built and what its input is; the others are for people
_CHECKED = {"input_size", "test_input_size", "min_input_size", "fixed_input_size", "pool_size"}
_CHECKED |= {"interpolation", "crop_pct", "test_crop_pct", "crop_mode", "mean", "std"}
_CHECKED |= {"num_classes", "label_offset", "first_conv", "classifier"}


@dataclasses.dataclass(frozen=True)
class Weights(Mapping[str, Any]):
    """One checkpoint of one architecture; also readable as a mapping (``weights["mean"]``).

    The fields have the names of timm's ``PretrainedCfg``, in which the world exchanges them. As a
    mapping it holds the fields that have a value.

    Attributes:
        architecture: name of the model.
        tag: name of the checkpoint among those of the model (``a1_in1k``).
        url: address of the file.
        file: path of the file on this machine.
        hf_hub_id: repository on the Hugging Face hub, ``owner/name`` or ``owner/name@revision``.
        hf_hub_filename: name of the file there, if it is not the usual one.
        custom_load: the file is no state dict, and the family reads it itself.
        sha256: of the file in hexadecimal digits, or its first eight or more.
        input_size: (channels, height, width) of the input that the checkpoint was made for.
        test_input_size: (channels, height, width) with which it gives its best results.
        min_input_size: (channels, height, width) of the smallest input.
        fixed_input_size: the model takes inputs of ``input_size`` only.
        interpolation: method of resizing images: ``bicubic``, ``bilinear``, ``nearest``, ...
        crop_pct: share of the resized image's side that is cut out, above 0 to 1.
        test_crop_pct: the same, for ``test_input_size``.
        crop_mode: ``center``, ``squash`` or ``border``.
        mean: of each channel, for values from 0 to 1.
        std: standard deviation of each channel, likewise.
        num_classes: number of classes; 0 without a classifier.
        label_offset: number of classes in front of the first one of the data set.
        pool_size: (height, width) of the map that the classifier pools at ``input_size``.
        first_conv: name of the layer, or layers, that read the image.
        classifier: name of the layer, or layers, that put out the classes.
        license: SPDX name of the licence of the weights.
        description: one sentence about them.
        origin_url: address of the project that trained them.
        paper_name: title of the paper.
        paper_ids: of the paper, such as ``arXiv:1512.03385``.
        notes: further remarks.

    Example:
        >>> weights = featnet.get_weights("resnet50.a1_in1k")
        >>> weights.hf_hub_id, weights.input_size, weights["crop_pct"]
        ('timm/resnet50.a1_in1k', (3, 224, 224), 0.95)
        >>> weights.replace(num_classes=10).num_classes
        10
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
        """True if there is a file, an address or a repository to load from."""
        return bool(self.url or self.file or self.hf_hub_id)

    def replace(self, **changes: object) -> Weights:
        """Return a copy with some fields changed.

        Args:
            **changes: fields and their new values.

        Returns:
            A new record; this one stays as it is.

        Raises:
            ArgumentError: a field that does not exist, or a value that it cannot have.
        """
        from .errors import ArgumentError, nearest
        from .values import check_value

        names = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in names:
                raise ArgumentError(
                    f"{name!r} is not a field of pretrained_cfg; it has {', '.join(names)}."
                    + nearest(name, names)
                )
        for field in dataclasses.fields(self):
            if field.name in _CHECKED and field.name in changes:
                check_value(field.name, changes[field.name], str(field.type))
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict.

        Returns:
            The fields that have a value; ``pool_size``, ``first_conv``, ``classifier`` always.
        """
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
