"""Results and recipes as tables on the console."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from fastcifar.config import Recipe, explain
from fastcifar.engine.evaluate import Evaluation
from fastcifar.report.console import plain_console


def print_evaluation(score: Evaluation, classes: Sequence[str], title: str) -> None:
    """Print accuracy, loss and, a row for each true class, its accuracy and the predictions (columns)."""
    console = plain_console()
    console.print(f"{title}: accuracy {score.accuracy:.2%}, loss {score.loss:.4f}, {score.images:,} images", markup=False)
    table = Table("class", "accuracy", *(str(column) for column in range(len(classes))), box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for row, (name, share, counts) in enumerate(zip(classes, score.per_class, score.confusion.tolist(), strict=True)):
        shown = "-" if share is None else f"{share:.2%}"
        table.add_row(escape(f"{row} {name}"), shown, *(str(count) for count in counts))
    console.print(table, crop=False, overflow="ignore")


def print_recipes(descriptions: Mapping[str, str]) -> None:
    """Print the recipes' names with what they are."""
    table = Table.grid(padding=(0, 2))
    for name, description in descriptions.items():
        table.add_row(escape(name), escape(description))
    plain_console().print(table)


def print_recipe(recipe: Recipe) -> None:
    """Print every key of a recipe with its value and meaning."""
    table = Table.grid(padding=(0, 2))
    for key, value, meaning in explain(recipe):
        shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        table.add_row(key, escape(shown), meaning)
    console = plain_console()
    console.print(f"{recipe.name}: {recipe.description}", markup=False)
    console.print(table)


def print_runs(summary: Mapping[str, Any]) -> None:
    """Print what several runs came to: mean, 95 % interval, standard deviation, least and most of each measure."""
    table = Table("", "mean", "95 % interval", "std", "min", "max", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, measure in summary.items():
        if isinstance(measure, Mapping):
            style = "{:.2%}" if name.endswith("accuracy") else "{:,.0f}" if name == "images_per_s" else "{:.3f}"
            spread = (
                [style.format(measure["half_width"]), style.format(measure["std"])]
                if measure["std"] is not None
                else ["-", "-"]
            )
            ends = [style.format(end(measure["values"])) for end in (min, max)]
            table.add_row(name.replace("_", " "), style.format(measure["mean"]), f"± {spread[0]}", spread[1], *ends)
    console = plain_console()
    seeds = summary["seeds"]
    console.print(
        f"{summary['recipe']} on {summary['dataset']}, {len(seeds)} finished, seeds {seeds[0]} to {seeds[-1]}", markup=False
    )
    console.print(table)
