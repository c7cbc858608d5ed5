"""The run directory: paths of a run's files; make a new run or open an existing one."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcifar.recipe import Recipe, load_recipe
from fastcifar.runtime.errors import UserError


@dataclass(frozen=True)
class RunDirectory:
    """`runs/<name>/`: recipe.toml, environment.json, metrics.jsonl, checkpoints/, curves.png, summary.json."""

    root: Path

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.toml"

    @property
    def environment(self) -> Path:
        return self.root / "environment.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def curves(self) -> Path:
        return self.root / "curves.png"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    @property
    def last(self) -> Path:
        """The newest checkpoint: weights, optimizer and position, all that resuming needs."""
        return self.root / "checkpoints" / "last.safetensors"

    @property
    def best(self) -> Path:
        """The weights of the epoch with the highest validation accuracy (absent without a validation split)."""
        return self.root / "checkpoints" / "best.safetensors"


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
