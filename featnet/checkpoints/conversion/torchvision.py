"""torchvision's checkpoints: of its classifiers, and of the backbones inside its segmentation and
detection models. Its ResNet, ResNeXt and wide ResNet have our names already."""

from __future__ import annotations

from typing import Any

from torch import nn

from .draft import Draft, Layout, natural


def _modules(keys: Any) -> list[str]:
    """The modules of keys, each once, in the order of the keys."""
    return list(dict.fromkeys(key.rpartition(".")[0] for key in keys))


def in_order(draft: Draft, model: Any) -> None:
    """Networks of the mobile kind: both libraries register the same modules in the same order."""
    theirs = _modules(
        sorted(draft.tensors, key=lambda k: (not k.startswith("features."), natural(k)))
    )
    ours = _modules(model.state_dict())
    if model.last_fc not in ours:
        ours.append(model.last_fc)
    names = dict(zip(theirs, ours, strict=False))

    def new_name(key: str) -> str:
        module, _, leaf = key.rpartition(".")
        return f"{names[module]}.{leaf}" if module in names else key

    draft.rename(new_name)


def mobilenetv3(draft: Draft, model: nn.Module) -> None:
    """In order; a report says that segmentation models dilate in a way of their own."""
    in_order(draft, model)
    if any(key.startswith("classifier.") for key in draft.dropped):
        draft.steps.append(
            "from a segmentation model: torchvision dilates the convolution that lost its stride "
            "as well, so that features at output stride 16 are not the same"
        )


def densenet(draft: Draft, model: nn.Module) -> None:
    """Files of before torchvision 0.2.1 have a dot between a layer and its number."""
    del model
    draft.substitute([(r"(.*denselayer\d+\.(?:norm|conv))\.([12]\..*)", r"\1\2")])


def vgg(draft: Draft, model: nn.Module) -> None:
    """torchvision's names to this network's."""
    del model
    draft.substitute(
        [
            (r"classifier\.0\.(.*)", r"pre_logits.fc1.\1"),
            (r"classifier\.3\.(.*)", r"pre_logits.fc2.\1"),
            (r"classifier\.6\.(.*)", r"head.fc.\1"),
        ]
    )


def convnext(draft: Draft, model: nn.Module) -> None:
    """torchvision's names to this network's."""
    del model

    def new_name(key: str) -> str:
        if key.startswith("classifier."):
            return key.replace("classifier.0.", "head.norm.").replace("classifier.2.", "head.fc.")
        _, index, *rest = key.split(".")
        stage, of_blocks = (int(index) - 1) // 2, int(index) % 2 == 1
        if index == "0":
            return ".".join(["stem", *rest])
        if not of_blocks:
            return ".".join([f"stages.{stage + 1}.downsample", *rest])
        block, *rest = rest
        names = {"0": "conv_dw", "2": "norm", "3": "mlp.fc1", "5": "mlp.fc2"}
        inner = ["gamma"] if rest == ["layer_scale"] else [names.get(rest[1], "?"), *rest[2:]]
        return ".".join([f"stages.{stage}.blocks.{block}", *inner])

    draft.rename(new_name)


def regnet(draft: Draft, model: nn.Module) -> None:
    """torchvision's names to this network's."""
    del model
    block = r"trunk_output\.block(\d+)\.block\d+-(\d+)\."
    parts = {"proj": "downsample", r"f\.a": "conv1", r"f\.b": "conv2", r"f\.c": "conv3"}

    def rules() -> Any:
        yield r"stem\.0\.(.*)", r"stem.conv.\1"
        yield r"stem\.1\.(.*)", r"stem.bn.\1"
        for old, new in parts.items():
            yield rf"{block}{old}\.0\.(.*)", rf"s\1.b#\2.{new}.conv.\3"
            yield rf"{block}{old}\.1\.(.*)", rf"s\1.b#\2.{new}.bn.\3"
        yield rf"{block}f\.se\.(.*)", r"s\1.b#\2.se.\3"
        yield r"fc\.(.*)", r"head.fc.\1"

    draft.substitute(list(rules()))

    def count_from_one(key: str) -> str:
        stage, mark, rest = key.partition(".b#")
        number, _, rest = rest.partition(".")
        return f"{stage}.b{int(number) + 1}.{rest}" if mark else key

    draft.rename(count_from_one)


