"""create_feature_extractor, get_graph_node_names: any operation of a network, by torch.fx.

The interface and the names of nodes are torchvision's, so that code written for
``torchvision.models.feature_extraction`` runs with its import changed; see docs/foreign_models.md
for what differs. The result is a module over the tensors of the model it was made from, and leaves
that model alone.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from . import layout, nodes, structure, trace
from .effects import Effects, observe
from .errors import ArgumentError, MissingFeatureError, TraceError
from .extractors import REGISTRIES, FeatureHookNet
from .features import Feature, FeatureInfo
from .hooks import Tap, copied

Nodes = Sequence[str] | Mapping[str, str]


def get_graph_node_names(
    model: nn.Module,
    tracer_kwargs: Mapping[str, Any] | None = None,
    suppress_diff_warning: bool = False,
    concrete_args: Mapping[str, Any] | None = None,
) -> tuple[list[str], list[str]]:
    """Names of all operations of a model in train mode, and in eval mode, as they are executed.

    Args:
        model: any module that torch.fx can trace. It is not changed.
        tracer_kwargs: ``leaf_modules`` (classes), ``autowrap_functions``, ``autowrap_modules``: what
            is not looked into; ``param_shapes_constant``.
        suppress_diff_warning: do not warn when the two lists differ.
        concrete_args: arguments of the forward that are constants.

    Raises:
        TraceError: with the line of the forward that cannot be traced.
    """
    body = structure.clone(model)
    found = [
        list(nodes.trace(body.train(mode), tracer_kwargs, concrete_args)[1])
        for mode in (True, False)
    ]
    if not suppress_diff_warning:
        _warn_of_difference(*found)
    return found[0], found[1]


def create_feature_extractor(
    model: nn.Module,
    return_nodes: Nodes | None = None,
    train_return_nodes: Nodes | None = None,
    eval_return_nodes: Nodes | None = None,
    tracer_kwargs: Mapping[str, Any] | None = None,
    suppress_diff_warning: bool = False,
    concrete_args: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A module that returns what nodes of a model put out, as a dict in the order asked.

    A node is an operation (see :func:`get_graph_node_names`) or a module, which means its last
    operation. What no node needs is neither kept nor computed. A node whose tensor something
    overwrites afterwards is cloned.

    Args:
        model: any module. It is not changed; the extractor has a structure of its own over the same
            tensors.
        return_nodes: names of nodes, or a dict of them to output names.
        train_return_nodes, eval_return_nodes: both, instead, where the two modes differ.
        tracer_kwargs, suppress_diff_warning, concrete_args: as :func:`get_graph_node_names`.

    Returns:
        a :class:`GraphExtractor`. Of a model that torch.fx cannot trace a
        :class:`featnet.FeatureHookNet`, if the nodes are modules; a warning says so.

    Raises:
        MissingFeatureError: a node that does not exist, or cannot be had without a graph.
        ArgumentError: no nodes, or two of one output name.
    """
    wanted = _wanted(return_nodes, train_return_nodes, eval_return_nodes)
    body = structure.clone(model)
    graphs: dict[bool, fx.Graph] = {}
    names: dict[bool, dict[str, fx.Node]] = {}
    try:
        for mode in (True, False):
            graphs[mode], names[mode] = nodes.trace(body.train(mode), tracer_kwargs, concrete_args)
    except TraceError as error:
        return _by_hooks(model, wanted, error)
    deaf = nodes.hooked(model, tracer_kwargs)
    if deaf:
        warnings.warn(
            f"Hooks on {', '.join(deaf)} are not called by the extractor, whose graph goes through "
            "these modules: make their classes leaf_modules.", stacklevel=2,
        )  # fmt: skip
    if not suppress_diff_warning:
        _warn_of_difference(list(names[True]), list(names[False]))
    found = {
        mode: {
            key: nodes.find(query, names[mode], model=type(model).__name__)
            for query, key in wanted[mode].items()
        }
        for mode in (True, False)
    }
    return _extractor(model, body, graphs, found)


def _wanted(both: Any, train: Any, evaluation: Any) -> dict[bool, dict[str, str]]:
    """Queries to output names, in each mode."""
    if (train is None) != (evaluation is None) or (both is None) == (train is None):
        raise ArgumentError(
            "Give return_nodes, or train_return_nodes and eval_return_nodes together; given are "
            f"return_nodes={both!r}, train_return_nodes={train!r}, eval_return_nodes={evaluation!r}."
        )

    def pairs(given: Any) -> dict[str, str]:
        if isinstance(given, (str, bytes)) or not isinstance(given, Iterable) or not given:
            raise ArgumentError(f"return_nodes={given!r}: names, or a dict of them, are expected.")
        items = list(given.items() if isinstance(given, Mapping) else ((n, n) for n in given))
        chosen = {str(query): str(key) for query, key in items}
        if len(set(chosen.values())) < len(items):
            raise ArgumentError(f"return_nodes={given!r}: each needs an output name of its own.")
        return chosen

    if train is None:
        return {True: pairs(both), False: pairs(both)}
    return {True: pairs(train), False: pairs(evaluation)}


