"""Names that a wrapper flattened or prefixed, matched to a model's in either direction.

``features_0.weight``, ``features_0_weight``, ``body.features.0.weight`` and ``features.0.weight``
are one name under four ways of holding a network; each of them may be the file's or the model's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from .conversion import Draft

PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "body.", "encoder.", "net.")


def canonical(name: str) -> str:
    """Return the common form of all spellings of a name."""
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    return name.replace(".", "_")


def _unique(names: Iterable[str]) -> dict[str, str]:
    """Canonical name to name, where only one has it."""
    keys: dict[str, list[str]] = {}
    for name in names:
        keys.setdefault(canonical(name), []).append(name)
    return {key: members[0] for key, members in keys.items() if len(members) == 1}


def apply(draft: Draft, target: Mapping[str, torch.Tensor]) -> None:
    """Rename what fits no tensor of the model, and fits one that is missing but for dots,
    underscores and prefixes. Names that could be several tensors' stay."""
    loose = _unique(key for key in draft.tensors if key not in target)
    free = _unique(key for key in target if key not in draft.tensors)
    names = {
        key: free[name]
        for name, key in loose.items()
        if name in free and draft.tensors[key].ndim == target[free[name]].ndim
    }
    if names:
        draft.rename(lambda key: names.get(key, key))
        shown = ", ".join(f"{old!r} to {new!r}" for old, new in list(names.items())[:2])
        draft.steps.append(f"{len(names)} names mapped: {shown}{', ...' if len(names) > 2 else ''}")
