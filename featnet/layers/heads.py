"""Heads: what lies between a network's final features and its logits.

A head is a record of names. The layers belong to the network itself, under the names that
checkpoints have for them; the head says in which order they run, around the pooling, and rebuilds
the classifier. A family names its head in ``add_head(..., head=...)``; plain pooling and a linear
layer need none.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import ArgumentError
from .attention_pool import TokenPool
from .blocks import chain
from .conv import norm_and_act
from .factory import Layer, build_act
from .pool import GlobalPool
from .tokens import SEQUENCE_POOLS, SequencePool


class Headed(Protocol):
    """The part of a network that a head uses."""

    num_features: int
    num_prefix_tokens: int
    drop_rate: float
    training: bool
    global_pool: GlobalPool
    last_fc: str | tuple[str, ...]

    def get_submodule(self, target: str) -> nn.Module:
        """A module by its dotted name."""


class ChannelsLast(nn.Sequential):
    """Layers over (N, H, W, C), run on an (N, C, H, W) map."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return chain(self, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvClassifier(nn.Conv2d):
    """A linear layer with the weights of a 1x1 convolution; (N, C) -> (N, classes)."""

    def __init__(self, channels: int, num_classes: int, **place: Any) -> None:
        super().__init__(channels, num_classes, 1, **place)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x[..., None, None]).flatten(1)


class Head:
    """Pooling, what is named behind it, dropout, a linear layer.

    With ``global_pool=""`` the layers run on every position of the map instead.

    Args:
        after: names of the modules between pooling and classifier, in order.
        before: names of the modules between the final features and the pooling.
        channels: of the map that is pooled; by default the network's ``num_features``.
        takes: channels of the pooled vector that the modules behind the pooling are built for; by
            default ``channels``.
        gives: channels that they give; by default as many.
        channels_last: they are for (..., C), not for (N, C, H, W).
        classifier: ``f(channels, classes, device=, dtype=)``.

    Example:
        >>> import torch
        >>> from featnet import create_model
        >>> model = create_model("mobilenetv3_small_050", num_classes=5)
        >>> type(model.head_spec).__name__, model.head_hidden_size
        ('ConvHead', 1024)
        >>> model.forward_head(torch.rand(1, model.num_features, 2, 2)).shape
        torch.Size([1, 5])
    """

    def __init__(
        self,
        *after: str,
        before: Sequence[str] = (),
        channels: int | None = None,
        takes: int | None = None,
        gives: int | None = None,
        channels_last: bool = False,
        classifier: Layer = nn.Linear,
    ) -> None:
        self.after, self.before, self.classifier = after, tuple(before), classifier
        self.channels, self.takes, self.gives = channels, takes, gives
        self.channels_last = channels_last

    def build(self, model: object, channels: int, global_pool: str) -> None:
        """Add this head's own layers to the network; here there are none.

        Args:
            model: the network, in whose constructor this is called.
            channels: of its final features.
            global_pool: the pooling that it starts with.
        """

    def make_pool(self, model: Headed, global_pool: str) -> GlobalPool:
        """The pooling of this name.

        Raises:
            ArgumentError: the network has no such pooling.
        """
        del model
        return GlobalPool(global_pool)

    def width(self, model: Headed, pool: GlobalPool) -> int:
        """Channels that the classifier is given behind this pooling.

        Raises:
            ArgumentError: the layers between are built for another number of channels.
        """
        channels = self.channels or model.num_features
        pooled = channels * pool.multiplier
        takes = self.takes or (channels if self.after else pooled)
        if pooled != takes:
            raise ArgumentError(
                f"global_pool={pool.pool_type!r} gives {pooled} channels; the layers between "
                f"pooling and classifier are built for {takes}. Say global_pool when "
                "the model is made, if its head can be built for another width."
            )
        return self.gives or pooled

    def replace(self, model: Any, linear: dict[str, nn.Module]) -> None:
        """Put new classifiers into the network.

        Args:
            model: the network.
            linear: each classifier's name and the new layer, an Identity without classes.
        """
        for name, layer in linear.items():
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer)

    def pool(self, model: Headed, x: torch.Tensor) -> torch.Tensor:
        """Final features -> what the classifier is given, before dropout."""
        x = chain([model.get_submodule(name) for name in self.before], x)
        x = model.global_pool(x)
        if not self.after:
            return x
        layers = [model.get_submodule(name) for name in self.after]
        if self.channels_last:
            as_map = not model.global_pool.pool_type and x.ndim == 4
            x = chain(layers, x.permute(0, 2, 3, 1) if as_map else x)
            return x.permute(0, 3, 1, 2) if as_map else x
        pooled = bool(model.global_pool.pool_type)
        x = chain(layers, x[..., None, None] if pooled else x)
        return x.flatten(1) if pooled else x

    def __call__(self, model: Headed, x: torch.Tensor, *, pre_logits: bool = False) -> Any:
        """Final features -> logits, or with ``pre_logits`` what the classifier would be given."""
        x = self.pool(model, x)
        if model.drop_rate:
            x = F.dropout(x, model.drop_rate, model.training)
        return x if pre_logits else model.get_submodule(classifiers(model)[0])(x)


def classifiers(model: Headed) -> tuple[str, ...]:
    """Names of the network's linear layers of classes."""
    return (model.last_fc,) if isinstance(model.last_fc, str) else model.last_fc


