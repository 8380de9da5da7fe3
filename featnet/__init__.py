"""featnet: image backbones as multi-scale feature extractors.

The names below are the public ones. They are imported when first used, so that
``import featnet`` is instant and names of models and checkpoints can be read without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backbone import Backbone as Backbone
    from .checkpoint import LoadReport as LoadReport
    from .discovery import discover as discover
    from .exporting import ExportReport as ExportReport
    from .exporting import export as export
    from .extractors import FeatureDictNet as FeatureDictNet
    from .extractors import FeatureListNet as FeatureListNet
    from .factory import build_model_with_cfg as build_model_with_cfg
    from .factory import create_model as create_model
    from .factory import feature_info as feature_info
    from .factory import model_entrypoint as model_entrypoint
    from .features import Feature as Feature
    from .features import FeatureInfo as FeatureInfo
    from .graph import create_feature_extractor as create_feature_extractor
    from .graph import get_graph_node_names as get_graph_node_names
    from .graphnet import GraphExtractor as GraphExtractor
    from .hooknet import FeatureHookNet as FeatureHookNet
    from .hooks import FeatureHooks as FeatureHooks
    from .hooks import Tap as Tap
    from .inputs import pad_to_divisor as pad_to_divisor
    from .inputs import unpad as unpad
    from .loading import convert_checkpoint as convert_checkpoint
    from .loading import load_checkpoint as load_checkpoint
    from .optimizing import OptimizeReport as OptimizeReport
    from .optimizing import optimize as optimize
    from .publish import push_to_hub as push_to_hub
    from .publish import save_for_hub as save_for_hub
    from .pyramid import SimplePyramid as SimplePyramid
    from .registry import Family as Family
    from .registry import get_weights as get_weights
    from .registry import is_model as is_model
    from .registry import list_models as list_models
    from .registry import list_modules as list_modules
    from .registry import list_pretrained as list_pretrained
    from .registry import register as register
    from .registry import register_model as register_model
    from .reparam import reparameterize as reparameterize
    from .sources import prefetch as prefetch
    from .stride import set_output_stride as set_output_stride
    from .tapping import extract as extract
    from .tapping import list_taps as list_taps
    from .weights import Weights as Weights

__version__ = "0.1.0"

_PUBLIC = {
    "Backbone": "backbone",
    "ExportReport": "exporting",
    "Family": "registry",
    "Feature": "features",
    "FeatureDictNet": "extractors",
    "FeatureHookNet": "hooknet",
    "FeatureHooks": "hooks",
    "FeatureInfo": "features",
    "FeatureListNet": "extractors",
    "GraphExtractor": "graphnet",
    "LoadReport": "checkpoint",
    "OptimizeReport": "optimizing",
    "SimplePyramid": "pyramid",
    "Tap": "hooks",
    "Weights": "weights",
    "build_model_with_cfg": "factory",
    "convert_checkpoint": "loading",
    "create_feature_extractor": "graph",
    "create_model": "factory",
    "discover": "discovery",
    "export": "exporting",
    "extract": "tapping",
    "feature_info": "factory",
    "get_graph_node_names": "graph",
    "get_weights": "registry",
    "is_model": "registry",
    "list_models": "registry",
    "list_modules": "registry",
    "list_pretrained": "registry",
    "list_taps": "tapping",
    "load_checkpoint": "loading",
    "model_entrypoint": "factory",
    "optimize": "optimizing",
    "pad_to_divisor": "inputs",
    "prefetch": "sources",
    "push_to_hub": "publish",
    "register": "registry",
    "register_model": "registry",
    "reparameterize": "reparam",
    "save_for_hub": "publish",
    "set_output_stride": "stride",
    "unpad": "inputs",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _PUBLIC:
        raise AttributeError(f"module 'featnet' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
