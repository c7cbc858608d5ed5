"""Every module erases its input batches, in place if asked."""

import pytest
import torch

from fastcifar.bench import erasing
from fastcifar.bench.interleaved import run_interleaved
from fastcifar.bench.peers import Unavailable

CPU = torch.device("cpu")


def works(setting):
    """Yield (mode, implementation, work) of every implementation that is installed."""
    for case in erasing.cases(setting):
        for implementation in case.implementations:
            try:
                with implementation.ready() as work:
                    yield case.name, implementation.name, work
            except Unavailable:
                pass


@pytest.mark.filterwarnings("ignore")  # of peers
def test_a_round_erases_every_image_that_it_counts(setting):
    names = []
    for mode, name, work in works(setting):
        images = torch.cat([torch.stack(batch) if isinstance(batch, list) else batch for batch in work.run()])
        assert images.shape == (work.amount, 3, 32, 32), (mode, name)
        assert images.dtype == (torch.bfloat16 if mode == "uint8" else torch.float32), (mode, name)
        names.append((mode, name))
    assert {"fastcifar", "torchvision v2"} <= {name for _, name in names}
    assert {mode for mode, _ in names} == {"copy", "in place", "uint8"}


@pytest.mark.parametrize(("mode", "same"), [("copy", False), ("in place", True)])
def test_only_in_place_returns_its_input(setting, mode, same):
    case = next(case for case in erasing.cases(setting) if case.name == mode)
    with case.implementations[0].ready() as work:
        first, second = work.run(), work.run()
        assert all(one.data_ptr() == two.data_ptr() for one, two in zip(first, second, strict=True)) == same
        zeros = torch.cat(first).eq(0).flatten(1).sum(1)
        assert zeros.max() > 0.02 * 3 * 32 * 32


def test_the_roofline_in_place_is_writing_the_boxes(peaks):
    bound = erasing.boxes_roofline(torch.float32, CPU)
    mean = 0.5 * (0.02 + 0.33) / 2 * 3 * 32 * 32 * 4  # p, area, elements, bytes
    assert peaks.bytes_per_s / bound.value == pytest.approx(mean, rel=0.05)


def test_a_note_marks_the_implementation_that_draws_once_for_a_whole_batch(setting):
    rows = run_interleaved(erasing.cases(setting)[0])
    assert {row.variant for row in rows if "one draw" in row.note} == {"torchvision v2"}


def test_a_captured_call_is_the_kernel_alone(monkeypatch):
    """The count of calls is not captured with it."""
    monkeypatch.setattr(erasing, "captured", lambda run: run)
    module = erasing.RandomErasing()
    monkeypatch.setattr(module, "erase", lambda images: images)
    images = torch.zeros(2, 3, 4, 4)
    with erasing.erase(lambda: module, lambda: (images, images), graph=True) as work:
        assert len(work.run()) == 2
    assert module.state[1] == 0
