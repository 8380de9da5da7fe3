"""Other libraries' checkpoints: with noise in every tensor, our network and theirs agree."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import featnet
from featnet import create_model
from featnet.checkpoints import checkpoint, conversion, instant
from featnet.cli import main
from featnet.errors import CheckpointError

State = dict[str, torch.Tensor]

# torchvision's name: ours. Of each structure the smallest.
TORCHVISION = {
    "resnet18": "resnet18",
    "resnet50": "resnet50",
    "densenet121": "densenet121",
    "mobilenet_v2": "mobilenetv2_100",
    "mobilenet_v3_small": "mobilenetv3_small_100",
    "mobilenet_v3_large": "mobilenetv3_large_100",
    "efficientnet_b0": "efficientnet_b0",
    "efficientnet_b5": "efficientnet_b5",
    "efficientnet_v2_s": "efficientnetv2_s",
    "convnext_tiny": "convnext_tiny",
    "regnet_x_400mf": "regnetx_004_tv",
    "regnet_y_400mf": "regnety_004",
}
# All of those families
ALL = {
    **{n: n for n in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")},
    **{n: n for n in ("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d")},
    **{n: n for n in ("wide_resnet50_2", "wide_resnet101_2")},
    **{f"densenet{n}": f"densenet{n}" for n in (121, 161, 169, 201)},
    **{f"vgg{n}{bn}": f"vgg{n}{bn}" for n in (11, 13, 16, 19) for bn in ("", "_bn")},
    **{f"efficientnet_b{n}": f"efficientnet_b{n}" for n in range(8)},
    **{f"efficientnet_v2_{n}": f"efficientnetv2_{n}" for n in "sml"},
    **{f"convnext_{n}": f"convnext_{n}" for n in ("tiny", "small", "base", "large")},
    **{n: o for n, o in TORCHVISION.items() if n.startswith("mobilenet")},
    **{
        f"regnet_{xy}_{n}": f"regnet{xy}_{o}"
        for xy in "xy"
        for n, o in {
            "400mf": "004",
            "800mf": "008",
            "1_6gf": "016",
            "3_2gf": "032",
            "8gf": "080",
            "16gf": "160",
            "32gf": "320",
        }.items()
    },
    "regnet_y_128gf": "regnety_1280",
    "regnet_x_400mf": "regnetx_004_tv",
    "regnet_y_8gf": "regnety_080_tv",
    "regnet_y_800mf": "regnety_008_tv",
}
ALL = {name: ours for name, ours in ALL.items() if featnet.is_model(ours)}
TORCHVISION = {name: ours for name, ours in TORCHVISION.items() if featnet.is_model(ours)}


def noisy(model: nn.Module) -> Any:
    return helpers.fill_noise(model).eval()


def saved(state: State, path: Path) -> Path:
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


def torchvision_model(name: str, **options: Any) -> nn.Module:
    """Without initial values, which noise replaces."""
    models = helpers.peer("torchvision").models
    with warnings.catch_warnings(), instant.SkipInit():
        warnings.simplefilter("ignore")
        return models.get_model(name, weights=None, **options)


@torch.no_grad()
def agree(ours: Any, theirs: Any, x: torch.Tensor, *, tolerance: float = 1e-10) -> None:
    wanted = theirs(x)
    wanted = wanted.logits if hasattr(wanted, "logits") else wanted
    assert helpers.error(ours.eval()(x), wanted) < tolerance


X = helpers.image_batch(64, 64, dtype=torch.float64)
DOUBLE = {"dtype": torch.float64}


def complete(model: Any, count: int) -> None:
    """Every tensor of the file is in the model, and every one of the model's is from the file."""
    report = model.load_report
    assert not report.dropped and not report.initial
    assert report.loaded + len(report.converted) == count == len(model.state_dict())


# torchvision ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str, tmp_path: Path) -> None:
    theirs = noisy(torchvision_model(name, num_classes=10)).double()
    state = theirs.state_dict()
    path = saved(state, tmp_path / "m.safetensors")
    model = create_model(TORCHVISION[name], num_classes=10, checkpoint_path=path, **DOUBLE)
    agree(model, theirs, X)
    complete(model, len(state))
    steps = model.load_report.steps
    native = name.startswith(("resne", "densenet"))
    assert steps == () if native else any("torchvision" in step for step in steps)


@pytest.mark.parametrize("name", ALL)
def test_every_name_of_torchvisions(name: str, torchvision: Any) -> None:
    """Without values: all keys are translated, all shapes fit."""
    if name.startswith("regnet"):  # reads values where it is built
        theirs = torchvision_model(name, num_classes=10)
    else:
        with torch.device("meta"):
            theirs = torchvision_model(name, num_classes=10)
    with torch.device("meta"):
        model = create_model(ALL[name], num_classes=10)
    draft = checkpoint.fit(model, featnet.checkpoints.files.Contents(theirs.state_dict()))
    found = {key: value.shape for key, value in draft.tensors.items()}
    assert found == {key: value.shape for key, value in model.state_dict().items()}
    assert not draft.dropped


