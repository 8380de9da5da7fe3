"""Build what a command line asks for: the network, its weights, and the device that it is on."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError

if TYPE_CHECKING:
    import torch


def selection(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of ``create_model`` that say which levels; only those that were given."""
    arguments = {
        "out_indices": tuple(args.out_indices) if args.out_indices else None,
        "out_strides": tuple(args.out_strides) if args.out_strides else None,
        "output_stride": args.output_stride,
    }
    return {name: value for name, value in arguments.items() if value is not None}


def check_model(name: str) -> None:
    """Refuse an unknown name before torch is imported, which takes longer than to see it.

    Raises:
        UnknownModelError: no such model, or no such tag of it.
    """
    from .. import registry

    if "://" in name or ("/" in name and ":" not in name):
        raise registry.unknown_model(name)
    if ":" not in name:  # a source says itself what is wrong with it
        registry.get_weights(name)


def build(
    args: argparse.Namespace, *, features_only: bool = True, **options: Any
) -> tuple[Any, str]:
    """Build the feature extractor (or the classifier), and say where its weights are from."""
    checkpoint = args.checkpoint
    if getattr(args, "demo", False):
        from ..checkpoints.demo import DEMO_MODEL, demo_weights

        if args.model not in (None, DEMO_MODEL):
            raise ArgumentError(f"--demo has weights of {DEMO_MODEL}, not of {args.model!r}.")
        args.model, checkpoint = DEMO_MODEL, demo_weights()
    elif args.model is None:
        raise ArgumentError("--model NAME is missing; `featnet list` has the names.")
    check_model(args.model)

    import torch

    from .. import create_model

    torch.manual_seed(args.seed)
    net = create_model(
        args.model,
        pretrained=args.pretrained,
        checkpoint_path=None if checkpoint is None else str(checkpoint),
        features_only=features_only,
        **selection(args),
        **options,
    )
    if getattr(args, "demo", False):
        return net, "trained on ImageNet, of featnet[demo]"
    if checkpoint is not None:
        return net, f"checkpoint {checkpoint.name}"
    if args.pretrained:
        cfg = net.pretrained_cfg
        return net, f"pretrained {cfg['architecture']}.{cfg['tag']}"
    return net, f"random, seed {args.seed}"


def find_device(name: str) -> torch.device:
    """The device called ``name``, after trying it.

    Raises:
        ArgumentError: no such device, or it is not available here.
    """
    import torch

    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" has no values to give, and fails here
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ArgumentError(f"device {name!r} cannot be used here: {reason}") from error
    return device
