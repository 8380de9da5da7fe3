"""Checkpoints of EfficientNet-PyTorch and of what builds on it: EfficientNet B0 to B8 and Lite.

That library ports TensorFlow's weights, so its networks are those whose names start with ``tf_``
here. Blocks are counted through all stages, and a norm's number within a block depends on whether
the block has an expansion.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

import torch
from torch import nn

from ... import registry
from ...errors import CheckpointError
from ...layers.mobile_conv import SamePadding
from .. import instant
from .draft import Draft, Layout

OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
# Inside a block whose first convolution makes it wider, and in one without it
EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_se_reduce": "se.conv_reduce",
    "_se_expand": "se.conv_expand",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
SEPARABLE = {**EXPANDED, "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
NAMES = (
    *(f"tf_efficientnet_lite{n}" for n in range(5)),
    *(f"tf_efficientnet_b{n}" for n in range(9)),
    "tf_efficientnet_l2",
)
BLOCK = re.compile(r"_blocks\.(\d+)\.(\w+)")
OWN_BLOCK = re.compile(r"blocks\.\d+\.\d+\.")
Shapes = Mapping[str, tuple[int, ...]]


def convert(draft: Draft, model: nn.Module) -> None:
    """Give the tensors the model's names, block by block.

    Raises:
        CheckpointError: the file is of another of these networks, which the message names, or the
            model pads its convolutions in another way.
    """
    own = _shapes(model)
    new_names = _new_names(draft.tensors, own)
    other = None if _fits(draft.tensors, own) else _network_of(draft.tensors)
    if other is not None:
        raise CheckpointError(
            f"A checkpoint of EfficientNet-PyTorch whose blocks are those of {other!r}, not of "
            f"this {type(model).__name__}. Nothing was loaded."
        )
    if not any(isinstance(module, SamePadding) for module in model.modules()):
        raise CheckpointError(
            "A checkpoint of EfficientNet-PyTorch was trained with TensorFlow's padding and would "
            "give other numbers here: build "
            f"{_network_of(draft.tensors) or 'tf_efficientnet_b0'!r} "
            '(the names that start with tf_), or say pad_type="same". Nothing was loaded.'
        )
    draft.rename(lambda key: new_names.get(key, key))


def _shapes(model: nn.Module) -> Shapes:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def _new_names(state: Mapping[str, torch.Tensor], own: Shapes) -> dict[str, str]:
    """The file's names to those of a network with the tensors ``own``."""
    blocks = list(dict.fromkeys(m[0] for key in own if (m := OWN_BLOCK.match(key))))
    new_names = {}
    for key in state:
        module, _, leaf = key.rpartition(".")
        if module in OUTSIDE:
            new_names[key] = f"{OUTSIDE[module]}.{leaf}"
        match = BLOCK.fullmatch(module)
        if match is None or int(match[1]) >= len(blocks):
            continue
        parts = EXPANDED if f"_blocks.{match[1]}._expand_conv.weight" in state else SEPARABLE
        if match[2] in parts:
            new_names[key] = f"{blocks[int(match[1])]}{parts[match[2]]}.{leaf}"
    return new_names


def _fits(state: Mapping[str, torch.Tensor], own: Shapes) -> bool:
    """Tell if the file's blocks are those of a network with the tensors ``own``, shape by shape."""
    new_names = _new_names(state, own)
    theirs = {new_names.get(key, key): tuple(value.shape) for key, value in state.items()}

    def of_blocks(shapes: Shapes) -> Shapes:
        return {
            key: shape
            for key, shape in shapes.items()
            if key.startswith(("blocks.", "_blocks.")) and not key.endswith("num_batches_tracked")
        }

    return of_blocks(theirs) == of_blocks(own)


def _network_of(state: Mapping[str, torch.Tensor]) -> str | None:
    """The name of the network that the file's blocks are of."""
    for name in NAMES:
        entry = registry.find(name)
        meta_model = instant.meta_model(functools.partial(entry.build, **entry.row))
        if _fits(state, _shapes(meta_model)):
            return name
    return None


LAYOUTS = (
    Layout(
        "EfficientNet-PyTorch",
        "EfficientNet",
        ("_blocks.0._depthwise_conv.weight", "_conv_stem.weight"),
        convert,
        eps=lambda draft: 1e-3,
    ),
)
