"""The words of the command line: commands, options, examples. Imports neither torch nor Pillow."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..errors import nearest

FITS = ("crop", "pad", "squash", "short", "keep")  # of featnet.images.fits, which a test compares
POOLS = ("avg", "max", "gem", "cls")  # of featnet.images.pooling
TABLES = ("parquet", "npy")  # of featnet.images.many.shards
ENGINES = ("local", "ray")
SORTS = ("name", "params", "macs", "levels")
SHELLS = ("bash", "zsh", "fish")


class Parser(argparse.ArgumentParser):
    """A parser whose errors name the nearest right word.

    Attributes:
        words: the arguments that are being parsed.
    """

    words: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, with the nearest right word, and stop."""
        choice = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        if choice:
            message += nearest(choice[1], re.findall(r"[\w-]+", choice[2]))
        unknown = re.match(r"unrecognized arguments: (-\S+)", message)
        if unknown:
            word, hints = unknown[1].partition("=")[0], ""
            for parser in self.commands():
                hints = hints or nearest(word, parser._option_string_actions)
            message += "." + hints if hints else ""
        super().error(message)

    def commands(self) -> list[argparse.ArgumentParser]:
        """The parsers of the commands among the words."""
        groups = (a for a in self._actions if isinstance(a, argparse._SubParsersAction))
        return [p for group in groups for name, p in group.choices.items() if name in self.words]


def make_parser(version: str) -> Parser:
    """The parser of the command ``featnet``."""
    parser = Parser(
        prog="featnet",
        description="Image backbones as multi-scale feature extractors.",
        epilog="`featnet COMMAND --help` has the options of a command and examples.",
    )
    parser.add_argument("--version", action="version", version=f"featnet {version}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    _extract(commands)
    _list(commands)
    _info(commands)
    _prefetch(commands)
    _convert(commands)
    _export(commands)
    _add(
        commands, "doctor", "print what is installed, where, and what is missing", "featnet doctor"
    ).add_argument("--json", action="store_true", help="as JSON")
    _add(
        commands,
        "completion",
        "print the completion script of a shell",
        'eval "$(featnet completion bash)"    # in ~/.bashrc; zsh alike',
        "featnet completion fish > ~/.config/fish/completions/featnet.fish",
    ).add_argument("shell", choices=SHELLS)
    return parser


def _add(commands: Any, name: str, summary: str, *examples: str) -> argparse.ArgumentParser:
    """A command with its examples."""
    lines = "\n".join(f"  {line}" for line in examples)
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"examples:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def _extract(commands: object) -> None:
    parser = _add(
        commands,
        "extract",
        "write the feature maps or vectors of images to a folder",
        "featnet extract cat.jpg --demo --output-stride 8 --out features",
        "featnet extract photos --model resnet50 --pretrained --pool avg --out vectors",
        "featnet extract 'photos/**/*.jpg' --model vit_small_patch14_dinov2 --pretrained \\",
        "    --out-indices -1 --batch-size 8 --out maps",
        "featnet extract - --demo --pool avg --json < cat.jpg",
        "featnet extract photos --demo --pool avg --engine ray --address head:6379 --out vectors",
    )
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="a file, a folder, a pattern in quotes, @FILE with a path in each line, or -",
    )
    parser.add_argument("--model", metavar="NAME", help="`featnet list` has the names")
    _add_selection(parser)
    _add_weights(parser, demo=True)
    parser.add_argument(
        "--fit",
        choices=FITS,
        help="how an image becomes an input: crop as the weights were evaluated, pad or squash to "
        "the input size, short (the shorter side is the input size's), keep (as it is). The "
        "default keeps the aspect ratio: crop for vectors, keep or short for maps",
    )
    parser.add_argument(
        "--max-side", type=_side, metavar="PX", help="make the input of keep and short smaller"
    )
    parser.add_argument("--pool", choices=POOLS, help="vectors in place of maps, of the last level")
    parser.add_argument(
        "--no-normalize", action="store_true", help="leave the vectors at their own length"
    )
    parser.add_argument(
        "--batch-size", type=_side, metavar="N", help="default: 16, and 1 where sizes are kept"
    )
    parser.add_argument("--device", default="cpu", metavar="D", help="default: cpu")
    parser.add_argument(
        "--render",
        action=argparse.BooleanOptionalAction,
        help="draw the maps of a single photograph (default: yes)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there already")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print lines of JSON: the result of one photograph, the events of a run over many",
    )
    _add_many(parser.add_argument_group("many images"))
    _add_cluster(parser.add_argument_group("many machines"))


def _add_many(group: argparse._ArgumentGroup) -> None:
    """Add what a run over many images can be told."""
    group.add_argument(
        "--workers",
        type=_number,
        metavar="N",
        help="processes that read images (default: as many as processors, at most 8); with "
        "--engine ray those that hold the network (default: as many as the cluster has room for)",
    )
    group.add_argument(
        "--shard-size",
        type=_side,
        metavar="N",
        help="images a file (default: 512 for vectors, one batch for maps)",
    )
    group.add_argument(
        "--table", choices=TABLES, help="format of vectors (default: parquet with pyarrow)"
    )
    group.add_argument(
        "--retry-failed", action="store_true", help="try the images again that had failed"
    )


