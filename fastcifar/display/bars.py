"""Pictures of measurements."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastcifar.display.grid import FORMATS
from fastcifar.runtime.errors import UserError
from fastcifar.runtime.files import replacing
from fastcifar.runtime.measurement import SECONDS, Measurement

ROW_INCHES, HEAD_INCHES = 0.22, 0.9
OURS, THEIRS = "tab:blue", "tab:gray"
LOG_FROM = 10
"""Ratio of the largest to the smallest value above which an axis is logarithmic; bar lengths then are no longer to scale."""


def check_format(option: str, path: Path) -> None:
    """Check the format of a picture before the work whose result it shows.

    Raises:
        UserError: the file name has none of the supported extensions.
    """
    if path.suffix not in FORMATS:
        raise UserError(f"{option} {path}: must end in one of {', '.join(FORMATS)}")


def plot_bars(rows: Sequence[Measurement], path: Path) -> None:
    """Draw a panel per subject and a bar per variant of each case, with its spread; the roofline or floor is a dashed line.

    Raises:
        UserError: nothing was measured.
    """
    panels = _panels(rows, lambda row: (row.subject,))
    heights = [HEAD_INCHES + ROW_INCHES * len(part) for part in panels.values()]
    figure = Figure(figsize=(10, sum(heights)), layout="constrained")
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, ((subject,), part) in zip(grid, panels.items(), strict=True):
        _draw_bars(axes, part)
        axes.set(title=subject, xscale=_scale(part), xlabel=_label(part[0].unit))
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)


def plot_sweep(rows: Sequence[Measurement], path: Path) -> None:
    """Draw a panel per case and a line per variant over the batch size, which shows where throughput saturates.

    Raises:
        UserError: nothing was measured at a batch size.
    """
    panels = _panels([row for row in rows if row.batch_size], lambda row: (row.subject, row.case))
    figure = Figure(figsize=(5.5 * len(panels), 4.2), layout="constrained")
    for axes, ((subject, case), part) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for variant in dict.fromkeys(row.variant for row in part):
            points = sorted((row.batch_size, row.median) for row in part if row.variant == variant)
            axes.loglog(*zip(*points, strict=True), "o-", markersize=4, label=variant)
        axes.set(title=f"{subject}: {case}", xlabel="batch size", ylabel=_label(part[0].unit))
        sizes = sorted({row.batch_size for row in part})
        axes.set_xticks(sizes, list(map(str, sizes)))
        axes.xaxis.minorticks_off()
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize="small")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _panels(rows: Sequence[Measurement], key) -> dict[tuple[str, ...], list[Measurement]]:
    measured = [row for row in rows if row.rounds]
    if not measured:
        raise UserError("nothing was measured that could be drawn")
    return {name: [row for row in measured if key(row) == name] for name in dict.fromkeys(map(key, measured))}


def _draw_bars(axes: Axes, rows: Sequence[Measurement]) -> None:
    places = range(len(rows), 0, -1)  # first row at the top
    medians = [row.median for row in rows]
    errors = list(zip(*((row.median - row.spread[0], row.spread[1] - row.median) for row in rows), strict=True))
    colours = [OURS if row.variant.startswith("fastcifar") else THEIRS for row in rows]
    axes.barh(places, medians, xerr=errors, color=colours, height=0.7, error_kw={"elinewidth": 1})
    for place, row in zip(places, rows, strict=True):
        axes.plot([row.floor] * 2, [place - 0.45, place + 0.45], "k--", linewidth=1)
    axes.set_yticks(places, [_name(row) for row in rows], fontsize="small")
    axes.grid(alpha=0.3, axis="x")


def _scale(rows: Sequence[Measurement]) -> str:
    values = [row.median for row in rows] + [row.floor for row in rows]
    return "log" if max(values) > LOG_FROM * min(values) else "linear"


def _name(row: Measurement) -> str:
    batch = f", {row.batch_size}" if row.batch_size else ""
    return f"{row.case}{batch}: {row.variant}"


def _label(unit: str) -> str:
    return "s, less is better" if unit == SECONDS else unit
