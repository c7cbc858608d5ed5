"""The floating-point operations of a whole run, counted and not measured."""

import functools
import math
from collections import Counter

import torch

from fastcifar.data.dataset import Dataset
from fastcifar.engine.evaluate import VIEW_COUNTS
from fastcifar.models import ModelConfig, build_model
from fastcifar.models.summary import evaluation_flops, training_flops
from fastcifar.recipe import EvaluateConfig, Recipe

PETA = 1e15


def run_pflop(recipe: Recipe, dataset: Dataset, steps_per_epoch: int) -> float:
    """Count the floating-point operations of one run, in units of 1e15: training, every validation, and the test.

    A training image is one forward and one backward pass (two of each with `optimizer.sam_rho`) at the size of its epoch
    (`train.image_sizes`); an evaluated image is one forward pass for each of its views (`evaluate.tta`).
    `fastcifar.models.summary` says what of a pass is counted. Padding of widths and of an evaluation's last batch is not
    counted, and a resumed run counts as one without a stop.

    Args:
        recipe: fitted to the data set; see `Recipe.fitted_to`.
        dataset: as the run sees it; see `Dataset.train_on`.
        steps_per_epoch: batches of the training loader.
    """
    shape = dataset.manifest.image_shape
    trained = run_training_flops(recipe, shape, steps_per_epoch * recipe.train.batch_size)
    evaluated = recipe.model.in_channels, *recipe.augment.evaluation().output_size(*shape)
    views = _scored_images(recipe, dataset) * views_per_image(recipe.evaluate)
    return (trained + views * _flops(recipe.model, evaluated)[1]) / PETA


def run_training_flops(recipe: Recipe, image_shape: tuple[int, int, int], images_per_epoch: int) -> int:
    """Count the floating-point operations of a run's training, for images of `image_shape` (H, W, C) in the data set."""
    own, channels = recipe.augment.output_size(*image_shape), recipe.model.in_channels
    sizes = Counter(own if side is None else (side, side) for side in recipe.train.image_sides())
    passes = images_per_epoch * (2 if recipe.optimizer.sam_rho else 1)
    return sum(epochs * passes * _flops(recipe.model, (channels, *size))[0] for size, epochs in sizes.items())


def _scored_images(recipe: Recipe, dataset: Dataset) -> int:
    """Count the images that a run scores: the validation split in every validated epoch, the test split once."""
    val, test = (0 if split is None else len(split.labels) for split in (dataset.val, dataset.test))
    validations = -(-recipe.train.epochs // recipe.evaluate.every)  # every so many epochs, and the last one always
    return validations * val + test


def views_per_image(evaluate: EvaluateConfig) -> float:
    """Return the forward passes per evaluated image.

    With `evaluate.tta_share`, all images alone and the views of some of each batch.
    """
    views = VIEW_COUNTS[evaluate.tta]
    if evaluate.tta_share == 1:
        return views
    return 1 + views * math.ceil(evaluate.tta_share * evaluate.batch_size) / evaluate.batch_size


@functools.lru_cache(maxsize=64)
def _flops(config: ModelConfig, image_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Count the operations of a model on one image, (C, H, W): to train on it, and to evaluate it once."""
    with torch.random.fork_rng(devices=[]):  # building a model draws its weights
        model = build_model(config)
    return training_flops(model, image_shape), evaluation_flops(model, image_shape)
