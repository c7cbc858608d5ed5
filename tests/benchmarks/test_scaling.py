"""Scaling: every axis changes what it says, and the table and picture show it."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import scaling

from fastcifar.data.choice import RESIDENT_SHARE, choose_loader
from fastcifar.recipe import load_recipe

SMALL = [
    "model.channels=[16, 32]",
    "model.blocks=[1, 1]",
    "model.strides=[2, 2]",
    "model.stem_channels=16",
    "train.batch_size=8",
]


@pytest.fixture
def recipe():
    return load_recipe("seed", SMALL)


def test_one_value_changes_at_a_time(recipe):
    points = {(axis, value): rest for axis, value, *rest in scaling._variations(recipe, scaling.TINY)}
    assert points["batch size", 16][0].train.batch_size == 16
    assert points["width", 0.5][0].model.channels == (8, 16)
    assert points["width", 0.5][0].model.stem_channels == 8
    changed, size, _ = points["image size", 40]
    assert size == 40
    assert changed.augment.output_size(40, 40, 3) == (40, 40)
    assert points["data set", 0.002] == [recipe, 32, 100]
    assert sum(changed == recipe for changed, _, _ in points.values()) == 6  # all but batch 16 and width 0.5


@pytest.mark.slow
def test_every_point_is_measured_drawn_and_tabled(recipe, tmp_path):
    grid = scaling.Grid((8,), (40,), (0.5,), (0.001,), 16)
    points = scaling.measure_scaling(recipe, torch.device("cpu"), grid)
    assert [point.axis for point in points] == ["batch size", "image size", "width", "data set"]
    assert all(len(point.rounds) == scaling.ROUNDS and min(point.rounds) > 0 for point in points)
    table = scaling.scaling_table(points, 12.0)
    assert table.count("not measured") == 4  # a CPU has no device memory
    assert "from 12 times CIFAR-10" in table
    scaling.plot_scaling(points, tmp_path / "scaling.png", "small", 12.0)
    assert [path.name for path in tmp_path.iterdir()] == ["scaling.png"]


def test_a_point_that_does_not_fit_says_so_and_the_rest_goes_on(recipe, monkeypatch):
    def exhausted(*_):
        raise torch.OutOfMemoryError("too large")

    monkeypatch.setattr(scaling, "_measure", exhausted)
    points = scaling.measure_scaling(recipe, torch.device("cpu"), scaling.Grid((8, 16), (), (), (), 16))
    assert [point.note for point in points] == ["out of device memory"] * 2
    assert "out of device memory" in scaling.scaling_table(points, None)


def test_streaming_begins_where_auto_chooses_it(monkeypatch):
    monkeypatch.setattr(scaling, "free_memory", lambda device: 10**9)
    limit = scaling.streaming_begins(torch.device("cpu"))
    size = 3072 * scaling.CIFAR_IMAGES
    assert limit == pytest.approx(RESIDENT_SHARE * 10**9 / size)
    kinds = [choose_loader("auto", int(limit * size) + change, "cpu", 10**9)[0] for change in (-1, 2)]
    assert kinds == ["resident", "streaming"]


def test_every_point_is_written_down(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scaling, "choose_device", lambda asked: torch.device("cpu"))
    monkeypatch.setattr(scaling, "ON_CPU", scaling.Grid((8, 16), (), (), (), 16))
    scaling.main(str(tmp_path / "results.json"), str(tmp_path / "scaling.png"), "seed")
    found = json.loads((tmp_path / "results.json").read_text())
    assert [point["value"] for point in found["points"]] == [8, 16]
    assert found["environment"]["device"] == "cpu"
    assert capsys.readouterr().out.count("| batch size |") == 2
    assert (tmp_path / "scaling.png").stat().st_size > 0
