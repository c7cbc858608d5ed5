"""Many runs of one recipe in one process: model, graphs and data are built once and reset for each run's seed."""

import time
from collections.abc import Callable
from pathlib import Path

from fastcifar.data.dataset import Dataset
from fastcifar.display.console import Reporter
from fastcifar.engine.engine import Engine
from fastcifar.engine.out_of_memory import out_of_memory_as_user_error
from fastcifar.engine.trainer import Result, Trainer
from fastcifar.recipe import Recipe
from fastcifar.run.directory import RunDirectory, new_run
from fastcifar.run.summary import RunsSummary
from fastcifar.runtime.distributed import process_group
from fastcifar.runtime.files import write_json


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
    after_run: Callable[[RunsSummary], None] = lambda summary: None,
) -> tuple[list[Result], RunsSummary | None]:
    """Train `recipe` with the seeds s, s + 1, ..., s + runs - 1, where s is its own seed. Each run equals one by `train`.

    Each run has a directory seed-S in `out`, without weights. `out`/summary.json summarises the finished runs and is rewritten
    after each, and given to `after_run`. The other arguments are those of `fastcifar.engine.trainer.train`.

    Returns:
        The results (the last one is unfinished if `should_stop` ended it), and the contents of summary.json (None if no run
        finished). All results share one model, that of the last run.

    Raises:
        UserError: as `train` does.
    """
    last = recipe.train.seed + runs - 1
    recipe.with_seed(last)  # raises if the seed is too large
    started, results, summary = time.perf_counter(), [], None
    reporter = reporter or Reporter(epochs=False)
    with process_group(device) as world, out_of_memory_as_user_error(recipe, dataset.manifest, world):
        root = world.run_on_rank_0(lambda: new_run(recipe, out).root)
        with Engine(recipe, dataset, world, backend=backend, loader=loader) as engine:
            for seed in range(recipe.train.seed, last + 1):
                if results:
                    started = time.perf_counter()
                    engine.reset(seed)
                trainer = Trainer(engine, RunDirectory(root / f"seed-{seed}"), reporter, started=started, keep_weights=False)
                trainer.prepare()
                if not results:
                    trainer.print_setup()
                results.append(trainer.fit(should_stop))
                if not results[-1].finished:
                    break
                summary = RunsSummary.of([result.summary for result in results])
                if world.is_rank_0:
                    write_json(root / "summary.json", summary.to_json())
                    after_run(summary)
    return results, summary