def _warn_of_difference(train: list[str], evaluation: list[str]) -> None:
    if train == evaluation:
        return
    only = [
        f"only in {mode} mode: {', '.join(extra[:5])}{', ...' if len(extra) > 5 else ''}"
        for mode, extra in (
            ("train", [n for n in train if n not in set(evaluation)]),
            ("eval", [n for n in evaluation if n not in set(train)]),
        )
        if extra
    ]
    warnings.warn(
        f"The graph of train mode is not that of eval mode ({'; '.join(only) or 'another order'}). "
        "train_return_nodes and eval_return_nodes choose nodes of each.", stacklevel=3,
    )  # fmt: skip


def _by_hooks(
    model: nn.Module, wanted: dict[bool, dict[str, str]], error: TraceError
) -> FeatureHookNet:
    """The same by hooks, where every node is a module."""
    modules = dict(model.named_modules(remove_duplicate=False))
    missing = [n for mode in (True, False) for n in wanted[mode] if n not in modules or not n]
    if missing or wanted[True] != wanted[False]:
        what = f"{missing[0]!r} is no module" if missing else "train and eval nodes differ"
        raise MissingFeatureError(f"{what}, and without a graph only modules are had. {error}")
    warnings.warn(f"{error} The extractor reads the modules by hooks instead.", stacklevel=3)
    taps = [
        # What a name means in a graph: a leaf's first call, the last operation of another
        Tap(name, key=key, which="last" if next(modules[name].children(), None) else "first")
        for name, key in wanted[False].items()
    ]
    return FeatureHookNet(model, taps=_which(model, taps), return_dict=True)


def _which(model: nn.Module, taps: list[Tap]) -> list[Tap]:
    """Taps that say ``which`` only of modules that run several times: others can stop early."""
    ran = [call.name for call in trace.run(model, trace.probe_size(model), through=True).calls]
    return [
        tap if ran.count(tap.module) > 1 else Tap(tap.module, key=tap.key) for tap in taps
    ]


def _extractor(
    model: nn.Module,
    body: nn.Module,
    graphs: dict[bool, fx.Graph],
    found: dict[bool, dict[str, fx.Node]],
) -> GraphExtractor:
    called: set[str] = set()
    used: set[str] = set()
    levels: dict[bool, tuple[Feature, ...] | None] = {}
    modules = dict(body.named_modules(remove_duplicate=False))
    for mode, graph in graphs.items():
        seen = observe(body.train(mode), graph)
        levels[mode] = _describe(found[mode], seen)
        _cut(graph, found[mode], seen)
        for node in graph.nodes:
            if node.op == "get_attr":
                used.add(str(node.target))
            elif node.op == "call_module":
                inner = modules[str(node.target)]
                prefix = f"{node.target}."
                called |= {prefix + n if n else str(node.target) for n, _ in inner.named_modules()}
                used |= {prefix + name for name in inner.state_dict(keep_vars=True)}
                used |= {prefix + name for name, _ in inner.named_buffers()}
    constants = {n: getattr(body, n) for n in used if "." not in n and n in vars(body)}
    structure.keep(body, called, used)
    for name, tensor in constants.items():
        delattr(body, name)
        body.register_buffer(name, tensor, persistent=False)
    several = sum(node.op == "placeholder" for node in graphs[True].nodes) != 1
    kind = GraphExtractorOfSeveral if several else GraphExtractor
    return kind(body.train(model.training), graphs, levels)


def _cut(graph: fx.Graph, found: Mapping[str, fx.Node], seen: Effects) -> None:
    """Let a graph put out the nodes found, and nothing else be in it."""
    before = [node for node in graph.nodes if node.op != "output"]
    live = seen.needed(before, set(found.values()))
    for node in list(graph.nodes):
        if node.op == "output":
            graph.erase_node(node)
    given: dict[str, fx.Node] = {}
    for key, node in found.items():
        if seen.overwritten(node, [n for n in before if n in live]):
            with graph.inserting_after(node):
                if node in seen.plain:
                    given[key] = graph.call_method("clone", (node,))
                else:
                    given[key] = graph.call_function(copied, (node,))
        else:
            given[key] = node
    graph.output(given)
    for node in reversed(before):
        if node not in live and node.op != "placeholder":
            graph.erase_node(node)


