"""The `fastcifar` command: arguments, calls and printing, nothing else.

Heavy imports stand inside the commands, so that `fastcifar --help` answers at once.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fastcifar.errors import RepeatedError, UserError

INTERRUPTED = 130  # what shells report of a program ended by Ctrl-C

app = typer.Typer(
    help="Train small-image classifiers as fast as the hardware allows.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _check_writable(option: typer.CallbackParam, path: Path | None) -> Path | None:
    """Refuse, before the work is done, a file that could not be written after it."""
    if path:
        folder = next((parent for parent in path.absolute().parents if parent.exists()), path)
        if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
            raise UserError(f"{option.opts[0]} {path}: no file can be written there")
    return path


Json = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write the result as JSON too.", callback=_check_writable),
]
Data = Annotated[Path, typer.Option("--data", metavar="DIR", help="Folder that `fastcifar prep` wrote.")]
RecipeName = Annotated[str, typer.Option("--recipe", help="Name of a recipe (see `fastcifar recipes`) or a .toml file.")]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe, as in optimizer.lr=0.1.")
]
StepKind = Annotated[str, typer.Option("--step", help="Back end of the training step: auto, captured, compiled or eager.")]
LoaderKind = Annotated[
    str, typer.Option("--loader", help="auto, resident, or streaming for data larger than the device's memory.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


def main() -> None:
    """Run the command line; exit 0: done, 2: the user can fix it and one line on stderr says how, 1: a bug."""
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except RepeatedError:
        code = 2
    except UserError as error:
        code = _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away, as in `fastcifar recipes | head -1`
        sys.stderr.close()
        code = 0
    except OSError as error:  # no permission, a full disk, a folder where a file should be
        if error.filename is None:
            raise
        code = _fail(f"{error.filename2 or error.filename}: {error.strerror}")
    except Exception as error:
        if not hasattr(error, "format_message"):  # only usage errors have one; their class moved between typer's versions
            raise
        code = _fail(error.format_message())
    sys.exit(code or 0)


@app.command()
def prep(
    source: Annotated[
        str | None,
        typer.Argument(
            help="cifar10, cifar100, synthetic, a cifar-*-batches folder or .tar.gz, or a folder of class folders of "
            "images. Default: $FASTCIFAR_SOURCE, then ./data, then the download of CIFAR-10."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write the betons and dataset.json to.")] = Path("betons"),
    val_fraction: Annotated[float, typer.Option(help="Share of the training images kept for validation.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Seed of that split.")] = 0,
    resize: Annotated[int | None, typer.Option(metavar="N", help="Resize the images of a folder to N x N.")] = None,
    json: Json = None,
) -> None:
    """Convert a data set, once, to train.beton, val.beton, test.beton and dataset.json."""
    from dataclasses import asdict

    from data_prep import prepare
    from fastcifar.report.console import preparing

    with preparing() as progress:
        result = prepare(source, out, val_fraction=val_fraction, seed=seed, resize=resize, progress=progress)
    manifest = result.manifest
    counts = ", ".join(f"{count:,} {split}" for split, count in manifest.counts.items())
    done = f"written in {result.seconds:.1f} s" if result.changed else "already up to date, nothing done"
    print(f"{out}: {manifest.name}, {len(manifest.classes)} classes, {counts}; {done}")
    _write(json, {"out": str(out), "changed": result.changed, "seconds": result.seconds, "manifest": asdict(manifest)})


@app.command()
def train(
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", show_default="seed", help="Name of a recipe (see `fastcifar recipes`) or a .toml file."),
    ] = None,
    data: Data = Path("betons"),
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Run directory; default runs/RECIPE-DATE-TIME.")] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with a run that was stopped, from its last checkpoint.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Short for --set train.epochs=N.")] = None,
    seed: Annotated[int | None, typer.Option(help="Short for --set train.seed=N.")] = None,
    runs: Annotated[
        int, typer.Option(min=1, help="Train so many times, with the seeds from train.seed on; keep no weights.")
    ] = 1,
    set_: Overrides = [],  # noqa: B006 (typer's way of an option given many times)
    deterministic: Annotated[bool, typer.Option("--deterministic", help="Short for --set train.deterministic=true.")] = False,
    device: Device = "auto",
    step: StepKind = "auto",
    loader: LoaderKind = "auto",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print the loss of every log_every steps.")] = False,
    json: Json = None,
) -> None:
    """Train a recipe; Ctrl-C stops it with a checkpoint."""
    from fastcifar.config import load_recipe
    from fastcifar.data.dataset import load_dataset
    from fastcifar.engine.distributed import joined
    from fastcifar.engine.interrupt import stop_on_interrupt
    from fastcifar.engine.rundir import open_run
    from fastcifar.engine.runs import train_runs
    from fastcifar.engine.trainer import train as run_training
    from fastcifar.report.console import Reporter
    from fastcifar.report.tables import print_runs

    shortcuts = [f"train.{key}={value}" for key, value in (("epochs", epochs), ("seed", seed)) if value is not None]
    shortcuts += ["train.deterministic=true"] if deterministic else []
    if resume and (out or set_ or shortcuts or recipe or runs > 1):
        raise UserError("--resume goes on with the run's own recipe; give it no other, no --out and no --runs")
    with joined(device) as world:
        run, resolved = open_run(resume) if resume else (None, load_recipe(recipe or "seed", [*shortcuts, *set_]))
        dataset = load_dataset(data)
        reporter = Reporter(verbose=verbose, epochs=verbose or runs == 1)
        with stop_on_interrupt(echo=0.0 if world.size == 1 else 5.0) as should_stop:
            how = {"device": device, "backend": step, "loader": loader, "reporter": reporter, "should_stop": should_stop}
            if runs == 1:
                result = run_training(resolved, dataset, out, resume=run, **how)
                summary, go_on = result.summary, f"; go on with: fastcifar train --resume {result.run.root} --data {data}"
            else:
                results, summary = train_runs(resolved, dataset, out, runs=runs, **how)
                result, go_on = results[-1], f" in run {len(results)} of {runs}; {len(results) - 1} finished"
    if world.leads and summary:
        _write(json, summary)
        if runs > 1:
            print_runs(summary)
    if not result.finished:
        if world.leads:
            print(f"stopped{go_on}")
        raise typer.Exit(INTERRUPTED)


@app.command(name="eval")
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    data: Data = Path("betons"),
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    checkpoint: Annotated[str, typer.Option(help="last, best, or a .safetensors file.")] = "last",
    device: Device = "auto",
    loader: LoaderKind = "auto",
    json: Json = None,
) -> None:
    """Score a trained run: accuracy, accuracy of each class and the confusion matrix."""
    from fastcifar.data.dataset import load_dataset
    from fastcifar.engine.environment import choose_device
    from fastcifar.engine.evaluate import evaluate_run
    from fastcifar.engine.rundir import open_run, read_environment
    from fastcifar.report.tables import print_evaluation

    directory, recipe = open_run(run)
    dataset = load_dataset(data)
    path = {"last": directory.last, "best": directory.best}.get(checkpoint, Path(checkpoint))
    score = evaluate_run(recipe, path, dataset, split, choose_device(device), loader, say=print)
    if read_environment(directory).get("dataset_sha256") != dataset.manifest.sha256:
        print(f"note: {run} was trained on other data than {data} holds")
    print_evaluation(score, dataset.manifest.classes, f"{path} on the {split} split of {dataset.manifest.name}")
    _write(json, {"split": split, "checkpoint": str(path), **score.to_json(dataset.manifest.classes)})


@app.command()
def info(
    recipe: RecipeName = "seed",
    set_: Overrides = [],  # noqa: B006
    layers: Annotated[bool, typer.Option("--layers", help="Add the table of layers.")] = False,
    device: Device = "auto",
    json: Json = None,
) -> None:
    """Show a recipe's model, its size and work, this machine, and the floor time of the run on it."""
    from fastcifar.config import load_recipe
    from fastcifar.report.info import describe, print_info

    described = describe(load_recipe(recipe, set_), device)
    print_info(described, layers=layers)
    _write(json, described)


