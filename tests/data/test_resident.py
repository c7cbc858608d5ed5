"""The resident loader: order, draws and batches are functions of (seed, epoch, sample) alone."""

import numpy as np
import pytest
import torch

from fastcifar.augment import IGNORE, MixUp, Normalize, Policy, RandomCrop, RandomHorizontalFlip
from fastcifar.data.beton import Beton, read_beton, write_beton
from fastcifar.data.dataset import Split
from fastcifar.data.resident import ResidentLoader, uploaded
from fastcifar.runtime.errors import UserError

POLICY = Policy((RandomCrop(8, padding=2), RandomHorizontalFlip(), Normalize(0.5, 0.5)))


@pytest.fixture
def split():
    rng = np.random.default_rng(0)
    return Split(rng.integers(0, 256, (50, 8, 8, 3), dtype=np.uint8), np.arange(50))  # a label is an index: order shows


def epoch_of(loader, epoch):
    loader.set_epoch(epoch)
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_batches_are_channels_last_of_the_loaders_dtype_with_int64_labels(split):
    images, labels = next(iter(ResidentLoader(split, POLICY, batch_size=16)))
    assert images.shape == (16, 3, 8, 8)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.shape == (16,)
    assert labels.dtype == torch.int64


def test_training_drops_the_last_partial_batch(split):
    loader = ResidentLoader(split, POLICY, batch_size=16)
    assert len(loader) == len(list(loader)) == 3


def test_evaluation_keeps_the_order_and_pads_the_last_batch(split):
    loader = ResidentLoader(split, POLICY.evaluation(), batch_size=16, shuffle=False)
    images, labels = epoch_of(loader, 0)
    assert len(loader) == 4
    assert images.shape[0] == 64
    assert labels[:50].tolist() == list(range(50))
    assert labels[50:].tolist() == [IGNORE] * 14


def test_every_sample_is_seen_once_an_epoch(split):
    _, labels = epoch_of(ResidentLoader(split, POLICY, batch_size=10), 3)
    assert sorted(labels.tolist()) == list(range(50))


def test_an_epoch_has_the_hard_images_first_and_others_at_random(split):
    loader = ResidentLoader(split, POLICY, batch_size=5, keep=0.6)
    assert len(loader) == 6
    loader.image_losses.fill_(1.0)
    loader.image_losses[10:30] = 3.0  # the mean is 1.8
    orders = []
    for epoch in (1, 2):
        loader.set_epoch(epoch)
        orders.append(loader.order.clone())
        assert len(set(loader.order.tolist())) == 30
        assert set(range(10, 30)) <= set(loader.order.tolist())
    easy = [set(order.tolist()) - set(range(10, 30)) for order in orders]
    assert easy[0] != easy[1]
    whole = ResidentLoader(split, POLICY, batch_size=5)
    whole.set_epoch(2)
    kept = [image for image in whole.order.tolist() if image in orders[1]]
    assert orders[1].tolist() == kept


def test_a_loader_records_the_losses_of_the_images_of_its_batch(split):
    loader = ResidentLoader(split, POLICY, batch_size=5, keep=0.6)
    loader.seek(2)
    _, labels = loader.load()
    loader.record(torch.arange(5.0))
    assert loader.image_losses[labels].tolist() == [0, 1, 2, 3, 4]
    assert loader.image_losses.isinf().sum() == 45


def test_a_batch_larger_than_the_images_kept_is_refused(split):
    with pytest.raises(UserError, match=r"batch_size = 40: larger than the split of 50 images, of which train.keep = 0.6"):
        ResidentLoader(split, POLICY, batch_size=40, keep=0.6)


def test_the_order_changes_with_epoch_and_seed_and_with_nothing_else(split):
    one, same, other_seed = (ResidentLoader(split, POLICY, batch_size=10, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(epoch_of(one, 4)[1], epoch_of(same, 4)[1])
    assert not torch.equal(epoch_of(one, 4)[1], epoch_of(one, 5)[1])
    assert not torch.equal(epoch_of(one, 4)[1], epoch_of(other_seed, 4)[1])


def test_pixels_do_not_depend_on_the_batch_size(split):
    whole_images, whole_labels = epoch_of(ResidentLoader(split, POLICY, batch_size=50, seed=7), 2)
    images, labels = epoch_of(ResidentLoader(split, POLICY, batch_size=5, seed=7), 2)
    assert torch.equal(labels, whole_labels)
    assert torch.equal(images, whole_images)


def test_a_batch_larger_than_the_split_is_refused(split):
    with pytest.raises(UserError, match="batch_size = 51: larger than the split of 50 images"):
        ResidentLoader(split, POLICY, batch_size=51)


def test_a_batch_larger_than_the_split_is_padded_in_evaluation(split):
    _, labels = epoch_of(ResidentLoader(split, POLICY.evaluation(), batch_size=64, shuffle=False), 0)
    assert (labels != IGNORE).sum() == 50


def test_a_policy_that_mixes_gives_probabilities_of_all_classes(split):
    policy = Policy((*POLICY.transforms, MixUp(1.0)))
    _, targets = next(iter(ResidentLoader(split, policy, batch_size=16, num_classes=60)))
    assert targets.shape == (16, 60)
    torch.testing.assert_close(targets.sum(1), torch.ones(16))


def test_a_reseeded_loader_gives_the_batches_of_a_new_one_from_the_same_tensors(split):
    """In place, since a captured graph reads them there."""
    loader = ResidentLoader(split, POLICY, batch_size=16, seed=1)
    state, order = loader.state.data_ptr(), loader.order.data_ptr()
    epoch_of(loader, 3)
    loader.reseed(2**62)
    fresh = ResidentLoader(split, POLICY, batch_size=16, seed=2**62)
    for epoch in range(2):
        for one, other in zip(epoch_of(loader, epoch), epoch_of(fresh, epoch), strict=True):
            assert torch.equal(one, other)
    assert (loader.seed, loader.state.data_ptr(), loader.order.data_ptr()) == (2**62, state, order)


@pytest.mark.parametrize("portion", [1, 8 * 8 * 3 * 16, 2**20])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_split_goes_to_the_device_whole_whatever_the_portions(split, device, portion):
    images = uploaded(split, torch.device(device), portion)
    assert images.device.type == device
    assert torch.equal(images.cpu(), torch.from_numpy(split.images))


def test_the_host_holds_no_more_of_a_file_than_a_portion(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    write_beton(tmp_path / "a.beton", rng.integers(0, 256, (50, 8, 8, 3), np.uint8), np.arange(50))
    beton, held = read_beton(tmp_path / "a.beton"), []
    gather = Beton.__getitem__

    def holding(beton, samples):
        held.append(gather(beton, samples))
        return held[-1]

    monkeypatch.setattr(Beton, "__getitem__", holding)
    images = uploaded(Split(beton, beton.labels), torch.device("cpu"), 8 * 8 * 3 * 16)
    assert [len(part) for part in held] == [16, 16, 16, 2]
    assert torch.equal(images, torch.from_numpy(np.concatenate(held)))


def test_loaders_on_the_host_share_the_pixels_of_the_split(split):
    one, other = (ResidentLoader(split, POLICY, batch_size=10) for _ in range(2))
    assert one.images.data_ptr() == other.images.data_ptr() == split.images.ctypes.data
