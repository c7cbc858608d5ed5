"""The suites run as they are, and what they write can be read again."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastcifar.bench import SUBJECTS

ROOT = Path(__file__).parents[2]
NOT_PASSED_ON = "FASTCIFAR_SOURCE", "PYTEST_XDIST_WORKER"  # pytest-benchmark measures nothing in a worker of pytest-xdist

pytestmark = pytest.mark.slow


def suites(*arguments):
    command = [sys.executable, "-m", "pytest", *map(str, arguments), "-q", "-p", "no:cacheprovider"]
    environment = {name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What a rehearsal of a suite wrote."""
    path = tmp_path_factory.mktemp("results") / "results.json"
    done = suites("benchmarks/bench_erasing.py", "--benchmark-only", "--tiny", "-k", "copy", f"--benchmark-json={path}")
    assert done.returncode == 0, done.stdout
    return path


@pytest.fixture(scope="module")
def sweep():
    spec = importlib.util.spec_from_file_location("sweep", ROOT / "benchmarks/sweep.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_subject_has_a_suite_with_a_test_for_each_contestant():
    listed = suites("benchmarks", "--collect-only")
    names = re.findall(r"::test_(\w+)\[(.*)\]", listed.stdout)
    assert {subject for subject, _ in names} == set(SUBJECTS)
    assert ("augment", "seed_policy_batch_512-torchvision_v2") in names
    assert len(set(names)) == len(names)


def test_contestants_of_a_case_are_a_group_with_their_measurements_beside_their_rounds(results):
    entries = json.loads(results.read_text())["benchmarks"]
    assert {entry["group"] for entry in entries} == {"erasing: copy, batch 8"}
    assert {entry["extra_info"]["variant"] for entry in entries} >= {"fastcifar", "torchvision v2"}
    for entry in entries:
        row = entry["extra_info"]
        assert entry["stats"]["data"] == pytest.approx([1 / rate for rate in row["rounds"]])
        assert entry["params"] == {"case": entry["group"].split(": ")[1], "variant": row["variant"]}


def test_a_sweep_is_drawn_of_one_subject_whatever_else_the_file_holds(results, sweep, tmp_path):
    content = json.loads(results.read_text())
    step = content["benchmarks"][0]["extra_info"] | {"subject": "step"}
    content["benchmarks"] += [{"extra_info": step}, {"extra_info": {"of": "another suite"}}]
    mixed = tmp_path / "mixed.json"
    mixed.write_text(json.dumps(content))
    assert {row.subject for row in sweep.read_results(mixed)} == {"erasing", "step"}
    command = [sys.executable, ROOT / "benchmarks/sweep.py", "erasing", mixed, tmp_path / "sweep.png"]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_a_sweep_reads_what_the_command_writes(results, sweep, tmp_path):
    rows = sweep.read_results(results)
    written = tmp_path / "bench.json"
    written.write_text(json.dumps({"measurements": [row.to_json() for row in rows]}))
    assert sweep.read_results(written) == rows
