"""timm's functions that say how images become inputs."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..images.transform import ImageTransform
from ..weights import IMAGENET_MEAN, IMAGENET_STD, Weights
from .modules import NotHereError

IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD = IMAGENET_MEAN, IMAGENET_STD
IMAGENET_INCEPTION_MEAN = IMAGENET_INCEPTION_STD = (0.5, 0.5, 0.5)
IMAGENET_DPN_MEAN = tuple(value / 255 for value in (124, 117, 104))
IMAGENET_DPN_STD = (1 / (0.0167 * 255),) * 3
OPENAI_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
DEFAULT_CROP_PCT, DEFAULT_CROP_MODE = 0.875, "center"

_FIELDS = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")


def resolve_data_config(
    args: Mapping[str, Any] | None = None,
    pretrained_cfg: Mapping[str, Any] | None = None,
    model: object = None,
    use_test_size: bool = False,
    verbose: bool = False,
) -> dict[str, Any]:
    """Collect how images become inputs of a model.

    Args:
        args: what the user says, which comes first: ``img_size``, ``input_size``, ``in_chans``,
            ``mean``, ``std``, ``crop_pct``, ``crop_mode``, ``interpolation``.
        pretrained_cfg: the record of a checkpoint; by default the model's.
        model: has a ``pretrained_cfg``.
        use_test_size: the size and crop with which the checkpoint gives its best results.
        verbose: accepted.

    Returns:
        A dict that :func:`create_transform` takes.
    """
    asked = {k: v for k, v in (args or {}).items() if v is not None}
    cfg = pretrained_cfg or getattr(model, "pretrained_cfg", None) or Weights().to_dict()
    row = {name: cfg.get(name, getattr(Weights, name)) for name in _FIELDS}
    if use_test_size:
        row["input_size"] = cfg.get("test_input_size") or row["input_size"]
        row["crop_pct"] = cfg.get("test_crop_pct") or row["crop_pct"]
    row |= {name: asked[name] for name in _FIELDS if name in asked}
    if "img_size" in asked and "input_size" not in asked:
        side = asked["img_size"]
        pair = (side, side) if isinstance(side, int) else tuple(side)
        row["input_size"] = (row["input_size"][0], *pair[-2:])
    row["input_size"] = (asked.get("in_chans") or row["input_size"][0], *row["input_size"][1:])
    for name in ("mean", "std"):
        values = tuple(row[name])
        row[name] = values * row["input_size"][0] if len(values) == 1 else values
    return row


def resolve_model_data_config(
    model: object,
    args: Mapping[str, Any] | None = None,
    pretrained_cfg: Mapping[str, Any] | None = None,
    use_test_size: bool = False,
    verbose: bool = False,
) -> dict[str, Any]:
    """Collect how images become inputs of a model: :func:`resolve_data_config` of it."""
    return resolve_data_config(args, pretrained_cfg, model, use_test_size, verbose)


class Transforms:
    """Call transforms in turn.

    Attributes:
        transforms: the list of them.
    """

    def __init__(self, transforms: Sequence[Any]) -> None:
        self.transforms = list(transforms)

    def __call__(self, image: object) -> Any:
        for transform in self.transforms:
            image = transform(image)
        return image


def create_transform(
    input_size: int | Sequence[int] = 224,
    is_training: bool = False,
    no_aug: bool = False,
    *,
    interpolation: str = "bilinear",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    **augmentation: object,
) -> Callable[[Any], Any]:
    """Make the transform from an image to an input.

    Args:
        input_size: (channels, height, width), (height, width) or a side.
        is_training: augment: random crops and flips, of torchvision.
        no_aug: do not, whatever ``is_training`` says.
        interpolation: name of a filter.
        mean, std: per channel, for values from 0 to 1.
        crop_pct: share of the shorter side that is kept.
        crop_mode: ``center``, ``squash`` or ``border``.
        **augmentation: of training: ``scale``, ``ratio``, ``hflip``, ``vflip``, ``color_jitter``,
            ``re_prob``, ``re_mode``.

    Returns:
        A callable with a list ``transforms``: an image -> (C, H, W).

    Raises:
        NotHereError: an augmentation that featnet does not offer, or torchvision is missing.
        ArgumentError: a value that cannot be.
    """
    size = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)[-2:]
    if is_training and not no_aug:
        filter = "bilinear" if interpolation == "random" else interpolation
        return _augmented(size, filter, mean, std, augmentation)
    wrong = [k for k, v in augmentation.items() if k in ("tf_preprocessing", "naflex") and v]
    if wrong:
        raise NotHereError(f"{', '.join(wrong)}: featnet has no such transform.")
    return Transforms(
        [
            ImageTransform(
                (size[0], size[1]),
                mean=tuple(mean),
                std=tuple(std),
                interpolation=interpolation,
                crop_pct=crop_pct or DEFAULT_CROP_PCT,
                crop_mode=crop_mode or DEFAULT_CROP_MODE,
            )
        ]
    )


_AUGMENTATIONS = ("scale", "ratio", "hflip", "vflip", "color_jitter", "re_prob", "re_mode")


def _augmented(
    size: tuple[Any, ...],
    interpolation: str,
    mean: Sequence[float],
    std: Sequence[float],
    options: Mapping[str, Any],
) -> Callable[[Any], Any]:
    """The transform for training, of torchvision's parts."""
    plain = {"re_count": 1, "re_num_splits": 0, "separate": False}  # what is done anyway
    wrong = [
        name
        for name, value in options.items()
        if value and name not in _AUGMENTATIONS and plain.get(name) != value
    ]
    if wrong:
        raise NotHereError(
            f"{', '.join(wrong)}: featnet has no such augmentation, only {_AUGMENTATIONS}; compose "
            "the others of torchvision.transforms."
        )
    try:
        parts = importlib.import_module("torchvision.transforms")
    except ImportError as error:
        raise NotHereError("is_training=True takes torchvision's transforms.") from error
    get = options.get
    jitter = get("color_jitter") or ()
    jitter = (jitter,) * 3 if isinstance(jitter, (int, float)) else tuple(jitter)
    erased: Any = 0 if get("re_mode", "const") == "const" else "random"
    steps = [
        parts.RandomResizedCrop(
            size,
            scale=get("scale") or (0.08, 1.0),
            ratio=get("ratio") or (3 / 4, 4 / 3),
            interpolation=parts.InterpolationMode(interpolation),
        ),
        parts.RandomHorizontalFlip(get("hflip", 0.5)),
        parts.RandomVerticalFlip(get("vflip", 0.0)),
        *([parts.ColorJitter(*jitter)] if jitter else []),
        parts.ToTensor(),
        parts.Normalize(tuple(mean), tuple(std)),
        *([parts.RandomErasing(get("re_prob"), value=erased)] if get("re_prob") else []),
    ]
    return parts.Compose(steps)


def infer_imagenet_subset(model_or_cfg: object) -> str | None:
    """Return None: featnet holds no names of classes, so that no set of them can be meant."""
    return None
