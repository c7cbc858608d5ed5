"""The suite for a GPU: without one it says so, and a rehearsal walks through its pieces."""

import importlib
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep import prepare

ROOT = Path(__file__).parents[2]
PIECES = "profile,training,step,start,accuracy,warps,scaling,tests/optim"
"""One folder of the tests, which are running, and one of the benchmarks, all of which tests/bench/test_subjects.py runs."""


def write_pictures(folder, count=60):
    """A folder of two classes of random 32 x 32 images, to train and to test."""
    rng = np.random.default_rng(0)
    for name in ("train/one", "train/two", "test/one", "test/two"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / name / f"{number}.png")


def suite(*arguments):
    command = [sys.executable, "-W", "ignore", "benchmarks/gpu_suite.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture
def modules(monkeypatch):
    """(gpu_suite, gpu_report, gpu_monitor), which are scripts."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return tuple(importlib.import_module(name) for name in ("gpu_suite", "gpu_report", "gpu_monitor"))


@pytest.fixture
def said(modules, monkeypatch, capsys):
    """A function that runs the suite in this process: (exit code, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gpu_suite.py", *map(str, arguments)])
        return modules[0].main(), capsys.readouterr().err

    return run


@pytest.mark.skipif(torch.cuda.is_available(), reason="PyTorch sees a CUDA device")
def test_without_a_gpu_it_says_what_it_would_do(said, tmp_path):
    code, err = said("--only", "step,training", "--data", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert "would run training/captured, training/captured padded to 8" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--rehearse", "--only", "stepp"], "--only stepp: must be of profile/"), (["--rehearse"], "holds no data set")],
)
def test_bad_input_is_one_line(said, tmp_path, arguments, words):
    code, err = said(*arguments, "--data", tmp_path)
    assert code == 2
    assert words in err


@pytest.mark.slow
def test_a_rehearsal_walks_through_the_pieces_and_a_second_call_does_none_of_them_again(tmp_path):
    source, out = tmp_path / "betons", tmp_path / "results"
    write_pictures(tmp_path / "pictures")
    prepare(str(tmp_path / "pictures"), source)
    how = ("--rehearse", "--data", source, "--out", out, "--minutes", 30)
    done = suite(*how, "--only", PIECES)
    (path,) = out.glob("*.json")
    pieces = json.loads(path.read_text())["pieces"]
    assert {name: piece["failed"] for name, piece in pieces.items() if "failed" in piece} == {}
    assert done.returncode == 0, done.stderr
    assert {name.partition("/")[0] for name in pieces} == {name.partition("/")[0] for name in PIECES.split(",")}
    table = path.with_suffix(".md").read_text()
    for words in (
        "the seed recipe, one run each",
        "The recipe cpu, 2 runs",
        "### step",
        "### scaling",
        "cold",
        "not recorded",
    ):
        assert words in table
    again = suite(*how, "--minutes", 0)
    assert again.stdout.count("is there already") == len(pieces)
    assert "tests/engine: not begun" in again.stdout


def test_what_tells_most_comes_first(modules, tmp_path):
    gpu_suite, _, _ = modules
    names = list(gpu_suite.make_pieces(gpu_suite.real_plan(tmp_path)))
    assert names[:2] == ["profile/captured", "training/captured"]
    begins = ["profile", "training", "step", "start", "accuracy", "training", "profile", "augment"]
    assert [name for name, _ in itertools.groupby(name.partition("/")[0] for name in names)][:8] == begins
    assert names[-1].startswith("tests/")


def test_what_was_measured_stays_when_a_later_piece_takes_too_long(modules, tmp_path, monkeypatch):
    gpu_suite, _, _ = modules
    outcomes = {"training/one": {"failed": "took longer than 1 s"}, "start": {"result": {"cold": {"first_step_s": 3.0}}}}
    monkeypatch.setattr(gpu_suite, "execute", lambda name, *_: {"seconds": 1.0, "gpu": {}} | outcomes[name])
    arguments = SimpleNamespace(only="", minutes=9, rehearse=True, out=tmp_path)
    pieces = {name: gpu_suite.Piece(1, dict) for name in ("start", "training/one")}
    assert gpu_suite.suite(arguments, pieces) == 1
    (path,) = tmp_path.glob("*.json")
    assert json.loads(path.read_text())["pieces"]["start"]["result"] == {"cold": {"first_step_s": 3.0}}
    assert "cold 3.0 s" in path.with_suffix(".md").read_text()
    assert "training/one: not measured (took longer than 1 s)" in path.with_suffix(".md").read_text()


GRANDCHILD = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1], "w").write(str(child.pid))
child.wait() if sys.argv[2] == "wait" else sys.exit(sys.argv[2])
"""


@pytest.mark.parametrize(("ending", "why"), [("wait", "took longer than 5 s"), ("broken", "broken")])
def test_a_piece_ends_with_all_that_it_started(modules, tmp_path, ending, why):
    gpu_suite, _, _ = modules
    assert gpu_suite.run_group([sys.executable, "-c", GRANDCHILD, str(tmp_path / "pid"), ending], 5) == why
    state = Path("/proc", (tmp_path / "pid").read_text(), "stat")
    deadline = time.monotonic() + 10
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline, "it still runs"
        time.sleep(0.05)


def test_clocks_and_power_are_summed_up_with_what_held_the_clocks_down(modules, monkeypatch):
    """With NVML's functions faked: the clock falls while the power limit holds it down."""
    _, gpu_report, gpu_monitor = modules
    clocks = itertools.chain([1980, 1500], itertools.repeat(1200))
    nvml = SimpleNamespace(
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        nvmlDeviceGetClockInfo=lambda handle, kind: next(clocks) if kind == 1 else 3201,
        nvmlDeviceGetPowerUsage=lambda handle: 700_500,
        nvmlDeviceGetTemperature=lambda handle, kind: 61,
        nvmlDeviceGetCurrentClocksEventReasons=lambda handle: 0x4 | 0x40,
    )
    monkeypatch.setattr(gpu_monitor, "_open", lambda: (nvml, "handle"))
    monkeypatch.setattr(gpu_monitor, "INTERVAL_S", 0.01)
    with gpu_monitor.Monitor() as monitor:
        time.sleep(0.5)
    assert monitor.summary["sm_clock_mhz"] == [1200, 1200, 1980]
    assert monitor.summary["power_w"] == [700.5] * 3
    assert monitor.summary["clock_limits"] == ["software power cap", "hardware thermal slowdown"]
    assert "| step | 1200 (1980) MHz | 700 (700) W |" in gpu_report._gpu_table({"step": monitor.summary})


def test_without_nvml_it_says_so(modules, monkeypatch):
    _, gpu_report, gpu_monitor = modules
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with gpu_monitor.Monitor() as monitor:
        pass
    assert "pynvml" in monitor.summary["not recorded"]
    assert "not recorded" in gpu_report._gpu_table({"step": monitor.summary})


def test_tables_take_their_place_in_a_readme(modules, tmp_path):
    _, gpu_report, _ = modules
    results = {"environment": dict.fromkeys(("device", "torch", "cuda", "python"), "x"), "date": "today", "command": "run"}
    results["pieces"] = {"step": {"seconds": 1.0, "failed": "Traceback\nRuntimeError: no kernel"}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{gpu_report.BEGIN}\nold\n{gpu_report.END}\nafter\n")
    for _ in range(2):
        gpu_report.copy_to_readme(tmp_path / "results.json", readme)
    text = readme.read_text()
    assert text.startswith(f"before\n{gpu_report.BEGIN}\nx, torch x")
    assert text.endswith(f"{gpu_report.END}\nafter\n")
    assert "old" not in text
    assert text.count("step: not measured (RuntimeError: no kernel)") == 1
