"""What a result depends on besides its recipe: versions, device, git revision."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import fastcifar
from fastcifar.errors import UserError


def choose_device(asked: str) -> torch.device:
    """The device for "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:N"."""
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise UserError(f"--device {asked}: must be auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {asked}: fastcifar runs on cpu and cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {asked}: PyTorch sees no CUDA device here; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {asked}: only {torch.cuda.device_count()} CUDA device(s) here, counted from 0")
    return device


def make_current(device: torch.device) -> None:
    """Make a CUDA device that of new streams, events and graphs; one without an index is the current one already."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def device_name(device: torch.device) -> str:
    """The marketing name of a device, as in "NVIDIA H200" or "AMD EPYC, 2 threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, {torch.get_num_threads()} threads"


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, device and git revision, ready for JSON."""
    return {
        "fastcifar": fastcifar.__version__,
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version_of("triton"),
        "numpy": version_of("numpy"),
        "cuda": torch.version.cuda,
        "platform": platform.platform(),
        "device": str(device),
        "device_name": device_name(device),
    }


def git_revision() -> str | None:
    """The commit of this checkout of fastcifar, with "-dirty" where files differ; None outside a checkout."""
    root = Path(fastcifar.__file__).parents[1]
    if not (root / ".git").exists():  # an installed package; the repository around it, if any, is somebody else's
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def version_of(package: str) -> str | None:
    """The version of an installed package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
