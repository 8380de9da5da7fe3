"""Words of other libraries, and what featnet calls the same: for suggestions in errors."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Sequence

_SIZES = {
    "t": "tiny",
    "s": "small",
    "m": "medium",
    "b": "base",
    "l": "large",
    "h": "huge",
    "g": "giant",
}
# (pattern of another library's name, in lower case; name here). {t} is group t, {t*} the size it
# is short for. The first that gives a model's name is taken; one with a tag is suggested whole.
_RULES: Sequence[tuple[str, str]] = (
    # torchvision
    (r"vit_(?P<s>[blh])_(?P<p>\d+)", "vit_{s*}_patch{p}_224"),
    (r"swin_(?P<s>[tsb])", "swin_{s*}_patch4_window7_224"),
    (r"swin_v2_(?P<s>[tsb])", "swinv2_{s*}_window8_256"),
    (r"maxvit_(?P<s>[t])", "maxvit_{s*}_tf_224"),
    (r"efficientnet_v2_(?P<s>[sml])", "efficientnetv2_{s}"),
    (r"mobilenet_?v2", "mobilenetv2_100"),
    (r"mobilenet_?v3_(?P<s>small|large)", "mobilenetv3_{s}_100"),
    (r"mobilenet_?v3", "mobilenetv3_large_100"),
    (r"regnet_(?P<x>[xy])_(?P<n>\d+)mf", "regnet{x}_{n:mf}"),
    (r"regnet_(?P<x>[xy])_(?P<n>[\d_]+)gf", "regnet{x}_{n:gf}"),
    (r"mnasnet1_0", "mnasnet_100"),
    (r"inception_v3", "inception_v3"),
    # Meta's hub
    (r"dinov2_vit(?P<s>[sblg])(?P<p>\d+)_reg", "vit_{s*}_patch{p}_reg4_dinov2"),
    (r"dinov2_vit(?P<s>[sblg])(?P<p>\d+)", "vit_{s*}_patch{p}_dinov2"),
    (r"dinov3_vit(?P<s>[sblh])(?P<p>\d+)(?P<q>plus)?", "vit_{s*}_{q?}patch{p}_dinov3"),
    (r"dinov3_convnext_(?P<s>tiny|small|base|large)", "convnext_{s}.dinov3_lvd1689m"),
    (r"dino_vit(?P<s>[sb])(?P<p>\d+)", "vit_{s*}_patch{p}_224.dino"),
    (r"dino_resnet50", "resnet50"),
    (r"sam_vit_(?P<s>[blh])", "samvit_{s*}_patch16"),
    # transformers, without the organisation
    (r"dinov2-with-registers-(?P<s>\w+)", "vit_{s}_patch14_reg4_dinov2"),
    (r"dinov2-(?P<s>small|base|large|giant)(?:-.*)?", "vit_{s}_patch14_dinov2"),
    (
        r"dinov3-vit(?P<s>[sblh])(?P<p>\d+)(?P<q>plus)?-pretrain-lvd1689m",
        "vit_{s*}_{q?}patch{p}_dinov3.lvd1689m",
    ),
    (r"dino-vit(?P<s>[sb])(?P<p>\d+)", "vit_{s*}_patch{p}_224.dino"),
    (r"vit-(?P<s>\w+)-patch(?P<p>\d+)-(?P<n>\d+)(?:-in21k)?", "vit_{s}_patch{p}_{n}"),
    (r"vit-mae-(?P<s>base|large)", "vit_{s}_patch16_224.mae"),
    (r"vit-mae-huge", "vit_huge_patch14_224.mae"),
    (r"deit-(?P<s>\w+)-distilled-patch(?P<p>\d+)-(?P<n>\d+)", "deit_{s}_distilled_patch{p}_{n}"),
    (r"deit-(?P<s>\w+)-patch(?P<p>\d+)-(?P<n>\d+)", "deit_{s}_patch{p}_{n}"),
    (r"beit-(?P<s>\w+)-patch(?P<p>\d+)-(?P<n>\d+)(?:-.*)?", "beit_{s}_patch{p}_{n}"),
    (
        r"swin-(?P<s>\w+)-patch(?P<p>\d+)-window(?P<w>\d+)-(?P<n>\d+)(?:-.*)?",
        "swin_{s}_patch{p}_window{w}_{n}",
    ),
    (
        r"swinv2-(?P<s>\w+)-patch(?P<p>\d+)-window(?P<w>\d+)-(?P<n>\d+)(?:-.*)?",
        "swinv2_{s}_window{w}_{n}",
    ),
    (r"convnextv2-(?P<s>\w+?)(?:-\d+k)?-\d+", "convnextv2_{s}"),
    (r"convnext-(?P<s>\w+?)-\d+(?:-.*)?", "convnext_{s}"),
    (r"resnet-(?P<n>\d+)", "resnet{n}"),
    (r"regnet-(?P<x>[xy])-(?P<n>\d+)", "regnet{x}_{n}"),
    (r"efficientnet-(?P<b>[bl]\d+)", "tf_efficientnet_{b}"),
    (r"mobilenet_v2_(?P<w>\d\.\d+)_\d+", "mobilenetv2_{w:width}"),
    (r"hiera-(?P<s>[a-z]+)-(?P<n>\d+)(?:-.*)?", "hiera_{s}_{n}"),
    (r"sam-vit-(?P<s>\w+)", "samvit_{s}_patch16"),
    (
        r"clip-vit-(?P<s>\w+)-patch(?P<p>\d+)(?:-(?P<n>\d+))?",
        "vit_{s}_patch{p}_clip_{n|224}.openai",
    ),
    (r"siglip2?-(?P<s>[\w]+)-patch(?P<p>\d+)-(?P<n>\d+)", "vit_{s}_patch{p}_siglip_{n}"),
    (r"pvt_v2_(?P<b>b\d)", "pvt_v2_{b}"),
    # CLIP and OpenCLIP: ViT-B-32, ViT-B/32
    (r"vit-(?P<s>[blhg])[-/](?P<p>\d+)", "vit_{s*}_patch{p}_clip_224"),
)


def suggest(name: str, names: Collection[str]) -> str:
    """Give the sentence that names the same network here; ``""`` if none is known.

    Args:
        name: as another library has it.
        names: of the models that there are.
    """
    plain = name.strip().lower()
    below = plain.rpartition("/")[2]
    for word in dict.fromkeys((plain, below)):
        match = _same_here(word, names)
        if match:
            return f" {name!r} is {match!r} here."
    spelled = re.sub(r"[^a-z0-9]", "", below)
    alike = [other for other in names if re.sub(r"[^a-z0-9]", "", other) == spelled]
    if alike:
        return f" {name!r} is {alike[0]!r} here."
    return ""


def _same_here(word: str, names: Collection[str]) -> str | None:
    for pattern, template in _RULES:
        match = re.fullmatch(pattern, word)
        if match is None:
            continue
        fill = functools.partial(_fill, match.groupdict())
        name = re.sub(r"\{(\w)([^}]*)\}", fill, template)
        if name.partition(".")[0] in names:
            return name
    return None


def _fill(groups: dict[str, str | None], field: re.Match[str]) -> str:
    value, how = groups[field[1]] or "", field[2]
    if how == "*":
        return _SIZES[value]
    if how == "?":
        return f"{value}_" if value else ""
    if how.startswith("|"):
        return value or how[1:]
    scales: dict[str, Callable[[str], str]] = {
        ":mf": lambda n: f"{round(int(n) / 100):03d}",
        ":gf": lambda n: f"{round(float(n.replace('_', '.')) * 10):03d}",
        ":width": lambda n: f"{round(float(n) * 100):03d}",
    }
    return scales[how](value) if how else value


# Arguments of other libraries' functions, and what to say in their place
ARGUMENTS = {
    "weights": "weights= is torchvision's: say pretrained=True, and the tag in the name "
    "('resnet50.tv_in1k'), or checkpoint_path= for a file.",
    "weights_backbone": "weights_backbone= is torchvision's: say pretrained=True.",
    "out_features": "out_features= is transformers': say out_indices=(1, 2, 3), or taps=[...] for "
    "modules by name.",
    "return_layers": "return_layers= is torchvision's: say out_indices=, or taps={module: name}.",
    "return_nodes": "return_nodes= is torchvision's: use featnet.create_feature_extractor.",
    "encoder_name": "encoder_name= is segmentation_models_pytorch's: the name comes first.",
    "encoder_weights": "encoder_weights= is segmentation_models_pytorch's: say pretrained=True.",
    "encoder_depth": "encoder_depth= is segmentation_models_pytorch's: say out_indices=range(n).",
    "num_labels": "num_labels= is transformers': say num_classes=.",
    "image_size": "image_size= is not needed: networks take inputs of any size; img_size= is of "
    "those with tables of positions.",
    "n_classes": "Say num_classes=.",
    "in_channels": "Say in_chans=.",
    "input_channels": "Say in_chans=.",
    "backbone": "The name of the model comes first.",
    "ckpt_path": "Say checkpoint_path=.",
}
