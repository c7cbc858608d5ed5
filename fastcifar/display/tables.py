"""Results and recipes as tables on the console."""

from collections.abc import Mapping, Sequence

from rich.markup import escape
from rich.table import Table

from fastcifar.display.console import plain_console
from fastcifar.recipe import Recipe, explain
from fastcifar.run.score import Score
from fastcifar.run.summary import RunsSummary


def print_evaluation(score: Score, classes: Sequence[str], title: str) -> None:
    """Print accuracy and loss, and one row per true class with its accuracy and the counts of predictions (columns)."""
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
    """Print the recipes' names and descriptions."""
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


def print_runs(summary: RunsSummary) -> None:
    """Print mean, 95 % interval, standard deviation, minimum and maximum of each measure of several runs."""
    table = Table("", "mean", "95 % interval", "std", "min", "max", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, measure in summary.measures.items():
        style = "{:.2%}" if name.endswith("accuracy") else "{:,.0f}" if name == "images_per_s" else "{:.3f}"
        known = [measure.mean, measure.half_width, measure.std, min(measure.values), max(measure.values)]
        mean, half_width, *others = ["-" if value is None else style.format(value) for value in known]
        table.add_row(name.replace("_", " "), mean, f"± {half_width}", *others)
    console = plain_console()
    seeds = summary.seeds
    console.print(
        f"{summary.recipe} on {summary.dataset}, {len(seeds)} finished, seeds {seeds[0]} to {seeds[-1]}", markup=False
    )
    console.print(table)
