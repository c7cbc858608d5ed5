"""Throughput and memory over batch size, image size, width and data-set size, and the size from which streaming is needed.

    python benchmarks/scaling.py RESULTS.json PICTURE.png [RECIPE]

Each point builds and warms up its own engine, then times a few rounds of steps on random pixels. The split stays resident up
to 32 times CIFAR-10. The size from which `--loader auto` streams is computed from the free memory by the loader's own rule.
The table is printed.
"""

import dataclasses
import gc
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from fastcifar.augment import RandomCrop
from fastcifar.bench.setting import CLASSES, random_dataset
from fastcifar.data.choice import RESIDENT_SHARE
from fastcifar.data.dataset import Dataset, Split
from fastcifar.display.measurements import number
from fastcifar.engine.engine import Engine
from fastcifar.recipe import Recipe, load_recipe
from fastcifar.runtime.device import choose_device
from fastcifar.runtime.distributed import World
from fastcifar.runtime.environment import environment
from fastcifar.runtime.files import replacing, write_json
from fastcifar.runtime.memory import free_memory
from fastcifar.runtime.timing import Clock

CIFAR_IMAGES = 50_000
UNITS = {
    "batch size": "images",
    "image size": "pixels per side",
    "width": "times the recipe's channels",
    "data set": "times CIFAR-10's training split",
}
"""Unit of each axis."""
ROUNDS = 5


@dataclass(frozen=True)
class Grid:
    """Values of the sweep; one of them changes at a time, from the recipe.

    Attributes:
        batch_sizes: images per step.
        image_sizes: pixels per side.
        widths: factors on the model's channels.
        data_sets: sizes of the training split, as multiples of CIFAR-10's 50,000 images.
        images: least number of images trained on per round.
    """

    batch_sizes: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096)
    image_sizes: tuple[int, ...] = (32, 48, 64, 96, 128)
    widths: tuple[float, ...] = (0.5, 1, 2, 4)
    data_sets: tuple[float, ...] = (1, 2, 4, 8, 16, 32)
    images: int = 8192


ON_CPU = Grid((16, 64, 256), (32, 64, 128), (0.5, 1, 2), (1, 8, 32), 128)
TINY = Grid((8, 16), (32, 40), (0.5, 1), (0.001, 0.002), 16)
"""Only to check that everything runs; the times mean nothing."""


@dataclass(frozen=True)
class Point:
    """A measurement.

    Attributes:
        axis: "batch size", "image size", "width" or "data set".
        value: on that axis, as in `Grid`.
        rounds: images/s of each round; empty if the point did not fit, and `note` says why.
        peak_bytes: peak memory allocated on the device, including the data set; None on a CPU.
        warm_up_s: seconds of compiling and capturing.
    """

    axis: str
    value: float
    rounds: tuple[float, ...]
    peak_bytes: int | None
    warm_up_s: float
    note: str = ""

    @property
    def images_per_s(self) -> float | None:
        """Median of the rounds."""
        return statistics.median(self.rounds) if self.rounds else None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"rounds": list(self.rounds), "images_per_s": self.images_per_s}


def measure_scaling(
    recipe: Recipe,
    device: torch.device,
    grid: Grid,
    progress: Callable[[str], None] = lambda what: None,
    after_point: Callable[[list[Point]], None] = lambda points: None,
) -> list[Point]:
    """Measure every point of the grid; the note of a point that does not fit the device's memory says so.

    Args:
        progress: called with the name of each point before it is measured.
        after_point: called after each point with all points measured so far.
    """
    points = []
    for axis, value, changed, size, count in _variations(recipe, grid):
        progress(f"scaling: {axis} {value:g}")
        try:
            points.append(_measure(axis, value, changed, _dataset(count, size), device, grid.images))
        except torch.OutOfMemoryError:
            points.append(Point(axis, value, (), None, 0.0, "out of device memory"))
        finally:
            gc.collect()
            torch.compiler.reset()
            if device.type == "cuda":
                torch.cuda.empty_cache()
        after_point(points)
    return points


def streaming_begins(device: torch.device, image_bytes: int = 3 * 32 * 32) -> float | None:
    """Return the size of a split, as a multiple of CIFAR-10's, from which `--loader auto` streams with the memory free now."""
    free = free_memory(device)
    return None if free is None else RESIDENT_SHARE * free / (image_bytes * CIFAR_IMAGES)


def _variations(recipe: Recipe, grid: Grid) -> Iterator[tuple[str, float, Recipe, int, int]]:
    """Yield (axis, value, recipe, image size, images in the training split)."""
    size = recipe.augment.output_size(32, 32, 3)[0]

    def few(recipe: Recipe) -> int:
        return max(4 * recipe.train.batch_size, 2 * grid.images)

    for batch_size in grid.batch_sizes:
        changed = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, batch_size=batch_size))
        yield "batch size", batch_size, changed, size, few(changed)
    for image_size in grid.image_sizes:
        yield "image size", image_size, _resized(recipe, image_size), image_size, few(recipe)
    for width in grid.widths:
        yield "width", width, _widened(recipe, width), size, few(recipe)
    for times in grid.data_sets:
        yield "data set", times, recipe, size, max(round(times * CIFAR_IMAGES), recipe.train.batch_size)


