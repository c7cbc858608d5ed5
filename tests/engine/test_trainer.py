"""Training: a run's files, bit-exact resuming, and the end of a run that cannot continue."""

import dataclasses
import itertools
import json
import math
import threading
import time

import pytest
import torch
from helpers import PARTS, quiet, timeless, with_part, with_train

from data_prep import prepare
from fastcifar.augment import RandomCrop
from fastcifar.data.dataset import load_dataset
from fastcifar.engine.engine import Engine
from fastcifar.engine.evaluate import evaluate_run
from fastcifar.engine.trainer import Trainer, train
from fastcifar.recipe import load_recipe
from fastcifar.run.checkpoint import load_checkpoint, save_checkpoint
from fastcifar.run.checkpoint_writer import CheckpointWriter
from fastcifar.run.directory import open_run
from fastcifar.run.metrics import read_metrics
from fastcifar.run.score import Score
from fastcifar.runtime.errors import UserError


def stop_after(checks):
    """A `should_stop` that returns True at its (checks + 1)-th call; it is called before every step."""
    asked = iter(range(checks + 1))
    return lambda: next(asked) == checks


def test_a_run_leaves_every_file_of_the_contract(recipe, dataset, tmp_path):
    result = train(recipe, dataset, tmp_path / "run", device="cpu", reporter=quiet())
    assert result.finished
    names = sorted(str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*") if p.is_file())
    assert names == [
        "checkpoints/best.safetensors",
        "checkpoints/last.safetensors",
        "curves.png",
        "environment.json",
        "metrics.jsonl",
        "recipe.toml",
        "summary.json",
    ]
    summary = json.loads(result.run.summary.read_text())
    assert summary["steps"] == recipe.train.epochs * (len(dataset.train.labels) // recipe.train.batch_size)
    assert summary["parameters"] == sum(p.numel() for p in result.model.parameters())
    assert 0 <= summary["test_accuracy"] <= 1
    described = json.loads(result.run.environment.read_text())
    assert described["dataset_sha256"] == dataset.manifest.sha256
    assert described["torch"] == torch.__version__


def test_seconds_hold_the_run_without_its_warm_up(recipe, dataset, tmp_path, monkeypatch):
    def slow(engine):
        time.sleep(0.3)
        return 0.3

    monkeypatch.setattr(Engine, "warm_up", slow)
    summary = train(recipe, dataset, tmp_path / "run", device="cpu", reporter=quiet()).summary
    assert summary.warm_up_seconds == 0.3
    assert summary.train_seconds + summary.evaluate_seconds <= summary.seconds < summary.total_seconds - 0.3


@pytest.mark.parametrize("written_by", ["this version", "an older one"])
def test_the_seconds_of_a_resumed_run_are_those_of_both_processes(recipe, dataset, tmp_path, written_by):
    how = {"device": "cpu", "reporter": quiet()}
    run = train(recipe, dataset, tmp_path / "run", **how, should_stop=stop_after(6)).run
    checkpoint = load_checkpoint(run.last)
    info = checkpoint.info | {"run_seconds": 1000.0}
    if written_by == "an older one":
        info = checkpoint.info | {"seconds": {"warm_up": 5000.0, "train": 900.0, "evaluate": 100.0}}
        del info["run_seconds"]
    save_checkpoint(run.last, checkpoint.tensors, recipe.fitted_to(dataset.manifest).model, info=info)
    summary = train(open_run(run.root)[1], dataset, resume=run, **how).summary
    assert 1000 < summary.seconds < 2000


def test_the_saved_recipe_is_the_resolved_one(recipe, dataset, tmp_path):
    train(recipe, dataset, tmp_path / "run", device="cpu", reporter=quiet())
    resolved = load_recipe(tmp_path / "run" / "recipe.toml")
    assert resolved == recipe.fitted_to(dataset.manifest)


def test_the_log_holds_the_mean_loss_of_every_window_and_a_row_an_epoch(recipe, dataset, tmp_path):
    recipe = with_train(recipe, log_every=2)
    result = train(recipe, dataset, tmp_path / "run", device="cpu", reporter=quiet())
    rows = read_metrics(result.run.metrics)
    losses = load_checkpoint(result.run.last).section("state")["losses"]
    length = len(losses) // recipe.train.epochs
    start = 0
    for row in (row for row in rows if row["kind"] == "steps"):
        assert row["loss"] == pytest.approx(losses[start : row["global_step"]].mean().item())
        assert row["epoch"] == (row["global_step"] - 1) // length + 1
        start = row["global_step"]
    assert start == len(losses)
    epochs = [row for row in rows if row["kind"] == "epoch"]
    assert [row["epoch"] for row in epochs] == list(range(1, recipe.train.epochs + 1))
    assert epochs[0]["train_loss"] == pytest.approx(losses[:length].mean().item())


@pytest.mark.parametrize("steps_before_the_stop", [2, 5, 0])
@pytest.mark.parametrize(
    ("optimizer", "precision"), [("sgd", "fp32"), ("adamw", "fp32"), ("sgd", "bf16"), ("adamw", "fp16"), ("sgd", "pure_bf16")]
)
def test_a_stopped_and_resumed_run_is_bit_identical(
    recipe, dataset, needs_sgd, tmp_path, steps_before_the_stop, optimizer, precision
):
    needs_sgd(precision if optimizer == "sgd" else "fp32")
    recipe = dataclasses.replace(recipe, optimizer=dataclasses.replace(recipe.optimizer, name=optimizer))
    recipe = with_train(recipe, epochs=4, log_every=2).with_precision(precision)
    length = len(dataset.train.labels) // recipe.train.batch_size
    whole = train(recipe, dataset, tmp_path / "whole", device="cpu", reporter=quiet())
    stop = stop_after(2 * length + steps_before_the_stop - 2)
    stopped = train(recipe, dataset, tmp_path / "parts", device="cpu", reporter=quiet(), should_stop=stop)
    assert not stopped.finished
    torch.manual_seed(99)  # another process has another random state
    run, again = open_run(tmp_path / "parts")
    resumed = train(again, dataset, resume=run, device="cpu", reporter=quiet())
    one, other = (load_checkpoint(result.run.last) for result in (whole, resumed))
    for key, tensor in one.tensors.items():
        assert torch.equal(tensor, other.tensors[key]), key
    assert timeless(whole.run) == timeless(resumed.run)


@pytest.mark.parametrize(("epochs_before", "steps_before"), [(1, 0), (2, 2), (3, 0)])
@pytest.mark.parametrize("part", PARTS)
def test_a_run_with_a_part_is_resumed_to_the_bit(recipe, dataset, tmp_path, part, epochs_before, steps_before):
    recipe = with_train(with_part(recipe, part), epochs=4)
    length = int(len(dataset.train.labels) * recipe.train.keep) // recipe.train.batch_size
    whole = train(recipe, dataset, tmp_path / "whole", device="cpu", reporter=quiet())
    assert whole.summary.steps == 4 * length
    stop = stop_after(epochs_before * length + steps_before)
    assert not train(recipe, dataset, tmp_path / "parts", device="cpu", reporter=quiet(), should_stop=stop).finished
    run, again = open_run(tmp_path / "parts")
    resumed = train(again, dataset, resume=run, device="cpu", reporter=quiet())
    one, other = (load_checkpoint(result.run.last) for result in (whole, resumed))
    assert one.tensors.keys() == other.tensors.keys()
    for key, tensor in one.tensors.items():
        assert torch.equal(tensor, other.tensors[key]), key
    assert timeless(whole.run) == timeless(resumed.run)
    scored = evaluate_run(again, run.last, dataset, "test", torch.device("cpu"))
    assert scored.accuracy == whole.summary.test_accuracy  # the checkpoint holds the model that was tested


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(recipe, dataset, tmp_path):
    recipe = with_train(recipe, epochs=3)
    good = stop_after(len(dataset.train.labels) // recipe.train.batch_size)
    run = train(recipe, dataset, tmp_path / "run", device="cpu", reporter=quiet(), should_stop=good).run
    kept = run.last.read_bytes()
    text = run.recipe.read_text()
    assert "lr = 0.05" in text
    run.recipe.write_text(text.replace("lr = 0.05", "lr = 1e30"))
    run, hot = open_run(run.root)
    with pytest.raises(UserError) as caught:
        train(hot, dataset, resume=run, device="cpu", reporter=quiet())
    message = str(caught.value)
    assert "\n" not in message
    assert "epoch 2" in message
    assert str(run.last) in message
    assert run.last.read_bytes() == kept


def test_what_diverged_is_never_saved(recipe, dataset, tmp_path):
    """Weights of 1e30 may still give finite losses; with one step per epoch, checks and checkpoints coincide."""
    recipe = with_train(recipe, batch_size=80, epochs=3)
    recipe = dataclasses.replace(recipe, optimizer=dataclasses.replace(recipe.optimizer, lr=1e30, weight_decay=1e6))
    with pytest.raises(UserError, match="no checkpoint was written yet"):
        train(recipe, dataset, tmp_path / "run", device="cpu", reporter=quiet())
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_between_its_end_and_a_stop_a_run_writes_only_now_and_then(recipe, dataset, tmp_path, monkeypatch):
    """Writing files does not slow down fast epochs; with SAVE_EVERY_S = 0 every epoch is written."""
    written = []
    monkeypatch.setattr(
        "fastcifar.run.checkpoint_writer.save_checkpoint", lambda path, *_, info: written.append((path.stem, info["step"]))
    )
    drawn = []
    monkeypatch.setattr("fastcifar.engine.trainer.plot_curves", lambda epochs, *_: drawn.append(len(epochs)))
    recipe = with_train(recipe, epochs=3)
    train(recipe, dataset, tmp_path / "seldom", device="cpu", reporter=quiet())
    length = len(dataset.train.labels) // recipe.train.batch_size
    assert [step for name, step in written if name == "last"] == [3 * length]
    assert [name for name, _ in written].count("best") == 1
    written.clear()
    monkeypatch.setattr("fastcifar.run.checkpoint_writer.SAVE_EVERY_S", 0.0)
    train(recipe, dataset, tmp_path / "often", device="cpu", reporter=quiet())
    assert [step for name, step in written if name == "last"] == [length, 2 * length, 3 * length]
    assert drawn == [3, 3]


def test_a_stopped_run_has_its_curves(recipe, dataset, tmp_path):
    run = train(recipe, dataset, tmp_path / "run", device="cpu", reporter=quiet(), should_stop=stop_after(7)).run
    assert run.curves.is_file()


def test_training_continues_while_a_checkpoint_is_written(recipe, dataset, tmp_path, monkeypatch):
    """The first epoch's checkpoint is finished only after the second epoch was trained; the next one waits for it."""
    second_epoch, order = threading.Event(), []
    save = save_checkpoint

    def save_late(path, tensors, config, info):
        if path.stem == "last" and info["step"] == 5:
            assert second_epoch.wait(60)
        order.append((path.stem, info["step"]))
        save(path, tensors, config, info=info)

    monkeypatch.setattr("fastcifar.run.checkpoint_writer.save_checkpoint", save_late)
    monkeypatch.setattr("fastcifar.run.checkpoint_writer.SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(CheckpointWriter, "snapshot", announce(CheckpointWriter.snapshot, second_epoch, call=2))
    result = train(with_train(recipe, epochs=3), dataset, tmp_path / "run", device="cpu", reporter=quiet())
    assert [step for name, step in order if name == "last"] == [5, 10, 15]
    assert load_checkpoint(result.run.last).info["step"] == 15


def announce(method, event, call):
    calls = itertools.count(1)

    def announcing(self, tensors):
        if next(calls) == call:
            event.set()
        method(self, tensors)

    return announcing


def test_an_error_of_writing_is_not_forgotten_when_the_next_writing_succeeds(recipe, dataset, tmp_path, monkeypatch):
    def refuse_the_first(*_, info):
        if info["step"] == 5:
            raise OSError(28, "No space left on device", "last.safetensors")

    monkeypatch.setattr("fastcifar.run.checkpoint_writer.save_checkpoint", refuse_the_first)
    monkeypatch.setattr("fastcifar.run.checkpoint_writer.SAVE_EVERY_S", 0.0)
    with pytest.raises(OSError, match="No space left"):
        train(with_train(recipe, epochs=3), dataset, tmp_path / "run", device="cpu", reporter=quiet())


def test_a_diverged_run_has_the_curves_of_its_good_epochs(recipe, dataset, tmp_path, monkeypatch):
    drawn, largest = [], iter((1.0, math.inf))
    monkeypatch.setattr("fastcifar.engine.trainer.plot_curves", lambda epochs, *_: drawn.append(len(epochs)))
    monkeypatch.setattr("fastcifar.engine.trainer._largest_weight", lambda model: torch.tensor(next(largest)))
    with pytest.raises(UserError, match="became infinite"):
        train(recipe, dataset, tmp_path / "run", device="cpu", reporter=quiet())
    assert drawn == [1]


def test_a_diverged_run_names_the_checkpoint_that_was_being_written(recipe, dataset, tmp_path, monkeypatch):
    def save_slowly(*arguments, **options):
        time.sleep(1)
        save_checkpoint(*arguments, **options)

    largest = iter((1.0, math.inf))
    monkeypatch.setattr("fastcifar.run.checkpoint_writer.save_checkpoint", save_slowly)
    monkeypatch.setattr("fastcifar.engine.trainer._largest_weight", lambda model: torch.tensor(next(largest)))
    monkeypatch.setattr("fastcifar.run.checkpoint_writer.SAVE_EVERY_S", 0.0)
    with pytest.raises(UserError, match=r"became infinite.*the last good checkpoint is .*last\.safetensors"):
        train(recipe, dataset, tmp_path / "run", device="cpu", reporter=quiet())


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_checkpoint_that_cannot_be_written_ends_the_run_with_its_error(recipe, dataset, tmp_path, monkeypatch, epochs):
    """The last checkpoint too, after which no other one would raise the error."""

    def refuse(*_, **__):
        raise OSError(28, "No space left on device", "last.safetensors")

    monkeypatch.setattr("fastcifar.run.checkpoint_writer.save_checkpoint", refuse)
    monkeypatch.setattr("fastcifar.run.checkpoint_writer.SAVE_EVERY_S", 0.0)
    with pytest.raises(OSError, match="No space left"):
        train(with_train(recipe, epochs=epochs), dataset, tmp_path / "run", device="cpu", reporter=quiet())
    assert not (tmp_path / "run" / "summary.json").exists()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fastcifar-checkpoint")]


def test_the_best_checkpoint_is_of_the_epoch_with_the_highest_validation_accuracy(recipe, dataset, tmp_path, monkeypatch):
    """Although it is written at the end of the run. The accuracies are invented."""
    two = train(with_train(recipe, epochs=2), dataset, tmp_path / "two", device="cpu", reporter=quiet())
    right = iter((1, 7, 3, 7, 1))  # the last is the test's
    monkeypatch.setattr(
        "fastcifar.engine.trainer.Score.of_sums", lambda sums: Score(1.0, torch.tensor([[next(right), 3], [0, 0]]))
    )
    four = train(with_train(recipe, epochs=4), dataset, tmp_path / "four", device="cpu", reporter=quiet())
    assert four.summary.best_val_accuracy == 0.7
    best, expected = (load_checkpoint(path).section("model") for path in (four.run.best, two.run.last))
    for name, tensor in expected.items():
        assert torch.equal(best[name], tensor), name


@pytest.mark.parametrize("damage", [None, "{", "[]"])
def test_resuming_a_damaged_run_says_which_file(recipe, dataset, tmp_path, damage):
    stopped = train(recipe, dataset, tmp_path / "run", device="cpu", reporter=quiet(), should_stop=stop_after(7))
    stopped.run.environment.unlink() if damage is None else stopped.run.environment.write_text(damage)
    run, again = open_run(stopped.run.root)
    with pytest.raises(UserError, match=r"environment.json: "):
        train(again, dataset, resume=run, device="cpu", reporter=quiet())


def test_resuming_without_its_metrics_is_refused(recipe, dataset, tmp_path):
    stopped = train(recipe, dataset, tmp_path / "run", device="cpu", reporter=quiet(), should_stop=stop_after(7))
    stopped.run.metrics.unlink()
    run, again = open_run(stopped.run.root)
    with pytest.raises(UserError, match=r"metrics.jsonl: damaged: it does not hold all epochs"):
        train(again, dataset, resume=run, device="cpu", reporter=quiet())


def test_a_finished_run_is_not_resumed(recipe, dataset, tmp_path):
    run = train(recipe, dataset, tmp_path / "run", device="cpu", reporter=quiet()).run
    before = run.summary.read_bytes()
    run, again = open_run(run.root)
    with pytest.raises(UserError, match="already finished"):
        train(again, dataset, resume=run, device="cpu", reporter=quiet())
    assert run.summary.read_bytes() == before


def test_a_policy_that_does_not_fit_leaves_nothing_behind(recipe, dataset, tmp_path):
    policy = dataclasses.replace(recipe.augment, transforms=(RandomCrop(32),))
    with pytest.raises(UserError, match="RandomCrop: size = 32"):
        train(dataclasses.replace(recipe, augment=policy), dataset, tmp_path / "run", device="cpu", reporter=quiet())
    assert not (tmp_path / "run").exists()


def test_a_run_that_ended_before_its_first_checkpoint_can_be_started_again(recipe, dataset, tmp_path):
    run = train(recipe, dataset, tmp_path / "run", device="cpu", reporter=quiet(), should_stop=lambda: True).run
    run.last.unlink()
    assert train(recipe, dataset, tmp_path / "run", device="cpu", reporter=quiet()).finished


def test_padded_widths_change_neither_the_result_nor_the_checkpoint(recipe, dataset, tmp_path):
    """Also when stopped with padding and resumed without: a checkpoint holds no padding."""
    model = dataclasses.replace(recipe.model, channels=(12, 20), dropout=0.0)
    plain = dataclasses.replace(with_train(recipe, epochs=2), model=model)
    padded = with_train(plain, pad_widths=8)
    whole = train(plain, dataset, tmp_path / "whole", device="cpu", reporter=quiet())
    stopped = train(padded, dataset, tmp_path / "parts", device="cpu", reporter=quiet(), should_stop=stop_after(7))
    stopped.run.recipe.write_text(stopped.run.recipe.read_text().replace("pad_widths = 8", "pad_widths = 0"))
    run, again = open_run(stopped.run.root)
    resumed = train(again, dataset, resume=run, device="cpu", reporter=quiet())
    one, other = (load_checkpoint(result.run.last).tensors for result in (whole, resumed))
    assert {k: t.shape for k, t in one.items()} == {k: t.shape for k, t in other.items()}
    # Kernels of two widths sum in two orders: in ten steps float32's rounding was seen to grow to 4e-7, against float64.
    torch.testing.assert_close(other["state.losses"], one["state.losses"], rtol=1e-4, atol=1e-5)
    assert whole.summary.parameters == resumed.summary.parameters


def test_a_streamed_run_is_the_resident_one(recipe, tmp_path):
    pytest.importorskip("ffcv", reason="FFCV is not installed: pip install 'fastcifar[ffcv]'")
    prepare("synthetic", tmp_path / "betons")
    dataset = load_dataset(tmp_path / "betons")
    recipe = with_train(recipe, epochs=1, batch_size=2000)
    runs = {
        kind: train(recipe, dataset, tmp_path / kind, device="cpu", loader=kind, reporter=quiet())
        for kind in ("resident", "streaming")
    }
    one, other = (load_checkpoint(result.run.last).tensors for result in runs.values())
    for key, tensor in one.items():
        assert torch.equal(tensor, other[key]), key
    assert runs["resident"].summary.test_accuracy == runs["streaming"].summary.test_accuracy
    with pytest.raises(UserError, match="`loader=lazy`: must be auto"):
        train(recipe, dataset, tmp_path / "lazy", device="cpu", loader="lazy", reporter=quiet())


def test_what_does_not_fit_is_streamed_by_itself_and_never_read_whole(recipe, tmp_path, monkeypatch):
    """Training, validation and test, and scoring the run later."""
    pytest.importorskip("ffcv", reason="FFCV is not installed: pip install 'fastcifar[ffcv]'")

    def refuse(*_):
        raise AssertionError("a split was read whole")

    prepare("synthetic", tmp_path / "betons")
    monkeypatch.setattr("fastcifar.data.beton._gather", refuse)
    monkeypatch.setattr("fastcifar.data.choice.free_memory", lambda device: 2**20)
    dataset, recipe = load_dataset(tmp_path / "betons"), with_train(recipe, epochs=1, batch_size=2000)
    result = train(recipe, dataset, tmp_path / "run", device="cpu", reporter=quiet())
    described = json.loads(result.run.environment.read_text())
    assert described["loader"] == "streaming"
    assert "1 MiB free" in described["loader_reason"]
    said = []
    score = evaluate_run(recipe, result.run.last, dataset, "test", torch.device("cpu"), say=said.append)
    assert score.accuracy == result.summary.test_accuracy
    assert len(said) == 1 and "streaming from" in said[0]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_deterministic_run_is_repeated_to_the_bit(recipe, dataset, tmp_path, device, precision):
    recipe = with_train(recipe, deterministic=True).with_precision(precision)
    runs = [train(recipe, dataset, tmp_path / name, device=device, reporter=quiet()).run for name in ("a", "b")]
    one, other = (load_checkpoint(run.last).tensors for run in runs)
    for key, tensor in one.items():
        assert torch.equal(tensor, other[key]), key


@pytest.mark.parametrize("every", [0.0, 10.0])
@pytest.mark.parametrize("stop", [None, 3])
def test_a_host_an_epoch_ahead_leaves_the_same_run(recipe, dataset, tmp_path, monkeypatch, every, stop):
    """As on a GPU, where an epoch is read while the next one runs; stopped in the second epoch's second portion."""
    recipe = with_train(recipe, epochs=3, log_every=2)
    length = len(dataset.train.labels) // recipe.train.batch_size
    monkeypatch.setattr("fastcifar.run.checkpoint_writer.SAVE_EVERY_S", every)
    monkeypatch.setattr("fastcifar.engine.trainer.STEPS_PER_GRAPH", 1)
    runs = {}
    for ahead in (False, True):
        monkeypatch.setattr(Trainer, "runs_ahead", ahead)
        checks = length // 2 + 1 + 1 if ahead else length + 2
        options = {"should_stop": stop_after(checks)} if stop else {}
        runs[ahead] = train(recipe, dataset, tmp_path / str(ahead), device="cpu", reporter=quiet(), **options)
    assert runs[True].finished is (stop is None)
    assert timeless(runs[True].run) == timeless(runs[False].run)
    for name in ("last", "best"):
        one, other = (load_checkpoint(getattr(result.run, name)) for result in runs.values())
        for key, tensor in one.tensors.items():
            assert torch.equal(tensor.nan_to_num(), other.tensors[key].nan_to_num()), (name, key)


@pytest.mark.gpu
def test_a_run_on_cuda_logs_what_the_same_steps_log_on_a_cpu(recipe, dataset, tmp_path):
    """The host reads an epoch while the next runs: losses, accuracies and order of the rows must not mix."""
    recipe = with_train(dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, dropout=0.0)), epochs=4)
    rows = {}
    for device in ("cpu", "cuda"):
        run = train(recipe, dataset, tmp_path / device, device=device, backend="auto", reporter=quiet()).run
        rows[device] = [row for row in read_metrics(run.metrics) if row["kind"] == "epoch"]
    for one, other in zip(*rows.values(), strict=True):
        assert one["epoch"] == other["epoch"]
        # In these 20 steps float32's rounding was seen to grow to 4e-7 of an epoch's loss, against float64.
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)
        assert one["val_loss"] == pytest.approx(other["val_loss"], rel=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["eager", "compiled", "captured"])
def test_a_run_on_cuda_is_stopped_and_resumed(recipe, dataset, tmp_path, backend):
    """Bit-exact, with the same weights and momentum."""
    recipe = with_train(recipe, deterministic=True, epochs=3, log_every=5)
    how = {"device": "cuda", "backend": backend, "reporter": quiet()}
    whole = train(recipe, dataset, tmp_path / "whole", **how)
    stopped = train(recipe, dataset, tmp_path / "run", should_stop=stop_after(1), **how)
    assert not stopped.finished
    run, again = open_run(stopped.run.root)
    resumed = train(again, dataset, resume=run, **how)
    assert json.loads(run.environment.read_text())["step"] == backend
    one, other = (load_checkpoint(result.run.last).tensors for result in (whole, resumed))
    for key, tensor in one.items():
        assert torch.equal(tensor, other[key]), key


def test_resuming_another_architecture_is_refused(recipe, dataset, tmp_path):
    run = train(recipe, dataset, tmp_path / "run", device="cpu", reporter=quiet()).run
    run.recipe.write_text(run.recipe.read_text().replace("dropout = 0.5", "dropout = 0.25"))
    run, other = open_run(run.root)
    with pytest.raises(UserError, match=r"model.dropout is 0.5 there and 0.25 here"):
        train(other, dataset, resume=run, device="cpu", reporter=quiet())


def test_resuming_on_other_data_is_refused(recipe, dataset, tmp_path):
    run = train(recipe, dataset, tmp_path / "run", device="cpu", reporter=quiet()).run
    other = dataclasses.replace(dataset, manifest=dataclasses.replace(dataset.manifest, sha256={"train": "0" * 64}))
    run, again = open_run(run.root)
    with pytest.raises(UserError, match="other data"):
        train(again, other, resume=run, device="cpu", reporter=quiet())


def test_a_run_directory_in_use_is_refused(recipe, dataset, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        train(recipe, dataset, tmp_path, device="cpu", reporter=quiet())


def test_without_validation_the_run_still_ends_with_a_test(recipe, dataset, tmp_path):
    result = train(recipe, dataclasses.replace(dataset, val=None), tmp_path / "run", device="cpu", reporter=quiet())
    assert result.summary.val_accuracy is None
    assert result.summary.test_accuracy is not None
    assert not result.run.best.exists()


def test_a_run_on_all_images_has_no_validation_and_one_that_validates_now_and_then_ends_with_it(recipe, dataset, tmp_path):
    result = train(with_train(recipe, splits=("train", "val")), dataset, tmp_path / "all", device="cpu", reporter=quiet())
    assert result.summary.steps == recipe.train.epochs * ((80 + 20) // recipe.train.batch_size)
    assert result.summary.val_accuracy is None and result.summary.test_accuracy is not None
    seldom = dataclasses.replace(with_train(recipe, epochs=3), evaluate=dataclasses.replace(recipe.evaluate, every=2))
    result = train(seldom, dataset, tmp_path / "seldom", device="cpu", reporter=quiet())
    rows = [row for row in read_metrics(result.run.metrics) if row["kind"] == "epoch"]
    assert [row["val_accuracy"] is None for row in rows] == [True, False, False]


def test_the_same_seed_gives_the_same_weights_and_another_gives_others(recipe, dataset, tmp_path):
    weights = [
        next(train(with_train(recipe, seed=seed), dataset, tmp_path / name, device="cpu", reporter=quiet()).model.parameters())
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