def test_torchvisions_vgg(torchvision: Any, tmp_path: Path) -> None:
    theirs: Any = torchvision_model("vgg11_bn", num_classes=10)
    theirs.classifier[0] = nn.Linear(512 * 7 * 7, 32)  # the first two are huge
    theirs.classifier[3] = nn.Linear(32, 4096)
    theirs = noisy(theirs)
    path = saved(theirs.state_dict(), tmp_path / "m.safetensors")
    options = {"num_classes": 10, "mlp_ratio": 32 / 4096, "checkpoint_path": path}
    model = create_model("vgg11_bn", **options)
    agree(model, theirs, helpers.image_batch(224, 224), tolerance=1e-5)
    complete(model, len(theirs.state_dict()))
    assert model.load_report.converted["pre_logits.fc1.weight"] == "[32, 25088] as [32, 512, 7, 7]"


def test_the_epsilon_is_in_the_variance(torchvision: Any, tmp_path: Path) -> None:
    theirs = noisy(torchvision_model("mobilenet_v3_small", num_classes=10))
    path = saved(theirs.state_dict(), tmp_path / "m.safetensors")
    model = create_model("mobilenetv3_small_100", num_classes=10, checkpoint_path=path)
    how = model.load_report.converted["bn1.running_var"]
    assert how == "epsilon 0.001 instead of 1e-05: added to the variance"
    before = theirs.state_dict()["features.0.1.running_var"]
    torch.testing.assert_close(model.state_dict()["bn1.running_var"], before + 0.00099)


def _old_names(state: State) -> State:
    def old(key: str) -> str:
        for kind in ("norm", "conv"):
            for number in "12":
                key = (
                    key.replace(f".{kind}{number}.", f".{kind}.{number}.")
                    if "layer" in key
                    else key
                )
        return key

    return {old(key): value for key, value in state.items()}


def test_torchvisions_densenet_of_old(torchvision: Any, tmp_path: Path) -> None:
    theirs = noisy(torchvision_model("densenet121", num_classes=10)).double()
    state = _old_names(theirs.state_dict())
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    path = saved(state, tmp_path / "m.safetensors")
    model = create_model("densenet121", num_classes=10, checkpoint_path=path, **DOUBLE)
    agree(model, theirs, X)
    complete(model, len(state))


# Backbones inside torchvision's segmentation and detection models


def levels(name: str, path: Path, **options: Any) -> Any:
    options = {"features_only": True, "checkpoint_path": path, **DOUBLE, **options}
    return create_model(name, **options).eval()


def test_the_resnet_of_a_segmentation_model(torchvision: Any, tmp_path: Path) -> None:
    theirs: Any = torchvision_model("fcn_resnet50", weights_backbone=None, aux_loss=True)
    theirs = noisy(theirs).double()
    path = saved(theirs.state_dict(), tmp_path / "m.safetensors")
    net = levels("resnet50", path, output_stride=8, out_indices=(3, 4))
    with torch.no_grad():
        wanted = theirs.backbone(X)
        for found, key in zip(net(X), ("aux", "out"), strict=True):
            assert helpers.error(found, wanted[key]) < 1e-10
    report = net.load_report
    outside = {k for k, why in report.dropped.items() if why == "outside of 'backbone.'"}
    assert outside == {k for k in theirs.state_dict() if not k.startswith("backbone.")}
    assert not report.initial and "prefix 'backbone.' removed" in report.steps


def test_the_mobilenet_of_a_segmentation_model(torchvision: Any, tmp_path: Path) -> None:
    theirs: Any = torchvision_model("lraspp_mobilenet_v3_large", weights_backbone=None)
    theirs = noisy(theirs).double()
    path = saved(theirs.state_dict(), tmp_path / "m.safetensors")
    net = levels("mobilenetv3_large_100", path, output_stride=16, out_indices=(-1,))
    assert any("dilates the convolution" in step for step in net.load_report.steps)
    # torchvision dilates the convolution that lost its stride, too; without that we agree
    convs = [m for m in theirs.backbone.modules() if getattr(m, "dilation", None) == (2, 2)]
    convs[0].dilation, convs[0].padding = (1, 1), (2, 2)
    with torch.no_grad():
        wanted, (found,) = theirs.backbone(X)["high"], net(X)
    assert helpers.error(found, wanted) < 1e-10


DETECTION = {
    "resnet18": ("resnet18", {"layer4": "out"}),
    "mobilenet_v3_large": ("mobilenetv3_large_100", {"16": "out"}),
}


