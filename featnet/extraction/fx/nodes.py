"""Names of the operations in a forward, as torch.fx sees them.

A name is the path from the network to the operation: ``layer4.2.relu_2`` is the third call of
``relu`` in ``layer4.2``, ``add`` the first addition in the network's own forward. Modules of
``torch.nn`` are operations themselves, others are looked into. The names are torchvision's.
"""

from __future__ import annotations

import contextlib
import linecache
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from ...errors import ArgumentError, MissingFeatureError, TraceError, nearest
from ...tracing import structure

OPTIONS = ("leaf_modules", "autowrap_modules", "autowrap_functions", "param_shapes_constant")

_NUMBERED = re.compile(r"(.+)_[0-9]+$")


class PathTracer(fx.Tracer):
    """A tracer that names every operation.

    Args:
        leaf_modules: classes that are not looked into.
        model: what is traced. Repeated calls must not take the names of its modules.
        **options: ``torch.fx.Tracer``'s.
    """

    def __init__(
        self, leaf_modules: Iterable[type[nn.Module]], model: nn.Module, **options: Any
    ) -> None:
        super().__init__(**options)
        self.leaf_modules = tuple(leaf_modules)
        self.names: dict[fx.Node, str] = {}
        self._modules = frozenset(n for n, _ in model.named_modules(remove_duplicate=False))
        self._parameters = {id(p): name for name, p in model.named_parameters()}
        self._taken: dict[str, int] = {}
        self._inside = ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Tell if a module is one operation: one of ``torch.nn``, or of ``leaf_modules``."""
        return isinstance(m, self.leaf_modules) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """Go into a module, or note its call if it is a leaf."""
        outer, self._inside = self._inside, self.path_of_module(m)
        try:
            return super().call_module(m, forward, args, kwargs)
        finally:
            self._inside = outer

    def getattr(
        self, attr: str, attr_val: object, parameter_proxy_cache: dict[str, fx.Proxy]
    ) -> Any:
        """A parameter as an operation; fx would go through all of them to find its name."""
        name = self._parameters.get(id(attr_val))
        if name is None or self.param_shapes_constant:
            return super().getattr(attr, attr_val, parameter_proxy_cache)
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def create_proxy(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Proxy:
        """Note an operation, and its name."""
        proxy = super().create_proxy(kind, target, *args, **kwargs)
        self.names[proxy.node] = self._free(self._base(proxy.node))
        return proxy

    def _base(self, node: fx.Node) -> str:
        """The name of an operation's first occurrence."""
        if node.op == "call_module":
            return self._inside
        own = target_name(node)
        numbered = _NUMBERED.match(node.name)
        last = numbered.group(1) if numbered else node.name
        if _NUMBERED.match(own):
            last = own  # the number is part of the name, and counts nothing
        return f"{self._inside}.{last}" if self._inside else last

    def _free(self, base: str) -> str:
        """``base``, or for a further occurrence ``base_1``, ``base_2``, ...: never the name of an
        operation or of a module that there is."""
        count = self._taken.get(base)
        name = base if count is None else f"{base}_{count}"
        while count is not None and (name in self._modules or name in self._taken):
            count += 1
            name = f"{base}_{count}"
        self._taken[base] = 1 if count is None else count + 1
        self._taken.setdefault(name, 1)
        return name


def target_name(node: fx.Node) -> str:
    """Return the name of the function or module that is called, as fx would name the node."""
    name = node.target if isinstance(node.target, str) else node.target.__name__
    return name.replace(".", "_").strip("_")


