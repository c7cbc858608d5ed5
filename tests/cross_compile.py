"""Compile kernels for absent GPUs. For scripts in their own process, where Triton does not interpret."""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction


class AbsentGPU:
    """The part of a driver that compiling needs."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


def compiled(capability: int, launch: Callable[[], object]) -> list[dict]:
    """Compile the kernels that `launch`, given CPU tensors, would run on a GPU of `capability` (90 for sm_90): a dict each.

    `ptx` is its code, `accesses` counts the global loads and stores by kind, `spilled` are the bytes of local memory and
    `shared` those of shared memory.
    """
    kernels, run = [], JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        self.device_caches.clear()  # device 0 may have been another GPU in the last call
        kernels.append(run(self, *args, grid=grid, warmup=True, **options))

    driver.set_active(AbsentGPU(capability))
    JITFunction.run = compile_only
    try:
        launch()
    finally:
        JITFunction.run = run
    for kernel in kernels:
        assert f".target sm_{capability}" in kernel.asm["ptx"]
    return [_facts(kernel) for kernel in kernels]


def _facts(kernel) -> dict:
    ptx = kernel.asm["ptx"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    numbers = {key: int(number) for key, number in re.findall(r"(\w+):(\d+)", usage)}
    return {
        "ptx": ptx,
        "accesses": dict(Counter(re.findall(r"(?:ld|st)\.global\S*", ptx))),
        "registers": numbers["REG"],
        "spilled": numbers["LOCAL"] + numbers["STACK"],
        "shared": kernel.metadata.shared,
    }
