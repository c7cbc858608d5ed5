"""The fused kernel against its specification, `batch.load_batch`, for every kind of policy, dtype, layout and size."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="Triton is not installed")

from fastcifar.augment import (
    AlternatingFlip,
    ColorJitter,
    CutMix,
    Cutout,
    MixUp,
    Normalize,
    Policy,
    RandomCrop,
    RandomErasing,
    RandomHorizontalFlip,
    RandomRotation,
    Translate,
    batch,
    fused,
)
from fastcifar.recipe import load_recipe
from fastcifar.runtime.errors import UserError

SEED_POLICY = load_recipe("seed").augment
FLOAT32_AND_BFLOAT16 = torch.float32, torch.bfloat16


def test_no_transform_equals_the_reference(check_kernel):
    check_kernel()


def test_transforms_in_an_odd_order_equal_the_reference(check_kernel):
    first = RandomErasing(1.0, value=0.7), RandomRotation(40), ColorJitter(0.3, 0.3, 0.3)
    check_kernel(*first, RandomCrop(6, 2), Cutout(3))


@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28, 1), (33, 31, 3), (1, 1, 3), (7, 5, 4), (40, 64, 1)], ids=str)
@pytest.mark.parametrize("dtype", FLOAT32_AND_BFLOAT16)
def test_every_size_and_number_of_channels_equals_the_reference(check_kernel, shape, dtype):
    height, width, channels = shape
    jitter = (ColorJitter(0.3, 0.3, 0.3),) if channels in (1, 3) else ()
    crop = (RandomCrop(min(height, width), padding=1),)
    transforms = (*crop, RandomHorizontalFlip(), *jitter, RandomRotation(30), Normalize(0.4, 0.3), RandomErasing(0.8))
    check_kernel(*transforms, dtypes=[dtype], shape=shape, count=5, batch_size=3)


@pytest.mark.parametrize("batch_size", [1, 3, 12])
def test_the_last_batch_is_padded_as_in_the_reference(check_kernel, batch_size):
    transforms = RandomHorizontalFlip(), Normalize(0.5, 0.5)
    check_kernel(*transforms, dtypes=[torch.float32], count=10, batch_size=batch_size, step=10 // batch_size)


@pytest.mark.parametrize("dtype", FLOAT32_AND_BFLOAT16)
@pytest.mark.parametrize("step", [0, 1])
def test_a_streamed_batch_is_the_resident_one_to_the_bit(device, make_data, dtype, step):
    images, labels, order = make_data(12, 32, 32, 3)
    index = torch.cat([order, order.new_zeros(4)])[step * 8 : step * 8 + 8]
    state = torch.tensor([2**40 + 3, 7, step], device=device)
    arguments = dict(batch_size=8, policy=SEED_POLICY, num_classes=10, dtype=dtype)
    streamed = fused.load_batch(images[index], labels, order, state, streamed=True, **arguments)
    for ours, theirs in zip(streamed, fused.load_batch(images, labels, order, state, **arguments), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("mixing", [MixUp(0.4), CutMix(1.0)])
def test_a_streamed_batch_cannot_be_mixed(device, make_data, mixing):
    arguments = [*make_data(4, 8, 8, 3), torch.tensor([1, 2, 0], device=device)]
    with pytest.raises(UserError, match=f"{type(mixing).__name__} takes partners from the whole data set"):
        fused.load_batch(*arguments, batch_size=4, policy=Policy((mixing,)), num_classes=10, streamed=True)


@pytest.mark.parametrize("warps", [1, 4, 8])
def test_the_number_of_warps_does_not_show(check_kernel, monkeypatch, warps):
    monkeypatch.setattr(fused, "warps_per_image", lambda batch_size: warps)
    fused.specialize.cache_clear()
    check_kernel(*SEED_POLICY.transforms, MixUp(0.3), dtypes=[torch.float32], shape=(32, 32, 3), count=6, batch_size=6)
    fused.specialize.cache_clear()


TRANSFORM = st.one_of(
    st.builds(RandomCrop, st.integers(4, 8), st.integers(0, 3), st.sampled_from(["constant", "reflect"])),
    st.builds(Translate, st.integers(0, 3), st.sampled_from(["constant", "reflect"])),
    st.builds(RandomHorizontalFlip, st.sampled_from([0.0, 0.3, 1.0])),
    st.just(AlternatingFlip()),
    st.builds(ColorJitter, st.sampled_from([0.0, 0.2, 1.5]), st.sampled_from([0.0, 0.4]), st.sampled_from([0.0, 0.7])),
    st.builds(RandomRotation, st.sampled_from([0.0, 15.0, 180.0, (30.0, 100.0)])),
    st.builds(Normalize, st.sampled_from([0.5, (0.4, 0.5, 0.6)]), st.sampled_from([0.25, (0.2, 0.3, 0.4)])),
    st.builds(RandomErasing, st.sampled_from([0.0, 0.5, 1.0]), value=st.sampled_from([0.0, 1.5, (1.0, 2.0, 3.0), "random"])),
    st.builds(Cutout, st.integers(1, 9)),
)


@st.composite
def policies(draw):
    transforms = draw(st.lists(TRANSFORM, max_size=5, unique_by=type))
    if any(isinstance(t, Normalize) for t in transforms):  # ColorJitter works on 0 .. 1
        transforms.sort(key=lambda t: isinstance(t, Normalize))
    mixing = draw(st.sampled_from([(), (), (MixUp(0.3),), (CutMix(1.0),)]))
    return (*transforms, *mixing)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    transforms=policies(),
    dtype=st.sampled_from(FLOAT32_AND_BFLOAT16),
    height=st.integers(8, 12),
    width=st.integers(8, 12),
    step=st.integers(0, 2),
    epoch=st.integers(0, 99),
)
def test_any_policy_equals_the_reference(check_kernel, transforms, dtype, height, width, step, epoch):
    try:
        Policy(transforms).output_size(8, 8, 3)
    except UserError:  # a crop after a crop may have too little to choose from
        return
    shape = height, width, 3
    check_kernel(*transforms, dtypes=[dtype], shape=shape, count=5, batch_size=4, step=step % 2, epoch=epoch)


def test_impossible_policies_are_refused_as_by_the_reference(device, make_data):
    arguments = [*make_data(4, 8, 8, 4), torch.tensor([1, 2, 0], device=device)]
    for transforms in ((ColorJitter(0.1),), (RandomCrop(20),), (Normalize((0.1, 0.2, 0.3), 1.0),)):
        messages = []
        for function in (fused.load_batch, batch.load_batch):
            with pytest.raises(UserError) as error:
                function(*arguments, batch_size=4, policy=Policy(transforms), num_classes=10)
            messages.append(str(error.value))
        assert messages[0] == messages[1]


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_a_captured_graph_reads_step_and_epoch_from_the_device(device, make_data):
    images, labels, order = make_data(64, 32, 32, 3)
    state = torch.tensor([1, 0, 0], device=device)
    arguments = dict(batch_size=16, policy=SEED_POLICY, num_classes=10, dtype=torch.bfloat16)
    fused.load_batch(images, labels, order, state, **arguments)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        batch_images, batch_labels = fused.load_batch(images, labels, order, state, **arguments)
    for epoch, step in ((0, 0), (3, 2)):
        state[1:].copy_(torch.tensor([epoch, step]))
        graph.replay()
        expected_images, expected_labels = fused.load_batch(images, labels, order, state, **arguments)
        assert torch.equal(batch_images, expected_images)
        assert torch.equal(batch_labels, expected_labels)


CROSS_COMPILE = """
import json, sys
import torch
from cross_compile import compiled
from fastcifar.augment import CutMix, MixUp, Policy, RandomErasing, fused
from fastcifar.recipe import load_recipe, recipe_names

