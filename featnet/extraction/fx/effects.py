"""Effects of a graph's operations on each other's tensors: from their names where these tell
enough, else from one run on the meta device."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from ...size import Size
from ...tracing import probing, shapes, structure, trace
from ...tracing import sizes as inputs


class Effects:
    """Effects of the nodes of a graph, from a run, or from :func:`guess` without one.

    Attributes:
        size: (H, W) of the input of the run; None if there was none.
        shapes: node to the shape of its first tensor, ``()`` if it put out none.
        holds: node to the storages of its tensors, as opaque numbers.
        writes: node to the storages that it changed.
        plain: nodes that put out one tensor, not several.
    """

    def __init__(self, size: Size | None = None) -> None:
        self.size = size
        self.shapes: dict[fx.Node, torch.Size] = {}
        self.holds: dict[fx.Node, frozenset[int]] = {}
        self.writes: dict[fx.Node, frozenset[int]] = {}
        self.plain: set[fx.Node] = set()

    def needed(self, before: Sequence[fx.Node], wanted: Collection[fx.Node]) -> set[fx.Node]:
        """The nodes, of those up to the last wanted one, that the wanted ones need: what they are
        computed from, and what changes that in place."""
        live, storages = set(wanted), set[int]()
        for node in wanted:
            storages |= self.holds[node]
        for node in reversed(before):
            changes = not storages.isdisjoint(self.writes[node])
            if node in live or changes or node.target in fx.node._side_effectful_functions:
                live.add(node)
                live.update(node.all_input_nodes)
                for each in (node, *node.all_input_nodes):
                    storages |= self.holds[each]
        return live

    def overwritten(self, node: fx.Node, run: Sequence[fx.Node]) -> bool:
        """Tell if one of the nodes that run after this one changes its tensors."""
        after = run[run.index(node) + 1 :]
        return any(self.writes[later] & self.holds[node] for later in after)

    def shares(self, node: fx.Node) -> bool:
        """Tell if a node's tensors lie in memory that nodes before it hold too."""
        for earlier, storages in self.holds.items():
            if earlier is node:
                return False
            if storages & self.holds[node]:
                return True
        return False

    def idle(self, before: Sequence[fx.Node], wanted: Collection[fx.Node]) -> bool:
        """Tell if nothing that changes a tensor in place matters to the wanted nodes."""
        live = self.needed(before, wanted)
        read = {n for n in live if n.target in fx.node._side_effectful_functions} | set(wanted)
        for node in reversed(before):
            if node in read:
                read.update(node.all_input_nodes)
        run = [node for node in before if node in live]
        return live <= read and not any(self.overwritten(node, run) for node in set(wanted))


# Modules and functions of torch whose output shares no memory with what they are given
_FRESH_FILES = {
    f"torch.nn.modules.{file}"
    for file in ("activation", "batchnorm", "conv", "instancenorm", "normalization", "pooling")
}
_FRESH = frozenset(
    {
        "adaptive_avg_pool2d",
        "add",
        "avg_pool2d",
        "batch_norm",
        "bmm",
        "cat",
        "clone",
        "conv2d",
        "cos",
        "div",
        "exp",
        "gelu",
        "hardsigmoid",
        "hardswish",
        "layer_norm",
        "leaky_relu",
        "linear",
        "matmul",
        "max_pool2d",
        "mean",
        "mul",
        "normalize",
        "pow",
        "relu",
        "relu6",
        "rsqrt",
        "scaled_dot_product_attention",
        "sigmoid",
        "silu",
        "sin",
        "softmax",
        "sqrt",
        "stack",
        "sub",
        "sum",
        "tanh",
        "truediv",
    }
)
_PYTHON = ("torch", "torch.functional", F.__name__)
_WRITING_OPERATORS = frozenset(
    {
        "iadd",
        "iand",
        "ifloordiv",
        "ilshift",
        "imatmul",
        "imod",
        "imul",
        "ior",
        "ipow",
        "irshift",
        "isub",
        "itruediv",
        "ixor",
        "setitem",
    }
)


def guess(model: nn.Module, graph: fx.Graph) -> Effects:
    """Storages that nodes may hold and may write, as far as their names tell: never fewer than they
    do. What is not torch's own may hold and write whatever it is given."""
    effects = Effects()
    modules = dict(model.named_modules(remove_duplicate=False))
    for index, node in enumerate(graph.nodes):
        read = [effects.holds[each] for each in node.all_input_nodes]
        every = frozenset[int]().union(*read)
        first = node.args[0] if node.args else None
        one = effects.holds[first] if isinstance(first, fx.Node) else every
        # A module or an attribute that is used twice may give the same tensor twice
        own = hash(node.target) if node.op in ("call_module", "get_attr") else index
        kind = _kind(node, modules.get(str(node.target)) if node.op == "call_module" else None)
        holds, writes = {
            "fresh": (frozenset({index}), frozenset[int]()),
            "reads": (every | {own}, frozenset[int]()),
            "inplace": (one, one),
            "unknown": (every | {own}, every | {own}),
        }[kind]
        effects.holds[node], effects.writes[node] = holds, writes
    return effects


