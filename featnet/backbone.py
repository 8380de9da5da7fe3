"""Backbone: from a generator of levels, everything that an image model offers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .contract import check_map, check_run, is_recorded, undeclared
from .errors import ArgumentError, DeclarationError, check_rate, nearest
from .features import Feature, FeatureInfo, resolve
from .inputs import check_format, check_input, explain_size, to_format
from .layers import Blocks, GlobalPool, Head, MapAndTokens, Tokens, classifiers, recompute
from .tracing import trace
from .weights import Weights


class Backbone(nn.Module):
    """A network that is written once, as :meth:`forward_levels`.

    A family declares its levels with :meth:`add_stage`, its head with :meth:`add_head`, and yields
    the levels' maps from :meth:`forward_levels`; all else is derived here.

    The declaration is held to: extractors, ``feature_info``, ``sizes`` and
    ``forward_intermediates`` compare channels, reduction and order of the levels with what the
    network yields, the classifier their number. A level is the output of its module, as that module
    gives it.

    =============================  ==========================================================
    must be defined
    =============================  ==========================================================
    ``forward_levels(x)``          gets (N, C, H, W); yields each level's map, finest first
    ``first_conv``                 name(s) of the layer(s) on which ``in_chans`` acts
    ``last_fc``                    name(s) of the linear layer(s) on which ``num_classes``
                                   acts; of several the first is the classifier
    =============================  ==========================================================

    =============================  ==========================================================
    may be overridden              (by default)
    =============================  ==========================================================
    ``finish(y)``                  gets the last yielded value; returns the final features
                                   (the value itself)
    ``as_map(y)``                  gets a yielded value; returns its map (N, C, H, W)
    ``normalize(y, index)``        gets a yielded value; returns it under the final norm (the
                                   value itself)
    ``normalized(level)``          gets a level; returns it as ``normalize`` leaves it
    ``convert_state_dict(state)``  gets the tensors of another layout; returns them under this
                                   network's names
    ``group_matcher(coarse)``      returns patterns that sort parameters into layers
    ``no_weight_decay()``          returns names of parameters (none)
    ``breaks_law``                 kinds of operations that break the à trous law (none)
    ``dense_norm``                 True if the authors' dense features are normed (False)
    ``size_divisibility``          the sides of an input are multiples of it (1)
    ``num_prefix_tokens``          tokens before those of the image (0)
    =============================  ==========================================================

    Args:
        in_chans: channels of the input.

    Raises:
        ArgumentError: ``in_chans`` is no positive int.
        DeclarationError: a name that is missing or names no module; later, a level that is not what
            it was declared to be.

    Example:
        >>> class Net(featnet.Backbone):
        ...     first_conv, last_fc = "stem", "fc"
        ...     def __init__(self):
        ...         super().__init__()
        ...         stem = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
        ...         self.add_stage("stem", stem, channels=8, reduction=2)
        ...         deep = torch.nn.Conv2d(8, 16, 3, stride=2, padding=1)
        ...         self.add_stage("deep", deep, channels=16, reduction=4)
        ...         self.add_head(16, num_classes=10, global_pool="avg")
        ...     def forward_levels(self, x):
        ...         x = self.stem(x)
        ...         yield x
        ...         yield self.deep(x)
        >>> x = torch.randn(1, 3, 32, 32)
        >>> Net()(x).shape
        torch.Size([1, 10])
        >>> [y.shape[1:] for y in featnet.FeatureListNet(Net())(x)]
        [torch.Size([8, 16, 16]), torch.Size([16, 8, 8])]
    """

    # None of these, nor a method, may be called as checkpoints call modules: stem, stages, ...
    first_conv: str | tuple[str, ...]
    last_fc: str | tuple[str, ...]

    num_features: int
    pretrained_cfg: Weights | None = None
    architecture: str = ""  # the registered name; model_args were given beside it
    model_args: Mapping[str, Any] = {}
    global_pool: GlobalPool
    head_spec: Head = Head()  # what lies between the final features and the logits
    # (H, W) of the input that tables of positions are made for
    img_size: tuple[int, int] | None = None
    # The sides of an input must be multiples of it
    size_divisibility: int = 1
    # Pixels of the image that unpadded kernels take from the coarsest map, where they are many
    border: int = 0
    # Blocks fill maps up to multiples of it, which later ones keep
    map_multiple: int = 1
    # Tokens before those of the patches: of the class, of distillation, registers
    num_prefix_tokens: int = 0
    # True if its authors' dense features are under the final norm
    dense_norm: bool = False
    # Kinds of operations for which an output stride changes every n-th position, too: "attention"
    # of all blocks over the whole map, "resampling" (interpolation between maps); docs/dilation.md
    breaks_law: tuple[str, ...] = ()

    def __init__(self, *, in_chans: int = 3) -> None:
        super().__init__()
        if isinstance(in_chans, bool) or not isinstance(in_chans, int) or in_chans < 1:
            raise ArgumentError(f"in_chans={in_chans!r}: a positive int is expected.")
        self.in_chans = in_chans
        # A child may be called ``levels``, as some checkpoints call their stages: the core asks
        # this
        self._levels: tuple[Feature, ...] = ()
        self._checked: tuple[Feature, ...] | None = None

    # What a family calls ------------------------------------------------------------------

    def add_stage(self, name: str, module: nn.Module, *, channels: int, reduction: int) -> None:
        """Add a module, under a dotted name, whose output is the next level.

        Args:
            name: dotted; the parent must exist.
            module: the module to add.
            channels: of the level's map.
            reduction: input pixels per position of the map, without an output stride.

        Raises:
            DeclarationError: no such parent, or the name is an attribute of it.
        """
        parent, _, child = name.rpartition(".")
        owner = self._submodule(parent, f"add_stage({name!r})")
        if hasattr(owner, child) and child not in owner._modules:
            raise DeclarationError(
                f"{type(self).__name__}.add_stage({name!r}): {child!r} is an attribute of "
                f"{type(owner).__name__} and cannot be a module's name."
            )
        owner.add_module(child, module)
        self.add_level(name, channels=channels, reduction=reduction)

    def add_level(
        self, name: str, *, channels: int, reduction: int, hook_type: str = "forward"
    ) -> None:
        """Declare the output of an existing module, at any depth, as the next level.

        Args:
            name: dotted name of the module.
            channels: of the level's map.
            reduction: input pixels per position of the map, without an output stride.
            hook_type: ``"forward"``, or ``"forward_pre"`` if the level is the module's input.

        Raises:
            DeclarationError: no such module.
        """
        self._submodule(name, f"add_level({name!r})")
        row = dict(channels=channels, reduction=reduction, module=name, hook_type=hook_type)
        self._levels = (*self._levels, Feature.of(row, len(self._levels)))

    def _submodule(self, name: str, call: str) -> nn.Module:
        try:
            return self.get_submodule(name)
        except AttributeError:
            names = [known for known, _ in self.named_modules() if known]
            raise DeclarationError(
                f"{type(self).__name__}.{call}: there is no module {name!r}; add it first."
                f"{nearest(name, names)} There are {', '.join(names) or 'none yet'}."
            ) from None

    def add_head(
        self,
        num_features: int,
        *,
        num_classes: int,
        global_pool: str,
        drop_rate: float = 0.0,
        head: Head | None = None,
    ) -> None:
        """Add the head over the final features.

        Args:
            num_features: channels of the final features.
            num_classes: of the classifier; 0 for none.
            global_pool: name of the pooling.
            drop_rate: dropout before the classifier.
            head: see ``featnet.layers.heads``; by default pooling and a linear layer.
        """
        check_rate("drop_rate", drop_rate)
        self._check_names()
        self.num_features = num_features
        self.drop_rate = drop_rate
        self.head_spec = Head() if head is None else head
        parent = classifiers(self)[0].rpartition(".")[0]
        if parent and parent not in dict(self.named_modules()):
            self.add_module(parent, nn.Sequential())  # only a name: "head" of "head.fc"
        self.head_spec.build(self, num_features, global_pool)
        self.reset_classifier(num_classes, global_pool)

    def _check_names(self) -> None:
        for key, argument in (("first_conv", "in_chans"), ("last_fc", "num_classes")):
            if not isinstance(getattr(self, key, None), (str, tuple)):
                raise DeclarationError(
                    f"{type(self).__name__} does not say {key}: a class attribute, the name (or a "
                    f"tuple of names) of the layer on which {argument} acts."
                )
        for name in (self.first_conv,) if isinstance(self.first_conv, str) else self.first_conv:
            self._submodule(name, f"first_conv={name!r}")

    def forward_levels(self, x: torch.Tensor) -> Iterator[Any]:
        """Yield the map of each declared level, finest first.

        Args:
            x: (N, C, H, W).

        Yields:
            A map (N, C', H', W'), or a value that :meth:`as_map` turns into one.

        Raises:
            DeclarationError: a subclass has not defined it.
        """
        raise DeclarationError(
            f"{type(self).__name__} has no forward_levels: a Backbone defines this generator, "
            "which yields the map of each level that it declares, finest first."
        )

    def through(self, name: str, x: torch.Tensor) -> Iterator[torch.Tensor]:
        """Run the children of a Sequential in order, up to the last one that is a level.

        :meth:`rest` goes on from there. With activation checkpointing, the ``Blocks`` between
        two levels are recomputed at once.

        Args:
            name: dotted name of the Sequential; ``""`` is this network, whose own children then
                are the layers up to the last level.
            x: input of its first child.

        Yields:
            The outputs of the children that are levels.
        """
        parent = self.get_submodule(name)
        for section in self._sections(name)[:-1]:
            if isinstance(parent, Blocks) and parent.recomputes:
                x = parent.run(section, x)
            else:
                for module in section:  # here, where nobody holds what is read
                    x = module(x)
            yield x

    def rest(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Run the children of a Sequential that follow its last level; all, if none is a level.

        Call it in :meth:`finish`, or before the modules of the next level.

        Args:
            name: dotted name of the Sequential.
            x: output of its last level.

        Returns:
            The output of its last child.
        """
        parent, section = self.get_submodule(name), self._sections(name)[-1]
        if section and isinstance(parent, Blocks) and parent.recomputes:
            return parent.run(section, x)
        for module in section:
            x = module(x)
        return x

    def _sections(self, name: str) -> list[list[nn.Module]]:
        """The children of a Sequential, cut after each level."""
        levels, start = {level.module for level in self._levels}, f"{name}." if name else ""
        sections: list[list[nn.Module]] = [[]]
        for child, module in self.get_submodule(name).named_children():
            sections[-1].append(module)
            if f"{start}{child}" in levels:
                sections.append([])
        return sections

    def as_map(self, y: Any) -> torch.Tensor:
        """Turn a yielded value into a map; it runs only for levels that are asked for.

        Families override it whose layout is neither a map nor ``featnet.layers.Tokens`` or
        ``MapAndTokens``, or which compute levels side by side.

        Args:
            y: a value that :meth:`forward_levels` yielded, or that a hook read.

        Returns:
            A map (N, C, H, W).
        """
        return y.as_map() if isinstance(y, (Tokens, MapAndTokens)) else y

    def finish(self, y: Any) -> torch.Tensor:
        """Compute the final features from the last level, by a norm or convolution for instance.

        Args:
            y: the last value that :meth:`forward_levels` yielded.

        Returns:
            The final features, which :meth:`forward_head` gets.
        """
        return y

    # The classifier -----------------------------------------------------------------------

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classify images (N, C, H, W): (N, num_classes), or without classes the pooled
        features."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the final features, before the pooling.

        Args:
            x: (N, C, H, W).

        Returns:
            A map (N, num_features, H', W'), or tokens (N, L, num_features).
        """
        check_input(x, self.in_chans)
        with explain_size(self, x.shape[-2:], x):
            return self.finish(trace.visit(self, x, lambda index, y: False)[0])

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> Any:
        """Compute the logits from the final features.

        Args:
            x: the output of :meth:`forward_features`.
            pre_logits: return the input of the classifier instead.

        Returns:
            (N, num_classes), or (N, head_hidden_size).
        """
        self._check_head()
        return self.head_spec(self, x, pre_logits=pre_logits)

    def get_classifier(self) -> nn.Module:
        """Return the layer that puts out the logits.

        Returns:
            A linear layer; an Identity without classes.
        """
        self._check_head()
        return self.get_submodule(classifiers(self)[0])

    def _check_head(self) -> None:
        if "global_pool" not in self._modules:
            raise DeclarationError(
                f"{type(self).__name__} has no head: its __init__ calls add_head(num_features, "
                "num_classes=, global_pool=) after its last level. Its levels alone come from "
                "featnet.FeatureListNet(model)."
            )

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one.

        Args:
            num_classes: 0 for none.
            global_pool: another pooling; ``""`` for none, which needs ``num_classes=0``.

        Raises:
            ArgumentError: no number of classes, an unknown pooling, or classes without a pooling.
        """
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 0:
            raise ArgumentError(f"num_classes={num_classes!r}: an int from 0 is expected.")
        if global_pool is None:
            global_pool = self.global_pool.pool_type
        pool = self.head_spec.make_pool(self, global_pool)
        if not pool.pool_type and num_classes:
            raise ArgumentError(
                f"global_pool={global_pool!r} leaves a map, which a classifier of "
                f"{num_classes} classes cannot take: say num_classes=0 too."
            )
        width = self.head_spec.width(self, pool)
        near = next(self.parameters(), None)
        place: dict[str, Any] = (
            {"device": near.device, "dtype": near.dtype} if near is not None else {}
        )
        linear: dict[str, nn.Module] = {}
        for name in classifiers(self):
            make = self.head_spec.classifier if num_classes else nn.Identity
            linear[name] = make(width, num_classes, **place).train(self.training)
        self.global_pool = pool.train(self.training)
        self.head_spec.replace(self, linear)
        self.num_classes = num_classes
        self.head_hidden_size = width

    # The levels ---------------------------------------------------------------------------

    @property
    def levels(self) -> tuple[Feature, ...]:
        """The declared levels, finest first; where checkpoints call a module so, that module."""
        child: Any = self._modules.get("levels")
        return self._levels if child is None else child

    @property
    def feature_info(self) -> FeatureInfo:
        """Every level of this network. The first look runs the network on the meta device once, and
        compares the declared levels with that run.

        Raises:
            DeclarationError: the network does not do what it declares.
        """
        self._check_declaration()
        return FeatureInfo(self._levels, measure=self.measure)

    @property
    def output_strides(self) -> list[int]:
        """The output strides that this network can have, finest first."""
        return sorted({level.reduction for level in self._levels})

    def _check_declaration(self) -> None:
        """Hold the levels to a run on the meta device, once for each declaration."""
        if not self._levels:
            raise undeclared(type(self).__name__)
        if self._checked is self._levels:
            return
        size = trace.probe_size(self)
        try:
            record = trace.run(self, size, watched=trace.no_modules)
        except DeclarationError:
            raise
        except Exception:  # it cannot run (yet): whoever runs it hears why
            return
        check_run(self, self._levels, record, size, small=2.0)
        self._checked = self._levels

    def measure(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Compute the sizes of all levels by a run on the meta device.

        Args:
            size: (height, width) of the input.

        Returns:
            (height, width) of each level, finest first.
        """
        with explain_size(self, size):
            record = trace.run(self, size, watched=trace.no_modules)
        check_run(self, self._levels, record, size)
        return [(shape[-2], shape[-1]) for shape in record.levels.values()]

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | Sequence[int] | None = None,
        *,
        norm: bool | None = None,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        return_prefix_tokens: bool = False,
    ) -> Any:
        """Compute maps of levels, and the final features beside them.

        Args:
            x: (N, C, H, W).
            indices: which levels, as ``out_indices``: None all, an int the last n.
            norm: apply the network's final norm to each map, where there is one; None as its
                authors' dense features have it (``dense_norm``).
            stop_early: compute nothing past the last level asked for.
            output_fmt: layout of the maps, ``NCHW``, ``NHWC`` or ``NLC``.
            intermediates_only: only the list of maps.
            return_prefix_tokens: ``(map, prefix tokens)`` in place of each map.

        Returns:
            ``(features, maps)``, or ``maps``. With ``stop_early``, ``features`` is the last map.
        """
        read = LevelReader(
            self, norm=norm, output_fmt=output_fmt, prefix_tokens=return_prefix_tokens
        )
        check_input(x, self.in_chans)
        wanted = resolve(indices, self._levels)
        size, recorded = (x.shape[-2], x.shape[-1]), is_recorded(x)
        last = max(wanted)
        maps: dict[int, Any] = {}

        def enough(index: int, y: object) -> bool:
            if index in wanted:
                maps[index] = read(self, y, index, size=None if recorded else size)
            return index == last and (stop_early or intermediates_only)

        with explain_size(self, x.shape[-2:], x):
            y, _ = trace.visit(self, x, enough)
            ordered = [maps[index] for index in wanted]
            if intermediates_only:
                return ordered
            return (self.as_map(y) if stop_early else self.finish(y)), ordered

    def normalize(self, y: Any, index: int) -> Any:
        """Apply the final norm to the yielded value of a level; a network without one leaves it.

        Args:
            y: a value that :meth:`forward_levels` yielded.
            index: of the level.

        Returns:
            A value of the same kind.
        """
        del index
        return y

    def normalized(self, level: Feature) -> Feature:
        """Describe a level as :meth:`normalize` leaves it, if that changes its channels.

        Args:
            level: as it was declared.

        Returns:
            The level under the final norm.
        """
        return level

    def set_fused_attn(self, enable: bool = True) -> None:
        """Choose torch's fused kernel of attention, or the explicit form.

        In the explicit form every attention map passes through its module's child ``attn_drop``,
        which can be hooked.

        Args:
            enable: True for the fused kernel.

        Raises:
            ArgumentError: the network has no attention that can be fused.
        """
        attention = [module for module in self.modules() if hasattr(module, "fused_attn")]
        if not attention:
            raise ArgumentError(f"{type(self).__name__} has no attention that can be fused.")
        for module in attention:
            module.fused_attn = enable  # type: ignore[assignment]

    def convert_state_dict(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Convert a checkpoint of another layout (older, its authors', of another size).

        Args:
            state: names and tensors, which are left as they are.

        Returns:
            A new dict under this network's names. Loading reports the differences.
        """
        return dict(state)

    # Training -----------------------------------------------------------------------------

    def set_grad_checkpointing(self, enable: bool = True, *, per: str = "block") -> None:
        """Recompute activations in the backward pass instead of keeping them.

        Args:
            enable: False keeps them again.
            per: ``"block"``, or ``"stage"``, which keeps less and recomputes more.
        """
        recompute(self, enable, per=per)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that sort parameter names into layers, for layer-wise learning rates.

        Args:
            coarse: fewer, larger layers where a family makes a difference.

        Returns:
            ``stem`` and ``blocks``, each a regular expression whose groups are numbers, or pairs of
            one and a tuple of numbers. By default each level's module is a layer.
        """
        del coarse
        stems = (self.first_conv,) if isinstance(self.first_conv, str) else self.first_conv
        levels = [rf"^{re.escape(level.module)}\." for level in self._levels]
        around = [stem.partition(".")[0] + "." for stem in stems]
        within = [any(f.module.startswith(name) for f in self._levels) for name in around]
        names = [s if shared else a for s, a, shared in zip(stems, around, within, strict=True)]
        return {
            "stem": "|".join("^" + re.escape(name) for name in names),
            "blocks": [(pattern, (index,)) for index, pattern in enumerate(levels)],
        }

    def no_weight_decay(self) -> set[str]:
        """Name the parameters that weight decay should leave alone.

        Returns:
            Names of parameters.
        """
        return set()

    @property
    def default_cfg(self) -> Weights | None:
        """``pretrained_cfg``, under its older name."""
        return self.pretrained_cfg

    @default_cfg.setter
    def default_cfg(self, value: Weights | None) -> None:
        self.pretrained_cfg = value


class LevelReader:
    """A way to read levels: under the norm or not, in a layout, with prefix tokens or not.

    Args:
        model: the network; one that is no Backbone only gives maps as they are.
        norm: True, False, or None for ``model.dense_norm``.
        output_fmt: ``NCHW``, ``NHWC``, ``NLC``.
        prefix_tokens: give ``(map, prefix tokens)``.

    Raises:
        ArgumentError: a value that cannot be, or that the network has nothing for.
    """

    def __init__(
        self, model: nn.Module, *, norm: bool | None, output_fmt: str, prefix_tokens: bool
    ) -> None:
        self.output_fmt = check_format(output_fmt)
        if not (norm is None or isinstance(norm, bool)):
            raise ArgumentError(f"norm={norm!r}: True, False or None is expected.")
        if not isinstance(prefix_tokens, bool):
            raise ArgumentError(
                f"return_prefix_tokens={prefix_tokens!r}: True or False is expected."
            )
        own = isinstance(model, Backbone)
        if norm and not own:
            raise ArgumentError(f"norm=True: {type(model).__name__} is no featnet.Backbone.")
        self.norm = bool(getattr(model, "dense_norm", False) if norm is None else norm) and own
        if prefix_tokens and not getattr(model, "num_prefix_tokens", 0):
            raise ArgumentError(
                f"return_prefix_tokens=True: {type(model).__name__} has no prefix tokens (of a "
                "class, registers) as it was built."
            )
        self.prefix_tokens = prefix_tokens

    def level(self, model: Any, level: Feature) -> Feature:
        """Describe a level as it comes out."""
        return model.normalized(level) if self.norm else level

    def __call__(
        self, model: Any, y: Any, index: int, *, size: tuple[int, int] | None = None
    ) -> Any:
        """Turn the yielded value of level ``index`` into an output. For an input of (H, W) =
        ``size``, if it is given, the map is compared with the declaration."""
        if self.norm:
            y = model.normalize(y, index)
        as_map = getattr(model, "as_map", None)
        image = y if as_map is None else as_map(y)
        if size is not None:
            level = self.level(model, model._levels[index])
            shape = getattr(image, "shape", ())
            check_map(model, level, shape, size, kind=type(y).__name__)
        image = to_format(image, self.output_fmt)
        return (image, y.before()) if self.prefix_tokens else image
