"""The kernels of BatchNorm with sum and ReLU against PyTorch in float64, their launches, and their compiled code."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("triton", reason="Triton is not installed")

from fastcifar.models import norm_fused
from fastcifar.models.norm import BatchNormAct

SHAPES = {
    "one tile": (2, 3, 5, 7),
    "channels of one block and a bit": (5, 20, 7, 9),
    "rows of several tiles": (7, 33, 12, 11),
    "one row of an image": (3, 16, 1, 1),
    "one channel": (2, 1, 3, 3),
}
RELU = {"ReLU": True, "no ReLU": False}
ADDED = {"residual": True, "no residual": False}
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}
"""Relative, of an output: the interpreter truncates to bf16, where PyTorch rounds."""


class Case:
    """The layer with its kernels, PyTorch's in float64, and equal inputs and gradients of the output."""

    def __init__(self, device, shape, *, relu=True, added=False, dtype=torch.float32, make=torch.randn):
        generator = torch.Generator().manual_seed(0)
        self.relu = relu
        self.ours, self.theirs = (
            BatchNormAct(shape[1], momentum=0.3, relu=relu).to(device),
            nn.BatchNorm2d(shape[1], momentum=0.3),
        )
        self.ours.use("fused", "of the test")
        with torch.no_grad():
            for parameter in (self.theirs.weight, self.theirs.bias):
                parameter.copy_(torch.randn(shape[1], generator=generator))
        self.ours.load_state_dict(self.theirs.state_dict())
        self.theirs = self.theirs.to(device, torch.float64)

        def drawn(draw):
            tensor = draw(shape, generator=generator).to(device, dtype, memory_format=torch.channels_last)
            return tensor.requires_grad_(), tensor.detach().double().requires_grad_()

        self.x, self.x64 = drawn(make)
        self.residual, self.residual64 = drawn(torch.randn) if added else (None, None)
        self.dy = drawn(torch.randn)[0].detach()

    def run(self):
        """Forward and backward; returns (name, ours, PyTorch's) of outputs, gradients and statistics."""
        y, y64 = self.ours(self.x, self.residual), self.theirs(self.x64)
        y64 = y64 if self.residual is None else y64 + self.residual64
        y64 = y64.relu() if self.relu else y64
        y.backward(self.dy)
        y64.backward(torch.where(y == 0, 0, self.dy).double() if self.relu else self.dy.double())  # where rounding made y 0
        pairs = [("y", y, y64), ("dx", self.x.grad, self.x64.grad)]
        if self.residual is not None:
            pairs.append(("dresidual", self.residual.grad, self.residual64.grad))
        for name, ours in self.ours.named_parameters():
            pairs.append((f"d{name}", ours.grad, self.theirs.get_parameter(name).grad))
        return pairs + [(name, ours, self.theirs.get_buffer(name)) for name, ours in self.ours.named_buffers()]


