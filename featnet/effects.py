"""What the operations of a graph do to each other's tensors, from one run on the meta device."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from . import structure, trace

Size = tuple[int, int]


class Effects:
    """What a run of a graph showed.

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

    def _may_write(self, node: fx.Node) -> bool:
        """Without a run: whether an operation looks as if it changed what it is given."""
        name = str(node.target if isinstance(node.target, str) else node.target.__name__)
        return (
            node.op == "call_module"
            or bool(node.kwargs.get("inplace") or node.kwargs.get("out"))
            or (name.endswith("_") and not name.endswith("__"))
            or getattr(node.target, "__module__", "") == "_operator"
            or name == "setitem"
        )

    def needed(self, before: Sequence[fx.Node], wanted: Collection[fx.Node]) -> set[fx.Node]:
        """The nodes that the wanted ones need: what they are computed from, and what changes that
        in place. Nothing after the last wanted one is."""
        end = max(index for index, node in enumerate(before) if node in wanted)
        live, storages = set(wanted), set[int]()
        for node in wanted:
            storages |= self.holds.get(node, frozenset())
        for node in reversed(before[: end + 1]):
            if self.size is None:
                changes = self._may_write(node) and any(n in live for n in node.all_input_nodes)
            else:
                changes = bool(self.writes[node] & storages)
            if node in live or changes or node.target in fx.node._side_effectful_functions:
                live.add(node)
                live.update(node.all_input_nodes)
                for each in (node, *node.all_input_nodes):
                    storages |= self.holds.get(each, frozenset())
        return live

    def overwritten(self, node: fx.Node, run: Iterable[fx.Node]) -> bool:
        """Whether one of the nodes that run after this one changes its tensors."""
        after = list(run)
        after = after[after.index(node) + 1 :]
        if self.size is None:
            return any(map(self._may_write, after))
        return any(self.writes[later] & self.holds[node] for later in after)


class _Watch(fx.Interpreter):
    """Runs a graph node by node and notes what becomes of storages."""

    def __init__(self, module: nn.Module, graph: fx.Graph, effects: Effects) -> None:
        super().__init__(module, garbage_collect_values=False, graph=graph)
        self.effects = effects

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        given = [t for each in n.all_input_nodes for t in trace.tensors(self.env[each])]
        versions = [t._version for t in given]
        value = super().run_node(n)
        found = list(trace.tensors(value))
        if isinstance(value, torch.Tensor):
            self.effects.plain.add(n)
        self.effects.shapes[n] = found[0].shape if found else torch.Size()
        self.effects.holds[n] = frozenset(map(_storage, found))
        self.effects.writes[n] = frozenset(
            _storage(t) for t, old in zip(given, versions, strict=True) if t._version != old
        )
        return value


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def observe(
    model: nn.Module, graph: fx.Graph, *, sizes: Iterable[Size] | None = None
) -> Effects:
    """Run a graph of a model, in the model's mode, on a copy: at the first of the sizes that it
    takes, on the meta device or else on zeros."""
    built = getattr(model, "img_size", None) or getattr(model, "image_size", None)
    built = (built, built) if isinstance(built, int) else built
    first = [built] if isinstance(built, tuple) else []
    tried = list(sizes) if sizes is not None else [*first, *((s, s) for s in trace.SIZES)]
    takers: Mapping[str, Any] = {"meta": structure.meta_clone, "cpu": structure.real_clone}
    tensor = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    for device, clone in takers.items():
        if device != "meta" and tensor.device.type == "meta":
            break
        place = torch.device("meta") if device == "meta" else tensor.device
        copied = clone(model).train(model.training)
        for size in tried:
            # Two pictures: batch norm in training refuses one of one position
            x = torch.zeros(2, trace.channels_of(model), *size, dtype=tensor.dtype, device=place)
            effects = Effects(size)
            with contextlib.suppress(Exception), torch.inference_mode(False), torch.no_grad():
                with trace.Used():
                    _Watch(copied, graph, effects).run(x)
                return effects
    return Effects()
