"""Precision of a run: the dtype it computes in, the dtype of its weights, loss scaling, and PyTorch's switches."""

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

# cuBLAS reads this once, when it starts; deterministic runs need it. PyTorch itself uses this value on an H100 and later.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

TENSOR_CORES = 7, 0  # compute capability of the first GPUs that have them
ISA_WITHOUT_BF16 = "SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"
ISA_WITHOUT_FP16 = *ISA_WITHOUT_BF16, "AVX512_CORE_BF16"
INITIAL_SCALE = 2.0**16  # of the loss; halved when a gradient overflows, doubled after 2,000 steps without overflow


@dataclass(frozen=True)
class Precision:
    """One value of `train.precision`.

    Attributes:
        compute: dtype of convolutions, matrix products and the batch's images.
        weights: dtype of the weights and the optimizer's state; BatchNorm's stay float32.
    """

    compute: torch.dtype
    weights: torch.dtype = torch.float32

    @property
    def scaled(self) -> bool:
        """True if the loss is scaled, because float16 gradients below its smallest number, 6e-8, would become 0."""
        return self.compute == torch.float16


PRECISIONS = {
    "bf16": Precision(torch.bfloat16),
    "fp16": Precision(torch.float16),
    "pure_bf16": Precision(torch.bfloat16, weights=torch.bfloat16),
    "pure_fp16": Precision(torch.float16, weights=torch.float16),
    "tf32": Precision(torch.float32),
    "fp32": Precision(torch.float32),
}
"""Value of `train.precision` after "auto" is resolved -> its dtypes."""


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Return the context of a forward pass: autocast to a 16-bit dtype over float32 weights; otherwise it does nothing."""
    dtypes = PRECISIONS[precision]
    return torch.autocast(device.type, dtype=dtypes.compute, enabled=dtypes.compute != dtypes.weights)


def to_weights_dtype(model: nn.Module, precision: str) -> nn.Module:
    """Cast, in place, all weights but BatchNorm's to the weights' dtype of `precision`; returns `model`."""
    for module in model.modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(PRECISIONS[precision].weights)
    return model


def gradient_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """Build the loss scaling of Micikevicius et al., Mixed Precision Training, 2018; disabled unless fp16 needs it.

    With a fused optimizer it never waits for the device. Its state exists from the start, so that it can be saved, restored
    and captured; see `scaler_state`.
    """
    scaler = torch.amp.GradScaler(device.type, init_scale=INITIAL_SCALE, enabled=PRECISIONS[precision].scaled)
    scaler.scale(torch.zeros((), device=device))
    return scaler


def scaler_state(scaler: torch.amp.GradScaler) -> dict[str, torch.Tensor]:
    """Return the scale and the steps since it last changed, the live tensors of the scaler; {} if it is disabled."""
    return {"scale": scaler._scale, "growth": scaler._growth_tracker} if scaler.is_enabled() else {}


def drop_gradients(scaler: torch.amp.GradScaler) -> None:
    """Discard the state of a step that failed before its end."""
    if scaler.is_enabled():
        scaler._per_optimizer_states.clear()


def reset_scaler(scaler: torch.amp.GradScaler) -> None:
    """Reset the state, in place, to that of a new scaler."""
    for tensor, initial in zip(scaler_state(scaler).values(), (INITIAL_SCALE, 0), strict=False):
        tensor.fill_(initial)


@contextmanager
def arithmetic(precision: str, *, deterministic: bool = False) -> Iterator[None]:
    """Set PyTorch's switches for a run: TF32 only on request, and cuDNN's fastest or deterministic algorithms.

    By default PyTorch lets cuDNN round convolutions to TF32.
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


def resolve_precision(precision: str, device: torch.device) -> tuple[str, str]:
    """Resolve "auto" for `device`; return (a key of PRECISIONS, reason). Any other value stays."""
    if precision != "auto":
        return precision, "as asked"
    if has_bf16(device):
        return "bf16", f"auto: {device} computes in bf16"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= TENSOR_CORES:
        return "fp16", f"auto: {device} has tensor cores for fp16 and not for bf16"
    return "fp32", f"auto: {device} has no 16-bit arithmetic"


def emulation_warning(precision: str, device: torch.device) -> str:
    """Return a one-line warning if `device` only emulates `precision`, else ""."""
    compute = PRECISIONS[precision].compute
    if (compute == torch.bfloat16 and not has_bf16(device)) or (compute == torch.float16 and not has_fp16(device)):
        name = "bf16" if compute == torch.bfloat16 else "fp16"
        return f"{device} has no {name} arithmetic and emulates it, many times slower; `train.precision=auto` avoids that"
    return ""


def has_bf16(device: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether the device computes in bf16 rather than emulating it, which on a CPU is many times slower than float32.

    A CPU's flag in `cpuinfo` is avx512_bf16 or amx_bf16 on x86, bf16 on Arm; without that file the answer is True. The
    environment variable ONEDNN_MAX_CPU_ISA may limit oneDNN, which does the computation, to fewer instructions.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return _cpu_has(r"(avx512_|amx_)?bf16", cpuinfo, ISA_WITHOUT_BF16)


def has_fp16(device: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether the device computes in fp16, as `has_bf16` does for bf16; a GPU always does.

    A CPU's flag is avx512_fp16 or amx_fp16 on x86, asimdhp on Arm; f16c only converts.
    """
    return device.type == "cuda" or _cpu_has("avx512_fp16|amx_fp16|asimdhp", cpuinfo, ISA_WITHOUT_FP16)


def _cpu_has(flags: str, cpuinfo: Path, isa_without: tuple[str, ...]) -> bool:
    if (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA", "")).upper() in isa_without:
        return False
    return not cpuinfo.exists() or bool(re.search(rf"\b({flags})\b", cpuinfo.read_text()))
