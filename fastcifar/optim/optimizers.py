"""Optimizers by name, over groups of parameters, with their learning rates in device memory."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import nn

from fastcifar.optim.muon import Muon
from fastcifar.runtime.errors import UserError, nearest

BETA2 = 0.999  # Adam's average of squared gradients


@dataclass(frozen=True)
class GroupConfig:
    """Parameters with settings of their own: an entry of `optimizer.groups`. A key left out is the optimizer's own.

    Every parameter belongs to the first group that matches it, else to the optimizer itself.
    """

    match: Annotated[
        Literal["first", "head", "norms", "biases", "filters"],
        "first: the first convolution; head: the last linear layer; norms: of BatchNorm; biases; filters: 3x3 and the like",
    ]
    lr: Annotated[float | None, "peak learning rate"] = None
    momentum: Annotated[float | None, "SGD's momentum; Adam's and AdamW's beta1"] = None
    weight_decay: Annotated[float | None, "L2 coefficient; decoupled for AdamW"] = None
    epochs: Annotated[float | None, "epochs after which the learning rate has fallen linearly to 0, from the start"] = None

    def __post_init__(self) -> None:
        for name in ("lr", "weight_decay"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise UserError(f"{name} = {value}: must be at least 0")
        if self.epochs is not None and not self.epochs > 0:
            raise UserError(f"epochs = {self.epochs}: must be above 0")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise UserError(f"momentum = {self.momentum}: must be at least 0 and below 1")


@dataclass(frozen=True)
class OptimizerConfig:
    """The `[optimizer]` table of a recipe."""

    name: Annotated[str, "sgd, adam or adamw of torch.optim; muon: Muon for filters, SGD for all other parameters"] = "sgd"
    lr: Annotated[float, "peak learning rate; the schedule multiplies it"] = 0.01
    momentum: Annotated[float, "momentum of SGD and Muon, 0 to below 1; Adam's and AdamW's beta1"] = 0.9
    nesterov: Annotated[bool, "Nesterov's momentum (SGD and Muon)"] = False
    weight_decay: Annotated[float, "L2 coefficient on every parameter; decoupled for AdamW; Muon's filters have none"] = 5e-4
    newton_schulz_steps: Annotated[int, "steps of the iteration that orthogonalises an update (Muon)"] = 3
    sam_rho: Annotated[float, "take the gradient at this distance uphill (SAM), the norm over all weights; 0: off"] = 0.0
    groups: Annotated[tuple[GroupConfig, ...], "parameters with settings of their own"] = ()

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise UserError(f"name = {self.name!r} is not an optimizer{nearest(self.name, OPTIMIZERS)}")
        if not self.lr > 0:
            raise UserError(f"lr = {self.lr}: must be above 0")
        if not 0 <= self.momentum < 1:
            raise UserError(f"momentum = {self.momentum}: must be at least 0 and below 1")
        if not self.weight_decay >= 0:
            raise UserError(f"weight_decay = {self.weight_decay}: must be at least 0")
        if self.nesterov and (self.name not in ("sgd", "muon") or self.momentum == 0):
            raise UserError("nesterov = true: needs name = 'sgd' or 'muon' and a momentum above 0")
        if not self.sam_rho >= 0:
            raise UserError(f"sam_rho = {self.sam_rho}: must be at least 0")
        if self.newton_schulz_steps < 1:
            raise UserError(f"newton_schulz_steps = {self.newton_schulz_steps}: must be at least 1")


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
    """Build the optimizer over all trainable parameters of `model`, fused: one kernel per group, on CPU and CUDA.

    The learning rates are one float32 tensor (G,) on the model's device, `optimizer.lrs`, whose element g is the `lr` of group
    g. The schedule writes into it, so that a change needs no new compilation or capture.

    Raises:
        UserError: fused SGD of this PyTorch is wrong for the weights' dtype; see `fused_sgd_works`.
    """
    groups = [group for group in group_parameters(model, config) if group["params"]]
    parameters = [parameter for group in groups for parameter in group["params"]]
    for dtype in {parameter.dtype for parameter in parameters if parameter.device.type == "cpu"} - {torch.float32}:
        if config.name in ("sgd", "muon") and not fused_sgd_works(dtype):
            raise UserError(
                f"optimizer {config.name} on {dtype} weights: PyTorch {torch.__version__} corrupts them on a CPU "
                "(pytorch issue 191763); use a newer PyTorch, train.precision = 'bf16', or adamw"
            )
    lrs = torch.tensor([group["lr"] for group in groups], dtype=torch.float32, device=parameters[0].device)
    groups = [group | {"peak_lr": group["lr"], "lr": lr} for group, lr in zip(groups, lrs, strict=True)]
    optimizer = OPTIMIZERS[config.name](groups, config)
    optimizer.lrs = lrs
    return optimizer


def group_parameters(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Sort the trainable parameters into the optimizer's own group and those of `config.groups`, each with its settings.

    Returns:
        Tables with "params", "lr", "momentum", "weight_decay", "epochs" (None: the schedule's own) and "filters" (True for a
        group of convolution filters, which Muon orthogonalises). A group may be empty.
    """
    kinds = _kinds(model)
    own = {"lr": config.lr, "momentum": config.momentum, "weight_decay": config.weight_decay, "epochs": None}
    tables = [own]
    tables += [own | {k: v for k in own if (v := getattr(group, k)) is not None} for group in config.groups]
    sorted_: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for parameter in (parameter for parameter in model.parameters() if parameter.requires_grad):
        index = next((i for i, g in enumerate(config.groups, 1) if g.match in kinds[id(parameter)]), 0)
        filters = config.name == "muon" and "filters" in kinds[id(parameter)]
        sorted_.setdefault((index, filters), []).append(parameter)
    return [tables[index] | {"params": params, "filters": filters} for (index, filters), params in sorted(sorted_.items())]


def _kinds(model: nn.Module) -> dict[int, set[str]]:
    """Map the id of each parameter to the values of `GroupConfig.match` that fit it."""
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    kinds: dict[int, set[str]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            kind = kinds.setdefault(id(parameter), set())
            if module is layers[0]:
                kind.add("first")
            if module is layers[-1]:
                kind.add("head")
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                kind.add("norms")
            if name == "bias":
                kind.add("biases")
            if parameter.dim() == 4 and module is not layers[0]:
                kind.add("filters")
    return kinds


def _sgd(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(groups, momentum=config.momentum, nesterov=config.nesterov, fused=True)
    for group in groups:
        for parameter in group["params"] if group["momentum"] else ():
            # PyTorch would leave it uninitialised if fp16's first step overflows and is skipped.
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _adam(kind: type[torch.optim.Optimizer], groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    return kind([group | {"betas": (group["momentum"], BETA2)} for group in groups], fused=True)


def _muon(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    steps = config.newton_schulz_steps
    return Muon([g | {"nesterov": config.nesterov, "newton_schulz_steps": steps if g["filters"] else 0} for g in groups])


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], OptimizerConfig], torch.optim.Optimizer]] = {
    "sgd": _sgd,
    "adam": functools.partial(_adam, torch.optim.Adam),
    "adamw": functools.partial(_adam, torch.optim.AdamW),
    "muon": _muon,
}
"""Name in the recipe's `[optimizer]` table -> function of the groups of `group_parameters` and that table."""
