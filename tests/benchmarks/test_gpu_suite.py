"""The suite for a GPU: without one it says so, and a rehearsal walks through its pieces."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep import prepare

ROOT = Path(__file__).parents[2]
PIECES = "training,accuracy,step,profile,start,warps,scaling"
"""All but the tests, which are running, and one of the benchmarks, all of which tests/bench/test_subjects.py runs."""


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="PyTorch sees a CUDA device")
def test_without_a_gpu_it_says_what_it_would_do(tmp_path):
    done = suite("--only", "step,training", "--data", tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "would run step, training" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--rehearse", "--only", "stepp"], "--only stepp: must be of tests"), (["--rehearse"], "holds no data set")],
)
def test_bad_input_is_one_line(tmp_path, arguments, words):
    done = suite(*arguments, "--data", tmp_path)
    assert done.returncode == 2
    assert words in done.stderr


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
    assert list(pieces) == PIECES.split(",")
    table = path.with_suffix(".md").read_text()
    for words in ("the seed recipe, one run each", "The recipe cpu, 2 runs", "### step", "### scaling", "cold"):
        assert words in table
    again = suite(*how, "--minutes", 0)
    assert again.stdout.count("is there already") == len(pieces)
    assert "tests: not begun" in again.stdout


def test_tables_take_their_place_in_a_readme(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import gpu_report

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
