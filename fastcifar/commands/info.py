"""Show a recipe's model and this machine."""

from typing import Annotated

import typer

from fastcifar.commands.options import Device, Json, Overrides, RecipeName, write_result


def info(
    recipe: RecipeName = "seed",
    set_: Overrides = [],  # noqa: B006
    layers: Annotated[bool, typer.Option("--layers", help="Add the table of layers.")] = False,
    device: Device = "auto",
    json: Json = None,
) -> None:
    """Show a recipe's model, its size and operations, this machine, and the floor of the run's time on it."""
    from fastcifar.profiling.info import describe, print_info
    from fastcifar.recipe import load_recipe

    described = describe(load_recipe(recipe, set_), device)
    print_info(described, layers=layers)
    write_result(json, described)
