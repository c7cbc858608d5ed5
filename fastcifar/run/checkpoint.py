"""Checkpoints: one safetensors file with tensors and, in its header, JSON. No pickle is ever loaded."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from fastcifar.models import ModelConfig
from fastcifar.models.padding import padded, unpadded
from fastcifar.runtime.errors import UserError
from fastcifar.runtime.files import replacing


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        tensors: named "model.*", "optimizer.*" and "state.*", on the CPU.
        info: the model's configuration under "model", and what the trainer added.
    """

    path: Path
    tensors: dict[str, torch.Tensor]
    info: dict[str, Any]

    def section(self, name: str) -> dict[str, torch.Tensor]:
        """Return the tensors whose names begin with `name` and a dot, without that prefix."""
        return {key.removeprefix(f"{name}."): t for key, t in self.tensors.items() if key.startswith(f"{name}.")}


def checkpoint_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer | None = None, state: Mapping[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint by name: model weights and, for resuming, the optimizer's and the trainer's state.

    The tensors are the live ones; a padded one is a view without its padding.
    """
    tensors = {f"model.{key}": tensor for key, tensor in model.state_dict().items()}
    if optimizer:
        tensors |= {f"optimizer.{key}": tensor for key, tensor in _optimizer_tensors(model, optimizer).items()}
    return tensors | {f"state.{key}": tensor for key, tensor in (state or {}).items()}


def save_checkpoint(
    path: Path, tensors: Mapping[str, torch.Tensor], config: ModelConfig, *, info: Mapping[str, Any] | None = None
) -> None:
    """Write a checkpoint of `checkpoint_tensors`, whole or not at all."""
    header = json.dumps({"model": asdict(config), **(info or {})})
    with replacing(path) as temporary:
        on_cpu = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        save_file(on_cpu, temporary, metadata={"fastcifar": header})


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        UserError: the file is missing or damaged, or fastcifar did not write it.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("fastcifar")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise UserError(f"{path}: not a readable safetensors file: {error}") from None
    if header is None:
        raise UserError(f"{path}: a safetensors file, but not a checkpoint of fastcifar")
    return Checkpoint(path, tensors, json.loads(header))


def restore_model(checkpoint: Checkpoint, model: nn.Module, config: ModelConfig, section: str = "model") -> None:
    """Load the weights in a section of the checkpoint into `model`, built from `config`.

    A key that did not exist when the checkpoint was written counts as its default. The budget may differ.

    Raises:
        UserError: the checkpoint is of another architecture; the message names the first key that differs.
    """
    ours, theirs = _architecture(asdict(config)), _architecture(asdict(type(config)()) | checkpoint.info["model"])
    for key in ours | theirs:
        if ours.get(key) != theirs.get(key):
            raise UserError(
                f"{checkpoint.path}: of another architecture: model.{key} is {theirs.get(key)!r} there and "
                f"{ours.get(key)!r} here; use the recipe that it was trained with"
            )
    try:
        model.load_state_dict(checkpoint.section(section))
    except RuntimeError as error:
        raise UserError(f"{checkpoint.path}: its weights do not fit the model: {' '.join(str(error).split())}") from None


def _architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a model's configuration that a checkpoint depends on, as JSON values."""
    return {key: value for key, value in json.loads(json.dumps(config)).items() if key != "budget"}


def restore_optimizer(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load the checkpoint's optimizer state into the existing tensors: a captured graph updates only these."""
    saved = checkpoint.section("optimizer")
    for name, parameter in model.named_parameters():
        prefix = f"{name}:"
        state = {key.removeprefix(prefix): tensor for key, tensor in saved.items() if key.startswith(prefix)}
        for key, real in state.items():
            tensor = padded(model, name, real)
            kept = optimizer.state[parameter]
            if key not in kept:
                like = parameter if tensor.shape == parameter.shape else tensor
                kept[key] = torch.empty_like(like, device=parameter.device)
            kept[key].copy_(tensor)


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}:{key}": unpadded(model, name, tensor)
        for name, parameter in model.named_parameters()
        for key, tensor in optimizer.state.get(parameter, {}).items()
    }
