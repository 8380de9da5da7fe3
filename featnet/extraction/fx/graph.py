"""create_feature_extractor, get_graph_node_names: any operation of a network, by torch.fx.

The interface and the names of nodes are torchvision's, so that code written for
``torchvision.models.feature_extraction`` runs with its import changed; see docs/foreign_models.md
for what differs. The result is a module over the tensors of the model it was made from, and leaves
that model alone.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import fx, nn

from ...errors import ArgumentError, MissingFeatureError, TraceError
from ...tracing import sizes, structure, trace
from ...values import checked
from .. import pruning
from ..apart import keep_apart
from ..hooknet import FeatureHookNet
from ..hooks import Tap
from . import nodes
from .effects import Effects, guess, observe, sizes_for
from .graphnet import GraphExtractor, GraphExtractorOfSeveral

Nodes = Sequence[str] | Mapping[str, str]


@checked
def get_graph_node_names(
    model: nn.Module,
    tracer_kwargs: Mapping[str, Any] | None = None,
    suppress_diff_warning: bool = False,
    concrete_args: Mapping[str, Any] | None = None,
) -> tuple[list[str], list[str]]:
    """List the names of all operations of a model, in the order in which they are executed.

    Args:
        model: any module that torch.fx can trace. It is not changed.
        tracer_kwargs: ``leaf_modules`` (classes), ``autowrap_functions``, ``autowrap_modules``,
            which are not traced into; ``param_shapes_constant``.
        suppress_diff_warning: do not warn when the two lists differ.
        concrete_args: arguments of the forward that are constants.

    Returns:
        Two lists of names, in train mode and in eval mode.

    Raises:
        TraceError: with the line of the forward that cannot be traced.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.ReLU())
        >>> featnet.get_graph_node_names(model)
        (['input', '0', '1'], ['input', '0', '1'])
    """
    body = structure.clone(model)
    names = [
        list(nodes.trace(structure.in_mode(body, mode), tracer_kwargs, concrete_args)[1])
        for mode in (True, False)
    ]
    if not suppress_diff_warning:
        _warn_of_difference(*names)
    return names[0], names[1]


@checked
def create_feature_extractor(
    model: nn.Module,
    return_nodes: Nodes | None = None,
    train_return_nodes: Nodes | None = None,
    eval_return_nodes: Nodes | None = None,
    tracer_kwargs: Mapping[str, Any] | None = None,
    suppress_diff_warning: bool = False,
    concrete_args: Mapping[str, Any] | None = None,
    *,
    input_size: Sequence[int] | None = None,
) -> nn.Module:
    """Make a module that returns outputs of a model's nodes, as a dict in the order asked.

    A node is an operation (see :func:`get_graph_node_names`) or a module, which stands for its last
    operation. What no node needs is neither kept nor computed. If a later operation overwrites the
    tensor of a node, it gets a copy: the output has its own values and gradients.

    Args:
        model: any module. It is not changed; the extractor has a structure of its own over the same
            tensors.
        return_nodes: names of nodes, or a dict of them to output names.
        train_return_nodes: nodes in train mode, if the two modes differ.
        eval_return_nodes: nodes in eval mode, likewise.
        tracer_kwargs: as for :func:`get_graph_node_names`.
        suppress_diff_warning: likewise.
        concrete_args: likewise.
        input_size: (H, W) or (C, H, W) at which to look into a model that takes one size only.

    Returns:
        A :class:`GraphExtractor`. For a model that torch.fx cannot trace a
        :class:`featnet.FeatureHookNet`, if the nodes are modules; a warning says so.

    Raises:
        MissingFeatureError: a node that does not exist, or that needs a graph.
        ArgumentError: no nodes, or two of one output name.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.ReLU())
        >>> net = featnet.create_feature_extractor(model, {"0": "conv", "1": "relu"})
        >>> {key: tuple(y.shape) for key, y in net(torch.ones(1, 3, 4, 4)).items()}
        {'conv': (1, 8, 4, 4), 'relu': (1, 8, 4, 4)}
    """
    wanted = _wanted(return_nodes, train_return_nodes, eval_return_nodes)
    with sizes.at_size(input_size):
        return _extract(model, wanted, tracer_kwargs, suppress_diff_warning, concrete_args)


def _extract(
    model: nn.Module,
    wanted: dict[bool, dict[str, str]],
    tracer_kwargs: Mapping[str, Any] | None,
    suppress_diff_warning: bool,
    concrete_args: Mapping[str, Any] | None,
) -> nn.Module:
    body = structure.view(model)
    graphs: dict[bool, fx.Graph] = {}
    names: dict[bool, dict[str, fx.Node]] = {}
    try:
        for mode in (True, False):
            graphs[mode], names[mode] = nodes.trace(
                structure.in_mode(body, mode), tracer_kwargs, concrete_args
            )
    except TraceError as error:
        return _by_hooks(model, wanted, error)
    deaf = nodes.hooked(model, tracer_kwargs)
    if deaf:
        warnings.warn(
            f"Hooks on {', '.join(deaf)} are not called by the extractor, whose graph goes through "
            "these modules: make their classes leaf_modules.",
            stacklevel=3,
        )
    if not suppress_diff_warning:
        _warn_of_difference(list(names[True]), list(names[False]))
    by_mode = {
        mode: {
            key: nodes.find(query, names[mode], model=type(model).__name__)
            for query, key in wanted[mode].items()
        }
        for mode in (True, False)
    }
    return _extractor(model, body, graphs, by_mode)


def _wanted(both: object, train: object, evaluation: object) -> dict[bool, dict[str, str]]:
    """Queries to output names, in each mode."""
    if (train is None) != (evaluation is None) or (both is None) == (train is None):
        raise ArgumentError(
            "Give return_nodes, or train_return_nodes and eval_return_nodes together; given are "
            f"return_nodes={both!r}, train_return_nodes={train!r}, "
            f"eval_return_nodes={evaluation!r}."
        )

    def pairs(nodes: object) -> dict[str, str]:
        if isinstance(nodes, (str, bytes)) or not isinstance(nodes, Iterable) or not nodes:
            raise ArgumentError(f"return_nodes={nodes!r}: names, or a dict of them, are expected.")
        items = list(nodes.items() if isinstance(nodes, Mapping) else ((n, n) for n in nodes))
        chosen = {str(query): str(key) for query, key in items}
        if len(set(chosen.values())) < len(items):
            raise ArgumentError(f"return_nodes={nodes!r}: each needs an output name of its own.")
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
        "train_return_nodes and eval_return_nodes choose nodes of each.",
        stacklevel=3,
    )


def _by_hooks(
    model: nn.Module, wanted: dict[bool, dict[str, str]], error: TraceError
) -> FeatureHookNet:
    """The same by hooks, where every node is a module."""
    modules = dict(model.named_modules(remove_duplicate=False))
    missing = [n for mode in (True, False) for n in wanted[mode] if n not in modules or not n]
    if missing or wanted[True] != wanted[False]:
        what = f"{missing[0]!r} is no module" if missing else "train and eval nodes differ"
        raise MissingFeatureError(f"{what}, and without a graph only modules are had. {error}")
    warnings.warn(f"{error} The extractor reads the modules by hooks instead.", stacklevel=4)
    taps = [
        # What a name means in a graph: a leaf's first call, the last operation of another
        Tap(name, key=key, which="last" if next(modules[name].children(), None) else "first")
        for name, key in wanted[False].items()
    ]
    return FeatureHookNet(model, taps=_which(model, taps), return_dict=True)


def _which(model: nn.Module, taps: list[Tap]) -> list[Tap]:
    """Taps that say ``which`` only of modules that run several times: others can stop early."""
    ran = [call.name for call in trace.run(model, trace.probe_size(model), through=True).calls]
    return [tap if ran.count(tap.module) > 1 else Tap(tap.module, key=tap.key) for tap in taps]


def _extractor(
    model: nn.Module,
    body: nn.Module,
    graphs: dict[bool, fx.Graph],
    nodes: dict[bool, dict[str, fx.Node]],
) -> GraphExtractor:
    called: set[str] = set()
    used: set[str] = set()
    modules = dict(body.named_modules(remove_duplicate=False))
    for mode, graph in graphs.items():
        _cut(structure.in_mode(body, mode), graph, nodes[mode])
    every = [node for graph in graphs.values() for node in graph.nodes]
    used |= {str(node.target) for node in every if node.op == "get_attr"}
    for target in {str(node.target) for node in every if node.op == "call_module"}:
        inner, prefix = modules[target], f"{target}."
        called |= {prefix + name if name else target for name, _ in inner.named_modules()}
        used |= {prefix + name for name in inner.state_dict(keep_vars=True)}
        used |= {prefix + name for name, _ in inner.named_buffers()}
    constants = {n: getattr(body, n) for n in used if "." not in n and n in vars(body)}
    pruning.keep(body, called, used)
    for name, tensor in constants.items():
        delattr(body, name)
        body._buffers = dict(body._buffers)  # which was the model's too
        body._non_persistent_buffers_set = set(body._non_persistent_buffers_set)
        body.register_buffer(name, tensor, persistent=False)
    several = sum(node.op == "placeholder" for node in graphs[True].nodes) != 1
    kind = GraphExtractorOfSeveral if several else GraphExtractor
    extractor = kind(structure.in_mode(body, model.training), graphs)
    extractor._share(model)
    return extractor


def _cut(body: nn.Module, graph: fx.Graph, nodes: Mapping[str, fx.Node]) -> None:
    """Let a graph put out the nodes found, and nothing else be in it."""
    wanted = set(nodes.values())
    for node in reversed(list(graph.nodes)):  # what is behind the last one
        if node in wanted:
            break
        if node.op != "placeholder":
            graph.erase_node(node)
    before = list(graph.nodes)
    effects = guess(body, graph)
    if not effects.idle(before, wanted):  # a run knows better
        channels = trace.channels_of(body)
        effects = observe(body, graph, sizes_for(body), channels=channels) or effects
    live = effects.needed(before, wanted)
    run = [node for node in before if node in live]
    outputs = {
        node: _apart(graph, node, effects) if effects.overwritten(node, run) else node
        for node in wanted
    }
    graph.output({key: outputs[node] for key, node in nodes.items()})
    for node in reversed(before):
        if node not in live and node.op != "placeholder":
            graph.erase_node(node)


def _apart(graph: fx.Graph, node: fx.Node, effects: Effects) -> fx.Node:
    """Put :func:`keep_apart` behind a node whose tensors something overwrites later.

    Returns:
        the node to put out; the operations behind go on from another.
    """
    users = set(node.users)
    with graph.inserting_after(node):
        if node not in effects.plain:
            pair = graph.call_function(keep_apart, (node, list(node.all_input_nodes)))
            with graph.inserting_after(pair):
                outer = graph.call_function(operator.getitem, (pair, 0))
                onwards = graph.call_function(operator.getitem, (pair, 1))
        elif effects.shares(node):
            outer, onwards = graph.call_method("clone", (node,)), node
            with graph.inserting_after(outer):
                graph.call_method("copy_", (node, outer))
        else:
            outer, onwards = node, graph.call_method("clone", (node,))
    node.replace_all_uses_with(onwards, delete_user_cb=lambda user: user in users)
    return outer
