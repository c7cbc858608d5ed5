"""Write the results of gpu_suite.py as markdown tables, and copy them to README.md."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaling import Point, plot_scaling, scaling_table

from fastcifar.display.measurements import read_document, to_markdown
from fastcifar.runtime.files import write_text

BEGIN, END = "<!-- measured on a GPU: begin -->", "<!-- measured on a GPU: end -->"


def write_tables(results: Mapping[str, Any], path: Path) -> None:
    """Write the tables, and beside them the picture of the scaling if it was measured."""
    write_text(path, tables(results))
    if scaling := measured(results["pieces"].get("scaling", {})):
        title = f"the seed recipe on {results['environment']['device_name']}"
        picture = path.with_name(f"{path.stem}-scaling.png")
        plot_scaling(_points(scaling), picture, title, scaling["streaming_begins"])


def measured(job: Mapping[str, Any]) -> Any:
    """Return the result of a job, or what it had measured when it failed; None if that is nothing."""
    return job.get("result", job.get("partial"))


def tables(results: Mapping[str, Any]) -> str:
    """Format the results as markdown."""
    env = results["environment"]
    versions = f"{env['device_name']}, torch {env['torch']}, CUDA {env['cuda']}, Python {env['python']}"
    lines = [f"{versions}, {results['date']}; `{results['command']}`", ""]
    done = {name: result for name, job in results["pieces"].items() if (result := measured(job)) is not None}
    for name, job in results["pieces"].items():
        if "failed" in job:
            how_far = "measured in part" if "partial" in job else "not measured"
            lines += [f"{name}: {how_far} ({job['failed'].splitlines()[-1]})", ""]
    if trained := _below(done, "training"):
        lines += [_training_table(trained), ""]
    for name, summary in _below(done, "accuracy").items():
        lines += [_accuracy_line(name, summary), ""]
    if "start" in done:
        parts = (f"{name} {part['first_step_s']:.1f} s" for name, part in done["start"].items())
        lines += [f"From the start of the process to the first step of the seed recipe: {', '.join(parts)}", ""]
    for name, profile in _below(done, "profile").items():
        lines += [f"Profile of the {name} step: {profile['bottleneck']}", ""]
    for name in ("epoch", "train", "step", "loader", "augment", "erasing", "prep"):
        if name in done:
            lines += [to_markdown(read_document(done[name])), ""]
    for name, found in _below(done, "tests").items():
        lines += [f"Tests marked gpu, {name}: {found['summary'].strip('= ')}", ""]
    lines += [_gpu_table({name: job["gpu"] for name, job in results["pieces"].items() if job.get("gpu")}), ""]
    if "scaling" in done:
        lines += ["### scaling", "", scaling_table(_points(done["scaling"]), done["scaling"]["streaming_begins"]), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def _points(scaling: Mapping[str, Any]) -> list[Point]:
    names = [field.name for field in dataclasses.fields(Point)]
    return [Point(**{name: row[name] for name in names}) for row in scaling["points"]]


def _below(done: Mapping[str, Any], group: str) -> dict[str, Any]:
    """Select the results of the jobs group/NAME, by NAME."""
    return {name.removeprefix(f"{group}/"): result for name, result in done.items() if name.startswith(f"{group}/")}


def _training_table(rows: Mapping[str, Any]) -> str:
    lines = [
        "### the seed recipe, one run each",
        "",
        "| | epochs | training | validation | warm-up | total | images/s | TFLOP/s | of the best product | of a second of "
        "products | validation accuracy |",
        f"| --- |{' ---: |' * 10}",
    ]
    for name, row in rows.items():
        label = name if row["step"] in name else f"{name} ({row['step']}: {row['step_reason']})"
        rate = row["images_per_s"] * row["flop_per_image"]
        cells = [
            str(row["epochs"]),
            *(f"{row[f'{part}_seconds']:.2f} s" for part in ("train", "evaluate", "warm_up", "total")),
        ]
        cells += [f"{row['images_per_s']:,.0f}", f"{rate / 1e12:.1f}"]
        cells += [f"{rate / row['flops_per_s']:.1%}", f"{rate / row['sustained_flops_per_s']:.1%}"]
        lines.append(f"| {label} | {' | '.join(cells)} | {row['val_accuracy']:.2%} |")
    row = next(iter(rows.values()))
    best, sustained = (f"{row[name] / 1e12:.3g} TFLOP/s" for name in ("flops_per_s", "sustained_flops_per_s"))
    note = f"Matrix products in {row['precision']}: {best} at best, {sustained} over a second, in the first run's process."
    return "\n".join([*lines, "", note])


def _gpu_table(seen: Mapping[str, Any]) -> str:
    """Format clocks, power and temperature during each job: the median, and the maximum in brackets; empty if not reported."""
    recorded = {name: summary for name, summary in seen.items() if "samples" in summary}
    if not recorded:
        reasons = {summary["not recorded"] for summary in seen.values()}
        return f"Clocks, power and temperature: not recorded ({'; '.join(sorted(reasons))})" if reasons else ""
    lines = [
        "### the GPU during the jobs",
        "",
        "| | SM clock | power | temperature | clocks lowered by |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for name, summary in recorded.items():
        units = {"sm_clock_mhz": "MHz", "power_w": "W", "temperature_c": "°C"}
        seen = {key: f"{summary[key][1]:.0f} ({summary[key][2]:.0f}) {unit}" for key, unit in units.items() if key in summary}
        cells = [seen.get(key, "") for key in units]
        limits = ", ".join(summary["clock_limits"]) or "nothing" if "clock_limits" in summary else ""
        lines.append(f"| {name} | {' | '.join(cells)} | {limits} |")
    return "\n".join(lines)


def _accuracy_line(name: str, summary: Mapping[str, Any]) -> str:
    def spread(key: str, style: str) -> str:
        measure = summary.get(key)
        if measure is None:
            return "not measured"
        half_width = measure["half_width"]  # None of a single run
        return f"{measure['mean']:{style}}" + ("" if half_width is None else f" ± {half_width:{style}}")

    validation, test = spread("val_accuracy", ".2%"), spread("test_accuracy", ".2%")
    return (
        f"The recipe {name}, {summary['runs']} runs on {summary['dataset']} (mean ± 95 % interval): validation accuracy "
        f"{validation}, test accuracy {test}, training {spread('train_seconds', '.2f')} s"
    )


def copy_to_readme(results: Path, readme: Path) -> None:
    """Replace the text between the two marks of a README by the tables of a results file."""
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    write_text(readme, f"{before}{BEGIN}\n{tables(json.loads(results.read_text()))}{END}{after}")
