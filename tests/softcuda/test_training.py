"""The seed recipe from the command line, with a narrow model, on the software device: its losses are the CPU's to rounding."""

import json
import sys

import numpy as np
import pytest
from helpers import fastcifar
from PIL import Image

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif("softcuda" not in sys.modules, reason="softcuda is not installed in this process"),
]
NARROW = [
    "--recipe", "seed", "--set", "model.stem_channels=16", "--set", "model.channels=[16, 24, 24, 32]", "--set",
    "model.blocks=[1, 1, 1, 1]", "--set", "train.batch_size=32", "--set", "train.log_every=1", "--set", "model.dropout=0.0",
    "--set", "optimizer.lr=0.0003",
]  # fmt: skip
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 5e-3}
"""Of the losses of ten steps, relative.

Training lets a rounding grow: at the recipe's learning rate, kernels for AVX2 and AVX-512 differ by 2e-3 after ten fp32 steps.
At the one used here they differ by 2e-7, and the software device by at most 6e-6 from either.
"""
INTERRUPTED = """
import os, signal
from fastcifar.cli import main
from fastcifar.engine.trainer import Trainer

report = Trainer._report_progress

def report_and_press(self, *arguments):
    report(self, *arguments)
    os.kill(os.getpid(), signal.SIGINT)

Trainer._report_progress = report_and_press
main()
"""
"""The command line, with Ctrl-C pressed when the first steps have been given to the device."""


def printed_by(*arguments, code=None, returns=0):
    done = fastcifar(*arguments, code=code, FASTCIFAR_AUGMENT="reference")
    assert done.returncode == returns, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
    """400 images of 4 colours, of which 80 are to validate, and 40 to test."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 100), ("test", 10)):
        for label, colour in enumerate(rng.integers(60, 200, (4, 3))):
            folder = root / split / str(label)
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = (colour + rng.integers(-50, 50, (32, 32, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    out = tmp_path_factory.mktemp("data") / "betons"
    printed_by("prep", root, "--out", out)
    return out


@pytest.fixture(scope="module")
def run(coloured, tmp_path_factory):
    """A function of (device, options) that trains an epoch, once, and gives [(step, loss)] and what was printed."""
    known = {}

    def train(device, *options):
        key = device, *options
        if key not in known:
            out = tmp_path_factory.mktemp("runs") / "run"
            where = ["--data", coloured, "--out", out, "--device", device]
            printed = printed_by("train", *NARROW, "--epochs", 1, *where, *options)
            known[key] = losses(out / "metrics.jsonl") if "--runs" not in options else out, printed
        return known[key]

    return train


def losses(path):
    rows = map(json.loads, path.read_text().splitlines())
    return {row["global_step"]: row["loss"] for row in rows if row["kind"] == "steps"}


@pytest.mark.parametrize(
    ("step", "precision"),
    [("eager", "fp32"), ("compiled", "fp32"), ("captured", "fp32"), ("captured", "bf16"), ("captured", "fp16")],
)
def test_every_back_end_and_precision(run, step, precision):
    options = "--set", f"train.precision={precision}"
    expected, _ = run("cpu", *options)
    found, printed = run("cuda", *options, "--step", step)
    assert f"{step} step" in printed
    assert len(found) == 10
    assert found == pytest.approx(expected, rel=TOLERANCE[precision])


def test_streaming(run):
    fp32 = "--set", "train.precision=fp32"
    found, printed = run("cuda", *fp32, "--loader", "streaming")
    assert "streaming from" in printed
    assert found == pytest.approx(run("cpu", *fp32)[0], rel=TOLERANCE["fp32"])


def test_many_runs_are_those_of_their_seeds(run):
    fp32 = "--set", "train.precision=fp32"
    folder, _ = run("cuda", *fp32, "--runs", "2")
    for seed in (0, 1):
        expected, _ = run("cpu", *fp32, "--seed", str(seed))
        assert losses(folder / f"seed-{seed}" / "metrics.jsonl") == pytest.approx(expected, rel=TOLERANCE["fp32"])


@pytest.mark.parametrize("step", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("eager", "compiled")), "captured"])
def test_a_run_stopped_in_the_middle_and_resumed_is_the_whole_one(coloured, run, tmp_path, step):
    fp32 = "--set", "train.precision=fp32"
    where = "--data", coloured, "--device", "cuda", "--step", step
    out = tmp_path / "run"
    said = printed_by("train", *NARROW, *fp32, "--epochs", 1, "--out", out, *where, code=INTERRUPTED, returns=130)
    assert f"fastcifar train --resume {out}" in said
    assert list(losses(out / "metrics.jsonl")) == [1, 2, 3, 4, 5]
    printed_by("train", "--resume", out, *where)
    assert losses(out / "metrics.jsonl") == pytest.approx(run("cpu", *fp32)[0], rel=TOLERANCE["fp32"])
