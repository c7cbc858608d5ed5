"""A profile's figures: against FLOP counted by hand, and with delays planted in the step."""

import dataclasses
import json
import time
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import create_autospec

import pytest
import torch

from fastcifar.data.resident import ResidentLoader
from fastcifar.display.profile import plot_roofline, print_profile
from fastcifar.engine.captured import CapturedStep
from fastcifar.profiling import profile as profiling
from fastcifar.profiling.profile import profile
from fastcifar.profiling.trace import Trace, Work
from fastcifar.runtime.roofline import Peaks

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
BACKENDS = [
    ("cpu", "eager"),
    *(pytest.param("cuda", name, marks=pytest.mark.gpu) for name in ("eager", "compiled", "captured")),
]


@pytest.fixture
def peaks(monkeypatch):
    """Known peak rates, without measuring any."""
    known = Peaks(flops_per_s=1e12, bytes_per_s=1e11)
    monkeypatch.setattr(profiling, "measure_peaks", lambda device, precision: known)
    return known


def count_flops(recipe):
    """Of a training step, 6 for each multiply-accumulate: 16 x 16 images, 3x3 convolutions; see the recipe of these tests."""
    first = 16 * 16 * 9 * (3 * 8 + 8 * 8 + 8 * 8)
    second = 8 * 8 * (9 * (8 * 16 + 16 * 16) + 8 * 16)
    return 6 * recipe.train.batch_size * (first + second + 16 * 3)


def run(recipe, dataset, tmp_path, device="cpu", backend="auto", steps=3):
    return profile(recipe, dataset, torch.device(device), tmp_path / "trace.json.gz", backend=backend, steps=steps)


@pytest.mark.parametrize("pad", [0, 8])
def test_the_utilisation_is_that_of_the_models_own_flops(recipe, dataset, tmp_path, peaks, pad):
    """Not of the padding's."""
    recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, pad_widths=pad))
    found = run(recipe, dataset, tmp_path)
    assert found["flops"] == count_flops(recipe)
    assert found["utilisation"] == pytest.approx(found["flops"] / found["step_seconds"] / peaks.flops_per_s)
    assert found["step_seconds"] == sorted(found["rounds"])[3]


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_phases_and_gaps_add_up_to_the_step(recipe, dataset, tmp_path, peaks, device, backend):
    found = run(recipe, dataset, tmp_path, device, backend)
    assert found["step"] == backend
    assert sum(found["phases"].values()) == pytest.approx(found["step_seconds"], rel=0.05)
    assert sum(found["groups"].values()) == pytest.approx(found["step_seconds"] - found["phases"]["idle"], rel=0.05)
    assert all(found["phases"][phase] > 0 for phase in ("augment", "backward", "optimizer"))
    assert found["groups"]["convolution and matrix product"] > 0
    assert found["bottleneck"].startswith("You are")


@pytest.mark.parametrize(("batch_size", "keep"), [(64, 1.0), (30, 0.5)])
def test_every_step_of_a_round_has_a_learning_rate(recipe, dataset, tmp_path, peaks, batch_size, keep):
    """An epoch of 80 images, of which it may keep 40, is one batch, and the last partial one is dropped."""
    train = dataclasses.replace(recipe.train, batch_size=batch_size, keep=keep, epochs=1)
    found = run(dataclasses.replace(recipe, train=train), dataset, tmp_path, steps=20)
    assert found["step_seconds"] > 0


def test_a_planted_sleep_is_the_bottleneck(recipe, dataset, tmp_path, peaks, monkeypatch):
    load = ResidentLoader.load
    monkeypatch.setattr(ResidentLoader, "load", lambda loader: (time.sleep(0.4), load(loader))[1])
    found = run(recipe, dataset, tmp_path, steps=1)
    assert found["step_seconds"] > 0.4
    assert found["phases"]["idle"] > 0.2
    assert found["idle_in"] == "augment"
    assert "host-bound" in found["bottleneck"]
    assert "in augment" in found["bottleneck"]


@pytest.mark.gpu
def test_a_planted_synchronisation_is_the_bottleneck(recipe, dataset, tmp_path, monkeypatch):
    load = ResidentLoader.load

    def waiting(loader):
        torch.cuda.synchronize()
        time.sleep(0.02)
        return load(loader)

    monkeypatch.setattr(ResidentLoader, "load", waiting)
    found = run(recipe, dataset, tmp_path, "cuda", "eager")
    assert "host-bound" in found["bottleneck"]
    assert "cudaDeviceSynchronize" in found["bottleneck"]


def test_a_profile_is_printed_drawn_and_json(recipe, dataset, tmp_path, peaks, capsys):
    found = run(recipe, dataset, tmp_path)
    print_profile(found)
    printed = capsys.readouterr().out
    for words in ("images/s", "backward", "idle", "model FLOP utilisation", found["bottleneck"]):
        assert words in printed
    assert "phases of the graph" not in printed
    print_profile(found | {"phases_found": {"by alignment": 3, "by name": 1}})
    assert (
        "phases of the graph's kernels from the uncaptured step: 75.0% by alignment, 25.0% by name" in capsys.readouterr().out
    )
    plot_roofline(found, tmp_path / "roofline.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["roofline.png", "trace.json.gz"]
    json.dumps(found, allow_nan=False)


def test_kernels_of_a_captured_step_get_their_phases_by_their_place_in_one_step(tmp_path, monkeypatch):
    """A kernel of two phases counts in both. The first of the steps launched one by one tunes, and has a kernel more than the
    last, which the replays are held against; other kernels come between replays.
    """
    step = [("draw", "augment"), ("conv", "forward"), ("conv", "backward"), ("sgd", "optimizer")]

    def work(name, phase, replayed, number=0):
        return Work(name, 0.0, 1.0, 1.0, phase, "", replayed, number)

    launched = [work("tune", "forward", False, 1)]
    launched += [work(*one, False, number) for number in (1, 2, 3) for one in (*step, ("fill", ""))]
    replayed = [*(work(name, "", True) for name, _ in step), work("fill", "", False)] * 2
    traces = iter((Trace(tuple(replayed), (), False, {}), Trace(tuple(launched), ("a wait",), False, {})))
    monkeypatch.setattr(profiling, "_recorded", lambda *_: next(traces))
    engine = SimpleNamespace(step=create_autospec(CapturedStep), backend="captured", device=torch.device("cuda"))
    engine.step.arithmetic = nullcontext
    traced = profiling._trace_steps(engine, 2, tmp_path / "trace.json.gz")
    assert [(one.name, one.phase) for one in traced.work] == 2 * step
    assert traced.waits == ("a wait",)
    assert traced.phases_found == {"by position": 8}


def test_idle_time_is_given_of_the_untraced_step_and_of_the_trace():
    """Here the profiler makes kernels three times as long, which hides all of the idle time of the untraced step."""
    work = tuple(Work("a", 2.0 * n, 2.0 * n + 1.5, 1.5, "forward", "x", True) for n in range(3))
    found = profiling._account(Trace(work, (), False, {}), steps=3, step_s=1.0)
    assert found["phases"]["idle"] == 0
    assert found["traced_seconds"] == pytest.approx(5.5 / 3)
    assert found["traced_idle_seconds"] == pytest.approx(1.0 / 3)