def _add_cluster(group: argparse._ArgumentGroup) -> None:
    """Add what a run on the machines of a cluster can be told."""
    group.add_argument(
        "--engine", choices=ENGINES, default="local", help="ray: a Ray cluster's (default: local)"
    )
    group.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="of the cluster; by default what RAY_ADDRESS says, or one on this machine",
    )
    group.add_argument(
        "--cpus", type=_side, default=1, metavar="N", help="CPUs of a worker (default: 1)"
    )
    group.add_argument(
        "--retries",
        type=_number,
        default=3,
        metavar="N",
        help="times that images are done again when their worker died (default: 3)",
    )


def _list(commands: object) -> None:
    parser = _add(
        commands,
        "list",
        "print the names of the models",
        "featnet list 'resnet*d'",
        "featnet list --stride 4 --levels 4 --max-params 30M --licence apache-2.0 --sort params",
        "featnet list --family vit --pretrained --json",
    )
    parser.add_argument("filter", nargs="*", metavar="FILTER", help="such as 'resnet*'")
    parser.add_argument("--pretrained", action="store_true", help="only those with a checkpoint")
    parser.add_argument("--family", action="append", metavar="NAME", help="such as resnet or vit")
    parser.add_argument("--stride", type=_side, metavar="S", help="a level of this reduction")
    parser.add_argument("--levels", type=_side, metavar="N", help="as many levels")
    parser.add_argument(
        "--output-stride", type=_side, metavar="S", help="networks that can be dilated to it"
    )
    parser.add_argument("--min-params", type=_count, metavar="N", help="such as 500k or 30M")
    parser.add_argument("--max-params", type=_count, metavar="N")
    parser.add_argument("--max-macs", type=_count, metavar="N", help="multiply-adds, such as 4G")
    parser.add_argument(
        "--licence",
        "--license",
        dest="licence",
        action="append",
        metavar="L",
        help="of a checkpoint, such as apache-2.0",
    )
    parser.add_argument("--sort", choices=SORTS, default="name", help="default: name")
    parser.add_argument("--long", "-l", action="store_true", help="a table with sizes")
    parser.add_argument("--json", action="store_true", help="as JSON")


def _info(commands: object) -> None:
    parser = _add(
        commands,
        "info",
        "print a model's levels, size, checkpoints and inputs",
        "featnet info resnet50",
        "featnet info resnet50 --output-stride 8 --input-size 500 333",
    )
    parser.add_argument("name", metavar="NAME")
    _add_selection(parser)
    parser.add_argument("--json", action="store_true", help="as JSON")


def _prefetch(commands: object) -> None:
    parser = _add(
        commands,
        "prefetch",
        "fetch checkpoints, for use without a network",
        "featnet prefetch resnet50.a1_in1k vit_small_patch14_dinov2",
    )
    parser.add_argument("name", nargs="+", metavar="NAME", help="also hf-hub:org/name[@revision]")
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="in place of the hub's cache")


def _convert(commands: object) -> None:
    parser = _add(
        commands,
        "convert",
        "write another library's checkpoint as safetensors with featnet's names",
        "featnet convert vgg16-397923af.pth vgg16.safetensors --model vgg16",
    )
    parser.add_argument("source", type=Path, metavar="IN")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--model", required=True, metavar="NAME")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        type=_option,
        metavar="KEY=VALUE",
        help="an argument of the model, such as act_layer=gelu_tanh",
    )


def _export(commands: object) -> None:
    parser = _add(
        commands,
        "export",
        "write a model as a file for other runtimes",
        "featnet export resnet50 --pretrained --out-strides 8 16 32 --out resnet50.onnx",
    )
    parser.add_argument("model", metavar="NAME")
    _add_selection(parser)
    _add_weights(parser)
    parser.add_argument("--classifier", action="store_true", help="logits instead of levels")
    parser.add_argument(
        "--format", choices=("onnx", "pt2", "aoti"), help="default: what the file's suffix says"
    )
    parser.add_argument("--fixed-size", action="store_true", help="leave only the batch size free")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")


def _add_weights(parser: argparse.ArgumentParser, *, demo: bool = False) -> None:
    """The options that say where the weights come from."""
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--pretrained", action="store_true", help="fetch the model's default checkpoint"
    )
    weights.add_argument("--checkpoint", type=Path, metavar="FILE", help="load a local checkpoint")
    if demo:
        weights.add_argument(
            "--demo",
            action="store_true",
            help="tf_efficientnet_lite0 with the weights of featnet[demo]",
        )
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
    """A side of an image, in pixels, or another count."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _number(text: str) -> int:
    """A count from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def _count(text: str) -> float:
    """A number with a suffix: 500k, 30M, 4.1G."""
    match = re.fullmatch(r"(\d+\.?\d*)([kMGBm]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no number such as 500k, 30M or 4.1G")
    return float(match[1]) * {"": 1, "k": 1e3, "M": 1e6, "m": 1e6, "G": 1e9, "B": 1e9}[match[2]]


def _option(text: str) -> tuple[str, Any]:
    """``KEY=VALUE``: a JSON value, or else a string."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is no KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def options_of(parser: Parser) -> dict[str, list[str]]:
    """Each command's options, for completion."""
    groups = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return {
        name: sorted(o for o in sub._option_string_actions if o.startswith("--"))
        for group in groups
        for name, sub in group.choices.items()
    }


def command_line(argv: Sequence[str] | None, version: str) -> tuple[Parser, argparse.Namespace]:
    """The parser, and what it reads of the arguments."""
    parser = make_parser(version)
    parser.words = sys.argv[1:] if argv is None else argv
    return parser, parser.parse_args(argv)
