"""featnet in other libraries' places: adapters, and their own code unmodified over featnet."""

from __future__ import annotations

import ast
import copy
import functools
import importlib.metadata
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from torch import nn

import featnet
from featnet.errors import ArgumentError
from featnet.extraction import adapters


def net(**options: Any) -> Any:
    made = featnet.create_model("resnet18", features_only=True, out_indices=(1, 2, 3, 4), **options)
    return helpers.fill_noise(made).eval()


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return helpers.image_batch(64, 64)


def consumer(name: str) -> Any:
    """A library that stands on timm; a peer as timm is one."""
    helpers.peer("timm")
    helpers.peer("torchvision")
    return helpers.peer(name)


def module_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """One module of an installed library, without the ``__init__`` of the packages it is in: they
    import what the whole library needs."""
    helpers.peer("timm")
    helpers.peer("torchvision")
    first, *_ = parts = name.split(".")[:-1]
    try:
        root = Path(
            importlib.metadata.distribution(
                {"mmseg": "mmsegmentation"}.get(first, first)
            ).locate_file("")
        )
    except importlib.metadata.PackageNotFoundError:
        return helpers.peer(first)  # skips, or fails
    for end in range(1, len(parts) + 1):
        package = types.ModuleType(".".join(parts[:end]))
        package.__path__ = [str(root.joinpath(*parts[:end]))]
        monkeypatch.setitem(sys.modules, package.__name__, package)
    return helpers.peer(name)


# Adapters --------------------------------------------------------------------------------------


def test_none_of_the_libraries_is_imported() -> None:
    tree = ast.parse(Path(adapters.__file__).read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {
        str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) if not node.level
    }
    assert {n.partition(".")[0] for n in names} <= {*sys.stdlib_module_names, "torch"}


def test_torchvisions_detectors_over_an_fpn(x: torch.Tensor) -> None:
    helpers.peer("torchvision")
    from torchvision.models.detection import FasterRCNN
    from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

    body = net()
    neck = FeaturePyramidNetwork(body.feature_info.channels(), 16)
    backbone = adapters.TorchvisionBackbone(body, neck=neck)
    assert backbone.out_channels == 16
    assert [tuple(m.shape) for m in backbone(x).values()] == [(1, 16, s, s) for s in (16, 8, 4, 2)]
    from torchvision.models.detection.rpn import AnchorGenerator

    detector = FasterRCNN(
        backbone,
        num_classes=3,
        min_size=64,
        max_size=64,
        rpn_anchor_generator=AnchorGenerator(((16,), (32,), (64,), (128,)), ((0.5, 1.0, 2.0),) * 4),
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2),
    ).train()
    target = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
    losses = detector([torch.rand(3, 64, 64)], [target])
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in body.parameters())


def test_one_map_needs_no_neck(x: torch.Tensor) -> None:
    body = featnet.create_model("resnet18", features_only=True, out_indices=(3,))
    backbone = adapters.TorchvisionBackbone(body, names=["map"])
    assert backbone.out_channels == 256 and list(backbone(x)) == ["map"]
    with pytest.raises(ArgumentError, match=r"\[64, 128, 256, 512\] channels"):
        adapters.TorchvisionBackbone(net())


class Sums(nn.Module):
    """A neck that gives a list."""

    def forward(self, maps: Any) -> list[torch.Tensor]:
        return [y.sum(1, keepdim=True) for y in maps.values()]


class Raises(nn.Module):
    def forward(self, maps: Any) -> Any:
        raise KeyError("no such level")


