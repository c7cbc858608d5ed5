"""Random erasing: the kernel against its PyTorch reference, and the compiled kernel."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="Triton is not installed")

from fastcifar.augment import erasing_fused, erasing_reference
from fastcifar.augment.erasing import RandomErasing
from fastcifar.augment.erasing_reference import Parameters

SHAPES = [(1, 1, 1, 1), (3, 3, 7, 5), (2, 4, 7, 5), (2, 3, 33, 31), (2, 1, 28, 28), (3, 3, 32, 32)]
FORMATS = [torch.contiguous_format, torch.channels_last]
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
FILL = 9.0  # no pixel has this value
FILLS = {"number": FILL, "channels": (FILL, 10.5, 11.0, 12.0), "random": "random"}
# An ulp of the largest numbers (noise up to 6, normalised pixels up to 4): the order of operations differs, and so do the
# logarithms and cosines of the two libraries.
TOLERANCE = {torch.float32: 4e-6, torch.float16: 4e-3, torch.bfloat16: 4e-2}


def make_images(shape, dtype=torch.float32, layout=torch.contiguous_format, seed=0):
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return (pixels if dtype == torch.uint8 else (pixels / 255).to(dtype)).contiguous(memory_format=layout)


def state(seed=3, call=0):
    return torch.tensor([seed, call])


def fill_of(kind, channels):
    fill = FILLS[kind]
    return () if fill == "random" else fill[:channels] if isinstance(fill, tuple) else (fill,)


def erased(shape, words, parameters):
    """Mask of the pixels that the reference erases, (B, 1, H, W) bool."""
    return erasing_reference.erased_pixels(erasing_reference.draw_boxes(*words.tolist(), shape, parameters), shape)[:, None]


def check_equal(device, images, words, dtype, parameters, inplace=False):
    """Check that both erase the same pixels; the others are identical or, if normalised, equal up to rounding."""
    outputs = []
    for module, where in ((erasing_fused, device), (erasing_reference, torch.device("cpu"))):
        given = images.to(where, copy=True)
        out = given if inplace else torch.full_like(given, -7, dtype=dtype)
        module.erase_batch(given, out, words.to(where), parameters)
        assert inplace or torch.equal(given.cpu(), images)
        outputs.append(out.cpu())
    ours, theirs = outputs
    inside = erased(images.shape, words, parameters).expand_as(images)
    if parameters.value:
        filled = torch.tensor(parameters.value)[:, None, None].to(dtype).expand_as(images)
        assert torch.equal(ours == filled, inside)
        assert torch.equal(ours[inside], theirs[inside])
    if not parameters.mean:
        assert torch.equal(ours[~inside], images.to(dtype)[~inside])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("layout", FORMATS, ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_the_kernel_equals_its_reference(device, shape, layout, fill):
    parameters = Parameters(0.7, (0.02, 0.33), (0.3, 3.3), fill_of(fill, shape[1]))
    normalizing = replace(parameters, mean=(0.4, 0.5, 0.6, 0.1)[: shape[1]], std=(0.25,))
    for dtype in FLOATS:
        check_equal(device, make_images(shape, dtype, layout), state(), dtype, parameters)
    check_equal(device, make_images(shape, layout=layout), state(), torch.float32, parameters, inplace=True)
    check_equal(device, make_images(shape, torch.uint8, layout), state(), torch.bfloat16, normalizing)
    check_equal(device, make_images(shape, layout=layout), state(), torch.float16, normalizing)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 40), st.integers(1, 40)),
    layout=st.sampled_from(FORMATS),
    dtype=st.sampled_from(FLOATS),
    scale=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted).map(tuple),
    ratio=st.tuples(st.floats(0.05, 20), st.floats(0.05, 20)).map(sorted).map(tuple),
    p=st.sampled_from([0.0, 0.3, 1.0]),
    count=st.integers(1, 3),
    fill=st.sampled_from(["number", "random"]),
    words=st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**32)),
    inplace=st.booleans(),
)
def test_the_kernel_equals_its_reference_whatever_the_parameters(
    device, shape, layout, dtype, scale, ratio, p, count, fill, words, inplace
):
    parameters = Parameters(p, scale, ratio, fill_of(fill, shape[1]), count)
    check_equal(device, make_images(shape, dtype, layout), state(*words), dtype, parameters, inplace)


def test_large_images_are_shared_by_several_warps(device):
    for value in ((FILL,), ()):
        parameters = Parameters(1.0, (0.5, 0.5), (1.0, 1.0), value)
        for inplace in (False, True):
            check_equal(device, make_images((1, 3, 150, 90)), state(), torch.float32, parameters, inplace)


def test_in_place_touches_only_the_erased_pixels_of_a_view(device):
    whole = make_images((4, 5, 20, 24)).to(device)
    window = (slice(None), slice(1, 4), slice(2, -1), slice(3, -2))
    parameters = Parameters(0.7, (0.1, 0.3), (0.3, 3.3), (FILL,), 2)
    expected = whole.clone()
    inside = erased(whole[window].shape, state(), parameters).to(device)
    expected[window] = whole[window].masked_fill(inside, FILL)
    view = whole[window]
    erasing_fused.erase_batch(view, view, state().to(device), parameters)
    assert torch.equal(whole, expected)


# The compiled kernel.

COMPILE = """
import json
import torch
from cross_compile import compiled
from fastcifar.augment.erasing_fused import erase_batch
from fastcifar.augment.erasing_reference import Parameters

