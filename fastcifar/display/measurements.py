"""Measurements of `fastcifar bench` on the console, in markdown and in JSON."""

import datetime
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastcifar.display.console import plain_console
from fastcifar.runtime.environment import environment, version_of
from fastcifar.runtime.measurement import SECONDS, Measurement

COLUMNS = "case", "batch", "variant", "median", "min .. max", "of the roofline", "fastcifar is", "warm-up"
NUMBERS_FROM = 3
"""Index of the first right-aligned column."""
ABOVE = "*"
"""Mark of a share above 100 %; `footnotes` explains it."""
PEERS = "torchvision", "ffcv", "kornia", "timm"


@contextmanager
def working() -> Iterator[Callable[[str], None]]:
    """Yield a function that shows on a terminal what is being measured."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda what: None
        return
    with console.status("") as status:
        yield lambda what: status.update(escape(what))


def print_measurements(rows: Sequence[Measurement]) -> None:
    """Print a table for each subject."""
    console = plain_console()
    for subject, unit, part in _by_subject(rows):
        table = Table(*COLUMNS, box=None, title=f"{subject}, {unit}", title_justify="left", title_style="bold")
        for column in table.columns[NUMBERS_FROM:]:
            column.justify = "right"
        for row in part:
            table.add_row(*map(escape, cells(row)))
        console.print(table, crop=False, overflow="ignore")
        for line in footnotes(part):
            console.print(f"  {line}", markup=False)
        console.print()


def to_markdown(rows: Sequence[Measurement]) -> str:
    """Format a section per subject: a table and its footnotes."""
    lines = []
    for subject, unit, part in _by_subject(rows):
        rule = ["---:" if number >= NUMBERS_FROM else "---" for number in range(len(COLUMNS))]
        lines += [f"### {subject}, {unit}", "", *(_line(row) for row in (COLUMNS, rule, *map(cells, part))), ""]
        lines += [*(f"- {line}" for line in footnotes(part)), ""]
    return "\n".join(lines)


def cells(row: Measurement) -> list[str]:
    """Format a row, one text for each of COLUMNS."""
    batch = "" if row.batch_size is None else str(row.batch_size)
    if row.median is None:
        return [row.case, batch, row.variant, "not measured", "", "", "", ""]
    low, high = row.spread
    return [
        row.case,
        batch,
        row.variant,
        number(row.median),
        f"{number(low)} .. {number(high)}",
        _share(row.share_of_floor),
        "" if row.ratio is None else f"{number(row.ratio)} x",
        f"{row.warm_up_s:.3g} s",
    ]


def _share(share: float | None) -> str:
    if share is None:
        return ""
    return f"{share:.2%}" + (f" {ABOVE}" if share > 1 else "")


def footnotes(rows: Sequence[Measurement]) -> list[str]:
    """List each roofline (or floor) of one subject once, then each implementation's note: how it ran, or why it did not."""
    cases: dict[str, list[str]] = {}
    for row in rows:
        if row.case not in cases.setdefault(row.floor_of, []):
            cases[row.floor_of].append(row.case)
    what = "floor" if rows[0].unit == SECONDS else "roofline"
    lines = [f"{what} of {', '.join(names)}: {of}" for of, names in cases.items() if of]
    if any((row.share_of_floor or 0) > 1 for row in rows):
        lines.append(f"{ABOVE} above 100 %: it did less work than the {what} counts; see its note, or data stayed in a cache")
    notes = [f"{row.variant}{'' if row.rounds else ' not measured'}: {row.note}" for row in rows if row.note]
    return list(dict.fromkeys(lines + notes))


def document(rows: Iterable[Measurement], device: torch.device, command: str) -> dict[str, Any]:
    """Add provenance to measurements, ready for JSON; `read_document` is the inverse."""
    return {
        "command": command,
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "environment": environment(device),
        "peers": {name: version_of(name) for name in PEERS},
        "measurements": [row.to_json() for row in rows],
    }


def read_document(content: dict[str, Any]) -> list[Measurement]:
    """Read the measurements of a `document`."""
    return [Measurement.from_json(row) for row in content["measurements"]]


def _by_subject(rows: Sequence[Measurement]) -> Iterator[tuple[str, str, list[Measurement]]]:
    for subject in dict.fromkeys(row.subject for row in rows):
        part = [row for row in rows if row.subject == subject]
        yield subject, part[0].unit, part


def _line(row: Sequence[str]) -> str:
    return f"| {' | '.join(row)} |"


def number(value: float) -> str:
    """Format with three significant digits, or all digits before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
