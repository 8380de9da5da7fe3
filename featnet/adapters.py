"""The adapters, under the name that users import; :mod:`featnet.extraction.adapters` has them."""

from .extraction.adapters import (
    BackboneOutput,
    Detectron2Backbone,
    ShapeSpec,
    TorchvisionBackbone,
    TransformersBackbone,
)

__all__ = [
    "BackboneOutput",
    "Detectron2Backbone",
    "ShapeSpec",
    "TorchvisionBackbone",
    "TransformersBackbone",
]
