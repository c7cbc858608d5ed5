"""`fastcifar compare`, on folders that `fastcifar train --runs N` wrote."""

import json

import pytest
from helpers import quiet

from fastcifar.engine.runs import train_runs


def test_two_folders_of_train_are_compared_printed_and_written(here, recipe, dataset, tmp_path):
    how = {"runs": 2, "device": "cpu", "reporter": quiet(epochs=False)}
    train_runs(recipe, dataset, tmp_path / "a", **how)
    train_runs(recipe.with_seed(2), dataset, tmp_path / "b", **how)
    code, out, err = here("compare", "a", "b", "--measure", "train_loss", "--json", "result.json")
    assert (code, err) == (0, "")
    content = json.loads((tmp_path / "result.json").read_text())
    losses = [json.loads((tmp_path / name / "summary.json").read_text())["train_loss"]["values"] for name in "ab"]
    assert [row["values"] for row in content["folders"]] == losses
    (pair,) = content["pairs"]
    assert pair["difference"] == pytest.approx(sum(losses[1]) / 2 - sum(losses[0]) / 2)
    assert f"b minus a: {pair['verdict']}" in out
    assert f"{pair['difference']:+.5f}" in out
    for measure in ("test_accuracy", "val_accuracy", "test_loss", "seconds", "images_per_s", "train_seconds"):
        assert here("compare", "a", "b", "--measure", measure)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a", "b"], "a: holds no summary.json; give a folder that `fastcifar train --runs N` wrote"),
        (["a"], "at least two folders"),
        (["a", "b", "--measure", "accuracy"], "--measure accuracy: no measure of a run; did you mean"),
        (["single", "a"], "single/summary.json: holds 1 run, a spread needs at least 2; train with --runs 2 or more"),
    ],
)
def test_what_cannot_be_compared_is_one_line_on_stderr_and_exit_code_2(here, arguments, words, tmp_path):
    (tmp_path / "single").mkdir()
    (tmp_path / "single" / "summary.json").write_text('{"seeds": [0], "test_accuracy": {"values": [0.9]}}')
    code, out, err = here("compare", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err
