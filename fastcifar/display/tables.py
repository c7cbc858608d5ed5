"""Results and recipes as tables on the console."""

from collections.abc import Mapping, Sequence

from rich.markup import escape
from rich.table import Table

from fastcifar.display.console import plain_console
from fastcifar.recipe import Recipe, explain
from fastcifar.run.compare import Comparison, Pair
from fastcifar.run.score import Score
from fastcifar.run.statistics import MOST_RUNS, POWER, SIGNIFICANCE, Difference
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
    """Print a row for each of several runs, then mean, deviation and 95 % interval, median time, operations and warm-up."""
    names = [name for name in ("test_accuracy", "val_accuracy", "train_loss", "seconds") if name in summary.measures]
    measures = [summary.measures[name] for name in names]
    table = Table("seed", *(name.replace("_", " ") for name in names), box=None)
    for column in table.columns:
        column.justify = "right"
    for row in summary.rows:
        table.add_row(str(row["seed"]), *(_shown(name, row[name]) for name in names))
    table.add_row()
    for title, field in (("mean", "mean"), ("std", "std"), ("95 % interval", "half_width")):
        sign = "± " if field == "half_width" else ""
        values = (_shown(name, getattr(one, field), sign, digits=1) for name, one in zip(names, measures, strict=True))
        table.add_row(title, *values)
    console = plain_console()
    seeds = summary.seeds
    console.print(
        f"{summary.recipe} on {summary.dataset}, {len(seeds)} finished, seeds {seeds[0]} to {seeds[-1]}", markup=False
    )
    console.print(table)
    console.print(
        f"median time {summary.median_seconds:.3f} s a run, {summary.pflop:.3g} PFLOP a run; "
        f"warm-up {summary.warm_up_seconds:.1f} s once, not in these times"
    )


def print_comparison(comparison: Comparison) -> None:
    """Print mean, deviation and 95 % interval of each folder, then what each pair of folders tells."""
    console, measure = plain_console(), comparison.measure
    if comparison.warning:
        console.print(comparison.warning, markup=False)
    table = Table(measure.replace("_", " "), "recipe", "runs", "mean", "std", "95 % interval", box=None)
    for column in table.columns[2:]:
        column.justify = "right"
    for sample in comparison.samples:
        one = sample.interval
        spread = _shown(measure, one.std, digits=1), _shown(measure, one.half_width, "± ", digits=1)
        names = escape(sample.folder), escape(sample.recipe)
        table.add_row(*names, str(len(one.values)), _shown(measure, one.mean, digits=1), *spread)
    console.print(table)
    for pair in comparison.pairs:
        console.print(f"\n{pair.other} minus {pair.first}: {pair.verdict}", markup=False)
        rows = Table.grid(padding=(0, 2))
        for name, value in _pair_rows(comparison, pair):
            rows.add_row(f"  {name}", value)
        console.print(rows)


def _pair_rows(comparison: Comparison, pair: Pair) -> list[tuple[str, str]]:
    """(name, value in words) of all that is known of a pair."""
    found, count = pair.difference, len(comparison.pairs)
    means, *ends = (_signed(comparison.measure, value) for value in _with_ends(found))
    means += _unit(comparison.measure)
    if found.p is None:
        return [("difference", means), ("p value", "undefined: all values of each folder are identical")]
    several = f" by Holm's correction for {count} pairs with the first folder ({found.p:.2g} alone)"
    runs = f"more than {MOST_RUNS:,}" if found.runs_needed is None else f"{found.runs_needed:,}"
    needed = f"{runs} of each, to show a difference of this size in {POWER:.0%} of all cases (two-sided, {SIGNIFICANCE:.0%})"
    return [
        ("difference", f"{means}, 95 % interval {' to '.join(ends)}" + ", of this pair alone" * comparison.corrected),
        ("p value", f"{pair.p:.2g}{several if comparison.corrected else ''}, Welch's t test"),
        ("effect size", f"{found.effect_size:.2f}, Cohen's d: difference divided by the pooled standard deviation"),
        ("runs needed", needed if found.mean else "no number of runs: the means are equal"),
    ]


def _with_ends(found: Difference) -> list[float]:
    """The difference and, where known, the ends of its 95 % interval."""
    half_width = found.half_width
    return [found.mean] if half_width is None else [found.mean, found.mean - half_width, found.mean + half_width]


def _signed(measure: str, value: float) -> str:
    """Format a difference of a measure, in the unit that `_unit` names."""
    return _shown(measure, value, digits=1, form="+").removesuffix("%")


def _unit(measure: str) -> str:
    if measure.endswith("accuracy"):
        return " percentage points"
    return {"images_per_s": " images/s", "seconds": " s", "train_seconds": " s"}.get(measure, "")


def _shown(measure: str, value: float | None, sign: str = "", *, digits: int = 0, form: str = "") -> str:
    """Format a measure: a run's own value, or with `digits` more that of several runs; "-" where it is unknown."""
    if value is None:
        return "-"
    if measure.endswith("accuracy"):
        return f"{sign}{value:{form}.{2 + digits}%}"
    if measure == "images_per_s":
        return f"{sign}{value:{form},.0f}"
    return f"{sign}{value:{form}.{(3 if measure.endswith('seconds') else 4) + digits}f}"
