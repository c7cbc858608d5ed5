"""Copies to the host: values arrive exactly, and snapshots do not change."""

import pytest
import torch

from fastcifar.runtime.timing import Clock
from fastcifar.runtime.transfer import Snapshot, Transfer

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
def test_numbers_arrive_exactly_and_are_those_of_the_moment_of_sending(device):
    device = torch.device(device)
    transfer, losses = Transfer(device), torch.randn(7, device=device)
    count, expected = torch.tensor(2**52 + 1, device=device), losses.cpu().clone()
    for _ in range(2):
        transfer.send([losses, count])
        losses += 1
        received, counted = transfer.receive()
        assert torch.equal(received.float(), expected)
        assert int(counted) == 2**52 + 1
        expected = losses.cpu().clone()


def make_snapshots(device, count=1):
    stream = torch.cuda.Stream() if device == "cuda" else None
    return [Snapshot(stream) for _ in range(count)]


@pytest.mark.parametrize("device", DEVICES)
def test_a_snapshot_does_not_change_with_the_originals_nor_a_copy_with_the_next_snapshot(device):
    """Nor what was read of it, which a thread may still be writing."""
    live = {"model.a": torch.zeros(3, 2, device=device), "other": torch.zeros((), dtype=torch.int64, device=device)}
    newest, best = make_snapshots(device, 2)
    newest.take(live)
    best.copy(newest, "model.")
    for tensor in live.values():
        tensor += 1
    read = newest.read()
    assert read["model.a"].sum() == 0
    newest.take(live)
    assert read["model.a"].sum() == 0
    assert newest.read()["model.a"].sum() == 6
    assert newest.read()["other"] == 1
    assert best.read().keys() == {"model.a"}
    assert best.read()["model.a"].sum() == 0


@pytest.mark.gpu
def test_a_copy_waits_until_the_other_snapshot_is_taken():
    """The copy is made on the stream that reads them, and neither may overtake work of the device's own stream."""
    live = {"x": torch.zeros(1, device="cuda")}
    newest, best = make_snapshots("cuda", 2)
    for expected in range(2):
        torch.cuda._sleep(10_000_000)
        newest.take(live)
        best.copy(newest, "x")
        live["x"] += 1
        assert best.read()["x"] == expected


@pytest.mark.parametrize("device", DEVICES)
def test_a_clock_goes_forward(device):
    clock = Clock(torch.device(device))
    first = clock.now()
    torch.randn(300, 300, device=device).sum()
    assert clock.seconds(first, clock.now()) > 0


@pytest.mark.gpu
def test_reading_waits_for_the_copy_and_not_for_what_came_later():
    live = {"x": torch.zeros(1, device="cuda")}
    transfer, [snapshot] = Transfer(torch.device("cuda")), make_snapshots("cuda")
    transfer.send([live["x"]])
    snapshot.take(live)
    torch.cuda._sleep(2**32)  # about two seconds of work
    done = torch.cuda.current_stream().record_event()
    assert transfer.receive()[0] == 0
    assert snapshot.read()["x"] == 0
    assert not done.query()
    torch.cuda.synchronize()
