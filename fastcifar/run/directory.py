"""The run directory: the paths of a run's files. Make a new one, or open an existing one."""

import json
import os
import time
from pathlib import Path
from typing import Any

from fastcifar.recipe import Recipe, load_recipe
from fastcifar.runtime.errors import UserError


class RunDirectory:
    """`runs/<name>/` and the paths of its files, which need not exist.

    Attributes:
        last: the newest checkpoint: weights, optimizer and position, all that resuming needs.
        best: the weights of the epoch with the highest validation accuracy; not written without a validation split.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.recipe = root / "recipe.toml"
        self.environment = root / "environment.json"
        self.metrics = root / "metrics.jsonl"
        self.curves = root / "curves.png"
        self.summary = root / "summary.json"
        self.last = root / "checkpoints" / "last.safetensors"
        self.best = root / "checkpoints" / "best.safetensors"


def new_run(recipe: Recipe, out: Path | None) -> RunDirectory:
    """Return a new run directory: `out`, or runs/<recipe>-<date>-<time> if it is None.

    Raises:
        UserError: `out` already holds a run or other files. A run that ended before its first checkpoint is replaced.
    """
    root = out or _unused(Path("runs") / f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    run = RunDirectory(root)
    if run.last.exists():
        raise UserError(f"{root}: holds a run; continue it with `resume={root}`, or choose another `out`")
    unfinished = {run.recipe, run.environment, run.metrics, run.last.parent}
    if root.exists() and (not root.is_dir() or not set(root.iterdir()) <= unfinished):
        raise UserError(f"{root}: exists and is not empty; choose another `out`")
    nearest = next(parent for parent in (root.absolute(), *root.absolute().parents) if parent.exists())
    if not os.access(nearest, os.W_OK):
        raise UserError(f"{root}: cannot make a folder there; choose another `out`")
    return run


def open_run(root: Path) -> tuple[RunDirectory, Recipe]:
    """Open an existing run directory; return it and its resolved recipe.

    Raises:
        UserError: there is no run in `root`.
    """
    run = RunDirectory(root)
    if not run.recipe.is_file():
        raise UserError(f"{root}: holds no run (no recipe.toml); give the folder that `fastcifar train` named")
    return run, load_recipe(run.recipe)


def read_environment(run: RunDirectory) -> dict[str, Any]:
    """Read the run's environment.json.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        content = json.loads(run.environment.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{run.environment}: missing or damaged ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{run.environment}: damaged: holds no table")
    return content


def _unused(root: Path) -> Path:
    """Return `root`, or root-2, root-3, ... if runs start within the same second."""
    number, candidate = 1, root
    while candidate.exists():
        number += 1
        candidate = root.with_name(f"{root.name}-{number}")
    return candidate