@app.command()
def augment(
    recipe: RecipeName = "seed",
    data: Data = Path("betons"),
    out: Annotated[Path, typer.Option(metavar="FILE", help="Picture to write: .png, .pdf or .svg.")] = Path("grid.png"),
    images: Annotated[int, typer.Option(help="Images, one a row.")] = 8,
    draws: Annotated[int, typer.Option(help="Draws of each, one a column: those of epochs 0, 1, ...")] = 8,
    set_: Overrides = [],  # noqa: B006
    device: Device = "auto",
    json: Json = None,
) -> None:
    """Draw what a recipe's augmentation makes of real images."""
    from fastcifar.config import load_recipe
    from fastcifar.data.dataset import load_dataset
    from fastcifar.engine.environment import choose_device
    from fastcifar.report.grid import draw_grid

    loaded, dataset = load_recipe(recipe, set_), load_dataset(data)
    where = {"images": images, "draws": draws, "seed": loaded.train.seed, "device": choose_device(device)}
    draw_grid(dataset.train, loaded.augment, dataset.manifest.classes, out, **where)
    print(f"{out}: {images} images of {dataset.manifest.name}, {draws} draws each of the recipe {loaded.name}")
    _write(json, {"out": str(out), **where, "device": str(where["device"]), "policy": loaded.augment.to_config()})


