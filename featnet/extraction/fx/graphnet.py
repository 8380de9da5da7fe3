"""GraphExtractor: the module that a graph becomes."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from ...errors import TraceError
from ...features import Feature, FeatureInfo
from ...size import Size
from ...tracing import trace
from .. import layout
from ..extractors import REGISTRIES
from ..shared import SharedNet
from .effects import observe, sizes_for


class GraphExtractor(SharedNet):
    """Turn images (N, C, H, W) into a dict of nodes' outputs; see :func:`create_feature_extractor`.

    Modules, parameters and buffers have the names that they have in the model it was made from.
    Train mode and eval mode each have their graph.

    Args:
        body: the module whose modules, parameters and buffers the graphs use.
        graphs: a graph for train mode (True), and one for eval mode (False).

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.ReLU())
        >>> net = featnet.create_feature_extractor(model, ["0"])
        >>> type(net).__name__, type(net.graph_module()).__name__, len(net.graph.nodes)
        ('GraphExtractor', 'GraphModule', 3)
    """

    _graphs: dict[bool, fx.Graph]
    _forwards: dict[bool, Any]

    def __init__(self, body: nn.Module, graphs: Mapping[bool, fx.Graph]) -> None:
        super().__init__()
        self._share(None)
        for name in REGISTRIES:
            self.__dict__[name] = body.__dict__[name]
        self.training = body.training
        self._levels: dict[bool, tuple[Feature, ...]] = {}  # by mode, once somebody asks
        self._sizes, self._channels = sizes_for(body), trace.channels_of(body)
        self.in_chans = self._channels
        self.pretrained_cfg: Any = getattr(body, "pretrained_cfg", None)  # of any library
        self._use(graphs)

    def _use(self, graphs: Mapping[bool, fx.Graph]) -> None:
        self.__dict__["_graphs"] = dict(graphs)
        # fx compiles a graph to a function of the module that holds what it calls: here self
        modules = {mode: fx.GraphModule(self, graph) for mode, graph in graphs.items()}
        self.__dict__["_forwards"] = {m: type(module).forward for m, module in modules.items()}

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        self._check_shared()
        return self._forwards[self.training](self, x)

    @property
    def graph(self) -> fx.Graph:
        """The graph of the mode that the extractor is in."""
        return self._graphs[self.training]

    def graph_module(self) -> fx.GraphModule:
        """Make a ``torch.fx.GraphModule`` of the graph of the current mode.

        Returns:
            A module over the same modules, parameters and buffers.
        """
        return fx.GraphModule(self, self.graph)

    @property
    def feature_info(self) -> FeatureInfo:
        """The outputs as levels, in their order; ``module`` is the output's name.

        Raises:
            TraceError: the graph takes something else than a batch of images.
        """
        mode = self.training
        if mode not in self._levels:
            size, shapes = self._run(self._sizes)
            self._levels[mode] = tuple(
                layout.feature(shape, size, module=key, index=index)
                for index, (key, shape) in enumerate(shapes.items())
            )
        return FeatureInfo(self._levels[mode], measure=self._measure)

    def _measure(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        _, shapes = self._run((size,))
        levels = self._levels[self.training]
        return [
            layout.sides(s, level, size) for s, level in zip(shapes.values(), levels, strict=True)
        ]

    def _run(self, sizes: Sequence[Size]) -> tuple[Size, dict[str, torch.Size]]:
        """The first of the sizes that the graph takes, and what comes out then."""
        observed = observe(self, self.graph, sizes, channels=self._channels)
        if observed is None or observed.size is None:
            raise TraceError(
                f"What comes out of this {type(self).__name__} is not known: its graph does not "
                f"run on a batch of images of {' or '.join(f'{h} x {w}' for h, w in sizes)}."
            )
        output: Any = next(node for node in self.graph.nodes if node.op == "output").args[0]
        return observed.size, {key: observed.shapes[node] for key, node in output.items()}

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

    def forward(self, *args: object, **kwargs: object) -> dict[str, Any]:
        self._check_shared()
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
    items: dict[str, fx.Node] = {}

    def node(value: object) -> Any:
        return items[value.name] if isinstance(value, _Ref) else value

    for op, name, target, args, kwargs in rows:
        target = _by_name(target) if op == "call_function" and isinstance(target, str) else target
        args, kwargs = fx.node.map_aggregate((args, kwargs), node)
        items[name] = graph.create_node(op, target, tuple(args), dict(kwargs), name=name)
    return graph


def _by_name(name: str) -> Any:
    """The function of a qualified name; None if it cannot be found by it."""
    module, _, rest = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module or "builtins"), rest)
    except (ImportError, AttributeError):
        return getattr(torch.Tensor, rest, None) if module == "torch.Tensor" else None
