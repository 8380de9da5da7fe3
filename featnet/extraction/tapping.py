"""extract and list_taps: outputs of any modules of any network, and a list of its modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..errors import ArgumentError
from ..features import FeatureInfo
from ..tracing import sizes, structure, trace
from ..values import checked
from .discovery import discover
from .extractors import FeatureDictNet
from .hooknet import FeatureHookNet
from .hooks import Taps


class FeatureOutputNet(FeatureHookNet):
    """Turn images (N, C, H, W) into ``(features, output)``: a dict of the taps' features, and the
    network's own output, by one forward. Nothing is pruned."""

    def forward(self, x: torch.Tensor) -> tuple[dict[Any, Any], Any]:
        self._check_shared()
        hooks, values = self._hooks, dict[Any, Any]()
        outer = hooks.begin(values)
        try:
            output = self.body(x)
        finally:
            hooks.end(outer)
        return hooks.ordered(values), output


@checked
def extract(
    model: nn.Module,
    taps: Taps | FeatureInfo | None = None,
    *,
    logits: bool = False,
    input_size: Sequence[int] | None = None,
) -> nn.Module:
    """Make an extractor that returns outputs of a model's modules, as a dict in the order asked.

    The forward stops after the last of these modules. The extractor lacks what they do not need;
    the model itself is left as it is, and its tensors are shared.

    Args:
        model: any module that takes one (N, C, H, W) batch.
        taps: names of modules, patterns (``"layer*"`` within a part of a name, ``"**.attn"`` at any
            depth) and :class:`featnet.Tap` s, or a dict of them to output keys. A FeatureInfo for
            its levels, as maps (N, C, H, W); None for the levels that the model declares or
            :func:`featnet.discover` finds.
        logits: return ``(features, output)``, the model's own output beside the features.
        input_size: (H, W) or (C, H, W) at which to look into a model that takes one size only; by
            default a size that the model claims, or one that runs.

    Returns:
        A :class:`featnet.FeatureHookNet`, or for levels a :class:`featnet.FeatureDictNet`.

    Raises:
        MissingFeatureError: a tap that fits no module, or one that runs never or several times.
        ArgumentError: no module, or a FeatureInfo with ``logits``.
        TraceError: the model declares no levels, and does not run.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.ReLU())
        >>> net = featnet.extract(model, {"0": "conv"})
        >>> net(torch.ones(1, 3, 9, 9))["conv"].shape
        torch.Size([1, 8, 4, 4])
    """
    structure.check_module(model)
    if taps is None or isinstance(taps, FeatureInfo):
        if logits:
            raise ArgumentError("logits=True needs taps by name: feature_info.module_name().")
        declares = getattr(model, "feature_info", None) is not None
        info = taps if taps is not None or declares else discover(model, input_size or ())
        selected = None if info is None else [level.index for level in info]
        return FeatureDictNet(model, selected, feature_info=info, input_size=input_size)
    if logits:
        return FeatureOutputNet(model, taps=taps, prune=False, input_size=input_size)
    return FeatureHookNet(model, taps=taps, return_dict=True, input_size=input_size)


@checked
def list_taps(
    model: nn.Module, *, input_size: tuple[int, int] | None = None, depth: int | None = None
) -> None:
    """Print the tree of a model's modules: name, class, and shape of the output.

    Args:
        model: any module that takes one (N, C, H, W) batch.
        input_size: (H, W); by default one that the model takes.
        depth: number of levels of the tree, all by default.

    Raises:
        TraceError: the model does not run on an input of this size.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.ReLU())
        >>> featnet.list_taps(model, input_size=(9, 9))
        Sequential, input (1, 3, 9, 9)
        0  Conv2d  (1, 8, 4, 4)
        1  ReLU    (1, 8, 4, 4)
    """
    structure.check_module(model)
    with sizes.at_size(input_size):
        size = trace.probe_size(model)
    try:
        calls = trace.run(model, size, through=True).calls
    except Exception as error:
        raise trace.does_not_run(model, size, error) from error
    shapes: dict[str, list[str]] = {}
    for call in calls:
        text = ", ".join(str(tuple(shape)) for shape in call.outputs) or "no tensor"
        shapes.setdefault(call.name, []).append(text)
    rows = []
    for name, module in model.named_modules(remove_duplicate=False):
        level = name.count(".")
        if not name or (depth is not None and level >= depth):
            continue
        outputs = list(dict.fromkeys(shapes.get(name, ["does not run"])))
        times = len(shapes.get(name, ()))
        what = "; ".join(outputs) + (f"  ({times} times)" if times > 1 else "")
        rows.append(("  " * level + name, type(module).__name__, what))
    print(f"{type(model).__name__}, input (1, {trace.channels_of(model)}, {size[0]}, {size[1]})")
    widths = [max((len(row[i]) for row in rows), default=0) for i in (0, 1)]
    for row in rows:
        print(f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}".rstrip())
