"""Random erasing: the kernel against its twin, the twin against torchvision's erase, and the module."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
import torchvision.transforms.v2.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="Triton is not installed")

import fastcifar
from fastcifar.augment import Policy, erasing
from fastcifar.augment.erasing import RandomErasing
from fastcifar.augment.philox import Draws
from fastcifar.augment.transforms.erasing import erasing_noise
from fastcifar.runtime.errors import UserError

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
    return [] if fill == "random" else list(fill[:channels]) if isinstance(fill, tuple) else [fill]


def erased(shape, words, p, scale, ratio, value, count, **_):
    """Mask of the pixels that the twin erases, (B, 1, H, W) bool."""
    boxes = erasing.draw_boxes(*words.tolist(), shape, p, scale, ratio, count)
    return erasing._inside(boxes, shape)[:, None]


def check_equal(device, images, words, dtype, inplace=False, **parameters):
    """Check that kernel and twin erase the same pixels; the others are identical or, if normalised, equal up to rounding."""
    outputs = []
    for function, where in ((erasing.launch, device), (erasing.twin, torch.device("cpu"))):
        given = images.to(where, copy=True)
        out = given if inplace else torch.full_like(given, -7, dtype=dtype)
        function(given, out, words.to(where), **parameters)
        assert inplace or torch.equal(given.cpu(), images)
        outputs.append(out.cpu())
    ours, theirs = outputs
    inside = erased(images.shape, words, **parameters).expand_as(images)
    if parameters["value"]:
        filled = torch.tensor(parameters["value"])[:, None, None].to(dtype).expand_as(images)
        assert torch.equal(ours == filled, inside)
        assert torch.equal(ours[inside], theirs[inside])
    if not parameters.get("mean"):
        assert torch.equal(ours[~inside], images.to(dtype)[~inside])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("layout", FORMATS, ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_the_kernel_equals_its_twin(device, shape, layout, fill):
    parameters = dict(p=0.7, scale=(0.02, 0.33), ratio=(0.3, 3.3), value=fill_of(fill, shape[1]), count=1)
    normalization = dict(mean=[0.4, 0.5, 0.6, 0.1][: shape[1]], std=[0.25])
    for dtype in FLOATS:
        check_equal(device, make_images(shape, dtype, layout), state(), dtype, **parameters)
    check_equal(device, make_images(shape, layout=layout), state(), torch.float32, inplace=True, **parameters)
    check_equal(device, make_images(shape, torch.uint8, layout), state(), torch.bfloat16, **parameters, **normalization)
    check_equal(device, make_images(shape, layout=layout), state(), torch.float16, **parameters, **normalization)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 40), st.integers(1, 40)),
    layout=st.sampled_from(FORMATS),
    dtype=st.sampled_from(FLOATS),
    scale=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
    ratio=st.tuples(st.floats(0.05, 20), st.floats(0.05, 20)).map(sorted),
    p=st.sampled_from([0.0, 0.3, 1.0]),
    count=st.integers(1, 3),
    fill=st.sampled_from(["number", "random"]),
    words=st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**32)),
    inplace=st.booleans(),
)
def test_the_kernel_equals_its_twin_whatever_the_parameters(
    device, shape, layout, dtype, scale, ratio, p, count, fill, words, inplace
):
    parameters = dict(p=p, scale=scale, ratio=ratio, value=fill_of(fill, shape[1]), count=count)
    check_equal(device, make_images(shape, dtype, layout), state(*words), dtype, inplace, **parameters)


def test_large_images_are_shared_by_several_warps(device):
    shape = (1, 3, 150, 90)
    for value in ([FILL], []):
        parameters = dict(p=1.0, scale=(0.5, 0.5), ratio=(1.0, 1.0), value=value, count=1)
        for inplace in (False, True):
            check_equal(device, make_images(shape), state(), torch.float32, inplace, **parameters)


def test_in_place_touches_only_the_erased_pixels_of_a_view(device):
    whole = make_images((4, 5, 20, 24)).to(device)
    window = (slice(None), slice(1, 4), slice(2, -1), slice(3, -2))
    parameters = dict(p=0.7, scale=(0.1, 0.3), ratio=(0.3, 3.3), value=[FILL], count=2)
    expected = whole.clone()
    inside = erased(whole[window].shape, state(), **parameters).to(device)
    expected[window] = whole[window].masked_fill(inside, FILL)
    view = whole[window]
    erasing.launch(view, view, state().to(device), **parameters)
    assert torch.equal(whole, expected)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_the_twin_equals_torchvisions_erase(p, count):
    images = make_images((40, 3, 16, 12))
    parameters = dict(p=p, scale=(0.02, 0.33), ratio=(0.3, 3.3), value=[1.0, 2.0, 3.0], count=count)
    out = torch.empty_like(images)
    erasing.twin(images, out, state(), **parameters)
    boxes = erasing.draw_boxes(3, 0, images.shape, p, parameters["scale"], parameters["ratio"], count)
    assert abs((boxes[..., 2] > 0).float().mean() - p) < 0.2
    for image, result, image_boxes in zip(images, out, boxes.tolist(), strict=True):
        for box in image_boxes:
            image = TF.erase(image, *box, torch.tensor(parameters["value"])[:, None, None])
        assert torch.equal(result, image)


def test_noise_is_the_references():
    images, index = torch.zeros(3, 6, 9, 8), torch.arange(3)
    out = torch.empty_like(images)
    parameters = dict(p=1.0, scale=(0.2, 0.4), ratio=(0.5, 2.0), value=[], count=1)
    erasing.twin(images, out, state(3, 5), **parameters)
    inside = erased(images.shape, state(3, 5), **parameters)
    noise = erasing_noise(Draws(3, 5, index, ()), images.shape)
    assert torch.equal(out, noise * inside)


# The module.


def erases(module, images):
    """Mask of the images that the module changes, (B,) bool."""
    return (module(images) != images).flatten(1).any(1)


@pytest.mark.parametrize("layout", FORMATS, ids=["contiguous", "channels-last"])
def test_the_module_keeps_shape_layout_and_the_images_given(layout):
    images = make_images((5, 3, 9, 8), layout=layout)
    before = images.clone()
    out = RandomErasing(1.0, value=FILL)(images)
    assert out.is_contiguous(memory_format=layout)
    assert torch.equal(images, before)
    assert (out == FILL).flatten(1).any(1).all()
    strided = make_images((5, 3, 9, 16))[..., ::2]
    assert RandomErasing(0.0)(strided).is_contiguous()
    assert torch.equal(RandomErasing(0.0)(strided), strided)


def test_a_policy_refuses_the_module_by_another_name_than_its_own_transform_has():
    assert fastcifar.RandomErasing is erasing.BatchRandomErasing
    with pytest.raises(UserError, match=r"BatchRandomErasing.* is no transform; valid are .*\bRandomErasing"):
        Policy((RandomErasing(),))


def test_one_image_is_a_batch_of_one():
    images = make_images((1, 3, 9, 8))
    assert torch.equal(RandomErasing(1.0, seed=4)(images[0]), RandomErasing(1.0, seed=4)(images)[0])
    last = images.contiguous(memory_format=torch.channels_last)[0]
    out = RandomErasing(1.0, seed=4)(last)
    assert out.stride() == last.stride()
    assert torch.equal(out, RandomErasing(1.0, seed=4)(images[0]))


def test_no_images_come_back_as_none():
    assert RandomErasing(1.0)(torch.empty(0, 3, 8, 8)).shape == (0, 3, 8, 8)


def test_in_place_returns_the_images_given_and_equals_out_of_place():
    images = make_images((20, 3, 9, 8))
    expected = RandomErasing(0.5, value="random", seed=1)(images)
    assert RandomErasing(0.5, value="random", inplace=True, seed=1)(images) is images
    assert torch.equal(images, expected)


def test_normalisation_and_cast_come_before_the_fill():
    images = make_images((20, 3, 9, 8), torch.uint8)
    module = RandomErasing(0.5, value=FILL, mean=(0.4, 0.5, 0.6), std=0.25, seed=1)
    out = module(images)
    assert out.dtype == torch.bfloat16
    pixels = TF.normalize(images / 255, [0.4, 0.5, 0.6], [0.25] * 3)
    expected = RandomErasing(0.5, value=FILL, seed=1)(pixels).bfloat16()
    assert torch.equal(out, expected)
    assert RandomErasing(dtype=torch.float16)(make_images((2, 3, 8, 8))).dtype == torch.float16


def test_a_constant_stays_what_it_is_among_infinite_pixels():
    images = torch.full((2, 1, 8, 8), torch.inf)
    out = RandomErasing(1.0, value=1.0)(images)
    assert set(out.unique().tolist()) == {1.0, torch.inf}


def test_torchs_seed_decides_the_draws_and_each_call_has_its_own():
    images = make_images((64, 1, 16, 16))
    with torch.random.fork_rng():
        modules = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            modules.append(RandomErasing(value=FILL))
    first, again, other = modules
    calls = [first(images) for _ in range(3)]
    assert torch.equal(calls[0], again(images))
    assert not torch.equal(calls[0], other(images))
    assert not torch.equal(calls[0], calls[1])
    assert not torch.equal(calls[1], calls[2])


@pytest.mark.parametrize("seed", [0, -1, 2**63, 2**64 - 1])
def test_any_64_bits_are_a_seed(seed):
    module = RandomErasing(seed=seed)
    assert module.state.tolist()[0] % 2**64 == seed % 2**64
    module(make_images((2, 1, 8, 8)))


def test_a_loaded_state_goes_on_where_it_stopped():
    images, module = make_images((16, 1, 16, 16)), RandomErasing(value=FILL)
    module(images)
    resumed = RandomErasing(value=FILL)
    resumed.load_state_dict(module.state_dict())
    copied = copy.deepcopy(module)
    expected = module(images)
    assert torch.equal(resumed(images), expected)
    assert torch.equal(copied(images), expected)


def test_an_image_depends_on_its_place_in_the_batch_and_not_on_the_batchs_size():
    images = make_images((1, 3, 16, 16)).repeat(8, 1, 1, 1)
    out = RandomErasing(1.0, value="random", seed=2)(images)
    assert torch.equal(out[:3], RandomErasing(1.0, value="random", seed=2)(images[:3]))
    assert not torch.equal(out[0], out[1])


def test_workers_of_a_data_loader_draw_each_their_own(monkeypatch):
    images, outputs = make_images((32, 1, 16, 16)), []
    for seed in (10, 11):
        monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda seed=seed: SimpleNamespace(seed=seed))
        outputs.append(RandomErasing(seed=0)(images))
    assert not torch.equal(*outputs)


def test_the_module_is_compiled_in_one_graph_and_draws_the_same():
    images = make_images((16, 3, 9, 8))
    for options in ({}, {"inplace": True}):
        ours, theirs = RandomErasing(value=FILL, seed=5, **options), RandomErasing(value=FILL, seed=5, **options)
        compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
        for _ in range(2):
            assert torch.equal(compiled(images.clone()), theirs(images.clone()))
        assert torch.equal(ours.state, theirs.state)


def test_the_operators_keep_their_promises():
    common = (state(), 0.5, [0.02, 0.33], [0.3, 3.3])
    for layout in FORMATS:
        images = make_images((3, 3, 9, 8), torch.uint8, layout)
        inputs = (images, *common, [0.0], 1, [0.5], [0.5], torch.bfloat16)
        torch.library.opcheck(torch.ops.fastcifar.random_erasing.default, inputs)
        inputs = (make_images((3, 3, 9, 8), layout=layout), *common, [], 2)
        torch.library.opcheck(torch.ops.fastcifar.random_erasing_.default, inputs)


@pytest.mark.parametrize(
    ("error", "arguments", "words"),
    [
        (TypeError, {"value": {}}, ["value = {}", "a number"]),
        (TypeError, {"value": None}, ["value = None"]),
        (TypeError, {"scale": 0.1}, ["scale = 0.1", "sequence"]),
        (TypeError, {"ratio": 0.1}, ["ratio = 0.1", "sequence"]),
        (TypeError, {"p": "0.5"}, ["p = '0.5'"]),
        (TypeError, {"count": 1.5}, ["count = 1.5"]),
        (TypeError, {"mean": "0.5", "std": 0.5}, ["mean = '0.5'"]),
        (TypeError, {"dtype": torch.int32}, ["torch.int32", "torch.bfloat16"]),
        (ValueError, {"value": "noise"}, ["value = 'noise'", '"random"']),
        (ValueError, {"value": ()}, ["value = ()"]),
        (ValueError, {"p": 1.1}, ["p = 1.1", "between 0 and 1"]),
        (ValueError, {"p": float("nan")}, ["p = nan"]),
        (ValueError, {"scale": (-0.1, 0.3)}, ["scale", "0 <= low"]),
        (ValueError, {"scale": (0.3, 1.1)}, ["scale", "<= 1"]),
        (ValueError, {"scale": (0.3, 0.1)}, ["scale = [0.3, 0.1]"]),
        (ValueError, {"scale": (0.3,)}, ["scale = [0.3]", "pair"]),
        (ValueError, {"ratio": (3.0, 0.3)}, ["ratio = [3.0, 0.3]"]),
        (ValueError, {"ratio": (0, 1)}, ["ratio = [0, 1]", "above 0"]),
        (ValueError, {"count": 0}, ["count = 0", "at least 1"]),
        (ValueError, {"mean": 0.5}, ["mean = 0.5", "std = None"]),
        (ValueError, {"mean": 0.5, "std": 0.0}, ["std = 0.0", "above 0"]),
        (ValueError, {"inplace": True, "dtype": torch.float16}, ["inplace = True", "dtype"]),
    ],
)
def test_an_impossible_argument_is_an_error_that_names_it(error, arguments, words):
    with pytest.raises(error) as caught:
        RandomErasing(**arguments)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("error", "arguments", "images", "words"),
    [
        (TypeError, {}, "image", ["tensor", "str"]),
        (TypeError, {}, torch.zeros(3, 8, 8, dtype=torch.uint8), ["torch.uint8", "mean and std"]),
        (TypeError, {"mean": 0.5, "std": 0.5}, torch.zeros(3, 8, 8, dtype=torch.int64), ["torch.int64"]),
        (TypeError, {}, torch.zeros(3, 8, 8, dtype=torch.float64), ["torch.float64"]),
        (ValueError, {}, torch.zeros(8, 8), ["(8, 8)", "(C, H, W)"]),
        (ValueError, {"value": (1, 2)}, torch.zeros(3, 8, 8), ["value = [1.0, 2.0]", "3 channels"]),
        (ValueError, {"mean": (1, 2), "std": 1}, torch.zeros(3, 8, 8), ["mean = [1.0, 2.0]", "3 channels"]),
    ],
)
def test_images_that_do_not_fit_are_an_error_that_says_why(error, arguments, images, words):
    with pytest.raises(error) as caught:
        RandomErasing(**arguments)(images)
    for word in words:
        assert word in str(caught.value)


# The compiled kernel.

COMPILE = """
import json
import torch
from cross_compile import compiled
from fastcifar.augment import erasing