def _kind(node: fx.Node, module: nn.Module | None) -> str:
    """Sort a node by its effect: ``"fresh"`` puts out new storage, ``"reads"`` perhaps an input's
    one, ``"inplace"`` writes its first argument and puts that out, ``"unknown"`` any of these."""
    if module is not None:
        return _kind_of_module(module)
    if node.op in ("placeholder", "get_attr", "output"):
        return "reads"
    target: Any = node.target
    name = target if isinstance(target, str) else target.__name__
    home = getattr(target, "__module__", None) or ""
    if isinstance(target, str):
        known = hasattr(torch.Tensor, name)
    else:
        known = isinstance(target, types.BuiltinFunctionType) or home in _PYTHON
    rest = (
        *node.args[1:],
        *(node.kwargs.get(key) for key in ("inplace", "out", "training", "train")),
    )
    if not known or node.kwargs.get("out") is not None:
        return "unknown"
    if (
        (name.endswith("_") and not name.endswith("__"))
        or name.startswith("__i")
        or (name in _WRITING_OPERATORS and home == "_operator")
        or name == "__setitem__"
    ):
        return "inplace"
    if any(value is True for value in rest):  # perhaps inplace, or statistics that are kept
        return "unknown"
    return "fresh" if name.strip("_") in _FRESH else "reads"


def _kind_of_module(module: nn.Module) -> str:
    if any(getattr(inner, kind) for inner in module.modules() for kind in structure.HOOKS):
        return "unknown"
    if type(module).forward is nn.Sequential.forward:  # the first one that does not pass on decides
        kinds = map(_kind_of_module, module.children())
        return next((kind for kind in kinds if kind != "reads"), "reads")
    if not type(module).__module__.startswith("torch.nn."):
        return "unknown"
    if any(getattr(inner, "inplace", False) for inner in module.modules()):
        return "unknown" if [*module.children()] else "inplace"
    fresh = type(module).__module__ in _FRESH_FILES or type(module) is nn.Linear
    return "fresh" if fresh else "reads"


class _Watch(fx.Interpreter):
    """Runs a graph node by node and notes what becomes of storages."""

    def __init__(self, module: nn.Module, graph: fx.Graph, effects: Effects) -> None:
        super().__init__(module, garbage_collect_values=False, graph=graph)
        self.effects = effects

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        arguments = [t for each in n.all_input_nodes for t in trace.tensors(self.env[each])]
        versions = [t._version for t in arguments]
        value = super().run_node(n)
        outputs = list(trace.tensors(value))
        if isinstance(value, torch.Tensor):
            self.effects.plain.add(n)
        self.effects.shapes[n] = outputs[0].shape if outputs else torch.Size()
        self.effects.holds[n] = frozenset(map(_storage, outputs))
        self.effects.writes[n] = frozenset(
            _storage(t) for t, old in zip(arguments, versions, strict=True) if t._version != old
        )
        return value


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def sizes_for(model: nn.Module) -> tuple[Size, ...]:
    """Input sizes at which a model may run, the one that it says it was built for first."""
    wanted = inputs.current().size
    return (wanted,) if wanted is not None else tuple(inputs.candidates(model))


@torch.inference_mode(False)  # whose tensors have no version counter
def observe(
    model: nn.Module, graph: fx.Graph, sizes: Iterable[Size], *, channels: int
) -> Effects | None:
    """Run a graph of a model, in the model's mode, on a copy: at the first of the sizes that it
    takes, on the meta device or else on zeros. None if it takes none."""
    tried = list(sizes)
    takers: Mapping[str, Any] = {"meta": structure.meta_clone, "cpu": structure.real_clone}
    tensor = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    for device, clone in takers.items():
        if device != "meta" and tensor.device.type == "meta":
            break
        place = torch.device("meta") if device == "meta" else tensor.device
        copied = structure.in_mode(clone(model), model.training)
        for size in tried:
            # Two images: batch norm in training refuses one of one position
            x = torch.zeros(2, channels, *size, dtype=tensor.dtype, device=place)
            effects = Effects(size)
            with contextlib.suppress(Exception), torch.no_grad():
                with probing.caches_kept(model), structure.eagerly(copied), shapes.ShapeRules():
                    _Watch(copied, graph, effects).run(x)
                return effects
    return None
