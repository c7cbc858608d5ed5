"""Describe a recipe's model, its size and work, and the floor of the run's time on this machine."""

from dataclasses import asdict
from typing import Any

import torch

from fastcifar.data.dataset import Manifest
from fastcifar.engine.work import run_training_flops
from fastcifar.models import build_model
from fastcifar.models.padding import describe_padding, pad_widths
from fastcifar.models.summary import summarize
from fastcifar.recipe import Recipe
from fastcifar.runtime.device import choose_device
from fastcifar.runtime.environment import environment
from fastcifar.runtime.roofline import measure_peaks

CIFAR_SHAPE = 32, 32, 3  # (H, W, C)
CIFAR_IMAGES = {"train": 40_000, "val": 10_000}  # at the default `val_fraction`
ASSUMED = "cifar10 (assumed: 40,000 training and 10,000 validation images of 32 x 32 pixels)"


def describe(recipe: Recipe, device: str = "auto", manifest: Manifest | None = None) -> dict[str, Any]:
    """Describe the model's size and work, the machine, and the floor of the run's time on it, ready for JSON.

    The floor is the time of the run's arithmetic at the peak rate of a matrix product, which is measured first. It counts no
    memory traffic and no validation.

    Args:
        manifest: of the data set to train on; CIFAR-10's shape and number of images where None.
    """
    image_shape, counts = (manifest.image_shape, manifest.counts) if manifest else (CIFAR_SHAPE, CIFAR_IMAGES)
    recipe = recipe.fitted_to(manifest) if manifest else recipe.without_data()
    chosen = choose_device(device)
    recipe, reason = recipe.resolved(chosen)
    size = recipe.augment.output_size(*image_shape)
    with torch.random.fork_rng(devices=[]):
        shape = (recipe.model.in_channels, *size)
        summary = summarize(build_model(recipe.model), shape)
        multiple = recipe.train.pad_widths
        padding = describe_padding(pad_widths(build_model(recipe.model), multiple), shape) if multiple else []
    peaks = measure_peaks(chosen, recipe.train.precision)
    images = round(recipe.train.keep * sum(counts.get(split, 0) for split in recipe.train.splits))
    return {
        "recipe": recipe.name,
        "data": manifest.name if manifest else ASSUMED,
        "model": asdict(summary),
        "padding": padding,
        "images_trained": recipe.train.epochs * images,
        "precision": recipe.train.precision,
        "precision_reason": reason,
        "peaks": asdict(peaks),
        "floor_seconds": run_training_flops(recipe, image_shape, images) / peaks.flops_per_s,
        "environment": environment(chosen),
    }
