"""The measurement of a cold disk runs, and does not take memory for a disk."""

import importlib.util
import itertools
import json
from pathlib import Path

import pytest

pytest.importorskip("ffcv", reason="FFCV is not installed: pip install 'fastcifar[ffcv]'", exc_type=Exception)


@pytest.fixture
def disk(monkeypatch):
    """The script, of a tiny size."""
    spec = importlib.util.spec_from_file_location("disk", Path(__file__).parents[2] / "benchmarks/disk.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, value in (("SAMPLES", 1000), ("IMAGES", 100), ("BATCHES", (10,)), ("ROUNDS", 2)):
        monkeypatch.setattr(module, name, value)
    return module


def test_both_variants_are_measured_in_every_round(disk, tmp_path, monkeypatch):
    reads = itertools.count(step=500_000)
    monkeypatch.setattr(disk, "read_off_disk", lambda path: next(reads))
    disk.main(str(tmp_path / "results.json"), str(tmp_path))
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == ["asked for ahead", "as FFCV reads"]
    for row in rows:
        assert len(row["images_per_s"]) == 2
        assert row["median_bytes_off_disk_per_image"] == 5000
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_what_came_from_memory_is_no_measurement(disk, tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "read_off_disk", lambda path: 7)
    with pytest.raises(SystemExit, match="came from memory"):
        disk.main(str(tmp_path / "results.json"), str(tmp_path))
    assert not list(tmp_path.iterdir())
