"""Many runs of one recipe in one process: model, graphs and data are made once, each run begins anew from its own seed."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastcifar.config import Recipe
from fastcifar.data.dataset import Dataset
from fastcifar.engine.distributed import joined
from fastcifar.engine.engine import Engine
from fastcifar.engine.memory import advised
from fastcifar.engine.rundir import RunDirectory, new_run
from fastcifar.engine.trainer import Result, Trainer, arithmetic_of
from fastcifar.files import write_json
from fastcifar.report.console import Reporter
from fastcifar.report.statistics import interval

MEASURED = "test_accuracy", "test_loss", "val_accuracy", "train_loss", "images_per_s", "train_seconds"


def train_runs(
    recipe: Recipe,
    dataset: Dataset,
    out: Path | None = None,
    *,
    runs: int,
    device: str = "auto",
    backend: str = "auto",
    loader: str = "auto",
    reporter: Reporter | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[list[Result], dict[str, Any]]:
    """Train `recipe` with the seeds s, s + 1, ..., s + runs - 1, s being its own. A run is the one that `train` makes.

    Each has a run directory seed-S in `out`, of numbers alone: no weights are kept. `out`/summary.json holds what all finished
    runs came to, written anew after each. The other arguments are those of `fastcifar.engine.trainer.train`.

    Returns:
        The results, the last of which is unfinished where `should_stop` ended it, and the contents of summary.json. All
        results have one model, which is that of the last run.

    Raises:
        UserError: as `train` does.
    """
    last = recipe.train.seed + runs - 1
    recipe.with_seed(last)  # raises where there is no such seed
    started, results, summary = time.perf_counter(), [], {}
    reporter = reporter or Reporter(epochs=False)
    with joined(device) as world, arithmetic_of(recipe), advised(recipe, dataset.manifest, world):
        root = world.first(lambda: new_run(recipe, out).root)
        with closing(Engine(recipe, dataset, world, backend=backend, loader=loader)) as engine:
            for seed in range(recipe.train.seed, last + 1):
                if results:
                    started = time.perf_counter()
                    engine.reset(seed)
                trainer = Trainer(engine, RunDirectory(root / f"seed-{seed}"), reporter, started=started, keep_weights=False)
                trainer.warm_up()
                if not results:
                    trainer.introduce()
                results.append(trainer.fit(should_stop))
                if not results[-1].finished:
                    break
                summary = summarize([result.summary for result in results])
                if world.leads:
                    write_json(root / "summary.json", summary)
    return results, summary


def summarize(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """What finished runs came to: for each measure mean, standard deviation, 95 % interval and the values."""
    first = summaries[0]
    described = {key: first[key] for key in ("recipe", "dataset", "parameters", "epochs", "warm_up_seconds")}
    known = [key for key in MEASURED if first[key] is not None]
    measures = {key: asdict(interval([summary[key] for summary in summaries])) for key in known}
    return described | {"runs": len(summaries), "seeds": [summary["seed"] for summary in summaries]} | measures
