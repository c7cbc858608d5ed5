"""Several processes are one run: the same batches and steps, one set of files, one end.

Two CPU processes started by torchrun take the place of a machine's GPUs.
"""

import dataclasses
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import timeless

from fastcifar.run.checkpoint import load_checkpoint
from fastcifar.run.directory import RunDirectory, read_environment
from fastcifar.runtime.distributed import World, process_group, synchronise_batchnorm
from fastcifar.runtime.errors import UserError
from fastcifar.runtime.shard import WHOLE, Shard

WORKER = Path(__file__).with_name("distributed_worker.py")
worker = SimpleNamespace(**runpy.run_path(str(WORKER)))
ALONE = World(torch.device("cpu"))
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
_launched = {}


def launch(job, folder, recipe, dataset):
    """Run a job of the worker in two processes; return (exit code, seconds, stderr)."""
    torch.save({"recipe": recipe, "dataset": dataset}, folder / "case.pt")
    began = time.monotonic()
    done = subprocess.run([*TWO, WORKER, job, folder], capture_output=True, text=True, timeout=240, check=False)
    return done.returncode, time.monotonic() - began, done.stderr


@pytest.fixture
def case(recipe, dataset):
    """The recipe with an evaluation batch size whose last batch is padded, and the data set."""
    return dataclasses.replace(recipe, evaluate=dataclasses.replace(recipe.evaluate, batch_size=8)), dataset


@pytest.fixture
def two(case, tmp_path_factory):
    """Results of the two processes, computed once: .ranks[r] and .folder."""
    if not _launched:
        folder = tmp_path_factory.mktemp("two")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fastcifar.engine.engine.build_model", worker.plain_model)
            worker.run(folder / "started-by-one", *case, worker.after(7, lambda: True))
        code, _, err = launch("everything", folder, *case)
        assert code == 0, err
        _launched["folder"] = folder
        _launched["ranks"] = [torch.load(folder / f"everything-{rank}.pt", weights_only=False) for rank in (0, 1)]
    return SimpleNamespace(**_launched)


@pytest.fixture
def plain(case, tmp_path, monkeypatch):
    """A whole run of one process with the worker's plain model."""
    monkeypatch.setattr("fastcifar.engine.engine.build_model", worker.plain_model)
    return worker.run(tmp_path / "one", *case), RunDirectory(tmp_path / "one")


def assert_close(ours, theirs):
    """Equal but for the order of sums."""
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[key], rtol=1e-4, atol=1e-6, msg=key)


def assert_same_rows(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.pop("kind") == other.pop("kind")
        assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_rows_of_all_ranks_are_the_batch(count):
    order = torch.randperm(50)
    shares = [Shard(rank, count).of_training(order, 12) for rank in range(count)]
    rows = Shard(0, count).training_batch(12)
    for number in range(4):
        batch = torch.cat([share[number * rows : (number + 1) * rows] for share in shares])
        assert torch.equal(batch, order[number * 12 : (number + 1) * 12])


@pytest.mark.parametrize("count", [1, 2, 3, 60])
def test_every_image_is_scored_by_one_rank(count):
    order = torch.arange(50)
    shares = [Shard(rank, count).of_evaluation(order) for rank in range(count)]
    assert sorted(torch.cat(shares).tolist()) == order.tolist()
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_batch_that_cannot_be_shared_equally_is_refused():
    assert Shard(0, 3).training_batch(15) == 5
    with pytest.raises(UserError, match=r"train.batch_size = 16: 3 processes cannot share it equally; .* such as 18"):
        Shard(0, 3).training_batch(16)


def test_two_processes_see_the_pixels_of_one(case, two):
    whole = worker.batches(*case, ALONE)
    ranks = [rank["parts"]["batches"] for rank in two.ranks]
    assert len(whole) == len(ranks[0]) == len(ranks[1]) > 10
    for (images, labels), *halves in zip(whole, *ranks, strict=True):
        assert torch.equal(images, torch.cat([half[0] for half in halves]))
        assert torch.equal(labels, torch.cat([half[1] for half in halves]))


def test_the_steps_and_the_score_of_two_processes_are_those_of_one(case, two):
    alone = worker.epoch(*case, ALONE)
    for rank in two.ranks:
        shared = rank["parts"]["epoch"]
        torch.testing.assert_close(shared["losses"], alone["losses"], rtol=1e-5, atol=1e-6)
        assert_close(shared["weights"], alone["weights"])
        assert shared["correct"] == alone["correct"]
        assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert torch.equal(shared["confusion"], alone["confusion"])
    one, other = (rank["parts"]["epoch"]["weights"] for rank in two.ranks)
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_dropout_differs_between_ranks_and_rank_0_draws_as_one_process(case, two):
    one, other = (rank["parts"]["dropout"] for rank in two.ranks)
    assert torch.equal(one, worker.dropout(*case, ALONE))
    assert not torch.equal(one, other)


def test_a_run_of_two_processes_is_that_of_one(two, plain):
    alone, run = plain
    for rank in two.ranks:
        assert_close(rank["plain_runs"]["whole"]["weights"], alone["weights"])
    assert_same_rows(timeless(RunDirectory(two.folder / "plain")), timeless(run))
    summaries = [json.loads((root / "summary.json").read_text()) for root in (two.folder / "plain", run.root)]
    for key in ("steps", "train_loss", "val_loss", "val_accuracy", "test_loss", "test_accuracy", "parameters"):
        assert summaries[0][key] == pytest.approx(summaries[1][key], rel=1e-4), key


@pytest.mark.parametrize("started_by", ["one", "two"])
def test_a_run_is_resumed_with_another_number_of_processes(case, two, plain, started_by):
    alone, run = plain
    root = two.folder / f"started-by-{started_by}"
    resumed = worker.run(root, *case, resume=True) if started_by == "two" else two.ranks[0]["plain_runs"]["resumed"]
    assert resumed["finished"]
    assert_close(resumed["weights"], alone["weights"])
    assert_same_rows(timeless(RunDirectory(root)), timeless(run))


def test_a_stop_of_one_rank_stops_all_and_the_resumed_run_is_bit_identical(two):
    """With BatchNorm and dropout: the random states of both ranks are in the checkpoint."""
    for rank in two.ranks:
        assert [rank["runs"][part]["finished"] for part in ("whole", "stopped", "resumed")] == [True, False, True]
    one, other = (load_checkpoint(RunDirectory(two.folder / name).last) for name in ("whole", "parts"))
    for key, tensor in one.tensors.items():
        assert torch.equal(tensor, other.tensors[key]), key
    assert not torch.equal(one.tensors["state.rng_cpu"], one.tensors["state.rng_cpu.1"])
    assert timeless(RunDirectory(two.folder / "whole")) == timeless(RunDirectory(two.folder / "parts"))


def test_ranks_end_with_the_same_weights_and_running_statistics(two):
    one, other = (rank["runs"]["whole"]["weights"] for rank in two.ranks)
    saved = load_checkpoint(RunDirectory(two.folder / "whole").last).section("model")
    assert any(key.endswith("running_mean") for key in saved)
    for key, tensor in saved.items():
        assert torch.equal(tensor, one[key]), key
        assert torch.equal(tensor, other[key]), key


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        ("other_recipe", "the ranks of the run have different recipes"),
        ("used_folder", "holds a run; continue it with `resume"),
        ("divergence", "became"),
    ],
)
def test_what_stops_a_run_stops_every_rank_with_the_same_words(two, refusal, words):
    (kind, first), (repeated, second) = (rank["refusals"][refusal] for rank in two.ranks)
    assert (kind, repeated) == ("UserError", "RepeatedError")
    assert first == second
    assert words in first