def check(pairs, dtype=torch.float32):
    for name, ours, theirs in pairs:
        rounding = ROUNDING[dtype] if ours.dtype == dtype else 1e-5
        size = theirs.double().abs().max().item()
        torch.testing.assert_close(
            ours.double(),
            theirs.double(),
            rtol=rounding,
            atol=max(1e-5, rounding) * max(size, 1.0),
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize("relu", RELU)
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_gradients_and_statistics_are_those_of_pytorch_in_float64(device, shape, relu, added):
    case = Case(device, SHAPES[shape], relu=RELU[relu], added=ADDED[added])
    check(case.run())
    assert case.ours.num_batches_tracked == 1


@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_activations_may_have_16_bits(device, dtype, added):
    pairs = Case(device, SHAPES["rows of several tiles"], added=ADDED[added], dtype=dtype).run()
    assert [ours.dtype for name, ours, _ in pairs if name in ("y", "dx", "dresidual")] == [dtype] * (2 + ADDED[added])
    check(pairs, dtype)


@pytest.mark.parametrize("added", ADDED)
def test_a_program_may_take_several_tiles_and_parts_may_be_unequal(device, monkeypatch, added):
    monkeypatch.setattr(norm_fused, "MOST_PARTS", 4)
    shape = SHAPES["rows of several tiles"]
    sizes = norm_fused.geometry(shape[0] * shape[2] * shape[3], shape[1])
    tiles = -(-924 // sizes["BLOCK_M"])
    assert (sizes["PARTS"], tiles % sizes["PARTS"] > 0, 924 % sizes["BLOCK_M"] > 0) == (4, True, True)
    check(Case(device, shape, added=ADDED[added]).run())


def offset(shape, generator):
    """Mean 1000, standard deviation 0.1: in float32, E[x^2] - E[x]^2 has the error 0.06, six times the variance."""
    return 1000 + 0.1 * torch.randn(shape, generator=generator)


def outlier(shape, generator):
    """A first value that is far from all others, by which sums must not be shifted."""
    x = torch.randn(shape, generator=generator)
    x[0, :, 0, 0] = 1e4
    return x


@pytest.mark.parametrize("make", [offset, outlier])
def test_large_means_and_outliers_do_not_cost_the_variance_its_digits(device, make):
    case = Case(device, SHAPES["rows of several tiles"], make=make)
    pairs = {name: (ours, theirs) for name, ours, theirs in case.run()}
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(pairs[name][0].double(), pairs[name][1], rtol=2e-6, atol=1e-6)
    if make is offset:  # the mean's last bit, 6e-5, is 6e-4 of the standard deviation
        check_y = pairs["y"]
        torch.testing.assert_close(check_y[0].double(), check_y[1], rtol=0, atol=3e-3)


def test_the_recomputed_mask_is_that_of_the_rounded_output(device):
    """Outputs below float16's smallest number are 0 after rounding, and pass no gradient, as in PyTorch."""
    case = Case(device, (4, 16, 8, 8), dtype=torch.float16)
    with torch.no_grad():
        case.ours.weight.fill_(3e-8)
        case.ours.bias.zero_()
    y = case.ours(case.x)
    assert 0 < torch.count_nonzero(y) < 0.45 * y.numel()
    y.backward(torch.ones_like(y))
    assert torch.equal(case.ours.bias.grad, (y > 0).sum((0, 2, 3)).float())


def test_not_a_number_stays_one(device):
    case = Case(device, (2, 3, 4, 4), added=True)
    with torch.no_grad():
        case.residual[0, 0, 0, 0] = float("nan")
    y = case.ours(case.x, case.residual)
    assert torch.isnan(y).sum() == 1


@pytest.mark.parametrize("added", ADDED)
def test_padded_channels_stay_exactly_zero(device, added):
    case = Case(device, (3, 20, 5, 5), added=ADDED[added])
    padded = slice(13, None)
    with torch.no_grad():
        for tensor in (case.x, case.residual):
            if tensor is not None:
                tensor[:, padded] = 0
        for tensor in (case.ours.weight, case.ours.bias, case.ours.running_mean, case.ours.running_var):
            tensor[padded] = 0
    for _ in range(2):
        y = case.ours(case.x, case.residual)
        y.backward(case.dy)
    assert torch.count_nonzero(y[:, padded]) == 0
    assert torch.count_nonzero(case.x.grad[:, padded]) == 0
    if case.residual is not None:
        assert torch.count_nonzero(case.residual.grad[:, padded]) == 0
    for tensor in (case.ours.weight.grad, case.ours.bias.grad, case.ours.running_mean, case.ours.running_var):
        assert torch.count_nonzero(tensor[padded]) == 0


def test_activations_and_gradients_may_have_any_strides(device):
    case = Case(device, (3, 6, 4, 5), added=True)
    check(case.run())
    expected = case.ours(case.x, case.residual)
    y = case.ours(case.x.detach().contiguous(), case.residual.detach().contiguous())
    assert torch.equal(y, expected)
    case.x.grad = None
    expected.mean().backward()  # an expanded gradient
    gradient, case.x.grad = case.x.grad, None
    y = case.ours(case.x, case.residual)
    y.backward(torch.full_like(y, 1 / y.numel()))
    assert torch.equal(case.x.grad, gradient)


@pytest.mark.parametrize("changes", [{"x": torch.float64}, {"residual": torch.bfloat16}, {"weight": torch.bfloat16}])
def test_other_dtypes_are_refused(changes):
    layer = BatchNormAct(3)
    layer.use("fused", "of the test")
    layer.weight.data = layer.weight.data.to(changes.get("weight", torch.float32))
    x, residual = (torch.zeros(2, 3, 4, 4, dtype=changes.get(name, torch.float32)) for name in ("x", "residual"))
    with pytest.raises(TypeError, match=r"one dtype|must be float32"):
        layer(x, residual)


KERNELS = "_moments_kernel", "_normalize_kernel", "_reduce_kernel", "_apply_kernel"


@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize("relu", RELU)
def test_two_launches_forward_and_two_backward(device, monkeypatch, relu, added):
    case, launched = Case(device, (2, 3, 4, 4), relu=RELU[relu], added=ADDED[added]), []

    class Kernel:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            return lambda *arguments, **options: launched.append(self.name)

    for name in KERNELS:
        monkeypatch.setattr(norm_fused, name, Kernel(name))
    y = case.ours(case.x, case.residual)
    assert tuple(launched) == KERNELS[:2]
    y.backward(case.dy)
    assert tuple(launched) == KERNELS


@pytest.mark.parametrize("batch", [64, 512])
def test_the_seeds_layers_occupy_the_gpu_in_one_wave(batch):
    for side, channels in ((32, 48), (16, 208), (8, 192), (4, 384)):
        sizes = norm_fused.geometry(batch * side * side, channels)
        assert channels % sizes["BLOCK_C"] == 0
        programs = channels // sizes["BLOCK_C"] * sizes["PARTS"]
        assert programs >= norm_fused.MULTIPROCESSORS
        assert programs * sizes["num_warps"] <= norm_fused.WARPS


CROSS_COMPILE = """
import json
import torch
from cross_compile import compiled
from fastcifar.models.norm_fused import batch_norm_act_backward, batch_norm_act_forward

kernels = "moments", "normalize", "reduce", "apply"
shapes = {"48 channels": (64, 48, 32, 32), "208 channels": (64, 208, 16, 16), "odd sizes": (3, 21, 5, 7)}
for name, shape in shapes.items():
    dtype = torch.float32 if name == "odd sizes" else torch.bfloat16
    x, one = torch.zeros(shape, dtype=dtype).to(memory_format=torch.channels_last), torch.ones(shape[1])
    count = torch.zeros((), dtype=torch.int64)
    for added in (False, True):
        def launch():
            other = x if added else None
            batch_norm_act_forward(x, other, one, one, one.clone(), one.clone(), count.clone(), 0.1, 1e-5, True)
            batch_norm_act_backward(x, x, other, one, one, one, one, True)
        for capability in (80, 90, 100):
            for kernel, facts in zip(kernels, compiled(capability, launch), strict=True):
                del facts["ptx"]
                what = f"norm: {name}{', residual' if added else ''}, {kernel}, sm_{capability}"
                print(json.dumps({"kernel": what, **facts}))
"""


@pytest.mark.slow
def test_compiled_for_gpus_it_spills_nothing_and_moves_16_bytes_at_once(run_script, check_registers):
    kernels = [json.loads(line) for line in run_script(CROSS_COMPILE).splitlines()]
    assert len(kernels) == 3 * 2 * 3 * 4
    for kernel in kernels:
        assert kernel["registers"] <= 128, kernel  # more, and the programs of `geometry` would not all run at once
        if "odd" not in kernel["kernel"]:
            small = {"ld.global.b32", "ld.global.b64", "ld.global.v2.b32", "st.global.b32", "st.global.b64"}  # of channels
            assert set(kernel["accesses"]) - small <= {"ld.global.v4.b32", "st.global.v4.b32"}, kernel
            assert kernel["accesses"].get("ld.global.v4.b32", 0) >= 2, kernel
    check_registers(kernels)


INDUCTOR = """
import re
import sys
sys.path.insert(0, "{folder}")
from absent_gpu import install, start_again_with_stub
start_again_with_stub()
generated = install()
import torch
from count import without_memory
from torch._subclasses.fake_tensor import FakeTensorMode
from fastcifar.models.norm import fuse_norms
from fastcifar.models.resnet import basic

mode = FakeTensorMode(allow_non_fake_inputs=True)
block = fuse_norms(basic(16, 16, 1), "fused", "of the test").to(torch.bfloat16, memory_format=torch.channels_last)
for norm in (block.body[0].norm, block.body[2].norm):
    norm.float()
block = without_memory(block, mode)
with mode:
    x = torch.empty(64, 16, 16, 16, dtype=torch.bfloat16, device="cuda:0").permute(0, 3, 1, 2).requires_grad_()
    try:
        torch.compile(block, dynamic=False)(x)
    except IndexError:  # the generated code returns nothing
        pass
for code in generated:
    call = code[code.index("def call(") :]
    print(*(name.rstrip("_0123456789") for name in re.findall(r"(\\w+)\\.run\\(", call)))
"""


@pytest.mark.slow
def test_torch_compile_sees_the_launches_and_copies_nothing_for_them(run_script):
    """A block of two convolutions; what is left to Inductor is the sum of the two gradients of its input."""
    if shutil.which("c++") is None or torch.version.cuda is None:
        pytest.skip("needs a C++ compiler and PyTorch's CUDA build")
    folder = Path(__file__).parents[2] / "benchmarks" / "absent_gpu"
    forward, backward = run_script(INDUCTOR.format(folder=folder)).splitlines()
    assert forward.split() == [*KERNELS[:2]] * 2
    launches = backward.split()
    assert [name for name in launches if name in KERNELS] == [*KERNELS[2:]] * 2
    assert len(launches) == 5


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
@pytest.mark.parametrize("added", ADDED)
def test_compiled_and_captured_it_is_the_eager_one(device, added):
    eager, replayed = (Case(device, (8, 48, 16, 16), added=ADDED[added], dtype=torch.bfloat16) for _ in range(2))
    state = {name: value.clone() for name, value in replayed.ours.state_dict().items()}
    layer = torch.compile(replayed.ours, dynamic=False)

    def step():
        layer(replayed.x, replayed.residual).backward(replayed.dy)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()  # compiles
        tensors = replayed.x, *([replayed.residual] if ADDED[added] else []), *replayed.ours.parameters()
        graph = torch.cuda.CUDAGraph()
        for tensor in tensors:
            tensor.grad = None
        with torch.cuda.graph(graph, stream=stream):
            step()
    replayed.ours.load_state_dict(state)
    graph.replay()
    graph.replay()
    for _ in range(2):
        for tensor in (eager.x, eager.residual, *eager.ours.parameters()):
            if tensor is not None:
                tensor.grad = None
        eager.ours(eager.x, eager.residual).backward(eager.dy)
    for one, other in zip(replayed.ours.state_dict().values(), eager.ours.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    for one, other in ((replayed.x, eager.x), *zip(replayed.ours.parameters(), eager.ours.parameters(), strict=True)):
        assert torch.equal(one.grad, other.grad)


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_masks_of_both_passes_are_the_same_on_a_gpu(device):
    case = Case(device, (64, 48, 32, 32), dtype=torch.bfloat16)
    y = case.ours(case.x)
    y.backward(torch.ones_like(y))
    assert torch.equal(case.ours.bias.grad, (y > 0).sum((0, 2, 3)).float())