@pytest.mark.parametrize("options", [{}, {"feature_cls": "dict"}, {"return_prefix_tokens": True}])
def test_a_pyramid_behind_a_vit(options: dict[str, Any]) -> None:
    """Of a list, a dict, and beside prefix tokens; a detector's step reaches every parameter."""
    helpers.peer("torchvision")
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.rpn import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    body = featnet.create_model(
        "vit_tiny_patch16_224",
        features_only=True,
        out_indices=(1,),
        depth=2,
        img_size=64,
        **options,
    )
    pyramid = featnet.SimplePyramid(body.feature_info, out_channels=8)
    backbone = adapters.TorchvisionBackbone(body, neck=pyramid)
    assert backbone.out_channels == 8 and backbone.names == ("0", "1", "2", "3")
    x = torch.rand(1, 3, 64, 96)
    sizes = [tuple(y.shape[-2:]) for y in backbone(x).values()]
    assert sizes == [(16, 24), (8, 12), (4, 6), (2, 3)]
    for info in (backbone.feature_info, pyramid.feature_info):
        assert info.channels() == [8] * 4 and info.reduction() == [4, 8, 16, 32]
        assert info.sizes((64, 96)) == sizes
    detector = FasterRCNN(
        backbone,
        num_classes=3,
        min_size=64,
        max_size=64,
        rpn_anchor_generator=AnchorGenerator(((16,), (32,), (64,), (128,)), ((0.5, 1.0, 2.0),) * 4),
        box_roi_pool=MultiScaleRoIAlign(backbone.names, 7, 2),
    ).train()
    target = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
    sum(detector([torch.rand(3, 64, 64)], [target]).values()).backward()
    idle = {name for name, p in backbone.named_parameters() if p.grad is None}
    assert not idle
    assert copy.deepcopy(pyramid).feature_info.channels() == [8] * 4


def test_strides_of_a_pyramid_may_be_fractions() -> None:
    body = featnet.create_model(
        "vit_small_patch14_dinov2", features_only=True, out_indices=1, depth=2, img_size=56
    )
    pyramid = featnet.SimplePyramid(body.feature_info, scales=(4, 1))
    assert pyramid.feature_info.reduction() == [3.5, 14]
    assert pyramid.feature_info.sizes((56, 70)) == [(16, 20), (4, 5)]
    backbone = adapters.Detectron2Backbone(body, neck=pyramid)
    assert [s.stride for s in backbone.output_shape().values()] == [3.5, 14]


@pytest.mark.parametrize("adapter", ["Detectron2Backbone", "TransformersBackbone"])
def test_any_neck(adapter: str, x: torch.Tensor) -> None:
    body = net()
    backbone = getattr(adapters, adapter)(body, neck=Sums())
    assert backbone.feature_info.channels() == [1] * 4 and backbone.names == ("0", "1", "2", "3")
    assert backbone.feature_info.reduction() == body.feature_info.reduction()
    outputs = backbone(x)
    maps = outputs.values() if isinstance(outputs, dict) else outputs.feature_maps
    assert [tuple(y.shape[-2:]) for y in maps] == backbone.feature_info.sizes((64, 64))


