"""The summary of several runs."""

import json

import pytest

from fastcifar.run.summary import MEASURES, RunsSummary, RunSummary


def run(seed, **changes):
    fields = {
        "recipe": "mine",
        "dataset": "tiny",
        "seed": seed,
        "parameters": 1000,
        "epochs": 2,
        "steps": 10,
        "train_loss": 0.5,
        "val_loss": 1.5,
        "val_accuracy": 0.6,
        "best_val_accuracy": 0.7,
        "test_loss": 0.75,
        "test_accuracy": 0.9,
        "seconds": 3.0,
        "images_per_s": 100.0,
        "warm_up_seconds": 20.0,
        "train_seconds": 2.0,
        "evaluate_seconds": 0.5,
        "total_seconds": 25.0,
        "pflop": 0.25,
    }
    return RunSummary(**fields | changes)


RUNS = [
    run(3, seconds=10.0, test_accuracy=0.90),
    run(4, seconds=3.0, test_accuracy=0.92, warm_up_seconds=0.0),
    run(5, seconds=2.0, test_accuracy=0.94, warm_up_seconds=0.0),
]


def test_a_run_that_was_disturbed_does_not_move_the_median():
    summary = RunsSummary.of(RUNS)
    assert summary.median_seconds == 3.0
    assert summary.measures["seconds"].mean == 5.0


def test_the_time_and_operations_are_of_one_run_and_the_warm_up_is_that_of_the_first():
    summary = RunsSummary.of(RUNS)
    assert (summary.pflop, summary.warm_up_seconds) == (0.25, 20.0)


def test_every_run_has_its_row():
    rows = RunsSummary.of(RUNS).rows
    assert [(row["seed"], row["test_accuracy"]) for row in rows] == [(3, 0.9), (4, 0.92), (5, 0.94)]
    assert [row["seconds"] for row in rows] == [10.0, 3.0, 2.0]
    assert all(row.keys() == {"seed", *MEASURES} for row in rows)


def test_the_measures_of_an_absent_split_are_left_out():
    summary = RunsSummary.of([run(seed, val_loss=None, val_accuracy=None, best_val_accuracy=None) for seed in range(2)])
    assert "val_accuracy" not in summary.measures
    assert "val_accuracy" not in summary.rows[0]


def test_json_holds_all_of_it_and_what_older_versions_wrote():
    content = json.loads(json.dumps(RunsSummary.of(RUNS).to_json(), allow_nan=False))
    assert (content["runs"], content["seeds"], content["pflop"]) == (3, [3, 4, 5], 0.25)
    assert (content["median_seconds"], content["warm_up_seconds"], len(content["rows"])) == (3.0, 20.0, 3)
    assert content["test_accuracy"]["mean"] == pytest.approx(0.92)
    assert content["test_accuracy"]["std"] == pytest.approx(0.02)
    assert content["test_accuracy"]["half_width"] == pytest.approx(4.303 * 0.02 / 3**0.5, rel=1e-3)
    assert content["test_accuracy"]["values"] == [0.9, 0.92, 0.94]
