"""Averages of the weights over the steps of a run: EMA and Lookahead.

EMA: the average is a second model, which is evaluated and kept; training does not see it (Polyak and Juditsky, Acceleration of
Stochastic Approximation by Averaging, 1992). Lookahead: every few steps the average moves towards the weights, and the weights
jump to the average (Zhang et al., 2019, https://arxiv.org/abs/1907.08610).
"""

import copy
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import nn

from fastcifar.runtime.errors import UserError


@dataclass(frozen=True)
class AverageConfig:
    """The `[average]` table of a recipe."""

    name: Annotated[
        Literal["none", "ema", "lookahead"],
        "ema: the average of the weights is evaluated and kept; lookahead: the weights return to their average",
    ] = "none"
    decay: Annotated[float, "share of the average that an update keeps, 0 to below 1"] = 0.99
    power: Annotated[float, "the decay rises as (step / steps of the run) ** power; 0: constant"] = 0.0
    every: Annotated[int, "steps from one update to the next"] = 5

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise UserError(f"decay = {self.decay}: must be at least 0 and below 1")
        if not self.power >= 0:
            raise UserError(f"power = {self.power}: must be at least 0")
        if self.every < 1:
            raise UserError(f"every = {self.every}: must be at least 1")


class WeightAverage:
    """The average of a model's weights and BatchNorm statistics.

    Whether a step updates it is read from a table on the device, so that a CUDA graph of one step serves for all.

    Attributes:
        model: the averaged model, on the same device; it starts as a copy of the trained one.
    """

    def __init__(self, trained: nn.Module, config: AverageConfig, total_steps: int) -> None:
        self.model = copy.deepcopy(trained).requires_grad_(False)
        self.weights, self.averages = floating_tensors(trained), floating_tensors(self.model)
        moves, jumps = (table.to(self.averages[0].device) for table in update_tables(config, total_steps))
        self.moves, self.jumps = moves, jumps if config.name == "lookahead" else None

    @torch.no_grad()
    def update(self, step: torch.Tensor) -> None:
        """Update after step number `step`, (1,) int64 on the device."""
        _move(self.averages, self.weights, self.moves.index_select(0, step)[0])
        if self.jumps is not None:
            _move(self.weights, self.averages, self.jumps.index_select(0, step)[0])

    @torch.no_grad()
    def reset(self) -> None:
        """Start again from the present weights."""
        torch._foreach_copy_(self.averages, self.weights)


def build_average(trained: nn.Module, config: AverageConfig, total_steps: int) -> WeightAverage | None:
    """Build the average that `config` names; None for "none"."""
    return None if config.name == "none" else WeightAverage(trained, config, total_steps)


def floating_tensors(model: nn.Module) -> list[torch.Tensor]:
    """Return the model's parameters and its buffers of a floating-point type."""
    return [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]


def update_tables(config: AverageConfig, total_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute, for each step, how far the average moves to the weights, then the weights to the average (0 to 1).

    Both are 0 where no update is due. After the last step the average stays, and the weights of Lookahead become it.

    Returns:
        Two tables (total_steps,) float32 on the CPU.
    """
    done = torch.arange(1, total_steps + 1, dtype=torch.float64)
    due = done % config.every == 0
    moves = torch.where(due, 1 - config.decay * (done / total_steps) ** config.power, 0.0)
    jumps = due.double()
    if config.name == "lookahead" and total_steps:
        moves[-1], jumps[-1] = 0.0, 1.0
    return moves.float(), jumps.float()


def _move(tensors: list[torch.Tensor], targets: list[torch.Tensor], share: torch.Tensor) -> None:
    """Move `tensors` towards `targets` by a share, () on the device; three launches whatever their number."""
    changes = torch._foreach_sub(targets, tensors)
    torch._foreach_mul_(changes, share)
    torch._foreach_add_(tensors, changes)
