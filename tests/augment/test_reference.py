"""The reference of a whole policy: it refuses images that do not fit, and a sample depends only on its draws."""

import pytest
import torch

from fastcifar.augment import (
    AlternatingFlip,
    ColorJitter,
    Cutout,
    Normalize,
    Policy,
    RandomCrop,
    RandomErasing,
    RandomHorizontalFlip,
    RandomRotation,
    Translate,
    augment,
    reference,
)
from fastcifar.runtime.errors import UserError

SIZES = [(32, 32), (7, 12), (13, 5)]
CHANNELS = [1, 3]
COUNT = 24

SEED_POLICY = (
    RandomCrop(32, padding=4),
    RandomHorizontalFlip(),
    ColorJitter(0.2, 0.2, 0.2),
    RandomRotation(15),
    Normalize(0.5, 0.5),
    RandomErasing(0.5, (0.02, 0.2)),
)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def images(generator):
    """uint8 images (COUNT, C, H, W)."""

    def make(size=(32, 32), channels=3, count=COUNT):
        return torch.randint(0, 256, (count, channels, *size), dtype=torch.uint8, generator=generator)

    return make


def nhwc(images):
    return images.permute(0, 2, 3, 1).contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("size", SIZES)
def test_any_size_channels_and_dtype_go_through_every_transform(images, size, channels, dtype):
    policy = Policy(
        (
            RandomCrop(5, padding=2, padding_mode="reflect"),
            Translate(1),
            RandomHorizontalFlip(),
            AlternatingFlip(),
            ColorJitter(0.4, 0.4, 0.4),
            RandomRotation(30),
            Normalize(0.5, 0.25),
            RandomErasing(1.0, value="random"),
            Cutout(2),
        )
    )
    out = augment(nhwc(images(size, channels)), torch.arange(COUNT), epoch=1, seed=2, policy=policy, dtype=dtype)
    assert out.shape == (COUNT, channels, 5, 5)
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert out.isfinite().all()


def test_an_empty_policy_only_scales_to_one(images):
    batch = images()
    out = augment(nhwc(batch), torch.arange(COUNT), epoch=0, seed=0, policy=Policy())
    assert torch.equal(out, batch / 255)


@pytest.mark.parametrize("value", [0.0, "random"])
@pytest.mark.parametrize("size", [(32, 32), (7, 13)])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_sample_is_the_same_to_the_last_bit_in_every_batch(images, size, value, device):
    """Alone, shuffled, and in a batch of more than one chunk."""
    transforms = (RandomCrop(7, padding=3), *SEED_POLICY[1:-1], RandomErasing(1.0, value=value), Cutout(4))
    policy = Policy(transforms)
    count = reference.CPU_CHUNK + 9
    batch, index = nhwc(images(size, count=count)).to(device), torch.arange(100, 100 + count, device=device)
    whole = augment(batch, index, epoch=3, seed=9, policy=policy)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1)).to(device)
    assert torch.equal(augment(batch[order], index[order], epoch=3, seed=9, policy=policy), whole[order])
    for i in (0, 1, 40, count - 1):
        alone = augment(batch[i : i + 1], index[i : i + 1], epoch=3, seed=9, policy=policy)
        assert torch.equal(alone, whole[i : i + 1])


def test_transforms_are_applied_in_the_policys_order(images):
    batch, index = nhwc(images()), torch.arange(COUNT)
    transforms = (RandomErasing(1.0, value=0.25), Normalize(0.5, 0.5))
    first, last = (augment(batch, index, epoch=0, seed=0, policy=Policy(order)) for order in (transforms, transforms[::-1]))
    erased = first != last  # the same box: erased before normalisation, and so normalised, or after
    assert erased.any()
    assert (first[erased] == -0.5).all()
    assert (last[erased] == 0.25).all()


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        (RandomCrop(41, padding=4), ["RandomCrop: size = 41", "at most 40", "32 x 32"]),
        (RandomCrop(32, padding=32, padding_mode="reflect"), ["padding = 32", "at most 31"]),
        (Translate(32), ["Translate: pixels = 32", "at most 31"]),
        (Normalize((0.5, 0.5), 1), ["Normalize: mean = [0.5, 0.5]", "2 values", "3 channels"]),
        (RandomErasing(value=(1, 2, 3, 4)), ["RandomErasing: value = [1, 2, 3, 4]", "4 values"]),
    ],
)
def test_a_policy_that_does_not_fit_the_images_is_refused(images, transform, words):
    with pytest.raises(UserError) as caught:
        augment(nhwc(images()), torch.arange(COUNT), epoch=0, seed=0, policy=Policy((transform,)))
    for word in words:
        assert word in str(caught.value)


def test_seed_epoch_and_index_each_change_the_draws(images):
    batch, index = nhwc(images()), torch.arange(COUNT)
    policy = Policy(SEED_POLICY)
    base = augment(batch, index, epoch=3, seed=9, policy=policy)
    assert torch.equal(base, augment(batch, index, epoch=torch.tensor(3), seed=9, policy=policy))
    for changed in (
        augment(batch, index, epoch=4, seed=9, policy=policy),
        augment(batch, index, epoch=3, seed=10, policy=policy),
        augment(batch, index, epoch=3, seed=9 + 2**32, policy=policy),
        augment(batch, index + 1, epoch=3, seed=9, policy=policy),
    ):
        assert (base != changed).flatten(1).any(1).float().mean() > 0.9


def test_a_transform_less_does_not_change_the_draws_of_the_others(images):
    batch, index = nhwc(images()), torch.arange(COUNT)
    crop_alone = augment(batch, index, epoch=0, seed=1, policy=Policy((RandomCrop(32, padding=4),)))
    both = augment(batch, index, epoch=0, seed=1, policy=Policy((RandomCrop(32, padding=4), RandomHorizontalFlip(0.0))))
    assert torch.equal(crop_alone, both)


@pytest.mark.gpu
def test_the_device_does_not_matter(images):
    policy = Policy((*SEED_POLICY[:-1], RandomErasing(0.5, value="random")))
    batch, index = nhwc(images(count=500)), torch.arange(500)
    here = augment(batch, index, epoch=3, seed=9, policy=policy)
    there = augment(batch.cuda(), index.cuda(), epoch=torch.tensor(3, device="cuda"), seed=9, policy=policy).cpu()
    torch.testing.assert_close(there, here, rtol=0, atol=1e-5)  # the devices' log and cos round differently


@pytest.mark.gpu
def test_nothing_waits_for_the_device(images, without_waiting):
    policy = Policy((*SEED_POLICY, Cutout(4)))
    batch, index, epoch = nhwc(images()).cuda(), torch.arange(COUNT).cuda(), torch.tensor(3).cuda()
    augment(batch, index, epoch=epoch, seed=9, policy=policy)  # the first call copies constants
    with without_waiting():
        augment(batch, index, epoch=epoch, seed=9, policy=policy)
