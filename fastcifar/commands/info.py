"""Show a recipe's model and this machine."""

from typing import Annotated

import typer

from fastcifar.commands.options import Device, Json, OptionalData, Overrides, RecipeName, prepared_data, write_result


def info(
    recipe: RecipeName = "seed",
    set_: Overrides = [],  # noqa: B006
    data: OptionalData = None,
    layers: Annotated[bool, typer.Option("--layers", help="Add the table of layers.")] = False,
    device: Device = "auto",
    json: Json = None,
) -> None:
    """Show a recipe's model, its size and operations, this machine, and the floor of the run's time on it."""
    from fastcifar.data.dataset import load_manifest
    from fastcifar.display.info import print_info
    from fastcifar.profiling.info import describe
    from fastcifar.recipe import load_recipe
    from fastcifar.runtime.device import choose_device
    from fastcifar.runtime.precision import emulation_warning

    data, loaded, where = prepared_data(data), load_recipe(recipe, set_), choose_device(device)
    if warning := emulation_warning(loaded.resolved(where)[0].train.precision, where):
        print(warning)
    described = describe(loaded, device, load_manifest(data) if data else None)
    print_info(described, layers=layers)
    write_result(json, described)
