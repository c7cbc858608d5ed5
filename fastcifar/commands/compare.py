"""Compare recipes by their runs."""

from pathlib import Path
from typing import Annotated

import typer

from fastcifar.commands.options import Json, write_result


def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER", help="Two or more folders of `train --runs N`.")],
    measure: Annotated[
        str,
        typer.Option(help="test_accuracy, val_accuracy, test_loss, train_loss, seconds, images_per_s or train_seconds."),
    ] = "test_accuracy",
    json: Json = None,
) -> None:
    """Compare the runs of the first folder with those of each other one: the difference, and whether it may be chance."""
    from fastcifar.display.tables import print_comparison
    from fastcifar.run.compare import compare as compare_folders

    comparison = compare_folders(folders, measure)
    print_comparison(comparison)
    write_result(json, comparison.to_json())
