"""Arithmetic of a run: which dtype it computes in, which it keeps its weights in, and which kernels may compute it."""

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fastcifar.config import PRECISIONS as DTYPE_NAMES
from fastcifar.config import Recipe

# cuBLAS reads this once, when it starts; deterministic runs need it. It is what PyTorch itself takes on an H100 and later.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

TENSOR_CORES = 7, 0  # compute capability of the first GPUs that have them
ISA_WITHOUT_BF16 = "SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"
INITIAL_SCALE = 2.0**16  # of the loss; it halves where a gradient overflows and doubles after 2,000 steps without


@dataclass(frozen=True)
class Precision:
    """One value of `train.precision`.

    Attributes:
        compute: dtype of convolutions, matrix products and the batch's images.
        weights: dtype of the weights and of what the optimizer keeps of them; BatchNorm's stay float32.
    """

    compute: torch.dtype
    weights: torch.dtype = torch.float32

    @property
    def scaled(self) -> bool:
        """Whether gradients are scaled up, as those of float16 would vanish below its smallest number, 6e-8."""
        return self.compute == torch.float16


PRECISIONS = {
    name: Precision(dtype, dtype if name.startswith("pure_") else torch.float32)
    for name, dtype in ((name, getattr(torch, dtype)) for name, dtype in DTYPE_NAMES.items() if name != "auto")
}


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The context of a forward pass: casts to a 16-bit dtype over float32 weights; otherwise it does nothing."""
    arithmetic = PRECISIONS[precision]
    return torch.autocast(device.type, dtype=arithmetic.compute, enabled=arithmetic.compute != arithmetic.weights)


def to_weights_dtype(model: nn.Module, precision: str) -> nn.Module:
    """Cast, in place, all weights but BatchNorm's to the dtype in which `precision` keeps them; returns `model`."""
    for module in model.modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(PRECISIONS[precision].weights)
    return model


def gradient_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """The loss scaling of Micikevicius et al., Mixed Precision Training, 2018; it passes all through unless fp16 needs it.

    With a fused optimizer nothing of it waits for the device. Its state exists from the start, so that it can be saved,
    restored and captured: see `scaler_state`.
    """
    scaler = torch.amp.GradScaler(device.type, init_scale=INITIAL_SCALE, enabled=PRECISIONS[precision].scaled)
    scaler.scale(torch.zeros((), device=device))
    return scaler


def scaler_state(scaler: torch.amp.GradScaler) -> dict[str, torch.Tensor]:
    """The scale and the steps since it last changed, the very tensors that the scaler writes to; {} where it is disabled."""
    return {"scale": scaler._scale, "growth": scaler._growth_tracker} if scaler.is_enabled() else {}


def forget_gradients(scaler: torch.amp.GradScaler) -> None:
    """Be ready for a new step though the last was left in the middle."""
    if scaler.is_enabled():
        scaler._per_optimizer_states.clear()


def reset_scaler(scaler: torch.amp.GradScaler) -> None:
    """Set the scale back, in place, to that of a new scaler."""
    for tensor, begin in zip(scaler_state(scaler).values(), (INITIAL_SCALE, 0), strict=False):
        tensor.fill_(begin)


@contextmanager
def arithmetic(precision: str, *, deterministic: bool = False) -> Iterator[None]:
    """PyTorch's switches for a run: TF32 only where asked for, and cuDNN's fastest algorithm or reproducible ones.

    PyTorch itself lets cuDNN round convolutions to TF32 unless told not to.
    """
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


def resolve_precision(recipe: Recipe, device: torch.device) -> tuple[Recipe, str]:
    """The recipe with the precision that "auto" is on `device`, and the reason; any other precision stays."""
    if recipe.train.precision != "auto":
        return recipe, "as asked"
    if has_bf16(device):
        return recipe.with_precision("bf16"), f"auto: {device} computes in bf16"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= TENSOR_CORES:
        return recipe.with_precision("fp16"), f"auto: {device} has tensor cores for fp16 and not for bf16"
    return recipe.with_precision("fp32"), f"auto: {device} has no arithmetic for 16 bits"


def emulation_warning(precision: str, device: torch.device) -> str:
    """One line where `device` only emulates `precision`; "" where it computes in it."""
    if PRECISIONS[precision].compute == torch.bfloat16 and not has_bf16(device):
        return f"{device} has no bf16 arithmetic and emulates it, many times slower: --set train.precision=auto avoids that"
    return ""


def has_bf16(device: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the device computes in bf16 rather than emulating it, which on a CPU is many times slower than float32.

    A CPU's word for it stands in `cpuinfo`: avx512_bf16 or amx_bf16 on x86, bf16 on Arm. Where there is no such file, yes.
    oneDNN, which computes it, may have been told to use less of the CPU by the environment variable ONEDNN_MAX_CPU_ISA.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA", "")).upper() in ISA_WITHOUT_BF16:
        return False
    return not cpuinfo.exists() or bool(re.search(r"\b(avx512_|amx_)?bf16\b", cpuinfo.read_text()))
