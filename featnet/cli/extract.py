"""``featnet extract``: an image in, its feature maps and a rendering of them out."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, OutputError
from ..images.reading import read_image

if TYPE_CHECKING:
    import torch

FEATURES, RENDERING = "features.safetensors", "features.png"


def extract(args: argparse.Namespace) -> int:
    """Run the model on the image, print the table, write both files; the exit code.

    Everything that can be wrong with the paths is found before the model is built.

    Raises:
        FeatnetError: the image, the output folder, or anything about the model is wrong.
    """
    image = read_image(args.image)
    prepare_folder(args.out)

    import torch

    from ..checkpoints.writing import staged, write_safetensors
    from ..images.transform import create_transform

    device = _device(args.device)
    net, source = build(args)
    info, cfg = net.feature_info, net.pretrained_cfg
    size = _input_size(args, image=(image.height, image.width), cfg=cfg, info=info)
    net = net.eval().to(device)
    with torch.inference_mode():
        transform = create_transform(net, input_size=size, fit="squash")
        x = transform.normalize(image)[None]
        if device.type == "cuda":  # copied while this goes on, from memory that stays where it is
            x = x.pin_memory()
        outputs = net(x.to(device, non_blocking=True))
        maps = dict(zip(info.module_name(), (m.float().cpu() for m in outputs), strict=True))

    print(f"{args.model}, input {size[0]} x {size[1]}, weights: {source}")
    print(_describe(info, maps))
    metadata = {
        "model": args.model,
        "out_indices": json.dumps(list(info.out_indices)),
        "modules": json.dumps(list(maps)),
        "reductions": json.dumps(list(info.reduction())),
        "output_stride": str(args.output_stride or 32),
        "mean": json.dumps(list(cfg["mean"])),
        "std": json.dumps(list(cfg["std"])),
        "interpolation": cfg["interpolation"],
        "input_size": json.dumps([3, *size]),
        "weights": source,
    }
    rendering = _render(args, image, info, maps)
    write_safetensors(maps, args.out / FEATURES, metadata=metadata)
    with staged(args.out / RENDERING) as draft:
        rendering.save(draft, format="PNG")
    print(f"wrote {args.out / FEATURES} and {args.out / RENDERING}")
    return 0


def selection(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of ``create_model`` that say which levels; only those that were given."""
    given = {
        "out_indices": tuple(args.out_indices) if args.out_indices else None,
        "out_strides": tuple(args.out_strides) if args.out_strides else None,
        "output_stride": args.output_stride,
    }
    return {name: value for name, value in given.items() if value is not None}


def prepare_folder(folder: Path) -> None:
    """Make the output folder, and write to it once to see that it can be done.

    Raises:
        OutputError: it cannot be made or written to, or a folder has an output file's name.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"output folder {str(folder)!r} cannot be written to: {error.strerror}"
        ) from error
    for name in (FEATURES, RENDERING):
        if (folder / name).is_dir():
            raise OutputError(f"output file {str(folder / name)!r} is a folder")


def _device(name: str) -> torch.device:
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


def build(args: argparse.Namespace, *, features_only: bool = True) -> tuple[Any, str]:
    """The feature extractor (or the classifier), and where its weights are from."""
    import torch

    from .. import create_model

    torch.manual_seed(args.seed)
    net = create_model(
        args.model,
        pretrained=args.pretrained,
        checkpoint_path=None if args.checkpoint is None else str(args.checkpoint),
        features_only=features_only,
        **selection(args),
    )
    if args.checkpoint is not None:
        return net, f"checkpoint {args.checkpoint.name}"
    if args.pretrained:
        cfg = net.pretrained_cfg
        return net, f"pretrained {cfg['architecture']}.{cfg['tag']}"
    print(
        f"The weights are random (seed {args.seed}); "
        "--pretrained or --checkpoint FILE gives trained ones."
    )
    return net, f"random, seed {args.seed}"


def _input_size(
    args: argparse.Namespace, *, image: tuple[int, int], cfg: Mapping[str, Any], info: Any
) -> tuple[int, int]:
    """The input's (height, width): as asked, as the network insists, or near the image's."""
    if args.input_size:
        return args.input_size[0], args.input_size[1]
    if cfg.get("fixed_input_size"):
        return cfg["input_size"][1], cfg["input_size"][2]
    # Dilated or cut short, the network keeps the input size that it has whole, so that the levels
    # of one image can be compared between runs.
    multiple = max(32, *info.reduction())
    height, width = (max(1, round(side / multiple)) * multiple for side in image)
    return height, width


def _describe(info: Any, maps: Mapping[str, torch.Tensor]) -> str:
    from ..features import table

    rows = [
        [
            str(level),
            module,
            str(feature.shape[1]),
            str(reduction),
            f"{feature.shape[2]} x {feature.shape[3]}",
            f"{feature.numel() * 4:,}",
        ]
        for level, reduction, (module, feature) in zip(
            info.out_indices, info.reduction(), maps.items(), strict=True
        )
    ]
    return table(["level", "module", "channels", "reduction", "map size", "bytes"], rows)


def _render(
    args: argparse.Namespace, image: Any, info: Any, maps: Mapping[str, torch.Tensor]
) -> Any:
    from ..images.render import render

    captions = [
        f"{module}  {feature.shape[1]} x {feature.shape[2]} x {feature.shape[3]}  /{reduction}"
        for reduction, (module, feature) in zip(info.reduction(), maps.items(), strict=True)
    ]
    levels = [(c, m[0]) for c, m in zip(captions, maps.values(), strict=True)]
    title = f"{args.image.name}  {image.width} x {image.height}"
    return render(image, title=title, levels=levels)
