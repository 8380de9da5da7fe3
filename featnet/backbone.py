"""Backbone: from a generator of levels, everything that an image model offers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from . import trace
from .errors import ArgumentError, InputSizeError, check_rate, nearest
from .features import Feature, FeatureInfo, resolve
from .layers import Blocks, GlobalPool, chain
from .weights import Weights

FORMATS = ("NCHW", "NHWC", "NLC")


class Backbone(nn.Module):
    """A network that is written once, as :meth:`forward_levels`.

    A family declares its levels with :meth:`add_stage`, its head with :meth:`add_head`, and yields
    the levels' maps from :meth:`forward_levels`; all else is derived here.

    Class attributes:
        first_conv: name(s) of the module(s) on which ``in_chans`` acts.
        last_fc: name of the linear layer on which ``num_classes`` acts.
    """

    # None of these, nor a method, may be called as checkpoints call modules: stem, stages, ...
    first_conv: str | tuple[str, ...]
    last_fc: str

    num_features: int
    pretrained_cfg: Weights | None = None
    architecture: str = ""  # the registered name; model_args were given beside it
    model_args: Mapping[str, Any] = {}
    global_pool: GlobalPool
    # (H, W) of the largest input, for a network whose attention has tables of positions
    img_size: tuple[int, int] | None = None

    def __init__(self, *, in_chans: int = 3) -> None:
        super().__init__()
        if isinstance(in_chans, bool) or not isinstance(in_chans, int) or in_chans < 1:
            raise ArgumentError(f"in_chans={in_chans!r}: a positive int is expected.")
        self.in_chans = in_chans
        self._levels: list[Feature] = []

    # What a family calls ------------------------------------------------------------------

    def add_stage(self, name: str, module: nn.Module, *, channels: int, reduction: int) -> None:
        """Add a module, under a dotted name, whose output is the next level.

        Args:
            channels, reduction: of the level's map, the reduction at output stride 32.
        """
        parent, _, child = name.rpartition(".")
        self.get_submodule(parent).add_module(child, module)
        self.add_level(name, channels=channels, reduction=reduction)

    def add_level(self, name: str, *, channels: int, reduction: int) -> None:
        """Declare the output of a module that is there, however deep inside, as the next level."""
        assert isinstance(self.get_submodule(name), nn.Module)
        self._levels.append(Feature(channels, reduction, name, len(self._levels)))

    def add_head(
        self, num_features: int, *, num_classes: int, global_pool: str, drop_rate: float = 0.0
    ) -> None:
        """Add pooling and classifier over the last map, ``num_features`` channels wide."""
        check_rate("drop_rate", drop_rate)
        self.num_features = num_features
        self.drop_rate = drop_rate
        parent = self.last_fc.rpartition(".")[0]
        if parent and parent not in dict(self.named_modules()):
            self.add_module(parent, nn.Sequential())  # only a name: "head" of "head.fc"
        self.reset_classifier(num_classes, global_pool)

    def forward_levels(self, x: torch.Tensor) -> Iterator[Any]:
        """(N, C, H, W) -> each registered level's map, finest first; a generator."""
        raise NotImplementedError

    def through(self, name: str, x: torch.Tensor) -> Iterator[torch.Tensor]:
        """Run the children of a Sequential in order, yielding the maps of those that are levels, up
        to the last of them. Of :class:`Blocks`, what lies between levels is recomputed at once.
        """
        parent = self.get_submodule(name)
        levels = {level.module for level in self._levels}
        section: list[nn.Module] = []
        for child, module in parent.named_children():
            section.append(module)
            if f"{name}.{child}" in levels:
                x = parent.run(section, x) if isinstance(parent, Blocks) else chain(section, x)
                section = []
                yield x

    def as_map(self, y: Any) -> torch.Tensor:
        """What ``forward_levels`` yielded -> its (N, C, H, W) map; for families on tokens."""
        return y

    def finish(self, y: Any) -> torch.Tensor:
        """What comes after the last level: a final norm or convolution."""
        return y

    # The classifier -----------------------------------------------------------------------

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, num_classes); without classes what the pooling gives."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> the last, unpooled features."""
        check_input(x, self.in_chans)
        with explain_size(self, x.shape[-2:]):
            y: Any = x
            for y in self.forward_levels(x):
                pass
            return self.finish(y)

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, h, w) -> (N, head_hidden_size), or unchanged with ``global_pool=""``."""
        return self.global_pool(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Features -> logits, or with ``pre_logits`` what the classifier would be given."""
        x = self.pool(x)
        if self.drop_rate:
            x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.get_classifier()(x)

    def get_classifier(self) -> nn.Module:
        """The last linear layer; an Identity without classes."""
        return self.get_submodule(self.last_fc)

    def make_pool(self, global_pool: str) -> GlobalPool:
        """The pooling of a name; a head of another kind has its own."""
        return GlobalPool(global_pool)

    def classifier_width(self, pool: GlobalPool) -> int:
        """Channels that the classifier is given behind this pooling."""
        return self.num_features * pool.multiplier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one.

        Args:
            num_classes: 0 for none.
            global_pool: another pooling; ``""`` for none, which needs ``num_classes=0``.
        """
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 0:
            raise ArgumentError(f"num_classes={num_classes!r}: an int from 0 is expected.")
        if global_pool is None:
            global_pool = self.global_pool.pool_type
        pool = self.make_pool(global_pool)
        if not pool.pool_type and num_classes:
            raise ArgumentError(
                f"global_pool={global_pool!r} leaves a map, which a classifier of "
                f"{num_classes} classes cannot take: say num_classes=0 too."
            )
        width = self.classifier_width(pool)
        near = next(self.parameters(), None)
        place: dict[str, Any] = {"device": near.device, "dtype": near.dtype} if near is not None else {}
        linear = nn.Linear(width, num_classes, **place) if num_classes else nn.Identity()
        parent, _, child = self.last_fc.rpartition(".")
        self.global_pool = pool.train(self.training)
        setattr(self.get_submodule(parent), child, linear.train(self.training))
        self.num_classes = num_classes
        self.head_hidden_size = width

    # The levels ---------------------------------------------------------------------------

    @property
    def feature_info(self) -> FeatureInfo:
        """Every level of this network."""
        return FeatureInfo(self._levels, measure=self.measure)

    def measure(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """(H, W) of the input -> (h, w) of every level, from a run on the meta device."""
        with explain_size(self, size):
            seen = trace.run(self, size)
        return [(shape[-2], shape[-1]) for shape in seen.levels]

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | Sequence[int] | None = None,
        *,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Maps of levels, and the final features beside them.

        Args:
            x: (N, C, H, W).
            indices: which levels, as ``out_indices``: None all, an int the last n.
            norm: apply the network's final norm to each map, where there is one.
            stop_early: compute nothing past the last level asked for.
            output_fmt: layout of the maps, ``NCHW``, ``NHWC`` or ``NLC``.
            intermediates_only: only the list of maps.

        Returns:
            ``(features, maps)``, or ``maps``. With ``stop_early``, ``features`` is the last map.
        """
        check_format(output_fmt)
        check_input(x, self.in_chans)
        wanted = resolve(indices, self._levels)
        last = max(wanted)
        maps: dict[int, torch.Tensor] = {}
        y: Any = x
        with explain_size(self, x.shape[-2:]):
            for index, y in enumerate(self.forward_levels(x)):
                if index in wanted:
                    value = self.as_map(self.normalize(y, index)) if norm else self.as_map(y)
                    maps[index] = to_format(value, output_fmt)
                if index == last and (stop_early or intermediates_only):
                    break
            ordered = [maps[index] for index in wanted]
            if intermediates_only:
                return ordered
            return (self.as_map(y) if stop_early else self.finish(y)), ordered

    def normalize(self, y: Any, index: int) -> Any:
        """A level's yielded value under the final norm; a network without one leaves it."""
        del index
        return y

    def convert_state_dict(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Older layouts of the family to this one, tables of positions to this network's size.

        A new dict; the tensors are left as they are. The caller sees what changed and reports it.
        """
        return dict(state)

    # Training -----------------------------------------------------------------------------

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass instead of keeping them.

        Raises:
            ArgumentError: the network has no :class:`featnet.layers.Blocks`.
        """
        blocks = [module for module in self.modules() if isinstance(module, Blocks)]
        if not blocks:
            raise ArgumentError(f"{type(self).__name__} has no Blocks to checkpoint.")
        for module in blocks:
            module.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that sort parameter names into layers, for layer-wise learning rates."""
        del coarse
        stems = (self.first_conv,) if isinstance(self.first_conv, str) else self.first_conv
        pattern = "|".join(f.module.replace(".", r"\.") for f in self._levels)
        return {"stem": "^" + "|^".join(stems), "blocks": f"^({pattern})"}

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay should leave alone."""
        return set()

    @property
    def default_cfg(self) -> Weights | None:
        """``pretrained_cfg``, under its older name."""
        return self.pretrained_cfg


class explain_size:
    """Context: a RuntimeError that is due to the input's size becomes an InputSizeError.

    The message has the smallest square that the network takes, found on the meta device, so that
    nothing is paid when all is well.
    """

    def __init__(self, model: nn.Module, size: Sequence[int]) -> None:
        self.model, self.size = model, size

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if not isinstance(error, (RuntimeError, ValueError)) or isinstance(error, InputSizeError):
            return
        height, width = self.size

        def fails(size: tuple[int, int]) -> bool:
            try:
                trace.run(self.model, size)
            except (RuntimeError, ValueError):
                return True
            return False

        single = self.model.training and height * width <= 64 * 64 and "per channel" in str(error)
        if not single and not fails((height, width)):
            return  # the size is not to blame
        step = next((s for s in (1, 2, 4, 8, 16, 32, 64, 128) if not fails((s, s))), None)
        low = step // 2 if step else 0  # step // 2 fails, step works
        while step and step - low > 1:
            middle = (low + step) // 2
            low, step = (middle, step) if fails((middle, middle)) else (low, middle)
        smallest = f" The smallest square that works is {step} x {step}." if step else ""
        if single:
            smallest = " In training, batch norm needs more than one value per channel."
        raise InputSizeError(
            f"{type(self.model).__name__} cannot take an input of {height} x {width}.{smallest}"
        ) from error


def check_format(output_fmt: str) -> str:
    """Refuse a layout that does not exist."""
    if output_fmt not in FORMATS:
        raise ArgumentError(
            f"output_fmt={output_fmt!r}: one of {', '.join(FORMATS)} is expected."
            + nearest(output_fmt, FORMATS)
        )
    return output_fmt


def to_format(x: torch.Tensor, output_fmt: str) -> torch.Tensor:
    """(N, C, H, W) in another layout."""
    if output_fmt == "NHWC":
        return x.permute(0, 2, 3, 1)
    return x.flatten(2).transpose(1, 2) if output_fmt == "NLC" else x


def check_input(x: Any, in_chans: int) -> None:
    """Refuse what is no (N, in_chans, H, W) batch.

    Raises:
        ArgumentError: not a tensor.
        InputSizeError: the wrong number of dimensions or channels.
    """
    if torch._C._get_tracing_state() is not None:
        return  # sizes are tensors then, and the example was checked when it first ran
    if not isinstance(x, torch.Tensor):
        if type(x).__name__ == "Proxy":  # torch.fx
            return
        raise ArgumentError(f"The input is a {type(x).__name__}; a tensor (N, C, H, W) is expected.")
    if x.ndim != 4:
        raise InputSizeError(
            f"The input has {x.ndim} dimensions, {tuple(x.shape)}; (N, {in_chans}, H, W) is "
            "expected." + (" Add the batch dimension: x[None]." if x.ndim == 3 else "")
        )
    if x.shape[1] != in_chans:
        raise InputSizeError(
            f"The input has {x.shape[1]} channels, {tuple(x.shape)}; the network was built with "
            f"in_chans={in_chans}: (N, {in_chans}, H, W) is expected."
        )