def vit(draft: Draft, model: nn.Module) -> None:
    """torchvision's names to this network's; its MLPs were linear_1 and linear_2 once."""
    del model
    old, new = r"encoder\.layers\.encoder_layer_(\d+)", r"blocks.\1"
    draft.substitute(
        [
            ("class_token", "cls_token"),
            (r"conv_proj\.(.*)", r"patch_embed.proj.\1"),
            (r"encoder\.pos_embedding", "pos_embed"),
            (rf"{old}\.ln_([12])\.(.*)", rf"{new}.norm\2.\3"),
            (rf"{old}\.self_attention\.in_proj_(.*)", rf"{new}.attn.qkv.\2"),
            (rf"{old}\.self_attention\.out_proj\.(.*)", rf"{new}.attn.proj.\2"),
            (rf"{old}\.mlp\.(?:0|linear_1)\.(.*)", rf"{new}.mlp.fc1.\2"),
            (rf"{old}\.mlp\.(?:3|linear_2)\.(.*)", rf"{new}.mlp.fc2.\2"),
            (r"encoder\.ln\.(.*)", r"norm.\1"),
            (r"heads\.head\.(.*)", r"head.\1"),
        ]
    )


def swin(draft: Draft, model: nn.Module) -> None:
    """torchvision's names to this network's, Swin and Swin V2."""

    def new_name(key: str) -> str:
        first, _, rest = key.partition(".")
        if first == "head":
            return f"head.fc.{rest}"
        if first != "features":
            return key
        index, _, rest = rest.partition(".")
        if index == "0":
            part, _, leaf = rest.partition(".")
            return f"patch_embed.{'proj' if part == '0' else 'norm'}.{leaf}"
        if int(index) % 2 == 0:
            return f"layers.{int(index) // 2}.downsample.{rest}"
        rest = rest.replace(".mlp.0.", ".mlp.fc1.").replace(".mlp.3.", ".mlp.fc2.")
        return f"layers.{int(index) // 2}.blocks.{rest}"

    draft.rename(new_name)
    wanted = model.state_dict()
    for key in [k for k in draft.tensors if k.endswith(".attn.qkv.bias") and k not in wanted]:
        # it has a bias of keys as well, which it sets to zero whenever it runs
        q, _, v = draft.tensors[key].chunk(3)
        stem = key.removesuffix("qkv.bias")
        draft.split(key, {f"{stem}q_bias": q, f"{stem}v_bias": v}, "the bias of keys is zero")


def _frozen(draft: Draft) -> bool:
    """Tell if batch norms were FrozenBatchNorm2d, whose epsilon is 1e-5 whatever the network's."""
    return not any(key.endswith("num_batches_tracked") for key in draft.tensors)


def mobilenetv3_eps(draft: Draft) -> float:
    """1e-3, but 1e-5 where batch norms were frozen for a detector."""
    return 1e-5 if _frozen(draft) else 1e-3


def efficientnet_eps(draft: Draft) -> float:
    """1e-3 for V2, whose first blocks have no squeeze-excite, and for V1 from B5 on."""
    second = any(".0.0.conv." in key for key in draft.tensors)
    wide = [v.shape[0] for k, v in draft.tensors.items() if k == "conv_head.weight"]
    return 1e-3 if second or (wide and wide[0] >= 2048) else 1e-5


STEM = "features.0.0.weight"
LAYOUTS = (
    Layout(
        "torchvision's MobileNetV2",
        "EfficientNet",
        ("features.1.conv.0.0.weight", STEM),
        in_order,
        root="features.",
        eps=lambda draft: 1e-5,
    ),
    Layout(
        "torchvision's MobileNetV3",
        "MobileNetV3",
        ("features.1.block.0.0.weight", STEM),
        mobilenetv3,
        root="features.",
        eps=mobilenetv3_eps,
    ),
    Layout(
        "torchvision's EfficientNet",
        "EfficientNet",
        ("features.1.0.block.0.0.weight", "features.0.1.running_var", STEM),
        in_order,
        root="features.",
        eps=efficientnet_eps,
    ),
    Layout(
        "torchvision's ConvNeXt",
        "ConvNeXt",
        ("features.1.0.layer_scale", STEM),
        convnext,
        root="features.",
    ),
    Layout("torchvision's VGG", "VGG", ("classifier.0.weight", "features.0.weight"), vgg),
    Layout(
        "torchvision's DenseNet, old",
        "DenseNet",
        ("features.denseblock1.denselayer1.norm.1.weight",),
        densenet,
    ),
    Layout(
        "torchvision's RegNet", "RegNet", ("trunk_output.block1.block1-0.proj.0.weight",), regnet
    ),
    Layout(
        "torchvision's ViT",
        "VisionTransformer",
        ("conv_proj.weight", "encoder.layers.encoder_layer_0.ln_1.weight"),
        vit,
    ),
    Layout(
        "torchvision's Swin",
        "SwinTransformer",
        ("features.1.0.attn.relative_position_bias_table", STEM),
        swin,
    ),
    Layout(
        "torchvision's Swin V2", "SwinTransformerV2", ("features.1.0.attn.logit_scale", STEM), swin
    ),
)
