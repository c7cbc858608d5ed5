"""The fused kernel against its specification, `batch.load_batch`, for every kind of policy, dtype, layout and size."""

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
from fastcifar.config import load_recipe
from fastcifar.errors import UserError

SEED_POLICY = load_recipe("seed", ["train.precision=bf16"]).augment
ALONE = {
    "nothing": (),
    "crop": (RandomCrop(8, padding=4),),
    "crop, mirrored": (RandomCrop(6, padding=3, padding_mode="reflect"),),
    "crop without padding": (RandomCrop(5),),
    "translate": (Translate(2),),
    "translate into black": (Translate(3, "constant"),),
    "flip": (RandomHorizontalFlip(),),
    "flip never": (RandomHorizontalFlip(0.0),),
    "flip always": (RandomHorizontalFlip(1.0),),
    "alternating flip": (AlternatingFlip(),),
    "jitter": (ColorJitter(0.4, 0.4, 0.4),),
    "brightness": (ColorJitter(brightness=0.9),),
    "contrast": (ColorJitter(contrast=(0.2, 2.5)),),
    "rotation": (RandomRotation(180),),
    "normalize": (Normalize((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)),),
    "erasing": (RandomErasing(0.7, value=(1.5, 2.5, 3.5)),),
    "erasing by noise": (RandomErasing(1.0, value="random"),),
    "cutout": (Cutout(5),),
    "mixup": (MixUp(0.4),),
    "cutmix": (CutMix(1.0),),
    "in an odd order": (
        RandomErasing(1.0, value=0.7), RandomRotation(40), ColorJitter(0.3, 0.3, 0.3), RandomCrop(6, 2), Cutout(3),
    ),
}  # fmt: skip
# An ulp, since the order of operations differs, and since the interpreter cuts off where a GPU rounds to bf16.
ULP = {"float32": 2**-20, "float16": 2**-10, "bfloat16": 2**-7}


def data(count, height, width, channels, device):
    generator = torch.Generator().manual_seed(height * width + channels)
    images = torch.randint(0, 256, (count, height, width, channels), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (count,), generator=generator)
    return [t.to(device) for t in (images, labels, torch.randperm(count, generator=generator))]


def check_equal(device, policy, shape=(9, 8, 3), count=12, batch_size=8, step=0, seed=2**40 + 3, epoch=7):
    arguments = [*data(count, *shape, device), torch.tensor([seed, epoch, step], device=device)]
    ours, our_targets = fused.load_batch(*arguments, batch_size=batch_size, policy=policy, num_classes=10)
    theirs, their_targets = batch.load_batch(*arguments, batch_size=batch_size, policy=policy, num_classes=10)
    assert ours.dtype == theirs.dtype
    assert ours.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours, theirs, rtol=ULP[policy.dtype], atol=4e-6)
    torch.testing.assert_close(our_targets, their_targets, rtol=0, atol=1e-6 if policy.mixing else 0)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ALONE)
def test_every_transform_equals_the_reference(device, name, dtype):
    check_equal(device, Policy(ALONE[name], dtype))


@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28, 1), (33, 31, 3), (1, 1, 3), (7, 5, 4), (40, 64, 1)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_size_and_number_of_channels_equals_the_reference(device, shape, dtype):
    height, width, channels = shape
    jitter = (ColorJitter(0.3, 0.3, 0.3),) if channels in (1, 3) else ()
    crop = (RandomCrop(min(height, width), padding=1),)
    transforms = (*crop, RandomHorizontalFlip(), *jitter, RandomRotation(30), Normalize(0.4, 0.3), RandomErasing(0.8))
    check_equal(device, Policy(transforms, dtype), shape, count=5, batch_size=3)


