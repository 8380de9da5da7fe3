"""FeatureHooks: inputs and outputs of modules, collected for one call at a time."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import ArgumentError, FeatnetError, MissingFeatureError, nearest
from ..tracing import sizes, structure, trace
from ..values import checked
from .apart import keep_apart


@dataclasses.dataclass(frozen=True)
class Tap:
    """A place to read: the output or the input of a module.

    Attributes:
        module: dotted name of the module.
        kind: ``"forward"`` for its output, or ``"forward_pre"`` for its input.
        key: name of the feature; by default the module's name.
        which: for a module that runs several times: its ``"first"`` call, the ``"last"``, or
            ``"all"`` (a list). By default several calls are an error, since any could be meant.

    Raises:
        ArgumentError: another ``kind`` or ``which``.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.ReLU())
        >>> hooks = featnet.FeatureHooks(net, [featnet.Tap("1", kind="forward_pre", key="conv")])
        >>> with hooks.collect() as features:
        ...     _ = net(torch.ones(1, 3, 4, 4))
        >>> features["conv"].shape
        torch.Size([1, 8, 4, 4])
    """

    module: str
    kind: str = "forward"
    key: Any = None
    which: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in (
            ("kind", ("forward", "forward_pre")),
            ("which", (None, "first", "last", "all")),
        ):
            if getattr(self, name) not in allowed:
                raise ArgumentError(f"Tap {name}={getattr(self, name)!r}: one of {allowed}.")
        if self.key is None:
            object.__setattr__(self, "key", self.module)


Taps = Mapping[str, Any] | Iterable[str | Tap]


Under = tuple[dict[Any, Any], int]  # a collection, and the count at which it is complete


class _Local(threading.local):
    """Each thread's innermost collection that is under way. A copy starts with none."""

    def __init__(self) -> None:
        self.current: Under | None = None  # an own attribute from the start: compilers guard on it

    def __reduce__(self) -> tuple[Any, ...]:
        return _Local, ()


class _Recorder:
    """The hook of one tap."""

    def __init__(self, tap: Tap, local: _Local) -> None:
        self.tap, self.local = tap, local
        # True if the network writes there later, in eval mode and in training; None: perhaps
        self.overwritten: tuple[bool | None, bool | None] = (None, None)

    def __call__(
        self, module: nn.Module, args: object, kwargs: object, output: object = None
    ) -> Any:
        if self.local.current is None:
            return None  # nobody collects: a plain forward, or a recomputation in the backward pass
        features, enough = self.local.current
        tap, key = self.tap, self.tap.key
        if key in features and tap.which == "first":
            return None
        if key in features and tap.which is None:
            raise MissingFeatureError(
                f"{tap.module!r} ran more than once in one forward: say "
                "Tap(..., which='first'), 'last' or 'all'."
            )
        before = tap.kind == "forward_pre"
        value, onwards = _given(args, kwargs) if before else output, None
        complete = len(features) + (key not in features) == enough
        overwritten = self.overwritten[int(module.training)]
        if overwritten is not False and not complete:
            certain = overwritten or before  # there is no other way into what is given
            value, onwards = keep_apart(value, (args, kwargs), certain=certain)
        if tap.which == "all":
            features.setdefault(key, []).append(value)
        else:
            features[key] = value
        if complete:
            raise trace.Stop
        return None if before else onwards


def _given(args: Any, kwargs: Any) -> Any:
    """Return the argument of a module's call, or several as they are."""
    if len(args) == 1:
        return args[0]
    return args or (next(iter(kwargs.values())) if len(kwargs) == 1 else kwargs)


class Collection:
    """Features of the calls within a ``with`` block; see :meth:`FeatureHooks.collect`."""

    def __init__(self, hooks: FeatureHooks) -> None:
        self._hooks = hooks
        self._found: dict[Any, Any] = {}

    def __enter__(self) -> dict[Any, Any]:
        self._outer = self._hooks.begin(self._found)
        return self._found

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._hooks.end(self._outer)
        if kind is not None:
            self._found.clear()
            return
        features = self._hooks.ordered(self._found)
        self._found.clear()
        self._found.update(features)


