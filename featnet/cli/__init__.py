"""The command ``featnet``: run a backbone on images, list the models, describe one, fetch
checkpoints.

Nothing here imports torch or Pillow before a subcommand needs it, so that ``--help`` is quick.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .. import __version__
from ..errors import FeatnetError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0, or 2 after one line on stderr.

    Raises:
        SystemExit: ``--help`` (code 0) and unknown or malformed options (code 2), by argparse.
    """
    from .parser import command_line

    parser, args = command_line(argv, __version__)
    if args.command is None:
        parser.print_help()
        return 0
    try:
        code = _run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # `featnet list | head`: the reader has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("featnet: interrupted", file=sys.stderr)
        return 130
    except (FeatnetError, OSError) as error:
        from ..images.finding import printable

        print(f"featnet: error: {printable(str(error))}", file=sys.stderr)
        return 2
    return code


def _run(args: argparse.Namespace) -> int:
    if args.command == "extract":
        from .extract import extract

        return extract(args)
    if args.command in ("list", "info"):
        from . import listing

        return listing.print_list(args) if args.command == "list" else listing.print_info(args)
    if args.command == "export":
        from .export import export_model

        return export_model(args)
    if args.command == "prefetch":
        return _prefetch(args)
    if args.command == "doctor":
        from .doctor import print_report

        return print_report(args)
    if args.command == "completion":
        from .completion import script

        print(script(args.shell))
        return 0
    return _convert(args)


def _prefetch(args: argparse.Namespace) -> int:
    from .. import prefetch
    from .network import check_model

    for name in args.name:
        check_model(name)
    for name in args.name:
        for path in prefetch(name, cache_dir=args.cache_dir).values():
            print(f"{name}: {path}", flush=True)
    return 0


def _convert(args: argparse.Namespace) -> int:
    from .network import check_model

    check_model(args.model)
    from .. import convert_checkpoint

    options = dict(args.option)
    print(convert_checkpoint(args.source, args.out, model=args.model, options=options))
    return 0
