"""Draw a picture of a recipe's augmentation."""

from pathlib import Path
from typing import Annotated

import typer

from fastcifar.commands.options import Data, Device, Json, Overrides, RecipeName, write_result


def augment(
    recipe: RecipeName = "seed",
    data: Data = Path("betons"),
    out: Annotated[Path, typer.Option(metavar="FILE", help="Picture to write: .png, .pdf or .svg.")] = Path("grid.png"),
    images: Annotated[int, typer.Option(help="Images, one per row.")] = 8,
    draws: Annotated[int, typer.Option(help="Draws of each, one per column: those of epochs 0, 1, ...")] = 8,
    set_: Overrides = [],  # noqa: B006
    device: Device = "auto",
    json: Json = None,
) -> None:
    """Draw real images as a recipe's augmentation changes them."""
    from fastcifar.data.dataset import load_dataset
    from fastcifar.display.grid import draw_grid
    from fastcifar.recipe import load_recipe
    from fastcifar.runtime.device import choose_device

    dataset = load_dataset(data)
    loaded = load_recipe(recipe, set_).fitted_to(dataset.manifest)
    where = {"images": images, "draws": draws, "seed": loaded.train.seed, "device": choose_device(device)}
    draw_grid(dataset.train, loaded.augment, dataset.manifest.classes, out, **where)
    print(f"{out}: {images} images of {dataset.manifest.name}, {draws} draws each of the recipe {loaded.name}")
    write_result(json, {"out": str(out), **where, "device": str(where["device"]), "policy": loaded.augment.to_config()})
