"""List the recipes and their keys."""

from typing import Annotated

import typer

from fastcifar.commands.options import Json, write_result


def recipes(
    name: Annotated[str | None, typer.Argument(help="A recipe to explain, key by key.")] = None, json: Json = None
) -> None:
    """List the recipes, or explain one."""
    from fastcifar.display.tables import print_recipe, print_recipes
    from fastcifar.recipe import explain, load_recipe, recipe_names

    if name:
        loaded = load_recipe(name)
        print_recipe(loaded)
        write_result(json, [{"key": key, "value": value, "meaning": meaning} for key, value, meaning in explain(loaded)])
        return
    listed = {known: load_recipe(known).description for known in recipe_names()}
    print_recipes(listed)
    write_result(json, listed)