@pytest.mark.parametrize(
    ("neck", "words"),
    [
        (Raises, "Raises does not take .* 'no such level'"),
        (nn.Identity, r"The maps have \[64, 128, 256, 512\] channels"),
        (
            lambda: featnet.SimplePyramid(featnet.feature_info("test_vit")),
            "512 channels; .* for 64",
        ),
    ],
)
def test_a_pair_that_cannot_work(neck: Any, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        adapters.TorchvisionBackbone(net(), neck=neck())
    with pytest.raises(ArgumentError, match="out_channels=7: The maps have"):
        adapters.TorchvisionBackbone(net(), neck=Sums(), out_channels=7)


def test_detectron2s_interface(x: torch.Tensor) -> None:
    backbone = adapters.Detectron2Backbone(net())
    shapes = backbone.output_shape()
    assert list(shapes) == ["res2", "res3", "res4", "res5"] == list(backbone(x))
    assert [s.stride for s in shapes.values()] == [4, 8, 16, 32] and shapes["res5"].channels == 512
    for name, y in backbone(x).items():
        assert y.shape[1] == shapes[name].channels and y.shape[-1] == 64 // shapes[name].stride
    assert backbone.size_divisibility == 32 and backbone.padding_constraints == {}
    dense = adapters.Detectron2Backbone(net(output_stride=8))
    assert list(dense(x)) == ["p0", "p1", "p2", "p3"] and dense.size_divisibility == 8


def test_transformers_interface(x: torch.Tensor) -> None:
    backbone = adapters.TransformersBackbone(net())
    output = backbone(x)
    assert [m.shape[1] for m in output.feature_maps] == backbone.channels == [64, 128, 256, 512]
    assert output[0] is output["feature_maps"] is output.feature_maps and len(output) == 1
    assert isinstance(backbone(x, return_dict=False), tuple)
    with pytest.raises(ArgumentError, match="hidden_states"):
        backbone(x, output_hidden_states=True)


def test_every_kind_of_extractor(x: torch.Tensor) -> None:
    model = featnet.create_model("resnet18").eval()
    nodes = featnet.create_feature_extractor(
        model, ["layer2", "layer4"], suppress_diff_warning=True
    )
    taps = featnet.extract(model, ["layer2", "layer4"])
    for made in (nodes, taps):
        assert list(adapters.Detectron2Backbone(made)(x)) == ["res3", "res5"]


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (nn.Conv2d(3, 3, 1), {}, "no extractor"),
        ("resnet18", {}, "str is no extractor"),
        (None, {"names": ["a"]}, "4 distinct names"),
        (None, {"names": "abcd"}, "4 distinct names"),
        (None, {"names": ["a", "a", "b", "c"]}, "4 distinct names"),
    ],
)
def test_bad_arguments(given: Any, options: Any, message: str) -> None:
    with torch.device("meta"):
        made = featnet.create_model("resnet18", features_only=True, out_indices=(1, 2, 3, 4))
        last = featnet.create_model("resnet18", features_only=True, output_fmt="NHWC")
    with pytest.raises(ArgumentError, match=message):
        adapters.TransformersBackbone(made if given is None else given, **options)
    with pytest.raises(ArgumentError, match="NCHW"):
        adapters.Detectron2Backbone(last)