@app.command()
def profile(
    recipe: RecipeName = "seed",
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Folder that `fastcifar prep` wrote; default: betons, if there."),
    ] = None,
    set_: Overrides = [],  # noqa: B006
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps in a round and in the trace; default 20 on CUDA, 2 on a CPU.")
    ] = None,
    step: StepKind = "auto",
    loader: LoaderKind = "auto",
    device: Device = "auto",
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for trace, roofline and figures.")] = Path("profile"),
    json: Json = None,
) -> None:
    """Show where the time of a training step goes, and what to do about it."""
    from fastcifar.bench.setting import random_dataset
    from fastcifar.config import load_recipe
    from fastcifar.data.dataset import load_dataset
    from fastcifar.engine.environment import choose_device
    from fastcifar.engine.precision import emulation_warning, resolve_precision
    from fastcifar.profiling.profile import profile as run_profile
    from fastcifar.report.profile import plot_roofline, print_profile

    loaded, where = load_recipe(recipe, set_), choose_device(device)
    if data is None and not Path("betons", "dataset.json").is_file():
        print("no betons here: random images of 32 x 32 pixels, which change no time")
        dataset = random_dataset(max(4096, 2 * loaded.train.batch_size), 0)
    else:
        dataset = load_dataset(data or Path("betons"))
    trace = out / "trace.json.gz"
    if warning := emulation_warning(resolve_precision(loaded, where)[0].train.precision, where):
        print(warning)
    found = run_profile(loaded, dataset, where, trace, backend=step, loader=loader, steps=steps)
    print_profile(found)
    plot_roofline(found, out / "roofline.png")
    _write(out / "profile.json", found)
    _write(json, found)
    print(f"{trace} (for https://ui.perfetto.dev), {out / 'roofline.png'}, {out / 'profile.json'}")


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="A recipe to explain, key by key.")] = None, json: Json = None
) -> None:
    """List the recipes, or explain one."""
    from fastcifar.config import explain, load_recipe, recipe_names
    from fastcifar.report.tables import print_recipe, print_recipes

    if name:
        loaded = load_recipe(name)
        print_recipe(loaded)
        _write(json, [{"key": key, "value": value, "meaning": meaning} for key, value, meaning in explain(loaded)])
        return
    listed = {known: load_recipe(known).description for known in recipe_names()}
    print_recipes(listed)
    _write(json, listed)


@app.command()
def bench(
    subjects: Annotated[
        list[str], typer.Argument(metavar="[SUBJECT]...", help="prep, loader, augment, erasing, step, epoch, train, or all.")
    ] = ["all"],  # noqa: B006
    recipe: RecipeName = "seed",
    set_: Overrides = [],  # noqa: B006
    batch_size: Annotated[
        list[int],
        typer.Option(min=2, metavar="N", help="Give it several times for a sweep. Default: some that suit the device."),
    ] = [],  # noqa: B006
    device: Device = "auto",
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the bars: .png, .pdf or .svg.", callback=_check_writable)
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the tables as markdown.", callback=_check_writable)
    ] = None,
    json: Json = None,
) -> None:
    """Measure how fast everything is: beside its floor, and beside every peer that is installed."""
    import shlex

    from fastcifar.bench import choose_subjects, run
    from fastcifar.bench.plots import check_format, plot_bars
    from fastcifar.bench.report import document, print_measurements, to_markdown, working
    from fastcifar.config import load_recipe
    from fastcifar.engine.environment import choose_device, device_name
    from fastcifar.engine.precision import emulation_warning, resolve_precision
    from fastcifar.files import write_text

    chosen, loaded, where = choose_subjects(subjects), load_recipe(recipe, set_), choose_device(device)
    if plot:
        check_format("--plot", plot)
    print(f"{where}: {device_name(where)}; all take turns, a ratio is the median of the ratios of rounds side by side\n")
    loaded, why = resolve_precision(loaded, where)
    print(f"precision: {loaded.train.precision} ({why})")
    if warning := emulation_warning(loaded.train.precision, where):
        print(warning)
    rows = []
    for subject in chosen:
        with working() as progress:
            measured = run([subject], where, loaded, batch_sizes=batch_size, progress=progress)
        print_measurements(measured)
        rows += measured
    if plot:
        plot_bars(rows, plot)
    if markdown:
        write_text(markdown, to_markdown(rows))
    _write(json, document(rows, where, shlex.join(["fastcifar", *sys.argv[1:]])))


def _write(path: Path | None, value: Any) -> None:
    if path:
        from fastcifar.files import write_json

        write_json(path, value)


def _fail(message: str) -> int:
    print(f"fastcifar: {message}", file=sys.stderr)
    return 2
