"""Draw accuracy against operations and against time: the recipes' measured runs and the peers' published results.

    python benchmarks/accuracy.py

It reads benchmarks/results/recipes/RECIPE-HARDWARE.json, which `fastcifar train --recipe RECIPE --runs N --json FILE` writes,
and draws docs/accuracy.png.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results" / "recipes"
PICTURE = Path(__file__).parents[1] / "docs" / "accuracy.png"


@dataclass(frozen=True)
class Point:
    """A training's result.

    Attributes:
        accuracy: mean test accuracy on CIFAR-10, percent.
        half_width: of its 95 % confidence interval, percent; None if not known.
        pflop: operations of one run, 1e15; None if not known.
        seconds: of one run on `hardware`; None if not known.
    """

    name: str
    accuracy: float
    half_width: float | None
    pflop: float | None
    seconds: float | None
    hardware: str
    ours: bool = False


AIRBENCH = "A100, as published"  # https://github.com/KellerJordan/cifar10-airbench; intervals of 200 runs are below 0.03
PEERS = (
    Point("airbench94 Muon", 94.01, None, 0.29, 2.59, AIRBENCH),
    Point("airbench95", 95.01, None, 1.4, 10.4, AIRBENCH),
    Point("airbench96 faster", 96.00, None, 3.1, 27.3, AIRBENCH),
    Point("ResNet-18, standard", 96.0, None, 32.3, 420, AIRBENCH),
    Point("hiverge speedrun", 94.01, None, None, 2.015, AIRBENCH),  # https://github.com/hiverge/cifar10-speedrun
    Point("hlb-CIFAR10", 94.0, None, None, 6.3, AIRBENCH),  # https://github.com/tysam-code/hlb-CIFAR10
    Point("hlb-CIFAR10", 95.8, None, None, 110, AIRBENCH),
    Point("FFCV example", 92.6, None, None, 36, AIRBENCH),  # https://github.com/libffcv/ffcv
)


def ours() -> list[Point]:
    """Read the recipes' results."""
    points = []
    for path in sorted(RESULTS.glob("*.json")):
        summary = json.loads(path.read_text(encoding="utf-8"))
        accuracy, hardware = summary["test_accuracy"], path.stem.removeprefix(f"{summary['recipe']}-")
        half_width = accuracy["half_width"] and 100 * accuracy["half_width"]
        name = f"{summary['recipe']} (n = {summary['runs']})"
        timing = summary["pflop"], summary["median_seconds"], hardware
        points.append(Point(name, 100 * accuracy["mean"], half_width, *timing, ours=True))
    return points


def draw(points: list[Point], path: Path) -> None:
    """Draw two panels over one axis of accuracies; a point without the panel's figure is left out of it."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    hardware = sorted({point.hardware for point in points}, key=lambda name: (name == AIRBENCH, name))
    for axes, key, label in zip(panels, ("pflop", "seconds"), ("operations of a run, PFLOP", "time of a run, s"), strict=True):
        for point in (point for point in points if getattr(point, key) is not None):
            axes.errorbar(
                getattr(point, key),
                point.accuracy,
                yerr=point.half_width,
                fmt="o" if point.ours else "s",
                color=f"C{hardware.index(point.hardware)}",
                markersize=8 if point.ours else 5,
                capsize=3,
            )
            where = getattr(point, key), point.accuracy
            axes.annotate(point.name, where, xytext=(4, 6), textcoords="offset points", fontsize=8, rotation=30)
        axes.set(xscale="log", xlabel=label)
        axes.margins(x=0.2, y=0.15)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("test accuracy on CIFAR-10, %")
    for index, name in enumerate(hardware):
        panels[0].plot([], [], "o" if name != AIRBENCH else "s", color=f"C{index}", label=name)
    panels[0].legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    draw([*PEERS, *ours()], PICTURE)
    print(PICTURE)
