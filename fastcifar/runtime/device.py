"""The device of a run, and its name."""

import platform
from pathlib import Path

import torch

from fastcifar.runtime.errors import UserError


def choose_device(asked: str) -> torch.device:
    """Return the device for "auto" (CUDA if available), "cpu", "cuda" or "cuda:N"."""
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise UserError(f"`device={asked}`: must be auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"`device={asked}`: fastcifar runs on cpu and cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"`device={asked}`: PyTorch sees no CUDA device here; use `device=cpu`")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"`device={asked}`: only {torch.cuda.device_count()} CUDA device(s) here, counted from 0")
    return device


def make_current(device: torch.device) -> None:
    """Make a CUDA device the current one, for new streams, events and graphs; "cuda" without an index already is."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def device_name(device: torch.device) -> str:
    """Return the product name of a device, as in "NVIDIA H200" or "AMD EPYC, 2 threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, {torch.get_num_threads()} threads"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
