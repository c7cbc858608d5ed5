"""Arithmetic of a run: which dtype the forward pass computes in."""

import re
from contextlib import AbstractContextManager
from pathlib import Path

import torch

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The context of a forward pass: bf16 autocasts over float32 weights, fp32 does nothing."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")


def has_bf16(device: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the device computes in bf16 rather than emulating it, which on a CPU is many times slower than float32.

    A CPU's word for it stands in `cpuinfo`: avx512_bf16 or amx_bf16 on x86, bf16 on Arm. Where there is no such file, yes.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return not cpuinfo.exists() or bool(re.search(r"\b(avx512_|amx_)?bf16\b", cpuinfo.read_text()))