words = torch.zeros(2, dtype=torch.int64)
fills = {"a number": (0.0,), "channels": (0.1, 0.2, 0.3), "noise": ()}
for capability in (80, 90, 100):
    for layout in (torch.contiguous_format, torch.channels_last):
        for name, value in fills.items():
            images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8).contiguous(memory_format=layout)
            out = torch.empty_like(images, dtype=torch.bfloat16)
            box = 0.5, (0.02, 0.2), (0.3, 3.3), value, 1
            normalizing = Parameters(*box, (0.4, 0.5, 0.6), (0.5,))
            copied = compiled(capability, lambda: erase_batch(images, out, words, normalizing))
            inplace = compiled(capability, lambda: erase_batch(out, out, words, Parameters(*box)))
            for how, [facts] in (("copied", copied), ("in place", inplace)):
                del facts["ptx"]
                print(json.dumps({"kernel": f"erasing: {how}, {name}, {layout}, sm_{capability}", **facts}))
"""


@pytest.mark.slow
def test_the_compiled_kernel_moves_16_bytes_at_once_and_spills_nothing(run_script, check_registers):
    kernels = [json.loads(line) for line in run_script(COMPILE).splitlines()]
    assert len(kernels) == 3 * 2 * 3 * 2
    for kernel in kernels:
        assert kernel["registers"] <= 96, kernel  # 21 warps fit a multiprocessor, and 21 KiB of loads hide its latency
        expected = {"ld.global.b64"}  # of seed and call
        if "copied" in kernel["kernel"]:
            expected |= {"ld.global.v4.b32", "st.global.v4.b32"}
        if "in place" in kernel["kernel"] or "noise" in kernel["kernel"]:
            expected |= {"st.global.b16"}  # the pixels of a box, which are not read
        assert set(kernel["accesses"]) == expected, kernel
    check_registers(kernels)


@pytest.mark.gpu
def test_a_captured_graph_draws_anew_at_every_replay():
    images = make_images((64, 3, 32, 32)).cuda()
    ours, theirs = RandomErasing(value="random", seed=5), RandomErasing(value="random", seed=5)
    ours(images)  # compiles the kernel and moves the buffer
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ours(images)
    theirs(images)
    for _ in range(3):
        graph.replay()
        assert torch.equal(out, theirs(images))


@pytest.mark.gpu
def test_nothing_waits_for_the_device(without_waiting):
    images, module = make_images((64, 3, 32, 32)).cuda(), RandomErasing()
    module(images)
    with without_waiting():
        module(images)


@pytest.mark.gpu
@pytest.mark.parametrize("inplace", [False, True])
def test_more_elements_than_an_int32_counts_are_reached(inplace):
    count = 2**31 // 3072 + 64
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GiB of free GPU memory")
    images = torch.zeros(count, 3, 32, 32, dtype=torch.float16, device="cuda")
    out = RandomErasing(1.0, (0.1, 0.2), value=1.0, inplace=inplace)(images)
    assert out[-128:].flatten(1).any(1).all()
    assert out[:128].flatten(1).any(1).all()


@pytest.mark.gpu
def test_without_triton_a_gpu_erases_the_same_by_pytorch(monkeypatch):
    images = make_images((64, 3, 32, 32)).cuda()
    ours = RandomErasing(value=FILL, seed=5)(images)
    monkeypatch.setattr("fastcifar.augment.erasing._kernel_runs_on", lambda device: False)
    assert torch.equal(ours, RandomErasing(value=FILL, seed=5)(images))
