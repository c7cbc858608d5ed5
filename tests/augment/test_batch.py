"""A batch from indices: gathering, padding, and the mixing of pairs."""

import pytest
import torch

from fastcifar.augment import IGNORE, CutMix, MixUp, Normalize, Policy, RandomCrop, RandomErasing, augment
from fastcifar.augment.batch import load_batch
from fastcifar.runtime.errors import UserError

N, K = 40, 10
PLAIN = Policy((Normalize(0.5, 0.5),))


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (N, 8, 6, 3), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, K, (N,), generator=generator), torch.randperm(N, generator=generator)


def batch_of(data, policy, step=0, batch_size=16, epoch=3):
    return load_batch(*data, torch.tensor([5, epoch, step]), batch_size=batch_size, policy=policy, num_classes=K)


def test_a_batch_is_its_slice_of_the_order_augmented(data):
    images, labels, order = data
    index = order[16:32]
    batch, targets = batch_of(data, PLAIN, step=1)
    assert torch.equal(targets, labels[index])
    assert torch.equal(batch, augment(images[index], index, epoch=3, seed=5, policy=PLAIN))


def test_beyond_the_order_a_batch_is_filled_with_sample_0_and_labels_to_ignore(data):
    images, _, _ = data
    batch, targets = batch_of(data, PLAIN, step=2)
    assert targets[8:].tolist() == [IGNORE] * 8
    assert torch.equal(batch[8:], augment(images[:1], torch.tensor([0]), epoch=3, seed=5, policy=PLAIN).expand(8, -1, -1, -1))


@pytest.mark.parametrize("step", [0, 2])
def test_a_streamed_batch_is_the_resident_one(data, step):
    """Made from its own pixels only, with the draws of its samples; the last of three batches is padded."""
    images, labels, order = data
    policy = Policy((RandomCrop(6, padding=2), RandomErasing(1.0, value="random"), *PLAIN.transforms))
    index = torch.cat([order, torch.zeros(8, dtype=torch.int64)])[step * 16 : step * 16 + 16]
    arguments = dict(batch_size=16, policy=policy, num_classes=K)
    streamed = load_batch(images[index], labels, order, torch.tensor([5, 3, step]), streamed=True, **arguments)
    for ours, theirs in zip(streamed, batch_of(data, policy, step), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("mixing", [MixUp(0.4), CutMix(1.0)])
def test_a_streamed_batch_cannot_be_mixed(data, mixing):
    with pytest.raises(UserError, match=f"{type(mixing).__name__} takes partners from the whole data set"):
        load_batch(*data, torch.zeros(3).long(), batch_size=4, policy=Policy((mixing,)), num_classes=K, streamed=True)


@pytest.mark.parametrize("mixing", [MixUp(0.4), CutMix(1.0)])
def test_a_mixed_batch_does_not_depend_on_the_batch_size(data, mixing):
    policy = Policy((*PLAIN.transforms, mixing))
    whole_images, whole_targets = batch_of(data, policy, batch_size=40)
    images, targets = zip(*(batch_of(data, policy, step=step, batch_size=8) for step in range(5)), strict=True)
    assert torch.equal(torch.cat(images), whole_images)
    assert torch.equal(torch.cat(targets), whole_targets)


@pytest.mark.parametrize("mixing", [MixUp(0.4), CutMix(1.0)])
def test_pixels_and_labels_are_mixed_in_the_same_proportion(mixing):
    """Every pixel is its image's label, so the pixels show the proportion of the labels."""
    labels = torch.arange(K).repeat(4)
    images = labels.to(torch.uint8)[:, None, None, None].expand(-1, 16, 16, 3).contiguous()
    batch, targets = batch_of((images, labels, torch.arange(len(labels))), Policy((mixing,)), batch_size=40)
    torch.testing.assert_close(batch.mean((1, 2, 3)) * 255, targets @ torch.arange(10.0), atol=1e-4, rtol=0)
    assert ((targets > 0).sum(1) == 2).sum() > 20  # else nothing was mixed


def test_mixing_stands_last_and_once():
    with pytest.raises(UserError, match="one of them at most, and last"):
        Policy((MixUp(), Normalize(0.5, 0.5)))
    with pytest.raises(UserError, match="one of them at most, and last"):
        Policy((MixUp(), CutMix()))
    with pytest.raises(UserError, match="alpha = 0: must be above 0"):
        MixUp(0)


def test_evaluation_mixes_nothing():
    assert Policy((*PLAIN.transforms, CutMix())).evaluation().transforms == PLAIN.transforms