words = torch.zeros(2, dtype=torch.int64)
fills = {"a number": (0.0,), "channels": (0.1, 0.2, 0.3), "noise": ()}
for capability in (80, 90, 100):
    for layout in (torch.contiguous_format, torch.channels_last):
        for name, value in fills.items():
            images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8).contiguous(memory_format=layout)
            out = torch.empty_like(images, dtype=torch.bfloat16)
            box = 0.5, (0.02, 0.2), (0.3, 3.3), value, 1
            copied = compiled(capability, lambda: erasing.launch(images, out, words, *box, (0.4, 0.5, 0.6), (0.5,)))
            inplace = compiled(capability, lambda: erasing.launch(out, out, words, *box))
            for how, [facts] in (("copied", copied), ("in place", inplace)):
                del facts["ptx"]
                print(json.dumps({"kernel": f"erasing: {how}, {name}, {layout}, sm_{capability}", **facts}))
"""


@pytest.mark.slow
def test_the_compiled_kernel_moves_16_bytes_at_once_and_spills_nothing(run_script, check_registers):
    kernels = [json.loads(line) for line in run_script(COMPILE).splitlines()]
    assert len(kernels) == 3 * 2 * 3 * 2
    for kernel in kernels:
        assert kernel["spilled"] == 0, kernel
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