class NormMlp(Head):
    """Pooling, a norm, perhaps a hidden layer, a linear layer: ConvNeXt's.

    The layers are ``norm`` and ``pre_logits`` beside the classifier.

    Args:
        norm: ``f(channels)``, of an (N, C, H, W) map; None for none.
        hidden: width of the layer before the classifier; None for none.
        act: its activation.
    """

    def __init__(
        self, *, norm: Layer | None, hidden: int | None = None, act: Layer = nn.GELU
    ) -> None:
        super().__init__(gives=hidden)
        self.norm, self.act = norm, act

    def build(self, model: Any, channels: int, global_pool: str) -> None:
        within = OrderedDict[str, nn.Module]()
        if self.gives:
            within["fc"] = nn.Linear(channels, self.gives)
            within["act"] = self.act()
        names = [f"{_parent(model)}.{name}" for name in ("norm", "pre_logits")]
        self.after = tuple(
            n for n, used in zip(names, (self.norm, self.gives), strict=True) if used
        )
        parent = model.get_submodule(_parent(model))
        parent.norm = self.norm(channels) if self.norm else nn.Identity()
        parent.pre_logits = ChannelsLast(within)


class ConvHead(Head):
    """Pooling, a 1x1 convolution with norm and activation, a linear layer: MobileNetV3's.

    The layers are the network's ``conv_head``, ``norm_head`` and ``act2``.

    Args:
        channels: that the convolution gives.
        act: activation behind it.
        norm: ``f(channels)`` in between; None for none.
        bias: of the convolution.
    """

    def __init__(
        self, channels: int, *, act: Layer, norm: Layer | None = None, bias: bool = True
    ) -> None:
        super().__init__("conv_head", "norm_head", "act2", gives=channels)
        self.act, self.norm, self.bias = act, norm, bias

    def build(self, model: Any, channels: int, global_pool: str) -> None:
        assert self.gives
        self.takes = channels * GlobalPool(global_pool).multiplier
        model.conv_head = nn.Conv2d(self.takes, self.gives, 1, bias=self.bias)
        model.norm_head, model.act2 = nn.Identity(), build_act(self.act)
        if self.norm is not None:
            model.norm_head, model.act2 = norm_and_act(self.norm, self.gives, self.act)


class AttentionPoolHead(Head):
    """An attention pool, whose own last layer is the classifier: CLIP's ResNets'.

    Args:
        name: of the :class:`featnet.layers.AttentionPool2d`.
    """

    def __init__(self, name: str = "head") -> None:
        super().__init__()
        self.name = name

    def make_pool(self, model: Headed, global_pool: str) -> GlobalPool:
        return TokenPool(global_pool)

    def pool(self, model: Headed, x: torch.Tensor) -> torch.Tensor:
        return model.get_submodule(self.name)(x, model.global_pool)


class TokenHead(Head):
    """Pooling of a sequence of tokens, a norm, a linear layer: ViT's.

    ``global_pool="map"`` pools by the network's ``attn_pool``, which another pooling removes.

    Args:
        after: as :class:`Head` has it; ViT's is ``fc_norm``.
        class_token: the first token is a class's, so that ``token`` is a pooling.
        over_prefix: reduce over the tokens before the patches', too.
        map_over_prefix: pool by attention over them; by default as ``over_prefix``.
    """

    def __init__(
        self,
        *after: str,
        class_token: bool = True,
        over_prefix: bool = False,
        map_over_prefix: bool | None = None,
    ) -> None:
        super().__init__(*after, channels_last=True)
        self.class_token, self.over_prefix = class_token, over_prefix
        self.map_over_prefix = over_prefix if map_over_prefix is None else map_over_prefix

    def make_pool(self, model: Headed, global_pool: str) -> GlobalPool:
        allowed = [p for p in SEQUENCE_POOLS if self.class_token or p != "token"]
        if getattr(model, "attn_pool", None) is not None:
            allowed.append("map")
        prefix = 0 if self.over_prefix else model.num_prefix_tokens
        return SequencePool(global_pool, prefix=prefix, allowed=allowed)

    def replace(self, model: Any, linear: dict[str, nn.Module]) -> None:
        super().replace(model, linear)
        if model.global_pool.pool_type != "map":
            model.attn_pool = None

    def pool(self, model: Headed, x: torch.Tensor) -> torch.Tensor:
        """(N, L, C) -> (N, C)."""
        if model.global_pool.pool_type == "map":
            rest = x if self.map_over_prefix else x[:, model.num_prefix_tokens :]
            x = model.get_submodule("attn_pool")(rest)
        return super().pool(model, x)


class DistilledHead(Head):
    """Two linear layers, for labels and for a teacher's, over the first two tokens: DeiT's.

    In training it gives both layers' logits while the network's ``distilled_training`` is set, else
    their mean.

    Args:
        after: as :class:`Head` has it.
        shared: both layers are given the pooled vector, which is not of tokens: LeViT's.
    """

    def __init__(self, *after: str, shared: bool = False, channels_last: bool = False) -> None:
        super().__init__(*after, channels_last=channels_last)
        self.shared = shared

    def make_pool(self, model: Headed, global_pool: str) -> GlobalPool:
        if self.shared:
            return super().make_pool(model, global_pool)
        return SequencePool(global_pool, allowed=("", "token"))

    def __call__(self, model: Headed, x: torch.Tensor, *, pre_logits: bool = False) -> Any:
        if not model.global_pool.pool_type:
            return x
        vectors = [self.pool(model, x)] * 2 if self.shared else [x[:, 0], x[:, 1]]
        vectors = [F.dropout(v, model.drop_rate, model.training) for v in vectors]
        if pre_logits:
            return (vectors[0] + vectors[1]) / 2
        layers = [model.get_submodule(name) for name in classifiers(model)]
        logits, distilled = (layer(v) for layer, v in zip(layers, vectors, strict=True))
        if getattr(model, "distilled_training", False) and model.training:
            return logits, distilled
        return (logits + distilled) / 2


def _parent(model: Any) -> str:
    """Name of the module that holds the classifier."""
    return classifiers(model)[0].rpartition(".")[0]
