"""Functions that tests of several files share and that need not be fixtures."""

import dataclasses
import io
import os
import re
import subprocess
import sys

import torch
from rich.console import Console

from fastcifar.data.resident import ResidentLoader
from fastcifar.display.console import Reporter
from fastcifar.engine.backends import build_step
from fastcifar.models import build_model
from fastcifar.optim.averaging import build_average
from fastcifar.optim.optimizers import build_optimizer
from fastcifar.recipe import ImageSize
from fastcifar.run.metrics import read_metrics
from fastcifar.runtime.precision import PRECISIONS

ABSOLUTE_PATH = re.compile(r"(?<![\w.:/<)-])(?:~|/[\w.-]+)/[\w.-]+")
"""A folder of this machine, which no result may name."""
TIMES = "images_per_s", "seconds", "train_seconds", "evaluate_seconds", "warm_up_seconds", "total_seconds"
"""Keys of a row of the metrics, or of a summary, that differ between two equal runs."""


def fastcifar(*arguments, cwd=None, code=None, **environment):
    """Run the command line in a process of its own, or `code` with its arguments; the completed process."""
    command = [sys.executable, *(("-c", code) if code else ("-m", "fastcifar")), *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=300, check=False
    )


def quiet(**options):
    """A reporter whose output nobody sees."""
    return Reporter(console=Console(file=io.StringIO(), highlight=False, soft_wrap=True), **options)


def no_progress(stage, share):
    """To be told the progress of `prepare`."""


def with_train(recipe, **changes):
    """The recipe with other values of its `train` section."""
    return dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, **changes))


def without_times(row):
    """A row of the metrics, or a summary, without `TIMES`."""
    row = row if isinstance(row, dict) else row.to_json()
    return {key: value for key, value in row.items() if key not in TIMES}


def timeless(run):
    """The rows of a run's metrics without `TIMES`."""
    return [without_times(row) for row in read_metrics(run.metrics)]


PARTS = {
    "ema": {"average": {"name": "ema", "decay": 0.8, "every": 2}},
    "lookahead": {"average": {"name": "lookahead", "decay": 0.8, "power": 1.0, "every": 3}},
    "sam": {"optimizer": {"sam_rho": 0.1}},
    "keep": {"train": {"keep": 0.7}},
    "image_sizes": {"train": {"image_sizes": (ImageSize(8, 0.5),)}},
}
"""Parts of a recipe that change what a step does: table -> key -> value."""


def with_part(recipe, part):
    """The recipe with one of PARTS."""
    tables = {table: dataclasses.replace(getattr(recipe, table), **keys) for table, keys in PARTS[part].items()}
    return dataclasses.replace(recipe, **tables)


def make_step(recipe, dataset, backend="eager", device="cpu"):
    """(model, step) of a back end, from weights that are the same at each call."""
    torch.manual_seed(0)
    model = build_model(recipe.model).to(device, memory_format=torch.channels_last)
    optimizer = build_optimizer(model, recipe.optimizer)
    batch, seed = recipe.train.batch_size, recipe.train.seed
    dtype = PRECISIONS[recipe.train.precision].compute
    options = {"batch_size": batch, "seed": seed, "device": device, "dtype": dtype, "keep": recipe.train.keep}
    loader = ResidentLoader(dataset.train, recipe.augment, **options)
    average = build_average(model, recipe.average, recipe.train.epochs * len(loader))
    return model, build_step(model, optimizer, loader, recipe, backend, average=average)