@pytest.mark.parametrize("name", DETECTION)
def test_the_backbone_of_a_detector(name: str, torchvision: Any, tmp_path: Path) -> None:
    """Its batch norms are frozen: of another epsilon than MobileNetV3's own, and without
    counters."""
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.ops import FrozenBatchNorm2d

    ours, layers = DETECTION[name]
    whole: Any = noisy(torchvision_model(name, norm_layer=FrozenBatchNorm2d))
    for module in whole.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_var.add_(0.1).mul_(module.running_mean.add_(0.2).abs().add(0.5))
    body = IntermediateLayerGetter(getattr(whole, "features", whole), layers).double()
    state = {f"backbone.body.{key}": value for key, value in body.state_dict().items()}
    state |= {"rpn.head.weight": torch.zeros(3), "backbone.fpn.weight": torch.zeros(3)}
    path = saved(state, tmp_path / "m.safetensors")
    net = levels(ours, path, out_indices=(-1,))
    with torch.no_grad():
        assert helpers.error(net(X)[0], body(X)["out"]) < 1e-10
    assert {"rpn.head.weight", "backbone.fpn.weight"} <= set(net.load_report.dropped)
    assert all(k.endswith("num_batches_tracked") for k in net.load_report.initial)
    with pytest.raises(CheckpointError, match="missing"):
        create_model(ours, checkpoint_path=path)
    fresh = create_model(ours, checkpoint_path=path, num_classes=3)
    assert {"classifier.weight", "fc.weight"} & set(fresh.load_report.initial)


# Transformers of torchvision's --------------------------------------------------------------------

VIT = {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 64, "num_classes": 10}
SWIN = {
    "embed_dim": 16,
    "depths": (2, 2, 2, 2),
    "num_heads": (1, 2, 4, 8),
    "img_size": 64,
    "window_size": 2,
    "num_classes": 10,
}


def torchvision_transformer(name: str) -> tuple[str, dict[str, Any], Any]:
    """A small one: our name for it, our arguments, and theirs."""
    models = helpers.peer("torchvision").models
    if name == "vit":
        theirs = models.VisionTransformer(64, 16, 2, 3, 48, 192, num_classes=10)
        return "vit_base_patch16_224", VIT, theirs
    kinds: dict[str, Any] = {}
    if name == "swin_v2":
        kinds = {
            "block": models.swin_transformer.SwinTransformerBlockV2,
            "downsample_layer": models.swin_transformer.PatchMergingV2,
        }
    theirs = models.SwinTransformer(
        [4, 4], 16, [2] * 4, [1, 2, 4, 8], [2, 2], num_classes=10, **kinds
    )
    ours = "swin_tiny_patch4_window7_224" if name == "swin" else "swinv2_tiny_window8_256"
    return ours, SWIN, theirs


@pytest.mark.parametrize("name", ["vit", "swin", "swin_v2"])
def test_torchvisions_transformers(name: str, torchvision: Any, tmp_path: Path) -> None:
    ours, options, theirs = torchvision_transformer(name)
    theirs = noisy(theirs).double()
    state = theirs.state_dict()
    path = saved(state, tmp_path / "m.safetensors")
    model = create_model(ours, checkpoint_path=path, **options, **DOUBLE)
    agree(model, theirs, X)
    report = model.load_report
    tables = {k for k in state if k.endswith(("relative_position_index", "relative_coords_table"))}
    assert set(report.dropped) == tables and not report.initial
    assert report.loaded + len(report.converted) == len(model.state_dict())
    assert any(step.startswith("layout of torchvision's") for step in report.steps)
    # inside another model
    path = saved({f"backbone.{k}": v for k, v in state.items()}, tmp_path / "b.safetensors")
    net = levels(ours, path, **{k: v for k, v in options.items() if k != "num_classes"})
    with torch.no_grad():
        wanted = model.forward_intermediates(X, intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(net(X), wanted, strict=True))


