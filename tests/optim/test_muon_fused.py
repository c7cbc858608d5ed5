"""Muon's kernels against the PyTorch reference, the number of their launches, and their compiled code."""

import json

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="Triton is not installed")

from fastcifar.optim import muon_fused, muon_reference
from fastcifar.optim.muon import Muon

BANKS = {
    "one": [(8, 16, 3, 3)],
    "of different shapes": [(8, 3, 3, 3), (16, 8, 3, 3), (8, 16, 1, 1), (4, 2, 5, 5)],
    "of odd sizes": [(5, 3, 3, 3), (7, 11, 1, 1), (1, 1, 1, 1)],
    "of several tiles": [(72, 15, 3, 3), (100, 8, 1, 1)],
}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-2}
"""Of an orthogonalised update, whose elements are at most 1. The interpreter truncates to bf16, where PyTorch rounds."""


@pytest.fixture(autouse=True)
def products_of_bf16(monkeypatch):
    """Let Triton's interpreter multiply bf16 numbers, not their bits as whole numbers."""
    from triton.runtime.interpreter import InterpreterBuilder

    def dot(self, a, b, d, *options, dot=InterpreterBuilder.create_dot):
        for operand in (a, b):
            if operand.data.dtype == np.uint16:
                operand.data = (operand.data.astype(np.uint32) << 16).view(np.float32)
        return dot(self, a, b, d, *options)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)


def tensors(device, shapes, seed=0, dtype=torch.float32, layout=torch.channels_last):
    """Filters, gradients and momentum."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(3)]
    return [[bank.to(device, dtype, memory_format=layout) for bank in banks] for banks in drawn]


def update(implementation, banks, **changes):
    if "lr" not in changes:
        changes["lr"] = torch.tensor(0.1, device=banks[0][0].device)
    options = {"momentum": 0.6, "nesterov": True, "steps": 3}
    implementation.update_filters(*banks, **options | changes)


def check_equal(ours, theirs, update_tolerance, dtype=torch.float32):
    """Check that filters and momentum are equal up to rounding, and the filters to `update_tolerance` of lr = 0.1."""
    rounding = {torch.float32: 1e-6, torch.bfloat16: 2**-6, torch.float16: 2**-9}[dtype]  # two ulps
    for one, other in zip(ours[0], theirs[0], strict=True):
        torch.testing.assert_close(one, other, rtol=rounding, atol=0.1 * update_tolerance + 1e-6)
    for one, other in zip(ours[2], theirs[2], strict=True):
        torch.testing.assert_close(one, other, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("iteration", TOLERANCE)
@pytest.mark.parametrize("banks", BANKS)
def test_an_update_is_the_references(device, banks, iteration):
    ours, theirs = tensors(device, BANKS[banks]), tensors(device, BANKS[banks])
    update(muon_fused, ours, dtype=iteration)
    update(muon_reference, theirs, dtype=iteration)
    check_equal(ours, theirs, TOLERANCE[iteration])
    for one, other in zip(ours[1], theirs[1], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "changes",
    [{"nesterov": False}, {"momentum": 0.0, "nesterov": False}, {"steps": 1}, {"lr": 0.03}],
    ids=lambda changes: ", ".join(f"{name} = {value}" for name, value in changes.items()),
)
def test_settings_are_those_of_the_reference(device, changes):
    changes = {name: torch.tensor(value, device=device) if name == "lr" else value for name, value in changes.items()}
    ours, theirs = tensors(device, BANKS["of odd sizes"]), tensors(device, BANKS["of odd sizes"])
    for _ in range(2):
        update(muon_fused, ours, dtype=torch.float32, **changes)
        update(muon_reference, theirs, dtype=torch.float32, **changes)
    check_equal(ours, theirs, 2 * TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_may_have_16_bits(device, dtype):
    """As in the precisions pure_bf16 and pure_fp16; the kernel rounds them once, the reference at each operation."""
    shapes = BANKS["of different shapes"]
    ours, theirs = tensors(device, shapes, dtype=dtype), tensors(device, shapes, dtype=dtype)
    update(muon_fused, ours, dtype=torch.float32)
    update(muon_reference, theirs, dtype=torch.float32)
    check_equal(ours, theirs, 0.05, dtype)


def test_memory_may_be_contiguous_and_gradients_in_another_order(device):
    shapes = BANKS["of different shapes"]
    ours, theirs = tensors(device, shapes, layout=torch.contiguous_format), tensors(device, shapes)
    assert not ours[0][0].is_contiguous(memory_format=torch.channels_last)
    ours[1] = [gradient.to(memory_format=torch.channels_last) for gradient in ours[1]]
    update(muon_fused, ours, dtype=torch.float32)
    update(muon_reference, theirs, dtype=torch.float32)
    check_equal(ours, theirs, TOLERANCE[torch.float32])


@pytest.mark.parametrize("implementation", [muon_fused, muon_reference])
def test_scaled_gradients_are_unscaled(device, implementation):
    ours, theirs = tensors(device, BANKS["of odd sizes"]), tensors(device, BANKS["of odd sizes"])
    torch._foreach_mul_(ours[1], 1024.0)
    scaling = {"grad_scale": torch.tensor(1024.0, device=device), "found_inf": torch.zeros((), device=device)}
    update(implementation, ours, dtype=torch.float32, **scaling)
    update(muon_reference, theirs, dtype=torch.float32)
    check_equal(ours, theirs, TOLERANCE[torch.float32])


@pytest.mark.parametrize("implementation", [muon_fused, muon_reference])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter: the kernel divides by 0 and stores nothing
def test_an_overflow_leaves_weights_and_momentum_unchanged(device, implementation, bad):
    ours, before = tensors(device, BANKS["of odd sizes"]), tensors(device, BANKS["of odd sizes"])
    ours[1][1].view(-1)[3] = bad
    scaling = {"grad_scale": torch.tensor(1024.0, device=device), "found_inf": torch.ones((), device=device)}
    update(implementation, ours, **scaling)
    for one, other in zip((*ours[0], *ours[2]), (*before[0], *before[2]), strict=True):
        assert torch.equal(one, other)


class Launches(TorchDispatchMode):
    """Lists PyTorch's operators that launch work, and Triton's launches, which it leaves out."""

    FREE = "empty", "transpose", "detach", "_record_function_enter_new", "_record_function_exit"

    def __init__(self, monkeypatch):
        super().__init__()
        self.names = []
        for name in ("_pack_kernel", "_multiply_kernel", "_unpack_kernel"):
            monkeypatch.setattr(muon_fused, name, self.kernel(name))

    def kernel(self, name):
        class Kernel:
            def __getitem__(_, grid):
                return lambda *arguments, **options: self.names.append(name)

        return Kernel()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__
        if name not in self.FREE:
            self.names.append(name)
        return function(*arguments, **options or {})


@pytest.mark.parametrize("count", [3, 12])
@pytest.mark.parametrize("scaled", [False, True])
def test_eleven_launches_update_any_number_of_banks_and_one_each_group_of_sgd(device, monkeypatch, count, scaled):
    lr = torch.tensor(0.1, device=device)
    settings = {"lr": lr, "momentum": 0.6, "nesterov": True, "weight_decay": 0.0}
    groups = []
    for steps, shapes in ((3, [(8, 4, 3, 3)] * count), (0, [(8,), (4,)]), (0, [(10, 8)])):
        banks, gradients, _ = tensors(device, shapes, layout=torch.preserve_format)
        groups.append({"params": banks, "newton_schulz_steps": steps} | settings)
        for bank, gradient in zip(banks, gradients, strict=True):
            bank.grad = gradient
    optimizer = Muon(groups)
    optimizer._update_filters = muon_fused.update_filters  # on a CPU it would be the reference
    if scaled:
        optimizer.grad_scale, optimizer.found_inf = lr, lr
    with Launches(monkeypatch) as launches:
        optimizer.step()
    kernels = ["_pack_kernel", *["_multiply_kernel"] * 9, "_unpack_kernel"]
    assert launches.names == [*kernels, "_fused_sgd_", "_fused_sgd_"]


CROSS_COMPILE = """
import json
import torch
from cross_compile import compiled
from fastcifar.optim import muon_fused

