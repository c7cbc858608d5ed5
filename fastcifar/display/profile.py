"""Printed profile of a step, and its roofline plot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table

from fastcifar.display.console import plain_console
from fastcifar.runtime.files import replacing

WIDTH = 24
"""Characters of a bar of 100 %."""


def print_profile(found: Mapping[str, Any]) -> None:
    """Print the result of `fastcifar.profiling.profile.profile`."""
    console = plain_console()
    rounds, step = found["rounds"], found["step_seconds"]
    console.print(
        f"{found['recipe']} at batch {found['batch_size']} on {found['environment']['device']}: {found['precision']} "
        f"({found['precision_reason']}), {found['step']} step ({found['step_reason']})",
        markup=False,
    )
    spread = f"{_time(min(rounds))} to {_time(max(rounds))} in {len(rounds)} rounds"
    console.print(
        f"step {_time(step)} ({spread}), {found['images_per_s']:,.0f} images/s, warm-up {found['warm_up_seconds']:.1f} s"
    )
    console.print(_shares("phase", found["phases"], step))
    traced, idle = found["traced_seconds"], found["traced_idle_seconds"]
    console.print(f" idle in the trace: {_time(idle)} of {_time(traced)}, {idle / traced if traced else 0:.1%}")
    if counts := found["phases_found"]:
        shares = ", ".join(f"{count / sum(counts.values()):.1%} {how}" for how, count in counts.items())
        console.print(f" phases of the graph's kernels from the uncaptured step: {shares}")
    console.print(_shares("kind of work", found["groups"], step))
    console.print(_top(found["top"], step), crop=False, overflow="ignore")
    console.print(_rates(found))
    console.print(f"\n{found['bottleneck']}", markup=False)


def _shares(title: str, seconds: Mapping[str, float], step: float) -> Table:
    table = Table(title, "time", "share", "", box=None, show_edge=False)
    table.columns[1].justify = table.columns[2].justify = "right"
    for name, spent in seconds.items():
        table.add_row(name, _time(spent), f"{spent / step:.1%}", "█" * round(WIDTH * spent / step))
    return table


def _top(rows: list[dict[str, Any]], step: float) -> Table:
    table = Table("longest work", "kind", "calls per step", "time", "share", box=None, show_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        name = row["name"] if len(row["name"]) <= 60 else f"{row['name'][:57]}..."
        table.add_row(escape(name), row["group"], f"{row['calls']:.3g}", _time(row["seconds"]), f"{row['seconds'] / step:.1%}")
    return table


def _rates(found: Mapping[str, Any]) -> Table:
    peak, table = found["peaks"], Table.grid(padding=(0, 2))
    flops, peak_flops = found["flops_per_s"] / 1e12, peak["flops_per_s"] / 1e12
    moved, copied = found["bytes_per_s"] / 1e9, peak["bytes_per_s"] / 1e9
    table.add_row(" arithmetic", f"{flops:.3g} of {peak_flops:.3g} TFLOP/s: model FLOP utilisation {found['utilisation']:.1%}")
    table.add_row(" memory", f"{moved:,.3g} of {copied:,.4g} GB/s, by the bytes counted without fusion and caches")
    table.add_row(" peak memory", f"{found['peak_bytes'] / 2**20:,.0f} MiB")
    return table


def plot_roofline(found: Mapping[str, Any], path: Path) -> None:
    """Draw the roofline, and below it the step and its convolutions: FLOP/s over FLOP per byte moved."""
    peak = found["peaks"]
    points = {"step": (found["flops"], found["bytes"]["step"], found["step_seconds"])}
    if seconds := found["groups"].get("convolution and matrix product"):
        points["convolutions"] = (found["flops"], found["bytes"]["convolution"], seconds)
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    ridge = peak["flops_per_s"] / peak["bytes_per_s"]
    intensity = np.geomspace(ridge / 100, ridge * 100, 200)
    axes.loglog(
        intensity, np.minimum(peak["flops_per_s"], intensity * peak["bytes_per_s"]) / 1e12, "k-", label="measured roofline"
    )
    for name, (flops, moved, seconds) in points.items():
        axes.loglog(
            flops / moved,
            flops / seconds / 1e12,
            "o",
            label=f"{name}: {flops / seconds / peak['flops_per_s']:.0%} of the peak",
        )
    axes.set(xlabel="FLOP / byte (bytes counted without fusion or cache)", ylabel="TFLOP/s")
    axes.set_title(
        f"{found['recipe']}, batch {found['batch_size']}, {found['precision']}, {found['environment']['device']}", fontsize=9
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _time(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"