def _resized(recipe: Recipe, size: int) -> Recipe:
    crops = [
        dataclasses.replace(t, size=size) if isinstance(t, RandomCrop) and t.size else t for t in recipe.augment.transforms
    ]
    return dataclasses.replace(recipe, augment=dataclasses.replace(recipe.augment, transforms=tuple(crops)))


def _widened(recipe: Recipe, factor: float) -> Recipe:
    model = recipe.model
    channels = tuple(round(width * factor) for width in model.channels)
    return dataclasses.replace(
        recipe, model=dataclasses.replace(model, stem_channels=round(model.stem_channels * factor), channels=channels)
    )


def _dataset(count: int, size: int) -> Dataset:
    """Make `count` images of random pixels, repeated after the first 4,096."""
    rng = np.random.default_rng(0)
    first = rng.integers(0, 256, (min(count, 4096), size, size, 3), dtype=np.uint8)
    images = np.tile(first, (-(-count // len(first)), 1, 1, 1))[:count]
    manifest = dataclasses.replace(random_dataset(1, 0).manifest, image_shape=(size, size, 3), counts={"train": count})
    return Dataset(Path("random"), manifest, Split(images, rng.integers(0, CLASSES, count)), None, None)


def _measure(axis: str, value: float, recipe: Recipe, dataset: Dataset, device: torch.device, images: int) -> Point:
    batch = recipe.train.batch_size
    steps = max(1, images // batch)
    epochs = -(-(ROUNDS + 1) * steps // (len(dataset.train.labels) // batch))
    recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, epochs=epochs))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    clock, rounds = Clock(device), []
    with Engine(recipe, dataset, World(device), loader="resident") as engine:
        warm_up_s = engine.warm_up()
        engine.model.train()
        for _ in range(ROUNDS + 1):
            began = clock.now()
            engine.step.run(steps)
            rounds.append(steps * batch / clock.seconds(began, clock.now()))
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    return Point(axis, value, tuple(rounds[1:]), peak, warm_up_s, f"{engine.backend} step")


def scaling_table(points: Sequence[Point], limit: float | None) -> str:
    """Format a markdown table, a row per point; `limit` is the result of `streaming_begins`."""
    lines = ["| axis | value | images/s (median, min to max) | peak device memory |", "| --- | --- | --- | --- |"]
    for point in points:
        rate = (
            f"{number(point.images_per_s)} ({number(min(point.rounds))} to {number(max(point.rounds))})"
            if point.rounds
            else point.note
        )
        memory = "not measured" if point.peak_bytes is None else f"{point.peak_bytes / 2**30:.2f} GiB"
        lines.append(f"| {point.axis} | {point.value:g} | {rate} | {memory} |")
    if limit is not None:
        lines += ["", f"`--loader auto` streams from {limit:,.0f} times CIFAR-10 on, with the memory free then."]
    return "\n".join(lines) + "\n"


def plot_scaling(points: Sequence[Point], path: Path, title: str, limit: float | None) -> None:
    """Draw a panel per axis: images/s (left) and peak memory (right); `limit` is the result of `streaming_begins`."""
    figure = Figure(figsize=(12, 7), layout="constrained")
    axes_of = dict(zip(dict.fromkeys(point.axis for point in points), figure.subplots(2, 2).flat, strict=False))
    for name, axes in axes_of.items():
        of_axis = [point for point in points if point.axis == name and point.rounds]
        values = [point.value for point in of_axis]
        rates = [point.images_per_s for point in of_axis]
        axes.plot(values, rates, "o-", color="tab:blue")
        axes.set(xscale="log", xlabel=f"{name} ({UNITS[name]})", ylabel="images/s", ylim=(0, 1.1 * max(rates, default=1.0)))
        axes.set_xticks(values, [f"{value:g}" for value in values], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        if name == "data set" and limit is not None:
            axes.axvline(limit, color="tab:red", linestyle=":")
            axes.annotate("streaming", (limit, 0.5), xycoords=("data", "axes fraction"), rotation=90, ha="right", va="center")
        memory = [(point.value, point.peak_bytes / 2**30) for point in of_axis if point.peak_bytes is not None]
        if memory:
            right = axes.twinx()
            right.plot(*zip(*memory, strict=True), "s--", color="tab:orange")
            right.set(ylabel="peak memory in GiB", ylim=(0, None))
    figure.suptitle(title)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)


def main(results: str, picture: str, name: str = "seed") -> None:
    device = choose_device("auto")
    grid = ON_CPU if device.type == "cpu" else Grid()
    points = measure_scaling(load_recipe(name), device, grid, progress=lambda what: print(what, file=sys.stderr))
    limit = streaming_begins(device)
    document = {"command": f"python benchmarks/scaling.py RESULTS.json PICTURE.png {name}", "environment": environment(device)}
    document |= {"points": [point.to_json() for point in points], "streaming_begins": limit}
    write_json(Path(results), document)
    plot_scaling(points, Path(picture), f"the recipe {name} on {document['environment']['device_name']}", limit)
    print(scaling_table(points, limit))


if __name__ == "__main__":
    main(*sys.argv[1:])
