"""The reference against torchvision, image by image, for fixed parameters; and that a sample depends on its draws alone."""

import pytest
import torch
import torchvision.transforms.v2.functional as TF

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
from fastcifar.errors import UserError

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


def each(images, function, *parameters):
    """torchvision's `function` on every image alone, with its own parameters."""
    return torch.stack([function(image, *values) for image, *values in zip(images, *parameters, strict=True)])


def nhwc(images):
    return images.permute(0, 2, 3, 1).contiguous()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_pad_and_crop_equal_torchvision(images, generator, size, channels, mode):
    batch = images(size, channels)
    padded = reference.pad(batch, 3, mode)
    assert torch.equal(padded, TF.pad(batch, [3], padding_mode=mode))
    top, left = (torch.randint(0, 7, (COUNT,), generator=generator) for _ in range(2))
    expected = each(padded, lambda image, t, x: TF.crop(image, t, x, *size), top.tolist(), left.tolist())
    assert torch.equal(reference.crop(padded, top, left, size), expected)


@pytest.mark.parametrize("channels", CHANNELS)
def test_flip_equals_torchvision(images, channels):
    batch = images((7, 12), channels)
    flipped = torch.arange(COUNT) % 2 == 0
    expected = each(batch, lambda image, yes: TF.horizontal_flip(image) if yes else image, flipped.tolist())
    assert torch.equal(reference.flip(batch, flipped), expected)


@pytest.mark.parametrize("size", SIZES)
def test_rotation_equals_pils_to_the_pixel(images, generator, size):
    batch = images(size, count=200)
    degrees = torch.rand(200, generator=generator, dtype=torch.float64) * 720 - 360
    expected = each(batch, lambda image, angle: TF.pil_to_tensor(TF.to_pil_image(image).rotate(angle)), degrees.tolist())
    assert torch.equal(reference.rotate(batch, reference.rotation(degrees, batch.shape[2:])), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", CHANNELS)
def test_rotation_equals_torchvisions_of_tensors(images, size, channels):
    batch = reference.to_float(images(size, channels, count=60))
    degrees = torch.linspace(-180, 180, 60)  # none a multiple of 90, where pixels lie exactly between two
    ours = reference.rotate(batch, reference.rotation(degrees, batch.shape[2:]))
    theirs = each(batch, TF.rotate, degrees.tolist())
    # Fixed point places a centre within 2**-11 of a pixel: nearer to a border than that, it may fall to the other side.
    assert (ours != theirs).float().mean() < 1e-3


@pytest.mark.parametrize("degrees", [0.0, 90.0, 180.0, 270.0])
def test_quarter_turns_lose_nothing(images, degrees):
    batch = images((8, 8))
    expected = torch.rot90(batch, round(degrees / 90), (2, 3))
    assert torch.equal(reference.rotate(batch, reference.rotation(torch.full((COUNT,), degrees), batch.shape[2:])), expected)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_each_colour_operation_equals_torchvision(images, generator, channels, kind):
    batch = images((9, 11), channels)
    function = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation)[kind]
    factor = torch.rand(COUNT, generator=generator) * 2
    factors = torch.ones(COUNT, 3)
    factors[:, kind] = factor
    expected = each(reference.to_float(batch), function, factor.tolist())
    ours = reference.jitter(reference.to_float(batch), factors, torch.zeros(COUNT, dtype=torch.int64))
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("order", range(6))
def test_colour_operations_in_every_order_equal_torchvision(images, generator, order):
    batch = images((9, 11))
    factors = torch.rand(COUNT, 3, generator=generator) * 2
    functions = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation)

    def theirs(image, row):
        for kind in reference.JITTER_ORDERS[order]:
            image = functions[kind](image, row[kind])
        return image

    expected = each(reference.to_float(batch), theirs, factors.tolist())
    ours = reference.jitter(batch, factors, torch.full((COUNT,), order))
    torch.testing.assert_close(ours, expected, rtol=0, atol=5e-6)


def test_normalize_equals_torchvision(images):
    batch = images((7, 12))
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    ours = reference.normalize(batch, torch.tensor(mean), torch.tensor(std))
    assert torch.equal(ours, TF.normalize(reference.to_float(batch), mean, std))


@pytest.mark.parametrize("value", [0.0, 0.7, [0.1, 0.2, 0.3]])
def test_erase_equals_torchvision(images, generator, value):
    batch = reference.to_float(images((7, 12)))
    boxes = torch.stack([torch.randint(0, high, (COUNT,), generator=generator) for high in (7, 12, 7, 12)], dim=1)
    boxes[0] = 0
    fill = torch.tensor(value).view(-1, 1, 1)
    expected = each(batch, lambda image, box: TF.erase(image, *box, fill), boxes.tolist())
    assert torch.equal(reference.erase(batch.clone(), boxes, fill), expected)


