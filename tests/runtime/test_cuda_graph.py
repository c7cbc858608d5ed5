"""Capture: the state after a failure, and garbage collection before."""

import weakref

import pytest
import torch

from fastcifar.runtime import cuda_graph


class LeavesTheAllocatorRecording:
    """`torch.cuda.graph` with the end of a failed capture as before torch 2.15."""

    def __init__(self, graph, pool, capture_error_mode):
        self.pool = pool

    def __enter__(self):
        torch._C._cuda_beginAllocateCurrentThreadToPool(torch.cuda.current_device(), self.pool)

    def __exit__(self, *_):
        raise RuntimeError("operation failed due to a previous error during capture")


@pytest.mark.gpu
@pytest.mark.parametrize("graph", [None, LeavesTheAllocatorRecording])
def test_a_failed_capture_gives_its_memory_back(monkeypatch, graph):
    def work():
        torch.empty(2**28, dtype=torch.uint8, device="cuda").zero_().sum().item()

    work()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    with monkeypatch.context() as patch:
        if graph:
            patch.setattr(torch.cuda, "graph", graph)
        with pytest.raises(cuda_graph.CaptureFailed):
            cuda_graph.capture(work)
    work()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before


@pytest.mark.gpu
def test_a_failed_capture_leaves_the_generator_its_numbers_and_not_the_state_that_may_still_record():
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    torch.cuda.manual_seed(7)
    torch.rand(5, device="cuda")
    expected, recorded = generator.get_state(), generator.graphsafe_get_state()
    with pytest.raises(cuda_graph.CaptureFailed):
        cuda_graph.capture(lambda: torch.rand(5, device="cuda").sum().item())
    assert torch.equal(generator.get_state(), expected)
    generator.manual_seed(8)
    assert recorded.initial_seed() == 7


@pytest.mark.gpu
def test_a_side_stream_is_waited_for_though_its_work_ends_with_an_error():
    x = torch.zeros(1, device="cuda")
    with pytest.raises(RuntimeError, match="no kernel"), cuda_graph.side_stream():
        torch.cuda._sleep(10_000_000)
        x.fill_(1)
        raise RuntimeError("no kernel")
    assert x.item() == 1


@pytest.mark.gpu
def test_cycles_that_hold_memory_are_collected_before_a_capture():
    class Cycle:
        def __init__(self):
            self.me = self

    dead, x = weakref.ref(Cycle()), torch.zeros(1, device="cuda")
    alive = []
    cuda_graph.capture(lambda: (alive.append(dead()), x.add_(1)))
    assert alive == [None]