policies = {name: load_recipe(name).augment.fitted_to((0.5,) * 3, (0.25,) * 3) for name in recipe_names()}
seed = policies["seed"].transforms
policies["seed, float32"] = policies["seed"]
policies["seed, mixup"] = Policy((*seed, MixUp(0.2)))
policies["crop, flip, normalize, noise"] = Policy((*seed[:2], seed[4], RandomErasing(value="random")))
policies["crop, flip, normalize, cutmix"] = Policy((*seed[:2], seed[4], CutMix(1.0)))
images, labels = torch.zeros(8, 32, 32, 3, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64)
for name, policy in policies.items():
    for batch_size in (64, 8192):
        for capability in (80, 90, 100):
            def launch():
                fused.load_batch(
                    images, labels, labels, torch.zeros(3, dtype=torch.int64),
                    batch_size=batch_size, policy=policy, num_classes=10,
                    dtype=torch.float32 if "float32" in name else torch.bfloat16,
                )
            [facts] = compiled(capability, launch)
            del facts["ptx"]
            print(json.dumps({"kernel": f"fused: {name}, batch {batch_size}, sm_{capability}", **facts}))
"""


@pytest.mark.slow
def test_compiled_for_gpus_it_neither_spills_nor_stores_less_than_four_bytes(run_script, check_registers):
    """Every shipped policy for sm_80, sm_90 and sm_100. Only a pixel's three bytes, which may be unaligned, load singly."""
    kernels = [json.loads(line) for line in run_script(CROSS_COMPILE).splitlines()]
    assert len(kernels) >= 6 * 2 * 3
    for kernel in kernels:
        stores = {access for access in kernel["accesses"] if access.startswith("st.")}
        assert stores <= {"st.global.b32", "st.global.v2.b32", "st.global.v4.b32", "st.global.b64"}, kernel
        loads = {access for access in kernel["accesses"] if access.startswith("ld.")}
        assert loads == {"ld.global.b8", "ld.global.b64"}, kernel
    check_registers(kernels)