class FeatureHooks:
    """Forward and forward-pre hooks on modules of any network, by dotted name.

    What is collected belongs to the collecting call alone: threads, nested calls and calls that
    failed never see each other's features. Hooks stay until :meth:`remove` (or the end of a
    ``with`` block on this object) and keep nothing between calls. They survive ``deepcopy`` and
    pickling of an object that holds both them and the network, and follow a tapped module that is
    replaced.

    Args:
        model: any module. Only hooks are added to it.
        taps: names, patterns (``"layer*"``, ``"blocks.*.attn"``; as in a shell) and
            :class:`Tap` s, or a dict of them to keys.
        rewritten: (module, kind) of the taps whose value something changes in place afterwards.
            These are kept apart (``featnet.extraction.apart.keep_apart``). By default a run on
            the meta device finds them; of a model that cannot run there all taps are.
        input_size: (H, W) or (C, H, W) for that run, of a model that takes one size only.

    Raises:
        MissingFeatureError: a name or pattern that fits no module, with the nearest names.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.ReLU())
        >>> with featnet.FeatureHooks(net, ["0"]) as hooks, hooks.collect() as features:
        ...     _ = net(torch.ones(1, 3, 4, 4))
        >>> features["0"].shape
        torch.Size([1, 8, 4, 4])
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        taps: Taps,
        *,
        rewritten: Iterable[tuple[str, str]] | None = None,
        input_size: Sequence[int] | None = None,
    ) -> None:
        self.model = model
        self.taps = resolve_taps(model, taps)
        self._local = _Local()
        self._recorders = [_Recorder(tap, self._local) for tap in self.taps]
        self._bound: list[nn.Module | None] = [None] * len(self.taps)
        self._handles: list[Any] = [None] * len(self.taps)
        self._removed = False
        with sizes.at_size(input_size):
            places = _rewritten(model) if rewritten is None else frozenset(rewritten)
            in_training = _rewritten(model, training=True) if _drops(model) else places
        for recorder in self._recorders:
            place = (recorder.tap.module, recorder.tap.kind)
            recorder.overwritten = (
                None if places is None else place in places,
                None if in_training is None else place in in_training,
            )
        self.bind()

    def bind(self) -> None:
        """Attach to the modules that now have the names."""
        for i, (tap, recorder) in enumerate(zip(self.taps, self._recorders, strict=True)):
            module = structure.submodule(self.model, tap.module)
            if module is self._bound[i]:
                continue
            if self._handles[i] is not None:
                self._handles[i].remove()
            attach: Any = module.register_forward_hook
            if tap.kind == "forward_pre":
                attach = module.register_forward_pre_hook
            self._handles[i] = attach(recorder, with_kwargs=True)
            self._bound[i] = module

    def remove(self) -> None:
        """Take the hooks off; only these."""
        self._removed = True
        for handle in self._handles:
            if handle is not None:
                handle.remove()
        self._handles, self._bound = [None] * len(self.taps), [None] * len(self.taps)

    def __enter__(self) -> FeatureHooks:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def collect(self) -> Collection:
        """Collect the features of one call: ``with hooks.collect() as features: model(x)``.

        Returns:
            A context that gives a dict, which is filled with key to feature at its end.

        Raises:
            MissingFeatureError: at its end, if a tapped module did not run.
        """
        return Collection(self)

    @property
    def places(self) -> frozenset[tuple[str, str]]:
        """(module, kind) of the taps."""
        return frozenset((tap.module, tap.kind) for tap in self.taps)

    @property
    def can_stop(self) -> bool:
        """True if nothing is missing once every module has run, as no tap waits for a last call."""
        return all(tap.which in (None, "first") for tap in self.taps)

    def begin(self, outputs: dict[Any, Any], *, stop: bool = False) -> Under | None:
        """Start to collect into a dict, on this thread.

        Args:
            outputs: the dict.
            stop: end the forward by ``featnet.tracing.trace.Stop`` as soon as nothing is
                missing, unless a tap waits for the last call of its module.

        Returns:
            The collection around this one, which :meth:`end` gets.

        Raises:
            MissingFeatureError: after :meth:`remove`.
            FeatnetError: such an end in a torch.export that is not strict.
        """
        if self._removed:
            raise MissingFeatureError("These hooks were removed; make new ones.")
        if any(
            module is not structure.submodule(self.model, tap.module)
            for module, tap in zip(self._bound, self.taps, strict=True)
        ):
            self.bind()
        stop = stop and self.can_stop
        compiler = torch.compiler
        if stop and compiler.is_exporting() and not compiler.is_dynamo_compiling():
            raise FeatnetError(  # its record of modules that are running cannot be left half-way
                f"torch.export with strict=False cannot end a forward at {self.taps[-1].module!r}: "
                "use strict=True, as featnet.export does."
            )
        outer = self._local.current
        self._local.current = (outputs, len(self.taps) if stop else -1)
        return outer

    def end(self, outer: Under | None) -> None:
        """Stop collecting on this thread, and go on with the collection around this one.

        Args:
            outer: the result of :meth:`begin`.
        """
        self._local.current = outer

    def missing(self, outputs: Mapping[Any, Any]) -> list[str]:
        """List the tapped modules without a feature.

        Args:
            outputs: the features so far.

        Returns:
            Names of modules.
        """
        return [tap.module for tap in self.taps if tap.key not in outputs]

    def ordered(self, outputs: Mapping[Any, Any]) -> dict[Any, Any]:
        """Sort features into the order of the taps.

        Args:
            outputs: the features, by key.

        Returns:
            A new dict.

        Raises:
            MissingFeatureError: a tap without a feature.
        """
        missing = self.missing(outputs)
        if missing:
            raise MissingFeatureError(
                f"No feature from {', '.join(map(repr, missing))}: the module did not run in this "
                "forward, or it runs in a graph that was compiled before it was tapped (then call "
                "torch.compiler.reset() and compile again)."
            )
        return {tap.key: outputs[tap.key] for tap in self.taps}


def _rewritten(model: nn.Module, *, training: bool = False) -> frozenset[tuple[str, str]] | None:
    """Return (module, kind) of the values that are changed in place; None if no run shows them."""
    try:
        size = trace.probe_size(model)
        return trace.run(model, size, through=True, training=training).rewritten
    except Exception:
        return None


def _drops(model: nn.Module) -> bool:
    """Tell if there is dropout, which in eval mode returns its input, and in training may write
    into it."""
    kind = nn.modules.dropout._DropoutNd
    return any(isinstance(module, kind) and module.p > 0 for module in model.modules())


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the dotted names that a name or pattern fits, in their order.

    Args:
        pattern: a name, or a pattern in which ``*`` (any characters), ``?`` (one) and ``[abc]``
            (one of these; ``[!abc]`` none of them) stay inside one dotted part, and ``**`` goes
            across parts: ``"blocks.*"`` are the blocks, ``"blocks.**"`` all that is in them, and
            ``"**.attn"`` every ``attn``, at any depth.
        names: the names to choose from.

    Example:
        >>> names = ["stem", "layer1", "layer1.0", "layer1.0.conv", "layer2"]
        >>> matching("layer*", names)
        ['layer1', 'layer2']
        >>> matching("layer1.**", names)
        ['layer1.0', 'layer1.0.conv']
        >>> matching("**.conv", names)
        ['layer1.0.conv']
    """
    names = list(names)
    if pattern in names:
        return [pattern]
    tokens = re.findall(r"\*\*\.|\*\*|\*|\?|\[!?[^\]]+\]|.", pattern, re.DOTALL)
    expression = "".join(_PATTERN.get(token) or _literal(token) for token in tokens)
    return [name for name in names if re.fullmatch(expression, name)]


