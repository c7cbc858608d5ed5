"""Have torch.compile generate code for an H200 that is not there, and keep the code instead of running it.

`start_again_with_stub` must have been called first, `install` before anything is compiled. PyTorch's questions to the device
are answered as for an H200, and Inductor's compiled modules are replaced by ones that do nothing.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import types
from pathlib import Path

SOURCE = Path(__file__).with_name("device.cpp")
H200 = {
    "name": "NVIDIA H200",
    "major": 9,
    "minor": 0,
    "multi_processor_count": 132,
    "total_memory": 140 * 2**30,
    "regs_per_multiprocessor": 65536,
    "max_threads_per_multi_processor": 2048,
    "max_threads_per_block": 1024,
    "warp_size": 32,
    "L2_cache_size": 50 * 2**20,
    "shared_memory_per_multiprocessor": 233472,
    "shared_memory_per_block": 49152,
    "shared_memory_per_block_optin": 232448,
    "gcnArchName": "",
    "is_integrated": 0,
    "clock_rate": 1980000,
    "memory_clock_rate": 3201000,
    "memory_bus_width": 6144,
    "uuid": "0",
    "pci_bus_id": 0,
    "is_multi_gpu_board": 0,
}


def start_again_with_stub() -> None:
    """Replace this process by one that loads the stub of the CUDA runtime; returns in that one."""
    if os.environ.get("ABSENT_GPU") == "1":
        return
    folder = _compiled()
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("LD_LIBRARY_PATH"))))
    stub = {"LD_PRELOAD": str(folder / "device.so"), "LD_LIBRARY_PATH": path, "ABSENT_GPU": "1"}
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | stub)


def _compiled() -> Path:
    """The folder of the stub's two libraries, compiled if this source has not been yet."""
    name = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"absent-gpu-{os.getuid()}-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for library, options in (("libcuda.so.1", ["-DDRIVER"]), ("device.so", [])):
        if not (folder / library).exists():
            temporary = folder / f"{library}.{os.getpid()}"
            subprocess.run(["c++", "-shared", "-fPIC", *options, "-o", temporary, SOURCE], check=True)
            temporary.replace(folder / library)
    return folder


def install() -> list[str]:
    """Patch PyTorch, Inductor and Triton; returns the list that Inductor's generated modules are added to."""
    generated: list[str] = []
    _patch_device()
    _patch_triton()
    _patch_inductor(generated)
    return generated


def _patch_device() -> None:
    import torch
    import torch.cuda.random

    properties = type("Properties", (), H200)()  # which can be hashed, as Inductor does
    answers = {
        "get_device_properties": properties,
        "get_device_capability": (9, 0),
        "get_device_name": H200["name"],
        "current_device": 0,
        "device_count": 1,
        "is_available": True,
        "is_bf16_supported": True,
        "is_current_stream_capturing": False,
        "_lazy_init": None,
        "synchronize": None,
        "current_stream": None,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": None,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    torch.cuda.random.get_rng_state, torch.cuda.random.set_rng_state = torch.cuda.get_rng_state, torch.cuda.set_rng_state
    torch._C._cuda_init = lambda: None
    torch._C._select_conv_backend = lambda *_, **__: torch._C._ConvBackend.Cudnn
    torch._C._conv_determine_backend_memory_format = lambda *_, **__: torch.channels_last

    import torch._dynamo.device_interface as interface  # after the answers, which it copies

    interface.CudaInterface.Worker.get_device_properties = staticmethod(lambda *_, **__: properties)
    interface.CudaInterface.Worker.current_device = staticmethod(lambda: 0)
    interface.CudaInterface.is_available = staticmethod(lambda: True)
    interface.CudaInterface.get_compute_capability = staticmethod(lambda *_, **__: 90)


def _patch_triton() -> None:
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    class Driver:
        """As much of a driver as compiling asks for."""

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int = 0) -> int:
            return 0

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cuda", 0)

    driver.set_active(Driver())


def _patch_inductor(generated: list[str]) -> None:
    import torch._functorch.config as functorch
    import torch._inductor.config as inductor
    import torch._inductor.fx_passes.fuse_attention as attention
    import torch._inductor.fx_passes.joint_graph as joint_graph
    from torch._inductor.graph import GraphLowering

    inductor.compile_threads = 1
    inductor.force_disable_caches = True
    inductor.shape_padding = False  # it would time matrix products on the device
    inductor.profile_bandwidth = True  # it writes the bytes that a kernel moves beside it
    functorch.force_non_lazy_backward_lowering = True
    attention._sfdp_init = lambda *_, **__: None  # it would run patterns on the device

    def keep_code(lowering: GraphLowering) -> types.ModuleType:
        code, _ = lowering.codegen()
        generated.append(getattr(code, "value", code))
        module = types.ModuleType("absent")
        module.call, module.key = lambda arguments: None, "absent"
        module.__file__ = module.__path__ = "absent.py"
        return module

    for name in ("_compile_to_module", "compile_to_module"):
        if hasattr(GraphLowering, name):
            setattr(GraphLowering, name, keep_code)
    deduce = joint_graph.UniformValueConstantFolder._deduce_value

    def deduce_on_cpu(self, node):
        """Constants are folded by computing them, which needs a device that is there."""
        with _on_cpu():
            return deduce(self, node)

    joint_graph.UniformValueConstantFolder._deduce_value = deduce_on_cpu


def _on_cpu():
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class OnCPU(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            cpu, kwargs = torch.device("cpu"), dict(kwargs or {})
            if "device" in kwargs:
                kwargs["device"] = cpu
            return function(*(cpu if isinstance(value, torch.device) else value for value in args), **kwargs)

    return OnCPU()
