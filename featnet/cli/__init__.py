"""The command ``featnet``: run a backbone on an image, list the models, describe one, fetch
checkpoints.

Nothing here imports torch or Pillow before a subcommand needs it, so that ``--help`` is quick.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import FeatnetError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0, or 2 after one line on stderr.

    Raises:
        SystemExit: ``--help`` (code 0) and unknown or malformed options (code 2), by argparse.
    """
    args = _parser().parse_args(argv)
    try:
        code = _run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # `featnet list | head`: the reader has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (FeatnetError, OSError) as error:
        print(f"featnet: error: {error}", file=sys.stderr)
        return 2
    return code


def _run(args: argparse.Namespace) -> int:
    if args.command == "extract":
        from .extract import extract

        return extract(args)
    if args.command == "list":
        return _list(args)
    if args.command == "export":
        from .export import export_model

        return export_model(args)
    if args.command == "prefetch":
        return _prefetch(args)
    if args.command == "convert":
        from .. import convert_checkpoint

        options = dict(args.option)
        print(convert_checkpoint(args.source, args.out, model=args.model, options=options))
        return 0
    return _info(args)


def _list(args: argparse.Namespace) -> int:
    from .. import list_models

    names = list_models(args.filter or "", pretrained=args.pretrained)
    if not names:
        print(f"featnet: no model matches {args.filter!r}", file=sys.stderr)
        return 1
    print("\n".join(names))
    return 0


def _prefetch(args: argparse.Namespace) -> int:
    from .. import prefetch

    for name in args.name:
        for path in prefetch(name, cache_dir=args.cache_dir).values():
            print(f"{name}: {path}", flush=True)
    return 0


def _info(args: argparse.Namespace) -> int:
    from .. import feature_info
    from ..features import table
    from .extract import selection

    info = feature_info(args.name, **selection(args))
    rows = [
        [str(level), module, str(channels), str(reduction)]
        for level, module, channels, reduction in zip(
            info.out_indices, info.module_name(), info.channels(), info.reduction(), strict=True
        )
    ]
    header = ["level", "module", "channels", "reduction"]
    if args.input_size:
        header.append("map size")
        for row, (height, width) in zip(rows, info.sizes(tuple(args.input_size)), strict=True):
            row.append(f"{height} x {width}")
    print(table(header, rows))
    return 0


def _option(text: str) -> tuple[str, Any]:
    """``KEY=VALUE``: a JSON value, or else a string."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is no KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="featnet", description="Image backbones as multi-scale feature extractors."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    extract = commands.add_parser("extract", help="write an image's feature maps to a folder")
    extract.add_argument("image", type=Path, metavar="IMAGE")
    extract.add_argument("--model", required=True, metavar="NAME")
    _add_selection(extract)
    _add_weights(extract)
    extract.add_argument("--device", default="cpu", metavar="D", help="default: cpu")
    extract.add_argument("--out", type=Path, required=True, metavar="DIR")

    names = commands.add_parser("list", help="print the names of the models")
    names.add_argument("filter", nargs="?", metavar="FILTER", help="such as 'resnet*'")
    names.add_argument("--pretrained", action="store_true", help="only those with a checkpoint")

    fetch = commands.add_parser("prefetch", help="fetch checkpoints, for use without a network")
    fetch.add_argument("name", nargs="+", metavar="NAME", help="also hf-hub:org/name[@revision]")
    fetch.add_argument("--cache-dir", type=Path, metavar="DIR", help="in place of the hub's cache")

    convert = commands.add_parser(
        "convert", help="write another library's checkpoint as safetensors with featnet's names"
    )
    convert.add_argument("source", type=Path, metavar="IN")
    convert.add_argument("out", type=Path, metavar="OUT")
    convert.add_argument("--model", required=True, metavar="NAME")
    convert.add_argument(
        "--option",
        action="append",
        default=[],
        type=_option,
        metavar="KEY=VALUE",
        help="an argument of the model, such as act_layer=gelu_tanh",
    )

    info = commands.add_parser("info", help="print a model's levels without building its weights")
    info.add_argument("name", metavar="NAME")
    _add_selection(info)

    export = commands.add_parser("export", help="write a model as a file for other runtimes")
    export.add_argument("model", metavar="NAME")
    _add_selection(export)
    _add_weights(export)
    export.add_argument("--classifier", action="store_true", help="logits instead of levels")
    export.add_argument(
        "--format", choices=("onnx", "pt2", "aoti"), help="default: what the file's suffix says"
    )
    export.add_argument("--fixed-size", action="store_true", help="leave only the batch size free")
    export.add_argument("--out", type=Path, required=True, metavar="FILE")
    return parser


def _add_weights(parser: argparse.ArgumentParser) -> None:
    """The options that say where the weights come from."""
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--pretrained", action="store_true", help="fetch the model's default checkpoint"
    )
    weights.add_argument("--checkpoint", type=Path, metavar="FILE", help="load a local checkpoint")
    parser.add_argument(
        "--seed", type=int, default=0, help="of random weights, when none are loaded (default: 0)"
    )


def _add_selection(parser: argparse.ArgumentParser) -> None:
    """The options that say which levels, at which stride, at which input size."""
    levels = parser.add_mutually_exclusive_group()
    levels.add_argument("--out-indices", type=int, nargs="+", metavar="I", help="default: all")
    levels.add_argument(
        "--out-strides", type=int, nargs="+", metavar="S", help="select levels by their reduction"
    )
    parser.add_argument(
        "--output-stride", type=int, metavar="S", help="dilate so that no level is coarser"
    )
    parser.add_argument("--input-size", type=_side, nargs=2, metavar=("H", "W"))


def _side(text: str) -> int:
    """A side of an image, in pixels."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number of pixels")
    return int(text)
