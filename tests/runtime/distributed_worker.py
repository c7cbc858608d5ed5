"""Script that `test_distributed.py` starts with torchrun, one process per rank: `distributed_worker.py JOB FOLDER`.

FOLDER holds the test's recipe and data set (case.pt); rank r writes its results there, to JOB-r.pt. A job is a function of
this file; the tests also call some of them directly, as the run of one process to compare with.
"""

import dataclasses
import io
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from fastcifar.augment import MixUp
from fastcifar.data.resident import ResidentLoader
from fastcifar.display.console import Reporter
from fastcifar.engine import engine, trainer
from fastcifar.engine.backends import build_step
from fastcifar.engine.evaluate import evaluate, evaluation_loader
from fastcifar.optim.optimizers import build_optimizer
from fastcifar.run.directory import open_run
from fastcifar.runtime import distributed
from fastcifar.runtime.errors import UserError
from fastcifar.runtime.random_state import seed_rank


def plain_model(*_):
    """A model without BatchNorm and dropout, so that an image's gradient does not depend on the others of its rank."""
    layers = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(180, 3)
    return nn.Sequential(*layers)


def batches(recipe, dataset, world):
    """Two epochs of this rank's training batches, plain and mixed: [(images, labels), ...]."""
    seen = []
    for policy in (recipe.augment, dataclasses.replace(recipe.augment, transforms=(*recipe.augment.transforms, MixUp(1.0)))):
        options = {"batch_size": recipe.train.batch_size, "seed": 5, "num_classes": 3, "shard": world.shard}
        loader = ResidentLoader(dataset.train, policy, **options)
        for epoch in range(2):
            loader.set_epoch(epoch)
            seen += list(loader)
    return seen


def epoch(recipe, dataset, world):
    """An epoch of steps with `plain_model`; one parameter needs no gradient, and ranks start with different weights."""
    torch.manual_seed(world.rank)
    model = plain_model().to(memory_format=torch.channels_last)
    model[0].bias.requires_grad_(False)
    world.broadcast(model.state_dict().values())
    options = {"batch_size": recipe.train.batch_size, "seed": 5, "shard": world.shard}
    loader = ResidentLoader(dataset.train, recipe.augment, **options)
    optimizer = build_optimizer(model, recipe.optimizer)
    step = build_step(model, optimizer, loader, recipe, average_gradients=world.gradient_averager(model))
    step.run(len(loader))
    world.all_reduce_mean(step.losses)
    world.all_reduce_sum(step.correct)
    held_out = evaluation_loader(dataset, "val", recipe, world.device, shard=world.shard)
    score = evaluate(model, held_out, 3, precision="fp32", world=world)
    return {
        "losses": step.losses[: len(loader)],
        "correct": int(step.correct),
        "weights": dict(model.state_dict()),
        "loss": score.loss,
        "confusion": score.confusion,
    }


def dropout(recipe, dataset, world):
    """Draws of the generator that dropout uses, at the start of a run."""
    torch.manual_seed(recipe.train.seed)
    seed_rank(recipe.train.seed, world)
    return torch.rand(8)


def run(root, recipe, dataset, should_stop=lambda: False, resume=False):
    """Train into the run directory `root`, or resume it."""
    console = Console(file=io.StringIO(), soft_wrap=True, width=200)
    stopped, recipe = open_run(root) if resume else (None, recipe)
    options = {"device": "cpu", "reporter": Reporter(console=console), "should_stop": should_stop, "resume": stopped}
    result = trainer.train(recipe, dataset, None if resume else root, **options)
    return {"finished": result.finished, "printed": console.file.getvalue(), "weights": result.model.state_dict()}


def after(checks, act):
    """A `should_stop` that returns `act()` from its (checks + 1)-th call, and False before."""
    asked = iter(range(10**6))
    return lambda: act() if next(asked) >= checks else False


def parts(folder, recipe, dataset, rank):
    with distributed.process_group("cpu") as world:
        return {make.__name__: make(recipe, dataset, world) for make in (batches, epoch, dropout)}


def runs(folder, recipe, dataset, rank):
    """With the recipe's model: a whole run, and one that rank 1 stops within the second epoch, then resumed."""
    return {
        "whole": run(folder / "whole", recipe, dataset),
        "stopped": run(folder / "parts", recipe, dataset, after(7, lambda: rank == 1)),
        "resumed": run(folder / "parts", recipe, dataset, resume=True),
    }


def plain_runs(folder, recipe, dataset, rank):
    """With `plain_model`: a whole run, one stopped for one process to resume, and one that one process has started."""
    engine.build_model = plain_model
    return {
        "whole": run(folder / "plain", recipe, dataset),
        "stopped": run(folder / "started-by-two", recipe, dataset, after(7, lambda: rank == 1)),
        "resumed": run(folder / "started-by-one", recipe, dataset, resume=True),
    }


def refusals(folder, recipe, dataset, rank):
    """The errors, as (type, message), of runs that cannot start or continue; each leaves the process usable."""

    def change(**changes):
        return dataclasses.replace(recipe, optimizer=dataclasses.replace(recipe.optimizer, **changes))

    return {
        "other_recipe": refusal(folder / "refused", change(lr=0.1 + rank), dataset),
        "used_folder": refusal(folder / "whole", recipe, dataset),
        "divergence": refusal(folder / "diverged", change(lr=1e30), dataset),
    }


def refusal(*options):
    try:
        run(*options)
    except UserError as error:
        return type(error).__name__, str(error)


def everything(*case):
    return {make.__name__: make(*case) for make in (parts, runs, refusals, plain_runs)}


def killed(folder, recipe, dataset, rank):
    return run(folder / "run", recipe, dataset, after(3, lambda: rank == 1 and os._exit(9)))


def raising(folder, recipe, dataset, rank):
    return run(folder / "run", recipe, dataset, after(3, lambda: rank == 1 and 1 / 0))


def hanging(folder, recipe, dataset, rank):
    distributed.TIMEOUT = timedelta(seconds=3)
    return run(folder / "run", recipe, dataset, after(3, lambda: rank == 1 and time.sleep(600)))


def main(job, folder):
    rank, case = int(os.environ["RANK"]), torch.load(folder / "case.pt", weights_only=False)
    torch.save(globals()[job](folder, case["recipe"], case["dataset"], rank), folder / f"{job}-{rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
