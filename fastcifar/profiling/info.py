"""What `fastcifar info` tells of a recipe on this machine."""

from dataclasses import asdict
from typing import Any

import torch
from rich.table import Table

from fastcifar.display.console import plain_console
from fastcifar.models import build_model
from fastcifar.models.padding import describe_padding, pad_widths
from fastcifar.models.summary import summarize
from fastcifar.recipe import Recipe
from fastcifar.runtime.device import choose_device
from fastcifar.runtime.environment import environment
from fastcifar.runtime.precision import PRECISIONS
from fastcifar.runtime.roofline import floor_seconds, measure_ceilings

IMAGE_SIZE = 32  # CIFAR's height and width in pixels
TRAIN_IMAGES = 40_000  # CIFAR-10's training split at the default --val-fraction


def describe(recipe: Recipe, device: str = "auto") -> dict[str, Any]:
    """The model's size and work, the machine, and the floor time of the run on it, ready for JSON.

    The floor is the run's arithmetic at the rate that a large matrix product reaches here, measured on the spot; it
    counts no memory traffic and no validation.
    """
    chosen = choose_device(device)
    recipe, reason = recipe.resolved(chosen)
    size = recipe.augment.output_size(IMAGE_SIZE, IMAGE_SIZE, recipe.model.in_channels)
    with torch.random.fork_rng(devices=[]):
        shape = (recipe.model.in_channels, *size)
        summary = summarize(build_model(recipe.model), shape)
        multiple = recipe.train.pad_widths
        padding = describe_padding(pad_widths(build_model(recipe.model), multiple), shape) if multiple else []
    ceilings = measure_ceilings(chosen, PRECISIONS[recipe.train.precision].compute)
    images = recipe.train.epochs * TRAIN_IMAGES
    return {
        "recipe": recipe.name,
        "model": asdict(summary),
        "padding": padding,
        "images_trained": images,
        "precision": recipe.train.precision,
        "precision_reason": reason,
        "ceilings": asdict(ceilings),
        "floor_seconds": floor_seconds(summary.macs, images, ceilings),
        "environment": environment(chosen),
    }


def print_info(described: dict[str, Any], *, layers: bool) -> None:
    """Print what `describe` found; with `layers` the table of layers first."""
    console = plain_console()
    model, env, rates = described["model"], described["environment"], described["ceilings"]
    if layers:
        console.print(_layers(model["layers"]))
    seconds = described["floor_seconds"]
    floor = f"{seconds:,.0f} s" if seconds > 100 else f"{seconds:.3g} s"
    table = Table.grid(padding=(0, 2))
    for name, value in (
        ("recipe", described["recipe"]),
        ("parameters", f"{model['parameters']:,} ({model['trainable']:,} trainable)"),
        ("parameter size", f"{model['parameter_mb']:.2f} MB (float32)"),
        ("activations", f"{model['activation_mb']:.2f} MB (forward and backward, one image, float32)"),
        ("multiply-accumulates", f"{model['macs'] / 1e9:.3f} G an image, forward"),
        ("precision", f"{described['precision']} ({described['precision_reason']})"),
        ("padding", ", ".join(described["padding"]) or "none"),
        ("device", f"{env['device']}: {env['device_name']}"),
        (
            "versions",
            f"fastcifar {env['fastcifar']}, Python {env['python']}, torch {env['torch']}, Triton {env['triton']}",
        ),
        (
            "measured here",
            f"{rates['flops_per_s'] / 1e12:.3g} TFLOP/s {described['precision']}, {rates['bytes_per_s'] / 1e9:.3g} GB/s copy",
        ),
        ("floor of the run", f"{floor} for {described['images_trained']:,} images (arithmetic alone)"),
    ):
        table.add_row(name, value)
    console.print(table)


def _layers(rows: list[dict[str, Any]]) -> Table:
    table = Table("layer", "kind", "output shape", "parameters", "MMAC", box=None)
    for column in table.columns[3:]:
        column.justify = "right"
    for row in rows:
        shape = "x".join(map(str, row["output_shape"]))
        table.add_row(row["name"], row["kind"], shape, f"{row['parameters']:,}", f"{row['macs'] / 1e6:.3f}")
    return table