def _describe(found: Mapping[str, fx.Node], seen: Effects) -> tuple[Feature, ...] | None:
    """A level for each output; None where the graph could not be run to see."""
    if seen.size is None:
        return None
    return tuple(
        layout.feature(seen.shapes[node], seen.size, module=key, index=index)
        for index, (key, node) in enumerate(found.items())
    )


class GraphExtractor(nn.Module):
    """(N, C, H, W) -> a dict of what nodes put out; made by :func:`create_feature_extractor`.

    Modules, parameters and buffers have the names they have in the model it was made from. Train
    mode and eval mode each have their graph.
    """

    _graphs: dict[bool, fx.Graph]
    _forwards: dict[bool, Any]

    def __init__(
        self,
        body: nn.Module,
        graphs: Mapping[bool, fx.Graph],
        levels: Mapping[bool, tuple[Feature, ...] | None],
    ) -> None:
        super().__init__()
        for name in REGISTRIES:
            self.__dict__[name] = body.__dict__[name]
        self.training = body.training
        self._levels = dict(levels)
        self._use(graphs)

    def _use(self, graphs: Mapping[bool, fx.Graph]) -> None:
        self.__dict__["_graphs"] = dict(graphs)
        # fx compiles a graph to a function of the module that holds what it calls: here self
        modules = {mode: fx.GraphModule(self, graph) for mode, graph in graphs.items()}
        self.__dict__["_forwards"] = {m: type(module).forward for m, module in modules.items()}

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        return self._forwards[self.training](self, x)

    @property
    def graph(self) -> fx.Graph:
        """The graph of the mode that the extractor is in."""
        return self._graphs[self.training]

    def graph_module(self) -> fx.GraphModule:
        """A ``torch.fx.GraphModule`` of the mode that the extractor is in, over its modules."""
        return fx.GraphModule(self, self.graph)

    @property
    def feature_info(self) -> FeatureInfo:
        """What comes out, item by item; ``module`` is the output's name.

        Raises:
            TraceError: the graph takes something else than a batch of pictures.
        """
        levels = self._levels[self.training]
        if levels is None:
            raise TraceError(
                f"What comes out of this {type(self).__name__} is not known: its graph did not run "
                "on a batch of pictures."
            )
        return FeatureInfo(levels, measure=self._measure)

    def _measure(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        seen = observe(self, self.graph, sizes=(size,))
        if seen.size is None:
            raise TraceError(f"The graph does not run on an input of {size[0]} x {size[1]}.")
        output: Any = next(node for node in self.graph.nodes if node.op == "output").args[0]
        rows = [(seen.shapes[node], level) for (_, node), level in
                zip(output.items(), self._levels[self.training] or (), strict=True)]  # fmt: skip
        return [layout.sides(shape, level.layout, size=size, reduction=level.reduction)
                for shape, level in rows]  # fmt: skip

    # Graphs hold functions that pickle does not know: they go by their names

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        state = {k: v for k, v in state.items() if k not in ("_graphs", "_forwards")}
        state["_packed"] = {mode: _pack(graph) for mode, graph in self._graphs.items()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        packed = state["_packed"]
        super().__setstate__({k: v for k, v in state.items() if k != "_packed"})  # type: ignore[no-untyped-call]
        self._use({mode: _unpack(rows) for mode, rows in packed.items()})


class GraphExtractorOfSeveral(GraphExtractor):
    """The same of a forward that has several arguments, or one by keyword."""

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self._forwards[self.training](self, *args, **kwargs)


class _Ref:
    """A node within a packed graph."""

    def __init__(self, name: str) -> None:
        self.name = name


def _pack(graph: fx.Graph) -> list[tuple[Any, ...]]:
    def ref(node: fx.Node) -> Any:
        return _Ref(node.name)

    rows = []
    for node in graph.nodes:
        target = node.target
        if node.op == "call_function":
            name = fx.node._get_qualified_name(target)
            target = name if _by_name(name) is target else target
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), ref)
        rows.append((node.op, node.name, target, args, kwargs))
    return rows


def _unpack(rows: list[tuple[Any, ...]]) -> fx.Graph:
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}

    def node(value: Any) -> Any:
        return made[value.name] if isinstance(value, _Ref) else value

    for op, name, target, args, kwargs in rows:
        target = _by_name(target) if op == "call_function" and isinstance(target, str) else target
        args, kwargs = fx.node.map_aggregate((args, kwargs), node)
        made[name] = graph.create_node(op, target, tuple(args), dict(kwargs), name=name)
    return graph


def _by_name(name: str) -> Any:
    """The function of a qualified name; None if it cannot be found by it."""
    module, _, rest = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module or "builtins"), rest)
    except (ImportError, AttributeError):
        return getattr(torch.Tensor, rest, None) if module == "torch.Tensor" else None
