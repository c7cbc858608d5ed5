"""The suite of pytest-benchmark times real calls, and a sweep is drawn from what `fastcifar bench` writes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import bench_throughput

from fastcifar.bench import SUBJECTS

ROOT = Path(__file__).parents[2]
NOT_PASSED_ON = "FASTCIFAR_SOURCE", "PYTEST_XDIST_WORKER"  # pytest-benchmark measures nothing in a worker of pytest-xdist

pytestmark = pytest.mark.slow


def suites(*arguments):
    command = [sys.executable, "-m", "pytest", *map(str, arguments), "-q", "-p", "no:cacheprovider"]
    environment = {name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)


def test_every_subject_has_a_test_for_each_implementation():
    listed = suites("benchmarks", "--collect-only")
    names = re.findall(r"::test_throughput\[(.*)\]", listed.stdout)
    assert {name.split("-")[0] for name in names} == set(SUBJECTS)
    assert "augment-seed_policy_batch_512-torchvision_v2" in names
    assert len(set(names)) == len(names)


def test_implementations_of_a_case_are_a_group_and_their_times_are_per_image(tmp_path):
    """Peers run half as many images per round, so the rounds' own times would not compare."""
    path = tmp_path / "results.json"
    done = suites("benchmarks", "--benchmark-only", "--tiny", "-k", "erasing-copy", f"--benchmark-json={path}")
    assert done.returncode == 0, done.stdout
    entries = json.loads(path.read_text())["benchmarks"]
    assert {entry["group"] for entry in entries} == {"erasing: copy, batch 8"}
    assert {entry["name"] for entry in entries} >= {
        "test_throughput[erasing-copy_batch_8-fastcifar]",
        "test_throughput[erasing-copy_batch_8-torchvision_v2]",
    }
    for entry in entries:
        info = entry["extra_info"]
        assert len(entry["stats"]["data"]) == 2
        assert info["amount_per_round"] == (16 if entry["params"]["variant"] == "fastcifar" else 8)
        assert info["rate"] == pytest.approx(1 / entry["stats"]["median"])
        assert info["environment"]["device"] == "cpu"


def test_the_timer_divides_seconds_by_the_amount(monkeypatch):
    timer = bench_throughput.UnitTimer()
    monkeypatch.setattr(bench_throughput.time, "perf_counter", lambda: 4.0)
    assert timer() == 4.0
    timer.amount = 16
    assert timer() == 0.25


def test_a_sweep_is_drawn_of_one_subject_whatever_else_the_file_holds(tmp_path):
    results = ROOT / "benchmarks/results/bench-cpu-epyc-2-2026-11-23.json"
    command = [sys.executable, ROOT / "benchmarks/sweep.py", "erasing", results, tmp_path / "sweep.png"]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
