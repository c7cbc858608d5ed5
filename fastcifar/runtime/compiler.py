"""What torch.compile and Triton need: a C compiler and Python headers to build their launchers, and a device."""

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

import torch

BF16_CAPABILITY = 8, 0
"""Compute capability of the first GPUs that multiply bf16 matrices."""


def missing_compiler() -> str:
    """Describe what is missing, and how to get it; "" if nothing is."""
    if not any(shutil.which(name) for name in (os.environ.get("CC") or "gcc", "gcc", "clang")):
        return "a C compiler, and none is installed (Debian: build-essential)"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        return f"{header}, which is not installed (Debian: python3-dev)"
    return ""


def missing_for_kernels(device: torch.device, *, interpreter: bool = False, capability: tuple[int, int] = (0, 0)) -> str:
    """Say what is missing to run Triton kernels on `device`; "" if nothing.

    Args:
        interpreter: Triton's interpreter (TRITON_INTERPRET=1) will do, which is slow.
        capability: least compute capability that the kernels need.
    """
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    interprets = os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" and not (interprets and interpreter):
        return "Triton kernels need CUDA"
    if interprets and not interpreter:  # as on a software device
        return "TRITON_INTERPRET=1: Triton's interpreter is slow"
    if device.type == "cuda" and (compiler := missing_compiler()):
        return f"Triton needs {compiler}"
    if device.type == "cuda" and (0, 0) < capability > torch.cuda.get_device_capability(device):
        return f"the kernels need compute capability {'.'.join(map(str, capability))}"
    return ""
