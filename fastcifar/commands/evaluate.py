"""Score a trained run."""

from pathlib import Path
from typing import Annotated

import typer

from fastcifar.commands.options import Data, Device, Json, LoaderKind, write_result


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
    from fastcifar.display.tables import print_evaluation
    from fastcifar.engine.evaluate import evaluate_run
    from fastcifar.run.directory import open_run, read_environment
    from fastcifar.runtime.device import choose_device
    from fastcifar.runtime.precision import emulation_warning

    (directory, recipe), where = open_run(run), choose_device(device)
    dataset = load_dataset(data)
    if warning := emulation_warning(recipe.resolved(where)[0].train.precision, where):
        print(warning)
    path = {"last": directory.last, "best": directory.best}.get(checkpoint, Path(checkpoint))
    score = evaluate_run(recipe, path, dataset, split, where, loader, say=print)
    if read_environment(directory).get("dataset_sha256") != dataset.manifest.sha256:
        print(f"note: {run} was trained on other data than {data} holds")
    print_evaluation(score, dataset.manifest.classes, f"{path} on the {split} split of {dataset.manifest.name}")
    write_result(json, {"split": split, "checkpoint": str(path), **score.to_json(dataset.manifest.classes)})
