"""The environment of a run: versions, device, git revision."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import fastcifar
from fastcifar.runtime.device import device_name


def environment(device: torch.device) -> dict[str, Any]:
    """Return versions, device and git revision as JSON values."""
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
    """Return the commit of this checkout of fastcifar, with "-dirty" if files differ; None outside a checkout."""
    root = Path(fastcifar.__file__).parents[1]
    if not (root / ".git").exists():  # an installed package; a repository around it is another project's
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def version_of(package: str) -> str | None:
    """Return the version of an installed package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
