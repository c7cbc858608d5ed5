"""Arithmetic of a run: which dtype the forward pass computes in, and which kernels may compute it."""

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch

DTYPES = {"bf16": torch.bfloat16, "tf32": torch.float32, "fp32": torch.float32}


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The context of a forward pass: bf16 autocasts over float32 weights, tf32 and fp32 do nothing."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=DTYPES[precision] != torch.float32)


@contextmanager
def arithmetic(precision: str, *, deterministic: bool = False) -> Iterator[None]:
    """PyTorch's switches for a run: TF32 only where asked for, and cuDNN's fastest algorithm or reproducible ones.

    PyTorch itself lets cuDNN round convolutions to TF32 unless told not to.
    """
    if deterministic:  # cuBLAS reads this when it starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark, torch.are_deterministic_algorithms_enabled()

    def switch(convolutions: bool, products: bool, benchmark: bool, reproducible: bool) -> None:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = convolutions, products, benchmark
        torch.use_deterministic_algorithms(reproducible)

    switch(precision == "tf32", precision == "tf32", not deterministic, deterministic)
    try:
        yield
    finally:
        switch(*before)


def has_bf16(device: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the device computes in bf16 rather than emulating it, which on a CPU is many times slower than float32.

    A CPU's word for it stands in `cpuinfo`: avx512_bf16 or amx_bf16 on x86, bf16 on Arm. Where there is no such file, yes.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return not cpuinfo.exists() or bool(re.search(r"\b(avx512_|amx_)?bf16\b", cpuinfo.read_text()))