@pytest.mark.parametrize("batch_size", [1, 3, 12])
def test_the_last_batch_is_padded_as_in_the_reference(device, batch_size):
    policy = Policy((RandomHorizontalFlip(), Normalize(0.5, 0.5)), "float32")
    check_equal(device, policy, count=10, batch_size=batch_size, step=10 // batch_size)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("step", [0, 1])
def test_a_streamed_batch_is_the_resident_one_to_the_bit(device, dtype, step):
    images, labels, order = data(12, 32, 32, 3, device)
    index = torch.cat([order, order.new_zeros(4)])[step * 8 : step * 8 + 8]
    state = torch.tensor([2**40 + 3, 7, step], device=device)
    arguments = dict(batch_size=8, policy=Policy(SEED_POLICY.transforms, dtype), num_classes=10)
    streamed = fused.load_batch(images[index], labels, order, state, streamed=True, **arguments)
    for ours, theirs in zip(streamed, fused.load_batch(images, labels, order, state, **arguments), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("mixing", [MixUp(0.4), CutMix(1.0)])
def test_a_streamed_batch_cannot_be_mixed(device, mixing):
    arguments = [*data(4, 8, 8, 3, device), torch.tensor([1, 2, 0], device=device)]
    with pytest.raises(UserError, match=f"{type(mixing).__name__} takes partners from the whole data set"):
        fused.load_batch(*arguments, batch_size=4, policy=Policy((mixing,)), num_classes=10, streamed=True)


@pytest.mark.parametrize("warps", [1, 4, 8])
def test_the_number_of_warps_does_not_show(device, monkeypatch, warps):
    monkeypatch.setattr(fused, "warps_per_image", lambda batch_size: warps)
    fused.specialize.cache_clear()
    check_equal(device, Policy((*SEED_POLICY.transforms, MixUp(0.3)), "float32"), (32, 32, 3), count=6, batch_size=6)
    fused.specialize.cache_clear()


def test_erased_rectangles_are_those_of_the_reference_to_the_pixel(device):
    policy = Policy((RandomErasing(0.9, scale=(0.02, 0.6), ratio=(0.1, 10), value=2.0),), "float32")
    arguments = [*data(200, 16, 24, 1, device), torch.tensor([1, 2, 0], device=device)]
    ours, theirs = (
        function(*arguments, batch_size=200, policy=policy, num_classes=10)[0] == 2.0
        for function in (fused.load_batch, batch.load_batch)
    )
    assert torch.equal(ours, theirs)
    assert 0.1 < ours.float().mean() < 0.4


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
    return Policy((*transforms, *mixing), draw(st.sampled_from(["float32", "bfloat16"])))


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    policy=policies(), height=st.integers(8, 12), width=st.integers(8, 12), step=st.integers(0, 2), epoch=st.integers(0, 99)
)
def test_any_policy_equals_the_reference(device, policy, height, width, step, epoch):
    size = 8
    for transform in policy.transforms:  # a crop after a crop may have too little to choose from
        if isinstance(transform, RandomCrop | Translate):
            try:
                size = min(transform.output_size(size, size))
            except UserError:
                return
    check_equal(device, policy, (height, width, 3), count=5, batch_size=4, step=step % 2, epoch=epoch)


def test_impossible_policies_are_refused_as_by_the_reference(device):
    arguments = [*data(4, 8, 8, 4, device), torch.tensor([1, 2, 0], device=device)]
    for transforms in ((ColorJitter(0.1),), (RandomCrop(20),), (Normalize((0.1, 0.2, 0.3), 1.0),)):
        messages = []
        for function in (fused.load_batch, batch.load_batch):
            with pytest.raises(UserError) as error:
                function(*arguments, batch_size=4, policy=Policy(transforms), num_classes=10)
            messages.append(str(error.value))
        assert messages[0] == messages[1]


@pytest.mark.gpu
def test_a_captured_graph_reads_step_and_epoch_from_the_device():
    images, labels, order = data(64, 32, 32, 3, "cuda")
    state = torch.tensor([1, 0, 0], device="cuda")
    arguments = dict(batch_size=16, policy=SEED_POLICY, num_classes=10)
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
from fastcifar.config import load_recipe, recipe_names

policies = {name: load_recipe(name, ["train.precision=bf16"]).augment for name in recipe_names()}
seed = policies["seed"].transforms
policies["seed, float32"] = Policy(seed, "float32")
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
                )
            [facts] = compiled(capability, launch)
            del facts["ptx"]
            print(json.dumps({"kernel": f"fused: {name}, batch {batch_size}, sm_{capability}", **facts}))
"""


@pytest.mark.slow
def test_compiled_for_gpus_it_neither_spills_nor_stores_less_than_four_bytes(run_script, check_registers):
    """Every shipped policy for sm_80, sm_90 and sm_100. A pixel's three bytes can lie anywhere: only they are read alone."""
    kernels = check_registers(run_script(CROSS_COMPILE))
    assert len(kernels) >= 6 * 2 * 3
    for kernel in kernels:
        assert kernel["spilled"] == 0, kernel
        stores = {access for access in kernel["accesses"] if access.startswith("st.")}
        assert stores <= {"st.global.b32", "st.global.v2.b32", "st.global.v4.b32", "st.global.b64"}, kernel
        loads = {access for access in kernel["accesses"] if access.startswith("ld.")}
        assert loads == {"ld.global.b8", "ld.global.b64"}, kernel