def tracer_for(model: nn.Module, options: Mapping[str, Any] | None) -> PathTracer:
    """A tracer with torchvision's defaults: ``math`` and torchvision's operations, where they are
    loaded, are leaves.

    Raises:
        ArgumentError: an option that a tracer has not.
    """
    arguments = dict(options or {})
    for name in arguments:
        if name not in OPTIONS:
            raise ArgumentError(
                f"tracer_kwargs has {name!r}; it can have {', '.join(OPTIONS)}."
                + nearest(name, OPTIONS)
            )
    modules, leaves = (
        [math, *arguments.pop("autowrap_modules", ())],
        [*arguments.pop("leaf_modules", ())],
    )
    if "torchvision.ops" in sys.modules:
        ops: Any = sys.modules["torchvision.ops"]
        modules.append(ops)
        leaves += [
            v for v in vars(ops).values() if isinstance(v, type) and issubclass(v, nn.Module)
        ]
    strange = [leaf for leaf in leaves if not isinstance(leaf, type)]
    if strange:
        raise ArgumentError(f"tracer_kwargs: leaf_modules are classes, and {strange[0]!r} is none.")
    arguments["autowrap_functions"] = tuple(arguments.get("autowrap_functions", ()))
    return PathTracer(leaves, model, autowrap_modules=tuple(dict.fromkeys(modules)), **arguments)


def trace(
    model: nn.Module, options: Mapping[str, Any] | None, concrete_args: Mapping[str, Any] | None
) -> tuple[fx.Graph, dict[str, fx.Node]]:
    """The graph of one's own copy of a model in the mode it is in, and its nodes by name.

    Raises:
        TraceError: the forward cannot be traced; with the line that stopped it.
    """
    tracer = tracer_for(model, options)
    try:
        with _no_hooks(model, tracer):
            graph = tracer.trace(
                model, concrete_args=dict(concrete_args) if concrete_args else None
            )
    except Exception as error:
        raise TraceError(
            f"torch.fx cannot trace {type(model).__name__}: {_line_of(error)} "
            f"({type(error).__name__}: {str(error).strip().partition(chr(10))[0]})"
        ) from error
    return graph, {name: node for node, name in tracer.names.items()}


@contextlib.contextmanager
def _no_hooks(model: nn.Module, tracer: PathTracer) -> Iterator[None]:
    """Keep hooks from being called with the symbols that stand for tensors in a trace."""
    held: list[tuple[nn.Module, str, Any]] = []
    for name, module in model.named_modules():
        if not name or not tracer.is_leaf_module(module, name):
            for kind in structure.HOOKS:
                held.append((module, kind, getattr(module, kind)))
                setattr(module, kind, type(getattr(module, kind))())
    try:
        yield
    finally:
        for module, kind, hooks in held:
            setattr(module, kind, hooks)


def hooked(model: nn.Module, options: Mapping[str, Any] | None) -> list[str]:
    """Modules that a trace looks into and whose hooks it therefore never calls."""
    tracer = tracer_for(model, options)
    return [
        name or type(model).__name__
        for name, module in model.named_modules()
        if any(getattr(module, kind) for kind in structure.HOOKS)
        and (not name or not tracer.is_leaf_module(module, name))
    ]


_NOT_THE_USERS = (str(Path(torch.__file__).parent), str(Path(__file__).parent / "nodes.py"))


def _line_of(error: BaseException) -> str:
    """The innermost line of a failed trace that is not the tracer's own."""
    frames = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not frame.f_code.co_filename.startswith(_NOT_THE_USERS)
    ]
    if not frames:
        return "it stopped in torch"
    file, line = frames[-1]
    return f"{file}, line {line}, `{linecache.getline(file, line).strip()}`"


def find(query: str, names: Mapping[str, fx.Node], *, model: str) -> fx.Node:
    """The node of a name; of a module that was looked into its last operation.

    Raises:
        MissingFeatureError: no such name, with the nearest.
    """
    if query in names:
        return names[query]
    inside = [node for name, node in names.items() if name.startswith(f"{query}.")]
    if not query or not inside:
        parents = {name.rpartition(".")[0] for name in names} - {""}
        raise MissingFeatureError(
            f"node: {query!r} is not present in {model}.{nearest(query, [*names, *parents])} "
            "get_graph_node_names lists the nodes; those of train and eval mode may differ."
        )
    return inside[-1]
