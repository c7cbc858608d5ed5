"""Train a recipe, once or with several seeds."""

from pathlib import Path
from typing import Annotated

import typer

from fastcifar.commands.options import INTERRUPTED, Data, Device, Json, LoaderKind, Overrides, StepKind, write_result
from fastcifar.runtime.errors import UserError


def train(
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", show_default="seed", help="Name of a recipe (see `fastcifar recipes`) or a .toml file."),
    ] = None,
    data: Data = Path("betons"),
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Run directory; default runs/RECIPE-DATE-TIME.")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Resume a stopped run from its last checkpoint.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Short for --set train.epochs=N.")] = None,
    seed: Annotated[int | None, typer.Option(help="Short for --set train.seed=N.")] = None,
    runs: Annotated[
        int, typer.Option(min=1, help="Train this many times, with seeds train.seed, train.seed + 1, ...; keep no weights.")
    ] = 1,
    set_: Overrides = [],  # noqa: B006 (typer needs a list for a repeated option)
    deterministic: Annotated[bool, typer.Option("--deterministic", help="Short for --set train.deterministic=true.")] = False,
    device: Device = "auto",
    step: StepKind = "auto",
    loader: LoaderKind = "auto",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print the loss of every log_every steps.")] = False,
    json: Json = None,
) -> None:
    """Train a recipe; Ctrl-C stops it with a checkpoint."""
    from fastcifar.data.dataset import load_dataset
    from fastcifar.display.console import Reporter
    from fastcifar.display.tables import print_runs
    from fastcifar.engine.runs import train_runs
    from fastcifar.engine.trainer import train as run_training
    from fastcifar.recipe import load_recipe
    from fastcifar.run.directory import open_run
    from fastcifar.runtime.distributed import process_group
    from fastcifar.runtime.interrupt import stop_on_interrupt

    shortcuts = [f"train.{key}={value}" for key, value in (("epochs", epochs), ("seed", seed)) if value is not None]
    shortcuts += ["train.deterministic=true"] if deterministic else []
    if resume and (out or set_ or shortcuts or recipe or runs > 1):
        raise UserError("--resume uses the run's own recipe; it takes no other recipe or override, no --out and no --runs")
    with process_group(device) as world:
        run, resolved = open_run(resume) if resume else (None, load_recipe(recipe or "seed", [*shortcuts, *set_]))
        dataset = load_dataset(data)
        reporter = Reporter(verbose=verbose, epochs=verbose or runs == 1)
        with stop_on_interrupt(echo=0.0 if world.size == 1 else 5.0) as should_stop:
            options = {"device": device, "backend": step, "loader": loader, "reporter": reporter, "should_stop": should_stop}
            if runs == 1:
                result = run_training(resolved, dataset, out, resume=run, **options)
                summary, hint = result.summary, f"; resume with: fastcifar train --resume {result.run.root} --data {data}"
            else:
                results, summary = train_runs(resolved, dataset, out, runs=runs, **options)
                result, hint = results[-1], f" in run {len(results)} of {runs}; {len(results) - 1} finished"
    if world.is_rank_0 and summary:
        write_result(json, summary.to_json())
        if runs > 1:
            print_runs(summary)
    if not result.finished:
        if world.is_rank_0:
            print(f"stopped{hint}")
        raise typer.Exit(INTERRUPTED)
