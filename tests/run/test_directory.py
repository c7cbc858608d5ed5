"""Run directories: a new one each time, and an old one found again."""

import pytest

from fastcifar.recipe import dump_recipe
from fastcifar.run.directory import new_run, open_run
from fastcifar.runtime.errors import UserError


def test_runs_of_the_same_second_get_directories_of_their_own(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda form: "20260101-000000")
    names = []
    for _ in range(3):
        run = new_run(recipe, None)
        run.root.mkdir(parents=True)
        names.append(run.root.name)
    assert names == ["seed-20260101-000000", "seed-20260101-000000-2", "seed-20260101-000000-3"]


def test_a_run_is_found_with_its_recipe(recipe, tmp_path):
    (tmp_path / "recipe.toml").write_text(dump_recipe(recipe))
    assert open_run(tmp_path)[1] == recipe


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        open_run(tmp_path)