TRANSFORMERS = {
    "vit_b_16": "vit_base_patch16_224",
    "vit_b_32": "vit_base_patch32_224",
    "vit_l_16": "vit_large_patch16_224",
    "vit_l_32": "vit_large_patch32_224",
    "vit_h_14": "vit_huge_patch14_224",
    "swin_t": "swin_tiny_patch4_window7_224",
    "swin_s": "swin_small_patch4_window7_224",
    "swin_b": "swin_base_patch4_window7_224",
    "swin_v2_t": "swinv2_tiny_window8_256",
    "swin_v2_s": "swinv2_small_window8_256",
    "swin_v2_b": "swinv2_base_window8_256",
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_every_transformer_of_torchvisions(name: str, torchvision: Any) -> None:
    with torch.device("meta"):
        theirs = torchvision_model(name)
        model = create_model(TRANSFORMERS[name])
    draft = checkpoint.fit(model, featnet.checkpoints.files.Contents(theirs.state_dict()))
    found = {key: value.shape for key, value in draft.tensors.items()}
    assert found == {key: value.shape for key, value in model.state_dict().items()}


def test_torchvisions_vit_of_old(torchvision: Any, tmp_path: Path) -> None:
    """The MLP's layers had names, and a file of another size has other positions."""
    ours, options, theirs = torchvision_transformer("vit")
    theirs = noisy(theirs).double()
    numbers = {"mlp.0.": "mlp.linear_1.", "mlp.3.": "mlp.linear_2."}
    state = theirs.state_dict()
    for new, old in numbers.items():
        state = {key.replace(new, old): value for key, value in state.items()}
    path = saved(state, tmp_path / "m.safetensors")
    agree(create_model(ours, checkpoint_path=path, **options, **DOUBLE), theirs, X)
    larger = create_model(ours, checkpoint_path=path, **{**options, "img_size": 96})
    assert larger.load_report.converted == {"pos_embed": "[1, 17, 48] to [1, 37, 48]"}


# transformers -----------------------------------------------------------------------------------


SMALL_VIT = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 192,
    "image_size": 64,
    "patch_size": 16,
    "num_labels": 10,
}
SMALL_SWIN = {
    "embed_dim": 16,
    "depths": [2] * 4,
    "num_heads": [1, 2, 4, 8],
    "window_size": 2,
    "image_size": 64,
    "num_labels": 10,
}
# transformers' name: theirs and our arguments, our name
ATTENTION: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "ViT": (SMALL_VIT, VIT, "vit_base_patch16_224"),
    "Dinov2": (
        {**SMALL_VIT, "patch_size": 14, "image_size": 56},
        {**VIT, "img_size": 56},
        "vit_base_patch14_dinov2",
    ),
    "Dinov2, gated": (
        {**SMALL_VIT, "patch_size": 14, "image_size": 56, "use_swiglu_ffn": True},
        {**VIT, "img_size": 56, "mlp_ratio": 16 / 3},
        "vit_giant_patch14_dinov2",
    ),
    "Dinov2WithRegisters": (
        {**SMALL_VIT, "patch_size": 14, "image_size": 56},
        {**VIT, "img_size": 56},
        "vit_base_patch14_reg4_dinov2",
    ),
    "Swin": (SMALL_SWIN, SWIN, "swin_tiny_patch4_window7_224"),
    "Swinv2": (SMALL_SWIN, SWIN, "swinv2_tiny_window8_256"),
}


@pytest.mark.parametrize("where", ["file", "memory"])
@pytest.mark.parametrize("kind", ATTENTION)
def test_transformers_with_attention(kind: str, where: str, tmp_path: Path) -> None:
    """In a file its modules are not always called as they are in memory."""
    library = helpers.peer("transformers")
    theirs_options, options, name = ATTENTION[kind]
    kind = kind.partition(",")[0]
    config = getattr(library, f"{kind}Config")(**theirs_options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs: Any = noisy(getattr(library, f"{kind}ForImageClassification")(config))
        theirs.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    if where == "memory":
        saved(theirs.state_dict(), path)
    theirs = theirs.double()
    x = helpers.image_batch(*([options["img_size"]] * 2), dtype=torch.float64)
    if kind.startswith("Dino"):
        options = {**options, "num_classes": 0}
    model = create_model(name, checkpoint_path=path, **options, **DOUBLE).eval()
    body = getattr(theirs, config.model_type, None) or theirs.base_model
    with torch.no_grad():
        wanted = body(x).last_hidden_state
        found = model.forward_features(x)
        found = found if found.ndim == 3 else found.flatten(2).transpose(1, 2)
        # ViT: another epsilon; registers: the class token and its position become one, in float32
        tolerance = {"ViT": 1e-5, "Dinov2WithRegisters": 1e-6}.get(kind, 1e-10)
        assert helpers.error(found, wanted) < tolerance
        if not kind.startswith("Dino"):
            assert helpers.error(model(x), theirs(x).logits) < tolerance
    report = model.load_report
    assert not report.initial and any("layout of transformers'" in step for step in report.steps)
    if kind.startswith("Dino"):
        assert report.dropped["classifier.weight"].startswith("a classifier of the class token")
    if kind == "ViT":
        assert "epsilon of the norms: 1e-06, by default 1e-12 there" in report.steps


def transformers_model(kind: str) -> tuple[str, Any]:
    """A small configuration of one of ours, and the model."""
    library = helpers.peer("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind.startswith("resnet"):
            basic = kind == "resnet18"
            widths = [64, 128, 256, 512] if basic else [256, 512, 1024, 2048]
            depths = [2, 2, 2, 2] if basic else [3, 4, 6, 3]
            config = library.ResNetConfig(
                embedding_size=64,
                hidden_sizes=widths,
                depths=depths,
                layer_type="basic" if basic else "bottleneck",
                num_labels=10,
            )
            return kind, library.ResNetForImageClassification(config)
        version = "ConvNextV2" if "v2" in kind else "ConvNext"
        config = getattr(library, f"{version}Config")(
            hidden_sizes=[40, 80, 160, 320], depths=[2, 2, 6, 2], num_labels=10
        )
        return kind, getattr(library, f"{version}ForImageClassification")(config)


@pytest.mark.parametrize("kind", ["resnet18", "resnet50", "convnext_atto", "convnextv2_atto"])
def test_transformers(kind: str, tmp_path: Path) -> None:
    helpers.peer("transformers")
    name, theirs = transformers_model(kind)
    theirs = noisy(theirs).double()
    state = theirs.state_dict()
    path = saved(state, tmp_path / "m.safetensors")
    model = create_model(name, num_classes=10, checkpoint_path=path, **DOUBLE)
    # the final norm's epsilon is 1e-12 there and 1e-6 here, which the report says
    agree(model, theirs, X, tolerance=1e-10 if kind.startswith("resnet") else 1e-5)
    complete(model, len(state))
    inner = {k.partition(".")[2]: v for k, v in state.items() if not k.startswith("classifier")}
    net = levels(name, saved(inner, tmp_path / "inner.safetensors"))
    with torch.no_grad():
        wanted = model.forward_intermediates(X, intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(net(X), wanted, strict=True))


# The originals ----------------------------------------------------------------------------------


def original_convnext(state: State) -> State:
    """Our names to those of facebookresearch's ConvNeXt, V1 and V2."""
    names = {
        "stem.": "downsample_layers.0.",
        ".blocks.": ".",
        "conv_dw": "dwconv",
        "mlp.grn.weight": "grn.gamma",
        "mlp.grn.bias": "grn.beta",
        "mlp.fc1": "pwconv1",
        "mlp.fc2": "pwconv2",
        "head.norm": "norm",
        "head.fc": "head",
    }
    found = {}
    for key, value in state.items():
        for new, old in names.items():
            key = key.replace(new, old)
        if ".downsample." in key:
            _, stage, _, rest = key.split(".", 3)
            key = f"downsample_layers.{stage}.{rest}"
        value = value.reshape(1, 1, 1, -1) if ".grn." in key else value
        value = value.flatten(1) if "pwconv" in key and value.ndim == 4 else value
        found[key] = value
    return found


@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto"])
def test_the_original_convnext(name: str, timm: Any, tmp_path: Path) -> None:
    model = noisy(create_model(name, num_classes=10))
    state = original_convnext(model.state_dict())
    theirs = timm.models.convnext.checkpoint_filter_fn(state, model)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in theirs.items()), (
        "the double is wrong"
    )
    torch.save({"model": state, "optimizer": {}}, tmp_path / "m.pth")
    again = create_model(name, num_classes=10, checkpoint_path=tmp_path / "m.pth")
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in again.state_dict().items())
    complete(again, len(state))
    assert "layout of the original ConvNeXt" in again.load_report.steps


