"""Learning-rate schedules as tables: one value per step of the run, computed before it starts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch

from fastcifar.runtime.errors import UserError

CYCLES = "triangular", "one_cycle"
"""Schedules that rise and fall along the same curve."""


@dataclass(frozen=True)
class ScheduleConfig:
    """The `[schedule]` table of a recipe: factors of the optimizer's learning rate."""

    name: Annotated[
        Literal["constant", "step", "cosine", "linear", "triangular", "one_cycle"],
        "after the warm-up: constant; step: times gamma every step_epochs; cosine or linear: down to final_factor; "
        "triangular: rises and falls linearly, one_cycle: both along half a cosine",
    ] = "constant"
    step_epochs: Annotated[int, "epochs between two drops (step)"] = 10
    gamma: Annotated[float, "factor of a drop (step)"] = 0.1
    warmup_epochs: Annotated[float, "epochs of rise, fractions allowed; linear from 0, but for one_cycle and triangular"] = 0.0
    initial_factor: Annotated[float, "factor of the first step (triangular, one_cycle)"] = 0.0
    final_factor: Annotated[float, "factor after the last step (cosine, linear), of the last (triangular, one_cycle)"] = 0.0

    def __post_init__(self) -> None:
        if self.step_epochs < 1:
            raise UserError(f"step_epochs = {self.step_epochs}: must be at least 1")
        if not 0 < self.gamma <= 1:
            raise UserError(f"gamma = {self.gamma}: must be above 0 and at most 1")
        if not self.warmup_epochs >= 0:
            raise UserError(f"warmup_epochs = {self.warmup_epochs}: must be at least 0")
        for name in ("initial_factor", "final_factor"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} = {getattr(self, name)}: must be between 0 and 1")
        if self.initial_factor and self.name not in CYCLES:
            raise UserError(f"initial_factor = {self.initial_factor}: needs name = 'triangular' or 'one_cycle'")


def lr_table(config: ScheduleConfig, lr: float, epochs: int, steps_per_epoch: int) -> torch.Tensor:
    """Compute the learning rate of every step, float32 of shape (epochs * steps_per_epoch,), on the CPU.

    `step` drops between epochs, as torch.optim.lr_scheduler.StepLR does when stepped once per epoch; the others and the
    warm-up change at every step. Cosine: Loshchilov and Hutter, SGDR, 2017. `triangular` and `one_cycle`: Smith and Topin,
    Super-Convergence, 2018, with the steps of torch.optim.lr_scheduler.OneCycleLR (linear and cosine).
    """
    return _factors(config, epochs, steps_per_epoch).mul(lr).float()


def _factors(config: ScheduleConfig, epochs: int, steps_per_epoch: int) -> torch.Tensor:
    """The schedule's factor of every step, float64."""
    total = epochs * steps_per_epoch
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if warmup >= total > 0 and warmup:
        raise UserError(f"schedule.warmup_epochs = {config.warmup_epochs}: must be below train.epochs = {epochs}")
    factors = [_factor(config, step, total, warmup, steps_per_epoch) for step in range(total)]
    return torch.tensor(factors, dtype=torch.float64)


def _factor(config: ScheduleConfig, step: int, total: int, warmup: int, steps_per_epoch: int) -> float:
    if config.name in CYCLES:
        return _cycle(config, step, total - 1, max(warmup - 1, 0))
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.name == "step":
        return config.gamma ** (step // steps_per_epoch // config.step_epochs)
    progress = (step - warmup) / (total - warmup)
    if config.name == "cosine":
        return config.final_factor + (1 - config.final_factor) * 0.5 * (1 + math.cos(math.pi * progress))
    if config.name == "linear":
        return config.final_factor + (1 - config.final_factor) * (1 - progress)
    return 1.0


def _cycle(config: ScheduleConfig, step: int, last: int, peak: int) -> float:
    """The factor of a step of a cycle whose highest step is `peak` and whose last one is `last`."""
    rising = step < peak
    progress = step / peak if rising else (step - peak) / max(last - peak, 1)
    if config.name == "one_cycle":
        progress = 0.5 * (1 - math.cos(math.pi * progress))
    first, second = (config.initial_factor, 1.0) if rising else (1.0, config.final_factor)
    return first + (second - first) * progress


def group_lr_table(
    config: ScheduleConfig, groups: Sequence[Mapping[str, Any]], epochs: int, steps_per_epoch: int
) -> torch.Tensor:
    """Compute the learning rate of every step and parameter group, float32 (epochs * steps_per_epoch, groups), on the CPU.

    A group with "epochs" falls linearly to 0 within them and stays there; the others follow the schedule, times their peak.

    Args:
        groups: with "peak_lr" and "epochs"; see `fastcifar.optim.optimizers.group_parameters`.
    """
    own = _factors(config, epochs, steps_per_epoch)
    steps = torch.arange(len(own), dtype=torch.float64)
    columns = [
        group["peak_lr"] * (own if group["epochs"] is None else (1 - steps / (group["epochs"] * steps_per_epoch)).clamp(min=0))
        for group in groups
    ]
    return torch.stack(columns, 1).float()
