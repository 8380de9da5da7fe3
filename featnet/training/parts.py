"""Find the part of a network that runs up to a level."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..backbone import Backbone
from ..errors import ArgumentError
from ..extraction import declared
from ..extraction.discovery import discover
from ..extraction.extractors import FeatureNet, probe_size
from ..extraction.fx.graphnet import GraphExtractor
from ..features import Feature
from ..tracing import trace


def levels_of(net: nn.Module) -> list[Feature]:
    """Return the levels that a network has and, if it is an extractor, keeps.

    Those that it declares, or that :func:`featnet.discover` finds.
    """
    if isinstance(net, GraphExtractor):
        return list(net.feature_info.info)
    try:
        levels = declared.levels(net, None)
    except ArgumentError:
        levels = discover(net).info
    modules = {name for name, _ in net.named_modules(remove_duplicate=False)}
    return [level for level in levels if level.module in modules]


def up_to(net: nn.Module, level: Feature) -> tuple[set[int], set[int]]:
    """Return the ids of the modules that have run, and of the parameters that were read, when a
    level is there."""
    if isinstance(net, GraphExtractor):
        return _up_to_node(net, level.module)
    body = net.body if isinstance(net, FeatureNet) else net
    size = probe_size(net)
    if isinstance(body, Backbone):
        record = trace.run(body, size, levels={level.index})
    else:
        record = trace.run(body, size, until=frozenset({(level.module, level.hook_type)}))
    modules = dict(net.named_modules(remove_duplicate=False))
    parameters = dict(net.named_parameters(remove_duplicate=False))
    return (
        {id(modules[call.name]) for call in record.calls if call.name},
        {id(parameters[name]) for name in record.used if name in parameters},
    )


def _up_to_node(net: GraphExtractor, key: str) -> tuple[set[int], set[int]]:
    """The same of one output of a graph: what its node is computed from."""
    output: Any = next(node for node in net.graph.nodes if node.op == "output").args[0]
    waiting, nodes = [output[key]], set()
    while waiting:
        node = waiting.pop()
        if node not in nodes:
            nodes.add(node)
            waiting += node.all_input_nodes
    called = [net.get_submodule(node.target) for node in nodes if node.op == "call_module"]
    read = {node.target for node in nodes if node.op == "get_attr"}
    parameters = {id(p) for name, p in net.named_parameters() if name in read}
    return (
        {id(inner) for module in called for inner in module.modules()},
        parameters | {id(p) for module in called for p in module.parameters()},
    )
