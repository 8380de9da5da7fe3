"""featnet: image backbones as multi-scale feature extractors.

The names below are the public ones. They are imported when first used, so that
``import featnet`` is instant and names of models and checkpoints can be read without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .assembly import load_checkpoint as load_checkpoint
    from .backbone import Backbone as Backbone
    from .checkpoints.checkpoint import LoadReport as LoadReport
    from .checkpoints.demo import demo_weights as demo_weights
    from .checkpoints.loading import convert_checkpoint as convert_checkpoint
    from .checkpoints.publish import push_to_hub as push_to_hub
    from .checkpoints.publish import save_for_hub as save_for_hub
    from .checkpoints.sources import prefetch as prefetch
    from .deploy.enginenet import EngineNet as EngineNet
    from .deploy.exporting import ExportReport as ExportReport
    from .deploy.exporting import export as export
    from .deploy.optimizing import OptimizeReport as OptimizeReport
    from .deploy.optimizing import optimize as optimize
    from .deploy.reparam import reparameterize as reparameterize
    from .deploy.saving import load_optimized as load_optimized
    from .deploy.saving import save_optimized as save_optimized
    from .dilation.stride import set_output_stride as set_output_stride
    from .extraction import adapters as adapters
    from .extraction.discovery import discover as discover
    from .extraction.extractors import FeatureDictNet as FeatureDictNet
    from .extraction.extractors import FeatureListNet as FeatureListNet
    from .extraction.fx.graph import create_feature_extractor as create_feature_extractor
    from .extraction.fx.graph import get_graph_node_names as get_graph_node_names
    from .extraction.fx.graphnet import GraphExtractor as GraphExtractor
    from .extraction.hooknet import FeatureHookNet as FeatureHookNet
    from .extraction.hooks import FeatureHooks as FeatureHooks
    from .extraction.hooks import Tap as Tap
    from .extraction.pyramid import SimplePyramid as SimplePyramid
    from .extraction.tapping import extract as extract
    from .extraction.tapping import list_taps as list_taps
    from .extraction.tiling import extract_tiled as extract_tiled
    from .factory import build_model_with_cfg as build_model_with_cfg
    from .factory import create_model as create_model
    from .factory import feature_info as feature_info
    from .factory import model_entrypoint as model_entrypoint
    from .features import Feature as Feature
    from .features import FeatureInfo as FeatureInfo
    from .images.components import FeatureBasis as FeatureBasis
    from .images.many.dataset import extract_dataset as extract_dataset
    from .images.many.features import Features as Features
    from .images.many.features import read_features as read_features
    from .images.many.job import extract_images as extract_images
    from .images.pooling import pool_features as pool_features
    from .images.render import render_features as render_features
    from .images.transform import ImageTransform as ImageTransform
    from .images.transform import create_transform as create_transform
    from .inputs import pad_to_divisor as pad_to_divisor
    from .inputs import unpad as unpad
    from .layers.frozen_norm import FrozenBatchNorm2d as FrozenBatchNorm2d
    from .registry import Family as Family
    from .registry import get_weights as get_weights
    from .registry import is_model as is_model
    from .registry import list_models as list_models
    from .registry import list_modules as list_modules
    from .registry import list_pretrained as list_pretrained
    from .registry import register as register
    from .registry import register_model as register_model
    from .training.freeze import freeze as freeze
    from .training.freeze import unfreeze as unfreeze
    from .training.groups import param_groups as param_groups
    from .weights import Weights as Weights

__version__ = "0.1.0"

_PUBLIC = {
    "Backbone": "backbone",
    "EngineNet": "deploy.enginenet",
    "ExportReport": "deploy.exporting",
    "Family": "registry",
    "Feature": "features",
    "FeatureBasis": "images.components",
    "FeatureDictNet": "extraction.extractors",
    "FeatureHookNet": "extraction.hooknet",
    "FeatureHooks": "extraction.hooks",
    "FeatureInfo": "features",
    "FeatureListNet": "extraction.extractors",
    "GraphExtractor": "extraction.fx.graphnet",
    "ImageTransform": "images.transform",
    "LoadReport": "checkpoints.checkpoint",
    "OptimizeReport": "deploy.optimizing",
    "SimplePyramid": "extraction.pyramid",
    "Tap": "extraction.hooks",
    "Weights": "weights",
    "build_model_with_cfg": "factory",
    "convert_checkpoint": "checkpoints.loading",
    "Features": "images.many.features",
    "FrozenBatchNorm2d": "layers.frozen_norm",
    "freeze": "training.freeze",
    "unfreeze": "training.freeze",
    "param_groups": "training.groups",
    "create_feature_extractor": "extraction.fx.graph",
    "create_model": "factory",
    "create_transform": "images.transform",
    "demo_weights": "checkpoints.demo",
    "discover": "extraction.discovery",
    "export": "deploy.exporting",
    "extract": "extraction.tapping",
    "extract_dataset": "images.many.dataset",
    "extract_images": "images.many.job",
    "extract_tiled": "extraction.tiling",
    "feature_info": "factory",
    "get_graph_node_names": "extraction.fx.graph",
    "get_weights": "registry",
    "is_model": "registry",
    "list_models": "registry",
    "list_modules": "registry",
    "list_pretrained": "registry",
    "list_taps": "extraction.tapping",
    "load_checkpoint": "assembly",
    "load_optimized": "deploy.saving",
    "model_entrypoint": "factory",
    "optimize": "deploy.optimizing",
    "pad_to_divisor": "inputs",
    "pool_features": "images.pooling",
    "prefetch": "checkpoints.sources",
    "push_to_hub": "checkpoints.publish",
    "read_features": "images.many.features",
    "register": "registry",
    "register_model": "registry",
    "render_features": "images.render",
    "reparameterize": "deploy.reparam",
    "save_for_hub": "checkpoints.publish",
    "save_optimized": "deploy.saving",
    "set_output_stride": "dilation.stride",
    "unpad": "inputs",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    import importlib

    if name == "adapters":  # a module, under the name that users know it by
        return importlib.import_module(".adapters", __name__)
    if name not in _PUBLIC:
        raise AttributeError(f"module 'featnet' has no attribute {name!r}")
    from .collector import uncollected

    with uncollected():
        value = getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