banks = {
    "speednet": [(64, 24, 3, 3), (64, 64, 3, 3), (256, 64, 3, 3), (256, 256, 3, 3), (256, 256, 3, 3), (256, 256, 3, 3)],
    "odd sizes": [(5, 3, 3, 3), (7, 11, 1, 1)],
}
kernels = "pack", "first gram", "polynomial", "first product", "gram", "polynomial", "product", "unpack"
one = torch.ones(())
for name, shapes in banks.items():
    for capability in (80, 90, 100):
        def launch():
            tensors = [[torch.zeros(shape).to(memory_format=torch.channels_last) for shape in shapes] for _ in range(3)]
            muon_fused.update_filters(
                *tensors, lr=one, momentum=0.6, nesterov=True, steps=2, grad_scale=one, found_inf=one
            )
        for kernel, facts in zip(kernels, compiled(capability, launch), strict=True):
            facts["tensor_cores"] = any(word in facts["ptx"] for word in ("mma.sync", "wgmma", "tcgen05.mma"))
            del facts["ptx"]
            print(json.dumps({"kernel": f"muon: {name}, {kernel}, sm_{capability}", **facts}))
"""


@pytest.mark.slow
def test_compiled_for_gpus_it_spills_nothing_and_moves_16_bytes_at_once(run_script, check_registers):
    kernels = [json.loads(line) for line in run_script(CROSS_COMPILE).splitlines()]
    assert len(kernels) == 2 * 3 * 8
    for kernel in kernels:
        packing = "pack" in kernel["kernel"]
        assert kernel["tensor_cores"] != packing, kernel
        if "speednet" in kernel["kernel"]:
            few = {"ld.global.b32", "ld.global.v2.b32", "st.global.b32"}  # scalars, and the sums of squares
            assert set(kernel["accesses"]) - few <= {"ld.global.v4.b32", "st.global.v4.b32"}, kernel
            assert sum(kernel["accesses"].get(access, 0) for access in few) <= 4, kernel
    check_registers(kernels)


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_a_captured_update_is_the_eager_one(device):
    shapes = BANKS["of different shapes"]
    ours, theirs = tensors(device, shapes), tensors(device, shapes)
    lr = torch.tensor(0.1, device=device)
    update(muon_fused, tensors(device, shapes), lr=lr)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        update(muon_fused, ours, lr=lr)
    for step, rate in enumerate((0.1, 0.02), 1):
        lr.fill_(rate)
        gradients = tensors(device, shapes, seed=step)[1]
        for banks in (ours, theirs):
            torch._foreach_copy_(banks[1], gradients)
        graph.replay()
        update(muon_fused, theirs, lr=lr)
        for one, other in zip((*ours[0], *ours[2]), (*theirs[0], *theirs[2]), strict=True):
            assert torch.equal(one, other)
