"""The command line as a user meets it: in a process of its own, or where only what it says matters, in this one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from helpers import fastcifar

from fastcifar.commands.options import in_options
from fastcifar.recipe import recipe_names

SMALL = [
    "--recipe", "seed", "--set", "model.stem_channels=8", "--set", "model.channels=[8, 8, 16]", "--set",
    "model.blocks=[1, 1, 1]", "--set", "model.strides=[2, 2, 2]", "--set", "train.batch_size=1000", "--device", "cpu",
]  # fmt: skip


def test_help_needs_no_torch():
    code = """
import sys
from fastcifar.cli import main
sys.argv = ["fastcifar", "--help"]
try:
    main()
finally:
    assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("prep", "train", "eval", "compare", "info", "augment", "recipes", "bench"):
        assert command in done.stdout


def test_recipes_lists_them_all_and_explains_one(here):
    _, listed, _ = here("recipes")
    assert all(name in listed for name in recipe_names())
    assert "optimizer.lr" in here("recipes", "seed")[1]


def test_json_can_be_written_to_a_pipe(here, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    end = os.open(tmp_path / "pipe", os.O_RDWR | os.O_NONBLOCK)
    assert here("recipes", "--json", tmp_path / "pipe")[0] == 0
    assert json.loads(os.read(end, 2**16)).keys() == set(recipe_names())
    os.close(end)


def test_a_second_prep_with_nothing_changed_does_nothing_and_says_so(betons):
    before = (betons / "dataset.json").stat().st_mtime_ns
    done = fastcifar("prep", "synthetic", "--out", betons)
    assert "nothing done" in done.stdout
    assert (betons / "dataset.json").stat().st_mtime_ns == before


def test_augment_draws_a_picture_and_says_what_of(betons, tmp_path):
    done = fastcifar("augment", "--data", betons, "--out", tmp_path / "grid.png", "--images", 2, "--draws", 3)
    assert done.returncode == 0, done.stderr
    assert "2 images of synthetic, 3 draws each of the recipe seed" in done.stdout
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_bench_prints_a_table_and_writes_it_as_json_markdown_and_picture(tmp_path):
    files = {name: tmp_path / f"bench.{name}" for name in ("json", "md", "png")}
    options = ["--json", files["json"], "--markdown", files["md"], "--plot", files["png"]]
    done = fastcifar("bench", "erasing", "--batch-size", 4096, "--device", "cpu", *options)
    assert done.returncode == 0, done.stderr
    content = json.loads(files["json"].read_text())
    assert {row["subject"] for row in content["measurements"]} == {"erasing"}
    assert content["command"].startswith("fastcifar bench erasing --batch-size 4096")
    ours = content["measurements"][0]
    for shown in (done.stdout, files["md"].read_text()):
        assert f"{ours['median']:,.0f}" in shown
        assert f"{ours['share_of_floor']:.2%}" in shown
    assert files["png"].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("`backend=x`: must be auto", "--step x: must be auto"),
        ("/a b/c: exists; choose another `out`", "/a b/c: exists; choose another --out"),
        ("use 8 or more, as `train.pad_widths=8` does", "use 8 or more, as --set train.pad_widths=8 does"),
        ("`val_fraction=2.0`: must be below 1", "--val-fraction 2.0: must be below 1"),
        ("recipe.toml: unknown key train.epoch", "recipe.toml: unknown key train.epoch"),
    ],
)
def test_the_librarys_parameters_are_options_on_the_command_line(message, expected):
    assert in_options(message) == expected


def test_train_then_eval_from_prep_to_confusion_matrix(betons, tmp_path):
    run = tmp_path / "run"
    done = fastcifar("train", *SMALL, "--epochs", 2, "--data", betons, "--out", run, "--json", tmp_path / "t.json", "-v")
    assert done.returncode == 0, done.stderr
    assert "Epoch [2/2], Step [" in done.stdout
    summary = json.loads((tmp_path / "t.json").read_text())
    assert summary == json.loads((run / "summary.json").read_text())
    done = fastcifar("eval", run, "--data", betons, "--device", "cpu", "--json", tmp_path / "e.json")
    assert done.returncode == 0, done.stderr
    score = json.loads((tmp_path / "e.json").read_text())
    assert score["accuracy"] == pytest.approx(summary["test_accuracy"])
    assert f"{score['accuracy']:.2%}" in done.stdout
    assert sum(map(sum, score["confusion"])) == score["images"]


def test_precision_is_chosen_for_the_cpu_said_first_and_written_to_the_runs_recipe(betons, tmp_path):
    capped = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    where = "--data", betons, "--out", tmp_path / "run"
    done = fastcifar("train", *SMALL, "--epochs", 1, *where, **capped)
    assert done.returncode == 0, done.stderr
    assert "fp32 (auto: cpu has no 16-bit arithmetic)" in done.stdout.splitlines()[0]
    assert 'precision = "fp32"' in (tmp_path / "run" / "recipe.toml").read_text()


