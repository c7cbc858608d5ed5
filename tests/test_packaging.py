"""What is installed, and the scripts behind `make setup` and `make train`."""

import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import fastcifar

ROOT = Path(__file__).parents[1]
PACKAGES = ("fastcifar", "data_prep")

# Stands in for .venv/bin/python: `fastcifar prep` without a source says $PREP_SAID and ends with $PREP_CODE.
PYTHON_STUB = """#!/bin/bash
case "$*" in
    *"prep --out"*) echo "$PREP_SAID"; exit "$PREP_CODE" ;;
    -c*) echo "$CUDA" ;;
    *) echo "ran $*" ;;
esac
"""

NO_DOWNLOAD = "fastcifar: cifar10 could not be downloaded (no network)"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A copy of the source with what would be installed in build/lib."""
    root = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "README.md"):
        shutil.copy(ROOT / name, root)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "setup.py", "-q", "build", "egg_info"], cwd=root, check=True, capture_output=True)
    return root


@pytest.fixture
def make_train(tmp_path):
    """A function that runs scripts/train.sh beside a stub of Python, for an exit code of `fastcifar prep`."""
    for path, source in (("scripts/train.sh", (ROOT / "scripts/train.sh").read_text()), (".venv/bin/python", PYTHON_STUB)):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(source)
        (tmp_path / path).chmod(0o755)

    def run(prep_code: int, said: str = "prep said", cuda: str = "False") -> subprocess.CompletedProcess[str]:
        env = os.environ | {"PREP_CODE": str(prep_code), "PREP_SAID": said, "CUDA": cuda}
        return subprocess.run([tmp_path / "scripts/train.sh", "--seed", "7"], env=env, capture_output=True, text=True)

    return run


def test_an_install_holds_every_module_and_every_recipe(built):
    def held(root: Path) -> set[Path]:
        return {path.relative_to(root) for name in PACKAGES for path in (root / name).rglob("*") if path.is_file()}

    assert held(built / "build/lib") == held(built)


def test_the_version_has_one_source(built):
    metadata = (built / "fastcifar.egg-info/PKG-INFO").read_text()
    assert f"\nVersion: {fastcifar.__version__}\n" in metadata


def test_the_console_script_names_a_function(built):
    entry = (built / "fastcifar.egg-info/entry_points.txt").read_text()
    module, function = entry.split("fastcifar = ")[1].strip().split(":")
    assert callable(getattr(import_module(module), function))


@pytest.mark.parametrize(("stub", "found"), [("[ $1 = --version ] && echo Python 3.10.1", "Python 3.10.1"), (None, "missing")])
def test_setup_refuses_an_unfit_python_in_one_line_and_makes_nothing(tmp_path, stub, found):
    python, root = tmp_path / "python", tmp_path / "root"
    (root / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/setup.sh", root / "scripts")
    if stub:
        python.write_text(f"#!/bin/bash\n{stub}\n")
        python.chmod(0o755)
    env = os.environ | {"PYTHON": str(python)}
    result = subprocess.run([root / "scripts/setup.sh"], env=env, capture_output=True, text=True)
    assert result.returncode == 2
    asked = f"setup: Python 3.11, 3.12 or 3.13 is needed, '{python}' is {found}; name another with PYTHON=...\n"
    assert result.stderr == asked
    assert os.listdir(root) == ["scripts"]


def test_make_train_trains_on_what_prep_prepared(make_train):
    result = make_train(prep_code=0)
    assert result.returncode == 0
    assert "SYNTHETIC" not in result.stdout
    assert result.stdout.splitlines()[-1] == "ran -m fastcifar train --recipe quick --data betons --seed 7"


@pytest.mark.parametrize(
    ("cuda", "recipe", "why"), [("True", "seed", "PyTorch sees a CUDA GPU"), ("False", "quick", "PyTorch sees no CUDA GPU")]
)
def test_make_train_picks_the_recipe_for_the_machine_and_says_why(make_train, cuda, recipe, why):
    said, chosen, ran = make_train(prep_code=0, cuda=cuda).stdout.splitlines()
    assert said == "prep said"
    assert chosen == f"training the recipe {recipe}: {why}"
    assert ran == f"ran -m fastcifar train --recipe {recipe} --data betons --seed 7"


def test_make_train_says_first_and_last_that_it_used_synthetic_data(make_train):
    result = make_train(prep_code=2, said=NO_DOWNLOAD)
    assert result.returncode == 0
    first, *_, trained, last = result.stdout.splitlines()
    assert first == last
    assert "SYNTHETIC" in first
    assert trained == "ran -m fastcifar train --recipe quick --data betons-synthetic --seed 7"


@pytest.mark.parametrize("code", [2, 1, 130])
def test_make_train_swaps_no_data_that_is_given_nor_hides_a_bug_or_an_interrupt(make_train, code):
    result = make_train(prep_code=code)
    assert result.returncode == code
    assert result.stdout == "prep said\n"


def test_make_train_goes_on_with_what_was_prepared_before(make_train, tmp_path):
    (tmp_path / "betons").mkdir()
    (tmp_path / "betons/dataset.json").touch()
    first, *_, last = make_train(prep_code=2, said=NO_DOWNLOAD).stdout.splitlines()
    assert first.startswith("training on betons as it was prepared before")
    assert last == "ran -m fastcifar train --recipe quick --data betons --seed 7"