def test_boxes_partly_outside_are_clipped_and_empty_ones_erase_nothing():
    boxes = torch.tensor([[-1, 3, 3, 9], [0, 0, 0, 5], [2, 2, 4, 0]])
    erased = reference.erase(torch.zeros(3, 1, 5, 6), boxes, torch.ones(()))
    expected = torch.zeros(3, 1, 5, 6)
    expected[0, :, :2, 3:] = 1
    assert torch.equal(erased, expected)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
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
        ),
        dtype,
    )
    out = augment(nhwc(images(size, channels)), torch.arange(COUNT), epoch=1, seed=2, policy=policy)
    assert out.shape == (COUNT, channels, 5, 5)
    assert out.dtype == getattr(torch, dtype)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert out.isfinite().all()


def test_an_empty_policy_only_scales_to_one(images):
    batch = images()
    out = augment(nhwc(batch), torch.arange(COUNT), epoch=0, seed=0, policy=Policy(dtype="float32"))
    assert torch.equal(out, batch / 255)


@pytest.mark.parametrize("value", [0.0, "random"])
@pytest.mark.parametrize("size", [(32, 32), (7, 13)])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_sample_is_the_same_to_the_last_bit_in_every_batch(images, size, value, device):
    """Alone, shuffled, and in a batch of more than one chunk."""
    transforms = (RandomCrop(7, padding=3), *SEED_POLICY[1:-1], RandomErasing(1.0, value=value), Cutout(4))
    policy = Policy(transforms, "float32")
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
    first, last = (
        augment(batch, index, epoch=0, seed=0, policy=Policy(order, "float32")) for order in (transforms, transforms[::-1])
    )
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


def test_colours_of_neither_one_nor_three_channels_are_refused(images):
    with pytest.raises(UserError, match="images of 4 channels"):
        augment(nhwc(images(channels=4)), torch.arange(COUNT), epoch=0, seed=0, policy=Policy((ColorJitter(0.1),)))


def test_seed_epoch_and_index_each_change_the_draws(images):
    batch, index = nhwc(images()), torch.arange(COUNT)
    policy = Policy(SEED_POLICY, "float32")
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
    crop_alone = augment(batch, index, epoch=0, seed=1, policy=Policy((RandomCrop(32, padding=4),), "float32"))
    both = augment(
        batch, index, epoch=0, seed=1, policy=Policy((RandomCrop(32, padding=4), RandomHorizontalFlip(0.0)), "float32")
    )
    assert torch.equal(crop_alone, both)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_certain_flips_and_erasures(images, p):
    batch, index = images(), torch.arange(COUNT)
    flipped = augment(nhwc(batch), index, epoch=0, seed=0, policy=Policy((RandomHorizontalFlip(p),), "float32"))
    assert torch.equal(flipped, (batch.flip(3) if p else batch) / 255)
    erased = augment(nhwc(batch), index, epoch=0, seed=0, policy=Policy((RandomErasing(p, value=7.0),), "float32"))
    assert ((erased == 7).flatten(1).any(1) == bool(p)).all()


def test_the_alternating_flip_alternates_from_a_random_beginning(images):
    batch, index = images(count=200), torch.arange(200)
    policy = Policy((AlternatingFlip(),), "float32")
    epochs = [augment(nhwc(batch), index, epoch=e, seed=5, policy=policy) for e in range(3)]
    first = (epochs[0] == batch.flip(3) / 255).flatten(1).all(1)
    assert 60 < first.sum() < 140
    assert torch.equal(epochs[1], epochs[0].flip(3))
    assert torch.equal(epochs[2], epochs[0])


def test_cutout_is_a_square_clipped_at_the_borders(images):
    batch = images(count=500).clamp(min=1)
    out = augment(nhwc(batch), torch.arange(500), epoch=0, seed=0, policy=Policy((Cutout(8),), "float32"))
    holes = out == 0
    heights, widths = holes[:, 0].any(2).sum(1), holes[:, 0].any(1).sum(1)
    assert heights.max() == widths.max() == 8
    assert heights.min() == widths.min() == 4  # centred on row 0: half of it is outside
    assert torch.equal(holes[:, 0].sum((1, 2)), heights * widths)


@pytest.mark.gpu
def test_the_device_does_not_matter(images):
    policy = Policy((*SEED_POLICY[:-1], RandomErasing(0.5, value="random")), "float32")
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
