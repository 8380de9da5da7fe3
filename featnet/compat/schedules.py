"""timm's cosine schedule, whose caller says at which epoch or update it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import ArgumentError
from .modules import NotHereError


class CosineLRScheduler:
    """Set learning rates along half a cosine, after a linear warm-up.

    Unlike torch's schedules it counts nothing: ``step(epoch)`` at the end of an epoch, or with
    ``t_in_epochs=False`` ``step_update(number)`` behind an update, says where training is.
    A group's ``lr_scale`` multiplies its rate.

    Args:
        optimizer: its groups' rates are those that the schedule starts from.
        t_initial: epochs (or updates) of a cycle.
        lr_min: the rate that a cycle ends at.
        cycle_mul: each cycle is so many times as long as the one before.
        cycle_decay: and starts from so much of its rate.
        cycle_limit: number of cycles; ``lr_min`` afterwards.
        warmup_t: epochs (or updates) of the warm-up.
        warmup_lr_init: the rate that it starts from.
        warmup_prefix: the cycles begin behind the warm-up, not with it.
        t_in_epochs: count epochs, not updates.
        noise_range_t: must be None.
        noise_pct, noise_std, noise_seed: accepted; of the noise.
        k_decay: exponent of the time; 1 for the cosine itself.
        initialize: False: the groups have an ``initial_lr`` from before.

    Raises:
        ArgumentError: ``t_initial`` below 1, ``lr_min`` below 0, groups without ``initial_lr``.
        NotImplementedError: noise.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        t_initial: int,
        lr_min: float = 0.0,
        cycle_mul: float = 1.0,
        cycle_decay: float = 1.0,
        cycle_limit: int = 1,
        warmup_t: int = 0,
        warmup_lr_init: float = 0.0,
        warmup_prefix: bool = False,
        t_in_epochs: bool = True,
        noise_range_t: int | Sequence[int] | None = None,
        noise_pct: float = 0.67,
        noise_std: float = 1.0,
        noise_seed: int = 42,
        k_decay: float = 1.0,
        initialize: bool = True,
    ) -> None:
        if t_initial < 1 or lr_min < 0:
            raise ArgumentError(
                f"t_initial={t_initial!r}, lr_min={lr_min!r}: at least 1, and at least 0."
            )
        if noise_range_t is not None:
            raise NotHereError(f"noise_range_t={noise_range_t!r}: there is no noise here.")
        self.optimizer = optimizer
        for number, group in enumerate(optimizer.param_groups):
            if not initialize and "initial_lr" not in group:
                raise ArgumentError(
                    f"initialize=False: group {number} of the optimiser has no 'initial_lr'."
                )
            group.setdefault("initial_lr", group["lr"])
        self.base_values = [group["initial_lr"] for group in optimizer.param_groups]
        self.t_initial, self.lr_min, self.k_decay = t_initial, lr_min, k_decay
        self.cycle_mul, self.cycle_decay, self.cycle_limit = cycle_mul, cycle_decay, cycle_limit
        self.warmup_t, self.warmup_lr_init = warmup_t, warmup_lr_init
        self.warmup_prefix, self.t_in_epochs = warmup_prefix, t_in_epochs
        self._set([warmup_lr_init] * len(self.base_values) if warmup_t else self.base_values)

    def step(self, epoch: int, metric: float | None = None) -> None:
        """Set the rates for an epoch; nothing where updates are counted."""
        if self.t_in_epochs:
            self._set([self._rate(value, epoch) for value in self.base_values])

    def step_update(self, num_updates: int, metric: float | None = None) -> None:
        """Set the rates for an update; nothing where epochs are counted."""
        if not self.t_in_epochs:
            self._set([self._rate(value, num_updates) for value in self.base_values])

    def get_cycle_length(self, cycles: int = 0) -> int:
        """Return how long so many cycles take, by default all, with a warm-up before them."""
        cycles = max(1, cycles or self.cycle_limit)
        length = self._start(cycles)
        return int(length) + (self.warmup_t if self.warmup_prefix else 0)

    def state_dict(self) -> dict[str, Any]:
        """Return the settings, without the optimiser."""
        return {name: value for name, value in vars(self).items() if name != "optimizer"}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take the settings of another."""
        vars(self).update(state_dict)

    def _start(self, cycle: int) -> float:
        """The time at which a cycle begins: a geometric series."""
        if self.cycle_mul == 1:
            return self.t_initial * cycle
        return self.t_initial * (self.cycle_mul**cycle - 1) / (self.cycle_mul - 1)

    def _rate(self, value: float, t: float) -> float:
        if t < self.warmup_t:
            return self.warmup_lr_init + t * (value - self.warmup_lr_init) / self.warmup_t
        if self.warmup_prefix:
            t -= self.warmup_t
        cycle = 0
        while cycle < self.cycle_limit and t >= self._start(cycle + 1):
            cycle += 1
        if cycle == self.cycle_limit:
            return self.lr_min
        length = self.t_initial * self.cycle_mul**cycle
        share = (t - self._start(cycle)) ** self.k_decay / length**self.k_decay
        top = value * self.cycle_decay**cycle
        return self.lr_min + (top - self.lr_min) * (1 + math.cos(math.pi * share)) / 2

    def _set(self, rates: Sequence[float]) -> None:
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * group.get("lr_scale", 1.0)
