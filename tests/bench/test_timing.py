"""Captured work is replayed, and batches are larger than the L2 cache."""

import pytest
import torch

from fastcifar.bench.peers import Unavailable
from fastcifar.bench.timing import REPLAYS, captured, past_the_cache


def test_one_batch_is_enough_on_a_cpu():
    assert past_the_cache(1, torch.device("cpu")) == 1


@pytest.mark.gpu
def test_batches_fill_the_cache_of_a_gpu_four_times():
    device = torch.device("cuda")
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    assert past_the_cache(1000, device) * 1000 >= 4 * cache


@pytest.mark.gpu
def test_a_captured_run_is_replayed_as_often_as_stated():
    count = torch.zeros((), device="cuda")

    def run():
        count.add_(1)
        return [count * 2]

    replay = captured(run)
    count.zero_()
    (kept,) = replay()
    assert count.item() == REPLAYS
    assert kept.item() == 2 * REPLAYS


@pytest.mark.gpu
def test_work_that_cannot_be_captured_is_unavailable_and_says_why():
    ones = torch.ones(3, device="cuda")
    with pytest.raises(Unavailable, match="could not be captured"):
        captured(lambda: [ones * ones.sum().item()])
    assert (ones + 1).sum().item() == 6
