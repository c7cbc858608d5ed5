"""Many runs in one process: each equals a separate run of its seed, and the summary's figures are right."""

import json
import statistics
import time

import pytest
from helpers import quiet, timeless, without_times

from fastcifar.engine.engine import Engine
from fastcifar.engine.runs import train_runs
from fastcifar.engine.trainer import train


def test_each_run_is_the_one_of_its_seed_alone(recipe, dataset, tmp_path):
    results, _ = train_runs(recipe, dataset, tmp_path / "many", runs=3, device="cpu", reporter=quiet(epochs=False))
    for seed, result in enumerate(results):
        alone = train(recipe.with_seed(seed), dataset, tmp_path / f"alone-{seed}", device="cpu", reporter=quiet(epochs=False))
        assert result.run.root == tmp_path / "many" / f"seed-{seed}"
        assert without_times(result.summary) == without_times(alone.summary)
        assert timeless(result.run) == timeless(alone.run)
        assert result.run.recipe.read_text() == alone.run.recipe.read_text()
        assert not result.run.last.exists()


def test_the_summary_holds_mean_deviation_and_values_of_every_measure(recipe, dataset, tmp_path):
    how, summaries = {"device": "cpu", "reporter": quiet(epochs=False)}, []
    results, summary = train_runs(recipe, dataset, tmp_path / "many", runs=3, **how, after_run=summaries.append)
    assert [one.seeds for one in summaries] == [(0,), (0, 1), (0, 1, 2)]
    assert summaries[-1] is summary
    losses = [result.summary.train_loss for result in results]
    assert summary.seeds == (0, 1, 2)
    assert summary.measures["train_loss"].mean == pytest.approx(statistics.fmean(losses))
    assert summary.measures["train_loss"].std == pytest.approx(statistics.stdev(losses))
    assert len(set(losses)) == 3
    assert json.loads((tmp_path / "many" / "summary.json").read_text())["train_loss"]["values"] == losses


def test_the_summary_has_the_row_of_every_run_the_median_time_and_the_operations(recipe, dataset, tmp_path):
    how = {"device": "cpu", "reporter": quiet(epochs=False)}
    results, summary = train_runs(recipe.with_seed(5), dataset, tmp_path / "many", runs=3, **how)
    content = json.loads((tmp_path / "many" / "summary.json").read_text())
    assert content == json.loads(json.dumps(summary.to_json()))
    assert content["seeds"] == [5, 6, 7]
    for row, result in zip(content["rows"], results, strict=True):
        own = json.loads(result.run.summary.read_text())
        assert row.items() <= own.items()
        assert {"seed", "test_accuracy", "val_accuracy", "train_loss", "seconds"} <= row.keys()
    assert content["median_seconds"] == statistics.median(result.summary.seconds for result in results)
    assert content["pflop"] == results[0].summary.pflop


def test_the_seconds_of_every_run_hold_its_initialisation(recipe, dataset, tmp_path, monkeypatch):
    new_model = Engine._new_model

    def slow(engine):
        time.sleep(0.2)
        return new_model(engine)

    monkeypatch.setattr(Engine, "_new_model", slow)
    results, _ = train_runs(recipe, dataset, tmp_path / "many", runs=2, device="cpu", reporter=quiet(epochs=False))
    for summary in (result.summary for result in results):
        assert summary.seconds - summary.train_seconds - summary.evaluate_seconds > 0.2


def test_what_is_finished_before_a_stop_is_kept(recipe, dataset, tmp_path):
    asked = iter(range(10**6))
    steps = recipe.train.epochs * (len(dataset.train.labels) // recipe.train.batch_size)
    how = {"device": "cpu", "reporter": quiet(epochs=False), "should_stop": lambda: next(asked) >= steps + 3}
    results, summary = train_runs(recipe, dataset, tmp_path / "many", runs=3, **how)
    assert [result.finished for result in results] == [True, False]
    assert len(summary.seeds) == 1
    assert (tmp_path / "many" / "summary.json").exists()