def test_every_command_that_computes_says_that_the_precision_is_emulated(here, betons, tmp_path, monkeypatch):
    run = tmp_path / "run"
    here("train", *SMALL, "--data", betons, "--epochs", 1, "--out", run)
    monkeypatch.setattr("fastcifar.runtime.precision.emulation_warning", lambda precision, device: f"{precision} is emulated")
    monkeypatch.setattr("fastcifar.bench.run", lambda *_, **__: [])
    recipe = ["--recipe", "seed", "--set", "train.precision=fp32", "--device", "cpu"]
    small = ["--set", "model.channels=[8, 8, 16, 16]", "--set", "train.batch_size=8"]
    profile = ["profile", *recipe, *small, "--steps", 1, "--data", betons, "--out", tmp_path / "profile"]
    for command in (["info", *recipe], ["bench", "step", *recipe], profile):
        code, out, err = here(*command)
        assert (code, "fp32 is emulated" in out.splitlines()) == (0, True), err
    assert " is emulated" in here("eval", run, "--data", betons, "--device", "cpu")[1]


def test_bench_says_device_and_precision_in_its_first_line(here, monkeypatch):
    monkeypatch.setattr("fastcifar.bench.run", lambda *_, **__: [])
    first = here("bench", "step", "--set", "train.precision=pure_bf16", "--device", "cpu")[1].splitlines()[0]
    assert first.startswith("cpu: ")
    assert ", pure_bf16 (as asked); implementations" in first


@pytest.mark.slow
def test_ctrl_c_ends_with_a_checkpoint_and_resume_goes_on(betons, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "fastcifar", "train", *SMALL, "--epochs", "500", "--data", betons, "--out", run]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "last.safetensors").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"fastcifar train --resume {run}" in out
    assert not (run / "summary.json").exists()
    recipe = run / "recipe.toml"
    assert "epochs = 500" in recipe.read_text()
    process = subprocess.Popen(
        [sys.executable, "-m", "fastcifar", "train", "--resume", run, "--data", betons, "--device", "cpu"],
        stdout=subprocess.PIPE,
        text=True,
    )
    line = next(line for line in process.stdout if line.startswith("epoch"))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert "/500" in line
    assert not line.startswith("epoch   1/")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--recipe", "sed"], "did you mean 'seed'"),
        (["bench", "augmnet"], "did you mean 'augment'"),
        (["bench", "erasing", "--plot", "bars.txt"], "--plot bars.txt: must end in one of"),
        (["bench", "erasing", "--markdown", "/"], "--markdown /: no file can be written there"),
        (["bench", "step", "--batch-size", "1"], "--batch-size"),
        (["train", "--set", "optimizer.rl=1"], "unknown key optimizer.rl"),
        (["train", "--data", "nowhere"], "fastcifar prep"),
        (["train", "--frobnicate"], "--frobnicate"),
        (["train", "--resume", "nowhere"], "holds no run"),
        (["train", "--resume", "x", "--epochs", "3"], "run's own recipe"),
        (["eval", "nowhere"], "holds no run"),
        (["compare", "nowhere", "elsewhere"], "nowhere: holds no summary.json"),
        (["info", "--device", "tpu"], "--device tpu"),
        (["prep", "nowhere"], "nowhere"),
        (["prep", "synthetic", "--val-fraction", "1.5"], "1.5"),
        (["augment", "--data", "nowhere"], "fastcifar prep"),
        (["frob"], "frob"),
        (["recipes", "--json", "/"], "--json /: no file can be written there"),
        (["info", "--set", "model.name=[1]"], "model.name"),
    ],
)
def test_bad_input_is_one_line_on_stderr_and_exit_code_2(here, arguments, words, tmp_path):
    code, out, err = here(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--step", "captive"], "--step captive: must be"),
        (["--set", "optimizer.lr=1e30"], "at step"),
        (["--set", "train.batch_size=1"], "at least 2"),
        (["--out", "/proc/nowhere"], "/proc/nowhere"),
    ],
)
def test_training_that_cannot_go_on_says_why_in_one_line(here, betons, tmp_path, options, words):
    code, _, err = here("train", *SMALL, "--data", betons, "--out", tmp_path / "run", *options)
    assert (code, err.count("\n")) == (2, 1)
    assert words in err
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_beton_and_a_checkpoint_of_another_kind_are_refused(betons, tmp_path):
    other = shutil.copytree(betons, tmp_path / "other")
    shutil.copy(betons / "test.beton", other / "train.beton")
    done = fastcifar("train", *SMALL, "--data", other, "--out", tmp_path / "run")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "train.beton: of another data set" in done.stderr
    done = fastcifar("train", *SMALL, "--epochs", 1, "--data", betons, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    recipe = tmp_path / "run" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("stem_channels = 8", "stem_channels = 16"))
    done = fastcifar("eval", tmp_path / "run", "--data", betons, "--device", "cpu")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "of another architecture: model.stem_channels is 8 there and 16 here" in done.stderr


def test_a_batch_larger_than_the_split_is_refused(here, betons, tmp_path):
    code, _, err = here("train", *SMALL, "--set", "train.batch_size=100000", "--data", betons, "--out", tmp_path / "run")
    assert code == 2
    assert "train.batch_size = 100000: larger than the split" in err
    assert not (tmp_path / "run").exists()