def test_rank_0_alone_prints(two):
    first, second = (rank["runs"]["whole"]["printed"] for rank in two.ranks)
    assert "2 x cpu" in first
    assert "epoch 2/2" in first
    assert second == ""
    assert read_environment(RunDirectory(two.folder / "whole"))["processes"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "words"), [("killed", "exitcode  : 9"), ("raising", "ZeroDivisionError"), ("hanging", "rank 0 lost the other")]
)
def test_a_rank_that_dies_or_hangs_ends_the_run(case, tmp_path, job, words):
    code, seconds, err = launch(job, tmp_path, *case)
    assert code != 0
    assert words in err
    assert seconds < 90  # mostly start-up; the hanging worker sleeps for 600
    assert not list(tmp_path.rglob("summary.json"))


SMALL = [
    "--recipe", "seed", "--set", "model.stem_channels=8", "--set", "model.channels=[8, 8, 16]", "--set",
    "model.blocks=[1, 1, 1]", "--set", "model.strides=[2, 2, 2]", "--set", "train.batch_size=500", "--device", "cpu",
]  # fmt: skip


def torchrun_fastcifar(*arguments):
    command = [*TWO, "-m", "fastcifar", "train", *SMALL, *arguments]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--set", "train.batch_size=25"], "train.batch_size = 25: 2 processes cannot share it equally"),
        (["--set", "train.sync_batchnorm=true"], "train.sync_batchnorm = true: PyTorch supports it only on CUDA"),
    ],
)
def test_an_error_that_all_ranks_raise_is_printed_once(betons, tmp_path, options, words):
    process = torchrun_fastcifar("--data", betons, "--out", tmp_path / "run", *options)
    out, err = process.communicate(timeout=240)
    assert process.returncode != 0
    assert [line for line in err.splitlines() if line.startswith("fastcifar: ")] == [
        line for line in err.splitlines() if words in line
    ]
    assert err.count(words) == 1
    assert "exitcode  : 2" in err
    assert out == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_ctrl_c_on_torchrun_leaves_one_checkpoint_to_resume_from(betons, tmp_path):
    run = tmp_path / "run"
    process = torchrun_fastcifar("--epochs", 500, "--data", betons, "--out", run)
    deadline = time.monotonic() + 200
    while not (run / "checkpoints" / "last.safetensors").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert out.count("2 x cpu") == 1
    assert out.count(f"stopped; resume with: fastcifar train --resume {run}") == 1
    assert not (run / "summary.json").exists()
    checkpoint = load_checkpoint(RunDirectory(run).last)
    assert checkpoint.info["step"] > 0
    assert torch.isfinite(checkpoint.section("state")["losses"][: checkpoint.info["step"]]).all()


def test_without_torchrun_a_run_is_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with process_group("cpu") as world:
        assert (type(world), world.rank, world.size, world.shard) == (World, 0, 1, WHOLE)
        assert world.gradient_averager(torch.nn.Linear(2, 2)) is None
        assert world.any(True) and not world.any(False)
        assert world.run_on_rank_0(lambda: 3) == 3
        assert world.gather(4) == [4]
    assert not torch.distributed.is_initialized()


def test_synchronised_batchnorm_of_one_process_is_its_batchnorm():
    model = torch.nn.BatchNorm2d(3)
    assert synchronise_batchnorm(model, ALONE) is model


def test_a_rank_takes_no_gpu_by_number(monkeypatch):
    port = os.environ.get("MASTER_PORT", "29511")
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(UserError, match="`device=cuda:1`: torchrun gives each process its own GPU"),
        process_group("cuda:1"),
    ):
        pass
    assert not torch.distributed.is_initialized()
