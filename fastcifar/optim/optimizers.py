"""Optimizers by name, with their learning rate in device memory."""

import functools
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import nn

from fastcifar.runtime.errors import UserError


@dataclass(frozen=True)
class OptimizerConfig:
    """The `[optimizer]` table of a recipe."""

    name: Annotated[Literal["sgd", "adam", "adamw"], "torch.optim's SGD, Adam or AdamW"] = "sgd"
    lr: Annotated[float, "peak learning rate; the schedule multiplies it"] = 0.01
    momentum: Annotated[float, "SGD's momentum, 0 to below 1; Adam and AdamW use it as beta1"] = 0.9
    nesterov: Annotated[bool, "Nesterov's momentum (SGD only)"] = False
    weight_decay: Annotated[float, "L2 coefficient on every parameter; decoupled for AdamW"] = 5e-4

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise UserError(f"lr = {self.lr}: must be above 0")
        if not 0 <= self.momentum < 1:
            raise UserError(f"momentum = {self.momentum}: must be at least 0 and below 1")
        if not self.weight_decay >= 0:
            raise UserError(f"weight_decay = {self.weight_decay}: must be at least 0")
        if self.nesterov and (self.name != "sgd" or self.momentum == 0):
            raise UserError("nesterov = true: needs name = 'sgd' and a momentum above 0")


@functools.cache
def fused_sgd_works(dtype: torch.dtype) -> bool:
    """Return whether fused SGD updates weights of `dtype` on a CPU; it is tried with two steps.

    In torch 2.11 and 2.13 it left most bfloat16 and float16 weights unchanged; in 2.15 it updates them
    (https://github.com/pytorch/pytorch/issues/191763).
    """
    weight = nn.Parameter(torch.ones(1024, dtype=dtype))
    weight.grad = torch.ones_like(weight)
    optimizer = torch.optim.SGD([weight], lr=0.5, momentum=0.5, fused=True)
    optimizer.step()  # momentum 1, weight 0.5
    optimizer.step()  # momentum 1.5
    return bool((weight == -0.25).all())


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build the optimizer over all parameters of `model`, fused: one kernel for all tensors, on CPU and CUDA.

    Its learning rate is a float32 scalar tensor on the model's device (`param_groups[0]["lr"]`). The schedule writes into
    it, so that a change needs no new compilation or capture.

    Raises:
        UserError: fused SGD of this PyTorch is wrong for the weights' dtype; see `fused_sgd_works`.
    """
    parameters = list(model.parameters())
    for dtype in {parameter.dtype for parameter in parameters if parameter.device.type == "cpu"} - {torch.float32}:
        if config.name == "sgd" and not fused_sgd_works(dtype):
            raise UserError(
                f"optimizer sgd on {dtype} weights: PyTorch {torch.__version__} corrupts them on a CPU "
                "(pytorch issue 191763); use a newer PyTorch, train.precision = 'bf16', or adamw"
            )
    lr = torch.tensor(config.lr, dtype=torch.float32, device=parameters[0].device)
    shared = {"lr": lr, "weight_decay": config.weight_decay, "fused": True}
    if config.name == "sgd":
        optimizer = torch.optim.SGD(parameters, momentum=config.momentum, nesterov=config.nesterov, **shared)
        for parameter in parameters if config.momentum else ():
            # PyTorch would leave it uninitialised if fp16's first step overflows and is skipped.
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
    optimizer = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return optimizer(parameters, betas=(config.momentum, 0.999), **shared)