# Consumers, unmodified, featnet where they call timm --------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_035", "convnext_atto"])
def test_segmentation_models_pytorch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    consumer("segmentation_models_pytorch")
    from segmentation_models_pytorch.encoders import timm_universal

    monkeypatch.setattr(timm_universal, "timm", featnet)
    encoder = timm_universal.TimmUniversalEncoder(name, pretrained=False, in_channels=3, depth=5)
    x = helpers.image_batch(64, 64)
    maps = encoder(x)
    assert [m.shape[1] for m in maps] == list(encoder.out_channels)
    assert [64 // m.shape[-1] for m in maps] == [1, 2, 4, 8, 16, 32]
    if name == "resnet18":
        dense = timm_universal.TimmUniversalEncoder(
            name, pretrained=False, depth=5, output_stride=8
        )
        assert [64 // m.shape[-1] for m in dense(x)] == [1, 2, 4, 8, 8, 8]


def test_segmentation_models_pytorch_unet(monkeypatch: pytest.MonkeyPatch) -> None:
    smp = consumer("segmentation_models_pytorch")
    from segmentation_models_pytorch.encoders import timm_universal

    monkeypatch.setattr(timm_universal, "timm", featnet)
    model = smp.Unet("tu-resnet18", encoder_weights=None, classes=2)
    assert type(model.encoder.model).__module__.startswith("featnet")
    y = model(helpers.image_batch(64, 64, batch=2))
    assert y.shape == (2, 2, 64, 64)
    y.square().mean().backward()
    assert all(p.grad is not None for p in model.encoder.parameters())


def test_transformers_timm_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    consumer("transformers")
    from transformers import TimmBackboneConfig
    from transformers.models.timm_backbone import modeling_timm_backbone as module

    monkeypatch.setattr(module, "timm", featnet)
    config = TimmBackboneConfig(
        backbone="resnet18", out_indices=(1, 2, 3, 4), use_pretrained_backbone=False
    )
    backbone = module.TimmBackbone(config).eval()
    assert type(backbone._backbone).__module__.startswith("featnet")
    x = helpers.image_batch(64, 64)
    with torch.no_grad():
        output = backbone(x)
        assert (
            [m.shape[1] for m in output.feature_maps]
            == [64, 128, 256, 512]
            == list(backbone.channels)
        )
        every = backbone(x, output_hidden_states=True)
    assert torch.equal(every.feature_maps[-1], output.feature_maps[-1])


@pytest.mark.filterwarnings("ignore::FutureWarning")  # its own
def test_transformers_timm_wrapper(monkeypatch: pytest.MonkeyPatch) -> None:
    consumer("transformers")
    from transformers.models.timm_wrapper import configuration_timm_wrapper as configuration
    from transformers.models.timm_wrapper import modeling_timm_wrapper as module

    monkeypatch.setattr(module, "timm", featnet)
    config = configuration.TimmWrapperConfig(architecture="resnet18", num_labels=4)
    whole = module.TimmWrapperForImageClassification(config).eval()
    assert type(whole.timm_model).__module__.startswith("featnet")
    x = helpers.image_batch(64, 64)
    with torch.no_grad():
        output = whole(x, output_hidden_states=True)
        assert output.logits.shape == (1, 4) and len(output.hidden_states) == 5
        assert torch.equal(output.logits, whole.timm_model(x))
        body = module.TimmWrapperModel(config).eval()
        found = body(x, output_hidden_states=[1, 4])
    assert [h.shape[1] for h in found.hidden_states] == [64, 512]
    assert found.pooler_output.shape == (1, 512)
    body.gradient_checkpointing_enable()
    body.train()(x).pooler_output.sum().backward()
    config = configuration.TimmWrapperConfig(architecture="resnet19")
    with pytest.raises(ImportError, match="'resnet19' is not supported"):
        module.TimmWrapperModel(config)


@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet18", {}), ("test_vit", {"pool": "", "proj": "mlp"}), ("resnet18", {"proj": ""})],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of timm, where it imports helpers
def test_open_clips_tower(name: str, options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    consumer("open_clip")
    from open_clip import timm_model as module

    monkeypatch.setattr(module, "timm", featnet)
    tower = module.TimmModel(name, 16, image_size=160, **options)
    assert type(tower.trunk).__module__.startswith("featnet")
    assert tower(helpers.image_batch(160, 160)).shape == (1, 16)
    tower.set_grad_checkpointing()
    tower.lock(unlocked_groups=1)
    frozen = [n for n, p in tower.trunk.named_parameters() if not p.requires_grad]
    assert 0 < len(frozen) < len([*tower.trunk.parameters()])
    tower.lock()
    assert not any(p.requires_grad for p in tower.trunk.parameters())


def test_torchvisions_layer_getter(x: torch.Tensor) -> None:
    helpers.peer("torchvision")
    from torchvision.models._utils import IntermediateLayerGetter

    body = net()
    getter = IntermediateLayerGetter(body, {"layer2": "a", "layer4": "b"})
    found, want = getter(x), body(x)
    assert torch.equal(found["a"], want[1]) and torch.equal(found["b"], want[3])


def test_a_lightning_module_over_a_pyramid(x: torch.Tensor) -> None:
    lightning: Any = consumer("lightning")

    class Segmenter(lightning.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.backbone = net()
            self.head = nn.Conv2d(self.backbone.feature_info.channels()[-1], 2, 1)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return self.head(self.backbone(batch)[-1]).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    model = Segmenter()
    before = model.backbone.conv1.weight.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_steps=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, torch.utils.data.DataLoader([x[0], x[0]], batch_size=2))
    assert not torch.equal(before, model.backbone.conv1.weight)


@pytest.mark.parametrize(
    ("name", "layers", "options"),
    [
        ("resnet18", ["layer1", "layer3"], {}),
        ("convnext_atto", ["stages.1"], {"requires_grad": True}),
        ("test_vit", ["blocks.0", "blocks.2"], {"output_fmt": "NLC", "return_class_token": True}),
        ("test_vit", ["blocks.1"], {"norm": False}),
    ],
)
def test_anomalibs_extractor(
    name: str, layers: list[str], options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = module_alone("anomalib.models.components.feature_extractors.timm", monkeypatch)
    monkeypatch.setattr(module, "timm", featnet)
    # it replaces this function of timm's for good; what was there comes back after the test
    vit = importlib.import_module("timm.models.vision_transformer")
    monkeypatch.setattr(vit, "resample_abs_pos_embed", vit.__dict__["resample_abs_pos_embed"])
    extractor = module.TimmFeatureExtractor(name, list(layers), pre_trained=False, **options)
    assert type(extractor.feature_extractor).__module__.startswith("featnet")
    found = extractor(helpers.image_batch(96, 96))
    assert list(found) == layers
    axis = 2 if options.get("output_fmt") == "NLC" else 1
    assert [y.shape[axis] for y in found.values()] == list(extractor.out_dims)
    assert all(y.requires_grad == options.get("requires_grad", False) for y in found.values())
    if axis == 2:
        assert (
            found["blocks.0"].shape[1]
            == extractor.num_prefix_tokens + (96 // extractor.patch_size) ** 2
        )


def test_anomalibs_extractor_of_a_foreign_model(monkeypatch: pytest.MonkeyPatch) -> None:
    module = module_alone("anomalib.models.components.feature_extractors.timm", monkeypatch)
    make = functools.partial(featnet.create_feature_extractor, suppress_diff_warning=True)
    monkeypatch.setattr(module, "create_feature_extractor", make)
    model = featnet.create_model("resnet18")
    extractor = module.TimmFeatureExtractor(model, ["layer2", "layer4"])
    assert list(extractor.out_dims) == [128, 512]
    assert isinstance(extractor.feature_extractor, featnet.GraphExtractor)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_mmsegs_backbone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    consumer("mmengine")
    module = module_alone("mmseg.models.backbones.timm_backbone", monkeypatch)
    monkeypatch.setattr(module, "timm", featnet)
    backbone = module.TIMMBackbone(
        name, pretrained=False, out_indices=[0, 1, 2, 3], output_stride=None
    )
    assert type(backbone.timm_model).__module__.startswith("featnet")
    backbone.init_weights()
    maps = backbone.train()(helpers.image_batch(64, 64, batch=2))
    assert [y.shape[1] for y in maps] == backbone.timm_model.feature_info.channels()
    maps[-1].sum().backward()


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_wrappers_by_hand(name: str, x: torch.Tensor) -> None:
    """How anomaly detectors choose levels by their modules' names, and what wrappers of the mm
    family set on what they get."""
    names = [
        row["module"]
        for row in featnet.create_model(
            name, pretrained=False, features_only=True, exportable=True
        ).feature_info.info
    ]
    wanted = [names.index(names[1]), names.index(names[2])]
    body = featnet.create_model(
        model_name=name,
        pretrained=False,
        pretrained_cfg=None,
        features_only=True,
        exportable=True,
        out_indices=wanted,
        in_chans=3,
        checkpoint_path="",
        output_stride=None,
    )
    for gone in ("fc", "classifier", "global_pool"):
        setattr(body, gone, None)
    assert [y.shape[1] for y in body(x)] == body.feature_info.channels()
    rows = body.feature_info.get_dicts(keys=["num_chs", "reduction"])
    assert [row["num_chs"] for row in rows] == body.feature_info.channels()
    model = featnet.create_model(name)
    model.reset_classifier(0, "")
    assert model(x).shape == model.forward_features(x).shape
