"""timm's helpers for training: freezing, averaged weights, metrics."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ..layers.frozen_norm import FrozenBatchNorm2d
from ..training import freeze as freezing

_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def freeze_batch_norm_2d(module: nn.Module) -> nn.Module:
    """Replace every batch norm by one with fixed statistics and weights, in place.

    Returns:
        The module; of a batch norm what takes its place.
    """
    return _replaced(module, _NORMS, _frozen)


def unfreeze_batch_norm_2d(module: nn.Module) -> nn.Module:
    """Undo :func:`freeze_batch_norm_2d`."""
    return _replaced(module, (FrozenBatchNorm2d,), _thawed)


def _replaced(
    module: nn.Module, kinds: tuple[type[nn.Module], ...], make: Callable[[Any], nn.Module]
) -> nn.Module:
    if isinstance(module, kinds):
        return make(module)
    for name, child in module.named_children():
        other = _replaced(child, kinds, make)
        if other is not child:
            setattr(module, name, other)
    return module


def _frozen(norm: nn.Module) -> nn.Module:
    return FrozenBatchNorm2d.of(norm)


@torch.no_grad()
def _thawed(norm: FrozenBatchNorm2d) -> nn.Module:
    thawed: Any = nn.BatchNorm2d(norm.num_features, eps=norm.eps, device=norm.weight.device)
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(thawed, name).copy_(getattr(norm, name))
    return thawed.to(norm.weight.dtype)


def freeze(
    root_module: nn.Module,
    submodules: str | Sequence[str] = (),
    include_bn_running_stats: bool = True,
) -> None:
    """Freeze a network, or modules of it: :func:`featnet.freeze`.

    Args:
        root_module: the network.
        submodules: names of the modules; none is the whole network.
        include_bn_running_stats: False: norms keep training their statistics.
    """
    names = [submodules] if isinstance(submodules, str) else list(submodules)
    norm: Any = "freeze" if include_bn_running_stats else "train"
    freezing.freeze(root_module, names or None, norm=norm)
    if not include_bn_running_stats:
        for part in [root_module.get_submodule(name) for name in names or [""]]:
            part.requires_grad_(False)


def unfreeze(
    root_module: nn.Module,
    submodules: str | Sequence[str] = (),
    include_bn_running_stats: bool = True,
) -> None:
    """Undo :func:`freeze` of a network, or of modules of it."""
    names = [submodules] if isinstance(submodules, str) else list(submodules)
    for part in [root_module.get_submodule(name) for name in names or [""]]:
        freezing.unfreeze(part)
        part.requires_grad_(True)


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the network inside of averaged weights, DistributedDataParallel or torch.compile."""
    wrapper = (ModelEmaV2, nn.DataParallel, nn.parallel.DistributedDataParallel)
    if isinstance(model, wrapper):
        return unwrap_model(model.module)
    inner = model._modules.get("_orig_mod")
    return model if inner is None else unwrap_model(inner)


def get_state_dict(
    model: nn.Module, unwrap_fn: Callable[..., nn.Module] = unwrap_model
) -> dict[str, Any]:
    """Return the state dict of the network inside of a wrapper."""
    return unwrap_fn(model).state_dict()


class ModelEmaV2(nn.Module):
    """A copy of a network whose tensors are moving averages of the network's.

    Args:
        model: the network.
        decay: share of the average that stays in an update.
        device: where the copy is kept; by default beside the network.
    """

    def __init__(
        self, model: nn.Module, decay: float = 0.9999, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.module = copy.deepcopy(model).eval()
        self.decay, self.device = decay, device
        if device is not None:
            self.module.to(device=device)

    def update(self, model: nn.Module, step: int | None = None) -> None:
        """Move the averages toward the network's tensors."""
        self._blend(model, self.get_decay(step))

    def set(self, model: nn.Module) -> None:
        """Take the network's tensors as they are."""
        self._blend(model, 0.0)

    def get_decay(self, step: int | None = None) -> float:
        """Return the share that stays."""
        return self.decay

    @torch.no_grad()
    def _blend(self, model: nn.Module, decay: float) -> None:
        ours, theirs = self.module.state_dict().values(), model.state_dict().values()
        for average, value in zip(ours, theirs, strict=True):
            value = value.to(average.device)
            if average.is_floating_point():
                average.lerp_(value.to(average.dtype), 1.0 - decay)
            else:
                average.copy_(value)

    def forward(self, *args: object, **kwargs: object) -> Any:
        return self.module(*args, **kwargs)


class ModelEmaV3(ModelEmaV2):
    """Moving averages whose decay grows at the start.

    Args:
        model: the network.
        decay: share of the average that stays in an update, at most.
        min_decay: the same, at least.
        update_after_step: steps before which the network is copied.
        use_warmup: let the decay grow, by ``1 - (1 + step / warmup_gamma) ** -warmup_power``.
        warmup_gamma, warmup_power: see there.
        device: where the copy is kept.
        dtype: of the averages; float32 keeps small updates of a half-precision network.
        foreach: accepted.
        exclude_buffers: copy buffers in place of averaging them.
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float = 0.9999,
        min_decay: float = 0.0,
        update_after_step: int = 0,
        use_warmup: bool = False,
        warmup_gamma: float = 1.0,
        warmup_power: float = 2 / 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        foreach: bool = True,
        exclude_buffers: bool = False,
    ) -> None:
        super().__init__(model, decay, device)
        self.min_decay, self.update_after_step = min_decay, update_after_step
        self.use_warmup, self.exclude_buffers = use_warmup, exclude_buffers
        self.warmup_gamma, self.warmup_power = warmup_gamma, warmup_power
        if dtype is not None:
            self.module.to(dtype=dtype)

    def get_decay(self, step: int | None = None) -> float:
        """Return the share that stays at a step."""
        if step is None:
            return self.decay
        step = step - self.update_after_step - 1
        if step <= 0:
            return 0.0
        if not self.use_warmup:
            return self.decay
        grown: float = 1 - (1 + step / self.warmup_gamma) ** -self.warmup_power
        return max(min(grown, self.decay), self.min_decay)

    @torch.no_grad()
    def _blend(self, model: nn.Module, decay: float) -> None:
        super()._blend(model, decay)
        if self.exclude_buffers:
            for average, value in zip(self.module.buffers(), model.buffers(), strict=True):
                average.copy_(value)


class AverageMeter:
    """The mean of values that come one by one.

    Attributes:
        val, avg, sum, count: the last value, the mean, the sum, and how many there were.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.val, self.avg, self.sum, self.count = 0.0, 0.0, 0.0, 0

    def update(self, val: float, n: int = 1) -> None:
        """Add a value that stands for ``n``."""
        self.val, self.sum, self.count = val, self.sum + val * n, self.count + n
        self.avg = self.sum / self.count


def accuracy(
    output: torch.Tensor, target: torch.Tensor, topk: Sequence[int] = (1,)
) -> list[torch.Tensor]:
    """Return, for each k, the percentage of rows whose class is among the k best."""
    best = output.topk(min(max(topk), output.shape[1])).indices
    hits = best.eq(target.reshape(-1, 1))
    return [hits[:, :k].any(1).float().mean() * 100 for k in topk]


def random_seed(seed: int = 42, rank: int = 0) -> None:
    """Seed torch's, NumPy's and Python's generators."""
    torch.manual_seed(seed + rank)
    random.seed(seed + rank)
    try:
        import numpy
    except ImportError:
        return
    numpy.random.seed(seed + rank)


def natural_key(string_: str) -> list[int | str]:
    """Return a key that sorts names with numbers as people do."""
    return [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", string_.lower())]
