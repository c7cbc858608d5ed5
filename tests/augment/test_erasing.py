"""Random erasing as a module: what it takes, keeps and refuses."""

import copy
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torchvision.transforms.v2.functional as TF

import fastcifar
from fastcifar.augment import Policy, erasing
from fastcifar.augment.erasing import RandomErasing
from fastcifar.runtime.errors import UserError

FORMATS = [torch.contiguous_format, torch.channels_last]
FILL = 9.0  # no pixel has this value


def make_images(shape, dtype=torch.float32, layout=torch.contiguous_format, seed=0):
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return (pixels if dtype == torch.uint8 else (pixels / 255).to(dtype)).contiguous(memory_format=layout)


def state(seed=3, call=0):
    return torch.tensor([seed, call])


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # importing it fails, as if it were not installed
import torch
import fastcifar
import fastcifar.bench

images = torch.ones(4, 3, 32, 32)
assert fastcifar.RandomErasing(1.0)(images).eq(0).any((1, 2, 3)).all()
"""


def test_it_needs_no_triton_and_neither_does_bench():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", WITHOUT_TRITON], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


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
    ("arguments", "words"),
    [
        ({"value": {}}, ["value = {}", "a number"]),
        ({"value": None}, ["value = None"]),
        ({"scale": 0.1}, ["scale = 0.1", "pair"]),
        ({"ratio": 0.1}, ["ratio = 0.1", "pair"]),
        ({"p": "0.5"}, ["p = '0.5'"]),
        ({"count": 1.5}, ["count = 1.5"]),
        ({"mean": "0.5", "std": 0.5}, ["mean = '0.5'"]),
        ({"dtype": torch.int32}, ["torch.int32", "torch.bfloat16"]),
        ({"value": "noise"}, ["value = 'noise'", '"random"']),
        ({"value": ()}, ["value = []"]),
        ({"p": 1.1}, ["p = 1.1", "between 0 and 1"]),
        ({"p": float("nan")}, ["p = nan"]),
        ({"scale": (-0.1, 0.3)}, ["scale", "0 <= low"]),
        ({"scale": (0.3, 1.1)}, ["scale", "<= 1"]),
        ({"scale": (0.3, 0.1)}, ["scale = [0.3, 0.1]"]),
        ({"scale": (0.3,)}, ["scale = [0.3]", "pair"]),
        ({"ratio": (3.0, 0.3)}, ["ratio = [3.0, 0.3]"]),
        ({"ratio": (0, 1)}, ["ratio = [0, 1]", "above 0"]),
        ({"count": 0}, ["count = 0", "at least 1"]),
        ({"mean": 0.5}, ["std = None"]),
        ({"mean": 0.5, "std": 0.0}, ["std = 0.0", "above 0"]),
        ({"inplace": True, "dtype": torch.float16}, ["inplace = True", "dtype"]),
    ],
)
def test_an_impossible_argument_is_an_error_that_names_it(arguments, words):
    with pytest.raises(UserError) as caught:
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