def test_the_convnext_of_clip(tmp_path: Path) -> None:
    model = noisy(create_model("convnext_atto", num_classes=12))
    state = {
        f"visual.trunk.{k}": v
        for k, v in model.state_dict().items()
        if ".fc." not in k or "stages" in k
    }
    state |= {
        "visual.head.proj.weight": model.head.fc.weight.detach(),
        "logit_scale": torch.ones(1),
    }
    nn.init.zeros_(model.head.fc.bias)
    again = create_model(
        "convnext_atto", num_classes=12, checkpoint_path=saved(state, tmp_path / "m.safetensors")
    )
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in again.state_dict().items())
    assert again.load_report.dropped == {"logit_scale": "outside of 'visual.'"}
    assert "layout of open_clip's ConvNeXt" in again.load_report.steps


def vissl_regnet(state: State) -> dict[str, State]:
    """Our names to VISSL's: a trunk's and heads'."""
    names = {
        "downsample.conv": "proj",
        "downsample.bn": "bn",
        "conv1.conv": "f.a.0",
        "conv1.bn": "f.a.1",
        "conv2.conv": "f.b.0",
        "conv2.bn": "f.b.1",
        "conv3.conv": "f.c",
        "conv3.bn": "f.final_bn",
        "se.fc1": "f.se.excitation.0",
        "se.fc2": "f.se.excitation.2",
    }
    trunk, heads = {}, {}
    for key, value in state.items():
        module, _, leaf = key.rpartition(".")
        if module == "head.fc":
            heads[f"0.clf.0.{leaf}"] = value
        elif module in ("stem.conv", "stem.bn"):
            trunk[f"_feature_blocks.conv1.stem.{int(module == 'stem.bn')}.{leaf}"] = value
        else:
            stage, block, part = module.split(".", 2)
            where = f"res{int(stage[1]) + 1}.block{stage[1]}-{int(block[1:]) - 1}"
            trunk[f"_feature_blocks.{where}.{names[part]}.{leaf}"] = value
    return {"trunk": trunk, "heads": heads}


@pytest.mark.parametrize("head", ["classifier", "prototypes"])
def test_the_regnet_of_vissl(head: str, timm: Any, tmp_path: Path) -> None:
    """SEER: the whole checkpoint of its trainer, before and after it learnt classes."""
    num_classes = 10 if head == "classifier" else 0
    model = noisy(create_model("regnety_002", num_classes=num_classes))
    state = vissl_regnet(model.state_dict())
    if head == "prototypes":
        state["heads"] = {
            "0.projection_head.0.weight": torch.ones(2),
            "0.prototypes0.weight": torch.ones(2),
        }
    whole = {"phase_idx": 3, "classy_state_dict": {"base_model": {"model": state, "meta": {}}}}
    theirs = timm.models.regnet._filter_fn(whole)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in theirs.items()), (
        "the double is wrong"
    )
    torch.save(whole, tmp_path / "m.torch")
    path = tmp_path / "m.torch"
    again = create_model("regnety_002", num_classes=num_classes, checkpoint_path=path)
    wanted = model.state_dict()
    assert all(torch.equal(v, wanted[k]) for k, v in again.state_dict().items())
    report = again.load_report
    assert report.loaded == len(wanted) and "layout of VISSL's RegNet" in report.steps
    assert set(report.dropped.values()) == ({"is for training"} if head == "prototypes" else set())
    torch.save(state["trunk"], path)
    net = create_model("regnety_002", features_only=True, checkpoint_path=path)
    assert not net.load_report.initial and not net.load_report.dropped


