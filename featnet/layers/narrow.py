"""Channel counts of pruned networks: a network is built whole, then narrowed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

Widths = Mapping[str, Mapping[str, int]]  # "out" | "in" | "groups" -> module name -> count


def pruned_widths(variant: str) -> Widths:
    """The counts that differ from the unpruned network's, from ``models/pruned.json``."""
    path = Path(__file__).parents[1] / "models" / "pruned.json"
    widths: dict[str, Widths] = json.loads(path.read_text(encoding="utf-8"))
    return widths[variant]


def narrow(module: nn.Module, widths: Widths, *, prefix: str) -> None:
    """Give the layers under ``prefix`` their pruned channel counts, in place, newly initialised."""
    for name, layer in module.named_modules():
        wanted = {kind: counts.get(f"{prefix}.{name}") for kind, counts in widths.items()}
        if not any(wanted.values()):
            continue
        if isinstance(layer, nn.Conv2d):
            layer.groups = wanted.get("groups") or layer.groups
            layer.out_channels = wanted["out"] or layer.out_channels
            inputs = layer.groups if wanted.get("groups") else wanted["in"]
            layer.in_channels = inputs or layer.in_channels
            shape = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
            layer.weight = nn.Parameter(torch.empty(shape))
            if layer.bias is not None:
                layer.bias = nn.Parameter(torch.empty(layer.out_channels))
            layer.reset_parameters()
        elif isinstance(layer, nn.BatchNorm2d):
            layer.num_features = wanted["out"] or layer.num_features
            for key in ("running_mean", "running_var"):
                setattr(layer, key, torch.empty(layer.num_features))
            layer.weight = nn.Parameter(torch.empty(layer.num_features))
            layer.bias = nn.Parameter(torch.empty(layer.num_features))
            layer.reset_parameters()