_PATTERN = {"**.": r"(?:.*\.)?", "**": ".*", "*": r"[^.]*", "?": r"[^.]"}


def _literal(token: str) -> str:
    """The expression of one character, or of a set of them."""
    if len(token) == 1:
        return re.escape(token)
    negated = token[1] == "!"
    inside = re.sub(r"([\\\[^])", r"\\\1", token[2 if negated else 1 : -1])
    return f"[^.{inside}]" if negated else f"(?!\\.)[{inside}]"


def resolve_taps(model: nn.Module, taps: Taps) -> tuple[Tap, ...]:
    """Names and patterns as taps on modules that exist.

    Patterns are those of :func:`matching`.

    Raises:
        MissingFeatureError: nothing fits.
        ArgumentError: no taps, or two of one key.
    """
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    resolved: list[Tap] = []
    if isinstance(taps, (str, Tap)):
        taps = [taps]
    if not isinstance(taps, Iterable):
        raise ArgumentError(f"taps={taps!r}: names, Taps, or a dict of them is expected.")
    items: Iterable[Any] = taps.items() if isinstance(taps, Mapping) else taps
    for item in items:
        key = None
        if isinstance(taps, Mapping):
            item, key = item
        if not isinstance(item, (str, Tap)):
            raise ArgumentError(f"{item!r} is no tap: a module's name or a Tap is expected.")
        tap = item if isinstance(item, Tap) else Tap(item, key=key)
        matches = matching(tap.module, names)
        if not matches:
            raise MissingFeatureError(
                f"{type(model).__name__} has no module {tap.module!r}."
                + (
                    nearest(tap.module, names)
                    or f" It has {', '.join(names[:8]) or 'none'}{', ...' * (len(names) > 8)}."
                )
            )
        for match in matches:
            changed: dict[str, Any] = {"key": None if tap.key == tap.module else tap.key}
            resolved.append(
                tap if match == tap.module else dataclasses.replace(tap, module=match, **changed)
            )
    keys = [tap.key for tap in resolved]
    twice = sorted({str(key) for key in keys if keys.count(key) > 1})
    if twice or not resolved:
        raise ArgumentError(
            f"Taps need distinct keys: {twice}." if resolved else "No taps are given."
        )
    return tuple(resolved)


def refuse_beside_taps(options: Mapping[str, Any]) -> None:
    """Refuse an extractor's arguments that are for levels, where taps say what comes out.

    Raises:
        ArgumentError: there is one.
    """
    names = ("out_indices", "out_strides", "out_map", "feature_info")
    clash = [name for name in names if options.get(name) is not None]
    if clash:
        raise ArgumentError(f"taps= and {clash[0]}= both say what comes out: give one.")
    for name in ("output_fmt", "norm", "return_prefix_tokens"):
        if options.get(name, "NCHW") not in ("NCHW", None, False):
            raise ArgumentError(
                f"{name}={options[name]!r} is for levels; taps= gives what the modules put out."
            )