def test_the_original_hiera(timm: Any, tmp_path: Path) -> None:
    model = noisy(create_model("hiera_tiny_224", num_classes=10))
    wanted = model.state_dict()
    names = {"head.fc.": "head.projection.", "head.norm.": "norm."}
    state = {
        next((old + k.removeprefix(new) for new, old in names.items() if k.startswith(new)), k): v
        for k, v in wanted.items()
    }
    whole = {"model_state": state, "epoch": 3}
    theirs = timm.models.hiera.checkpoint_filter_fn(whole)
    assert all(v is wanted[k] for k, v in theirs.items()), "the double is wrong"
    torch.save(whole, tmp_path / "m.pth")
    again = create_model("hiera_tiny_224", num_classes=10, checkpoint_path=tmp_path / "m.pth")
    assert all(torch.equal(v, wanted[k]) for k, v in again.state_dict().items())
    complete(again, len(wanted))


def clip_resnet(state: State) -> State:
    """Our names to those of OpenAI's CLIP."""
    found = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "stem":  # stem.conv1.bn.weight
            name = f"{parts[2]}{parts[1][-1]}.{parts[3]}"
        elif parts[0] == "head":
            old = {"pos_embed": "positional_embedding", "proj": "c_proj"}
            name = ".".join(["attnpool", old.get(parts[1], f"{parts[1]}_proj"), *parts[2:]])
        elif parts[3] == "shortcut":
            name = (
                f"layer{int(parts[1]) + 1}.{parts[2]}.downsample.{int(parts[5] == 'bn')}.{parts[6]}"
            )
        else:
            name = f"layer{int(parts[1]) + 1}.{parts[2]}.{parts[4]}{parts[3][4]}.{parts[5]}"
        found[f"visual.{name}"] = value
    return found


def test_the_resnet_of_clip(timm: Any) -> None:
    with torch.device("meta"):
        peer: Any = timm.create_model("resnet50_clip")
        model, flat = (
            create_model("resnet50_clip"),
            create_model("resnet50_clip_gap", num_classes=0),
        )
    wanted = model.state_dict()
    state = clip_resnet(wanted)
    theirs = timm.models.byobnet.checkpoint_filter_fn(dict(state), peer)
    assert all(v is wanted[k] for k, v in theirs.items()), "the double is wrong"
    contents = featnet.checkpoints.files.Contents({**state, "text.x": torch.ones(1)})
    draft = checkpoint.fit(model, contents)
    assert list(draft.tensors) == list(wanted) and draft.dropped == {
        "text.x": "outside of 'visual.'"
    }
    assert all(v is wanted[k] for k, v in draft.tensors.items())
    draft = checkpoint.fit(flat, contents)
    assert list(draft.tensors) == list(flat.state_dict())
    assert set(draft.dropped.values()) == {
        "outside of 'visual.'",
        "the model pools without attention",
    }


def test_a_file_that_ends_before_the_norm_of_the_head(tmp_path: Path) -> None:
    """As those that learnt by filling in masks; a name of the tables says that it has no
    classes."""
    state = noisy(create_model("convnextv2_atto", num_classes=0)).state_dict()
    state = {k: v for k, v in state.items() if not k.startswith("head.")}
    overlay = {"file": str(saved(state, tmp_path / "m.safetensors"))}
    model = create_model("convnextv2_atto.fcmae", pretrained_cfg_overlay=overlay)
    assert set(model.load_report.initial) == {"head.norm.weight", "head.norm.bias"}
    assert model.head.norm.weight.eq(1).all() and model.head.norm.bias.eq(0).all()
    with pytest.raises(CheckpointError, match=r"missing \(4\): head.norm.weight"):
        create_model("convnextv2_atto", checkpoint_path=overlay["file"])


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("vit_tiny_patch16_224", {"pos_embed": torch.ones(3), "cls_token": torch.ones(1)}),
        (
            "vit_tiny_patch16_224",
            {
                "embedding/kernel": torch.ones(2),
                "Transformer/encoderblock/LayerNorm_0/scale": torch.ones(()),
            },
        ),
        (
            "convnext_atto",
            {
                "features.1.0.layer_scale": torch.ones(1),
                "features.0.0.weight": torch.ones(1),
                "features.x.y": torch.ones(1),
            },
        ),
        ("densenet121", {"features.denseblock1.denselayer1.norm.1.weight": torch.ones(())}),
    ],
)
def test_shapes_that_no_network_has(name: str, bad: State, tmp_path: Path) -> None:
    """Whatever goes wrong on the way, the answer is one error, and the model is what it was."""
    model = create_model(name, num_classes=10)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="othing was loaded"):
        featnet.load_checkpoint(model, saved(bad, tmp_path / "m.safetensors"))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# What conversion is not -------------------------------------------------------------------------


