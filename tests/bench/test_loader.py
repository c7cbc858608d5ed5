"""A round of every loader is one epoch of the stated number of images."""

import pytest
import torch

from fastcifar.augment import CutMix, Normalize, Policy
from fastcifar.bench import loader
from fastcifar.bench.peers import Unavailable

CPU = torch.device("cpu")
POLICY = Policy((Normalize(0.5, 0.5),))


@pytest.fixture
def seen(monkeypatch):
    """Count of images in all batches of the rounds, and the epochs that were set."""
    seen = {"images": 0, "epochs": []}
    exhaust = loader._exhaust

    def count(batches):
        seen["epochs"].append(getattr(batches, "epoch", None))
        exhaust(seen.__setitem__("images", seen["images"] + len(images)) for images, _ in batches)

    monkeypatch.setattr(loader, "_exhaust", count)
    return seen


@pytest.mark.parametrize("make", [loader.resident, loader.streaming])
def test_ours_goes_through_the_whole_data_set_and_every_round_is_another_epoch(make, seen):
    if make is loader.streaming:
        pytest.importorskip("ffcv.loader", reason="FFCV cannot be imported; see `make setup`")
    with make(POLICY, 4, 8, CPU, torch.bfloat16) as work:
        work.run()
        work.run()
    assert seen == {"images": 2 * work.amount, "epochs": [0, 1]}
    assert work.amount == 8


def test_ffcv_goes_through_the_whole_data_set(seen, without_compiling):
    with loader.ffcv(4, 8, CPU, torch.bfloat16) as work:
        work.run()
    assert seen["images"] == work.amount == 8


def test_a_policy_that_mixes_images_is_not_streamed():
    pytest.importorskip("ffcv.loader", reason="FFCV cannot be imported; see `make setup`")
    case = Policy((CutMix(),)), 4, 8, CPU, torch.bfloat16
    with pytest.raises(Unavailable, match="CutMix"), loader.streaming(*case):
        pass


def test_ffcv_takes_part_where_its_transforms_can_do_the_policy(setting):
    names = {case.name: [implementation.name for implementation in case.implementations] for case in loader.cases(setting)}
    assert "FFCV" in names["crop+flip"]
    assert "FFCV" not in names["seed policy"]
