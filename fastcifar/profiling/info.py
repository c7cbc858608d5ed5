"""Describe a recipe's model, its size and work, and the floor of the run's time on this machine."""

from dataclasses import asdict
from typing import Any

import torch

from fastcifar.data.dataset import Manifest
from fastcifar.models import build_model
from fastcifar.models.padding import describe_padding, pad_widths
from fastcifar.models.summary import summarize
from fastcifar.recipe import Recipe
from fastcifar.runtime.device import choose_device
from fastcifar.runtime.environment import environment
from fastcifar.runtime.roofline import floor_seconds, measure_peaks

CIFAR_SHAPE = 32, 32, 3  # (H, W, C)
CIFAR_IMAGES = 40_000  # of the training split, at the default `val_fraction`


def describe(recipe: Recipe, device: str = "auto", manifest: Manifest | None = None) -> dict[str, Any]:
    """Describe the model's size and work, the machine, and the floor of the run's time on it, ready for JSON.

    The floor is the time of the run's arithmetic at the peak rate of a matrix product, which is measured first. It counts no
    memory traffic and no validation.

    Args:
        manifest: of the data set to train on; CIFAR-10's shape and number of images where None.
    """
    shape, train_images = (manifest.image_shape, manifest.counts["train"]) if manifest else (CIFAR_SHAPE, CIFAR_IMAGES)
    recipe = recipe.fitted_to(manifest) if manifest else recipe.without_data()
    chosen = choose_device(device)
    recipe, reason = recipe.resolved(chosen)
    size = recipe.augment.output_size(*shape)
    with torch.random.fork_rng(devices=[]):
        shape = (recipe.model.in_channels, *size)
        summary = summarize(build_model(recipe.model), shape)
        multiple = recipe.train.pad_widths
        padding = describe_padding(pad_widths(build_model(recipe.model), multiple), shape) if multiple else []
    peaks = measure_peaks(chosen, recipe.train.precision)
    images = recipe.train.epochs * train_images
    return {
        "recipe": recipe.name,
        "data": manifest.name if manifest else f"cifar10 (assumed: {CIFAR_IMAGES:,} training images of 32 x 32 pixels)",
        "model": asdict(summary),
        "padding": padding,
        "images_trained": images,
        "precision": recipe.train.precision,
        "precision_reason": reason,
        "peaks": asdict(peaks),
        "floor_seconds": floor_seconds(summary.macs, images, peaks),
        "environment": environment(chosen),
    }