def test_a_file_of_another_family_is_refused_and_named(torchvision: Any, tmp_path: Path) -> None:
    state = torchvision_model("mobilenet_v3_small").state_dict()
    path = saved(state, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="It looks like torchvision's MobileNetV3"):
        create_model("resnet18", checkpoint_path=path)
    with pytest.raises(CheckpointError, match="does not fit MobileNetV3"):
        create_model("mobilenetv3_large_100", checkpoint_path=path)


def test_conversion_writes_into_nothing_that_was_given(torchvision: Any) -> None:
    state = noisy(torchvision_model("mobilenet_v3_small")).state_dict()
    before = {key: value.clone() for key, value in state.items()}
    names = list(state)
    checkpoint.load(create_model("mobilenetv3_small_100"), state, source="here")
    assert list(state) == names and all(torch.equal(state[k], before[k]) for k in names)


def test_two_tensors_of_one_name_are_refused() -> None:
    draft = conversion.Draft({"a": torch.zeros(1), "b": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="'b' and 'a' would both be 'c'"):
        draft.rename(lambda key: "c")


def test_on_the_command_line(
    torchvision: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = noisy(torchvision_model("mobilenet_v3_small", num_classes=7))
    torch.save(theirs.state_dict(), tmp_path / "m.pth")
    out = tmp_path / "out.safetensors"
    arguments = [str(tmp_path / "m.pth"), str(out), "--model", "mobilenetv3_small_100"]
    assert main(["convert", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "torchvision's MobileNetV3" in printed and "converted" in printed
    model = create_model("mobilenetv3_small_100", num_classes=7, checkpoint_path=out)
    assert model.load_report.loaded == len(load_file(out)) and not model.load_report.steps
    x = helpers.image_batch(64, 64)
    with torch.no_grad():
        assert helpers.error(model.eval()(x), theirs(x)) < 1e-5
    again = tmp_path / "again.safetensors"
    again.write_bytes(out.read_bytes())
    assert main(["convert", str(out), str(again), "--model", "resnet18"]) == 2
    assert "does not fit ResNet" in capsys.readouterr().err
    assert load_file(again), "a conversion that fails leaves the file"


@pytest.mark.parametrize(
    ("out", "why"),
    [
        ("m.pth", "safetensors are written.*'m.safetensors'"),
        ("m.safetensors", "is the file that is read"),
        ("link.safetensors", "is the file that is read"),
        ("m", "safetensors are written"),
    ],
)
def test_a_conversion_replaces_no_file_of_another_kind(
    out: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = create_model("test_resnet").state_dict()
    torch.save(state, tmp_path / "m.pth")
    save_file(state, tmp_path / "m.safetensors")
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "m.safetensors")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    source = tmp_path / ("m.pth" if out in ("m.pth", "m") else "m.safetensors")
    arguments = [str(source), str(tmp_path / out), "--model", "test_resnet"]
    assert main(["convert", *arguments]) == 2
    assert re.search(why, capsys.readouterr().err)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# transformers' networks with names of their own: its class, its config, our name and arguments, and
# the largest relative difference, where an epsilon differs
SMALL_STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
OUR_VIT = {"embed_dim": 48, "depth": 2, "num_heads": 3, "mlp_ratio": 4.0, "img_size": 64}
FAMILIES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], float]] = {
    "DINOv3": (
        "DINOv3ViTModel",
        {**SMALL_VIT, "num_register_tokens": 4},
        "vit_base_patch16_dinov3_qkvb",
        {**OUR_VIT, "num_classes": 0},
        1e-5,
    ),
    "DINOv3, gated": (
        "DINOv3ViTModel",
        {**SMALL_VIT, "num_register_tokens": 4, "use_gated_mlp": True, "hidden_act": "silu"},
        "vit_huge_plus_patch16_dinov3_qkvb",
        {**OUR_VIT, "num_classes": 0},
        1e-5,
    ),
    "DINOv3 ConvNeXt": (
        "DINOv3ConvNextModel",
        {"hidden_sizes": [40, 80, 160, 320], "depths": [2, 2, 6, 2]},
        "convnext_atto",
        {"num_classes": 0, "conv_mlp": False},
        1e-5,
    ),
    "CLIP": (
        "CLIPVisionModelWithProjection",
        {**SMALL_VIT, "projection_dim": 10, "hidden_act": "gelu"},
        "vit_base_patch16_clip_224",
        {**OUR_VIT, "num_classes": 10},
        1e-10,
    ),
    "SigLIP": (
        "SiglipVisionModel",
        {**SMALL_VIT, "hidden_act": "gelu"},
        "vit_base_patch16_siglip_224",
        OUR_VIT,
        1e-10,
    ),
    "BEiT": (
        "BeitForImageClassification",
        {**SMALL_VIT, "use_relative_position_bias": True, "layer_norm_eps": 1e-6},
        "beit_base_patch16_224",
        {**OUR_VIT, "num_classes": 10},
        1e-10,
    ),
    "DeiT": (
        "DeiTForImageClassificationWithTeacher",
        {**SMALL_VIT, "layer_norm_eps": 1e-6},
        "deit_tiny_distilled_patch16_224",
        {**OUR_VIT, "num_classes": 10},
        1e-10,
    ),
    "RegNetY": (
        "RegNetForImageClassification",
        {
            "embedding_size": 32,
            "hidden_sizes": [48, 104, 208, 440],
            "depths": [1, 3, 6, 6],
            "groups_width": 8,
            "layer_type": "y",
            "num_labels": 10,
        },
        "regnety_004",
        {"num_classes": 10},
        1e-10,
    ),
    "RegNetX": (
        "RegNetForImageClassification",
        {
            "embedding_size": 32,
            "hidden_sizes": [32, 64, 160, 400],
            "depths": [1, 2, 7, 12],
            "groups_width": 16,
            "layer_type": "x",
            "num_labels": 10,
        },
        "regnetx_004_tv",
        {"num_classes": 10},
        1e-10,
    ),
    "MobileNetV2": (
        "MobileNetV2ForImageClassification",
        {"num_labels": 10},
        "mobilenetv2_100",
        {"num_classes": 10, "pad_type": "same"},
        1e-6,  # variances that hold its other epsilon, in float32
    ),
    "PVTv2": (
        "PvtV2ForImageClassification",
        {
            "hidden_sizes": [32, 64, 160, 256],
            "depths": [2, 2, 2, 2],
            "num_attention_heads": [1, 2, 5, 8],
            "mlp_ratios": [8, 8, 4, 4],
            "num_labels": 10,
        },
        "pvt_v2_b0",
        {"num_classes": 10},
        1e-5,  # norms of patches have an epsilon of 1e-6 there
    ),
    "Hiera": (
        "HieraForImageClassification",
        {
            "embed_dim": 16,
            "depths": [1, 2, 3, 1],
            "num_heads": [1, 2, 4, 8],
            "image_size": [64, 64],
            "num_labels": 10,
        },
        "hiera_tiny_224",
        {"embed_dim": 16, "stages": (1, 2, 3, 1), "img_size": 64, "num_classes": 10},
        1e-10,
    ),
}


def one_of_transformers(kind: str) -> Any:
    library = helpers.peer("transformers")
    cls, options, *_ = FAMILIES[kind]
    config = getattr(library, cls).config_class(**options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return noisy(getattr(library, cls)(config))


@pytest.mark.parametrize("where", ["file", "memory"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_transformers_families(kind: str, where: str, tmp_path: Path) -> None:
    theirs = one_of_transformers(kind)
    _, _, name, options, tolerance = FAMILIES[kind]
    path = tmp_path / "model.safetensors"
    if where == "memory":
        saved(theirs.state_dict(), path)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs.save_pretrained(tmp_path)
    theirs = theirs.double()
    model = create_model(name, checkpoint_path=path, **options, **DOUBLE).eval()
    assert not model.load_report.initial and any(
        "layout of transformers'" in step for step in model.load_report.steps
    )
    with torch.no_grad():
        output = theirs(X)
        wanted: Any = next(
            value
            for name in ("logits", "image_embeds", "pooler_output", "last_hidden_state")
            if (value := getattr(output, name, None)) is not None
        )
        ours = model(X)
        if "DINOv3ViT" in FAMILIES[kind][0]:  # which pools otherwise
            ours, wanted = model.forward_features(X), output.last_hidden_state
        assert helpers.error(ours.reshape(wanted.shape), wanted) < tolerance
    net = create_model(name, features_only=True, checkpoint_path=path, **options, **DOUBLE)
    kept = net.state_dict()
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items() if k in kept)


def test_padding_that_a_file_does_not_tell(tmp_path: Path) -> None:
    path = saved(one_of_transformers("MobileNetV2").state_dict(), tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match='Google.*pad_type="same"'):
        create_model("mobilenetv2_100", num_classes=10, checkpoint_path=path)


@pytest.mark.parametrize("kind", ["BEiT", "DeiT"])
@pytest.mark.parametrize("features_only", [False, True])
def test_relatives_of_a_vit_are_none(kind: str, features_only: bool, tmp_path: Path) -> None:
    path = saved(one_of_transformers(kind).state_dict(), tmp_path / "m.safetensors")
    options: dict[str, Any] = {"features_only": True} if features_only else {"num_classes": 10}
    with pytest.raises(CheckpointError, match="build the network by its name"):
        create_model("vit_base_patch16_224", checkpoint_path=path, **OUR_VIT, **options)
