"""``featnet export``: a model's levels, or its classifier, as a file for other runtimes."""

from __future__ import annotations

import argparse

from .network import build


def export_model(args: argparse.Namespace) -> int:
    """Build, export, run the file against the model; two lines say what was written, with
    which weights.

    Raises:
        FeatnetError: see :func:`featnet.export`.
    """
    net, weights = build(args, features_only=not args.classifier)

    import torch

    from .. import export

    example = None
    if args.input_size:
        example = torch.randn(2, net.in_chans, *args.input_size)
    dynamic = ("batch",) if args.fixed_size else ("batch", "height", "width")
    print(export(net.eval(), args.out, format=args.format, example=example, dynamic=dynamic))
    print(f"weights: {weights}")
    return 0
