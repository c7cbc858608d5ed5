"""step, epoch and train: training speed of a recipe, beside the same model in plain PyTorch.

"step" is the engine's training step, including its batch; plain PyTorch (see `plain`) gets a ready batch. So does "eager
PyTorch as the recipe", which has the recipe's precision, channels-last memory and fused optimizer: it shows the engine's own
cost and gain. "epoch" trains on a data set and scores a quarter as many images. "train" is a whole run, from building the
model to the score on the test split, with its run directory. Pixels and labels are random, which changes no time.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from fastcifar.bench.bounds import run_floor, step_roofline
from fastcifar.bench.interleaved import Case, Implementation, Work
from fastcifar.bench.own_process import in_own_process
from fastcifar.bench.peers import CORES
from fastcifar.bench.plain import PlainTraining, train_step
from fastcifar.bench.setting import IMAGE_BYTES, SHAPE, Setting, random_dataset, whole_batches
from fastcifar.bench.timing import past_the_cache
from fastcifar.display.console import Reporter
from fastcifar.engine.engine import Engine
from fastcifar.engine.step import forward_loss
from fastcifar.engine.trainer import train
from fastcifar.engine.work import views_per_image
from fastcifar.models import build_model
from fastcifar.models.summary import summarize
from fastcifar.optim.optimizers import build_optimizer
from fastcifar.recipe import Recipe
from fastcifar.run.summary import RunSummary
from fastcifar.runtime.distributed import World
from fastcifar.runtime.precision import PRECISIONS, arithmetic, to_weights_dtype

STEP_BATCHES = 40
"""Least number of batches in the data set of "step"."""
TRAINED_PER_SCORED = 4
"""Images trained on per image scored after the epoch."""
PLAIN = "plain PyTorch, eager float32"


@dataclass(frozen=True)
class Job:
    """Training on random images.

    Attributes:
        recipe: with the job's batch size and epochs.
        trained, scored: images in the training split; images in the validation and in the test split, each.
    """

    recipe: Recipe
    trained: int
    scored: int
    device: torch.device

    @property
    def macs(self) -> int:
        """Multiply-accumulates per image in the forward pass."""
        return summarize(build_model(self.recipe.model), (SHAPE[2], *self.recipe.augment.output_size(*SHAPE))).macs

    def engine(self, backend: str = "auto") -> Engine:
        """Build and warm up an engine."""
        dataset = random_dataset(self.trained, self.scored)
        engine = Engine(self.recipe, dataset, World(self.device), backend=backend, loader="resident")
        engine.warm_up()
        return engine


Ready = Callable[[Job], AbstractContextManager[Work]]


def step_cases(setting: Setting) -> list[Case]:
    """List each batch size."""
    return [_step_case(setting, batch) for batch in setting.batches]


def epoch_cases(setting: Setting) -> list[Case]:
    """List each batch size."""
    epochs = max(setting.recipe.train.epochs, setting.size.rounds + 1)  # at least one per round
    return [
        _run_case(setting, "epoch", job, f"{job.trained:,} images", (1, 1), engine_epochs, plain_epochs)
        for job in _jobs(setting, epochs)
    ]


def train_cases(setting: Setting) -> list[Case]:
    """List each batch size."""
    epochs = setting.size.epochs
    return [
        _run_case(
            setting, "train", job, f"{epochs} x {job.trained:,} images", (epochs, epochs + 1), our_training, plain_training
        )
        for job in _jobs(setting, epochs)
    ]


def _step_case(setting: Setting, batch: int) -> Case:
    device, warm_up = setting.device, 2
    steps = whole_batches(setting.size.images, batch)
    batches = max(STEP_BATCHES, past_the_cache(batch * IMAGE_BYTES, device))
    enough = -(-steps * (setting.size.rounds + warm_up) // batches)
    job = Job(_recipe(setting, batch, max(setting.recipe.train.epochs, enough)), batches * batch, 0, device)
    backends = {"fastcifar": "auto"}
    if device.type == "cuda":
        backends |= {"fastcifar compiled": "compiled", "fastcifar eager": "eager"}
    ours = [
        Implementation(name, functools.partial(engine_steps, job, backend, steps), ours=True)
        for name, backend in backends.items()
    ]
    theirs = [
        Implementation(PLAIN, _isolated(functools.partial(plain_steps, job, steps), device)),
        Implementation("eager PyTorch as the recipe", functools.partial(recipe_steps, job, steps)),
    ]
    return Case(
        subject="step",
        name=job.recipe.name,
        batch_size=batch,
        unit="steps/s",
        device=device,
        bound=lambda: step_roofline(job.macs, batch, device, job.recipe.train.precision),
        implementations=(*ours, *theirs),
        rounds=setting.size.rounds,
        warm_up=warm_up,
    )


def _run_case(
    setting: Setting, subject: str, job: Job, name: str, passes: tuple[int, int], ours: Ready, theirs: Ready
) -> Case:
    """Build a case that times a whole run; `passes`: over the images trained on, and over those scored."""
    recipe = job.recipe
    trained, scored = passes[0] * job.trained, round(passes[1] * job.scored * views_per_image(recipe.evaluate))
    return Case(
        subject=subject,
        name=f"{recipe.name}, {name}",
        batch_size=recipe.train.batch_size,
        unit="s",
        device=job.device,
        bound=lambda: run_floor(job.macs, trained, scored, job.device, recipe.train.precision),
        implementations=(
            Implementation("fastcifar", functools.partial(ours, job), ours=True),
            Implementation(f"{PLAIN}, DataLoader", _isolated(functools.partial(theirs, job), job.device)),
        ),
        rounds=setting.size.rounds,
        warm_up=1,
    )


def _isolated(ready: Callable[[], AbstractContextManager[Work]], device: torch.device) -> Callable[..., Any]:
    """Move an implementation to its own process on a CPU; not on CUDA, whose events cannot time another process."""
    return functools.partial(in_own_process, ready) if device.type == "cpu" else ready


def _jobs(setting: Setting, epochs: int) -> Iterator[Job]:
    """Yield a job for each batch size."""
    for batch in setting.batches:
        trained = whole_batches(setting.size.images, batch) * batch
        scored = max(1, trained // TRAINED_PER_SCORED)
        recipe = _recipe(setting, batch, epochs)
        evaluate = dataclasses.replace(recipe.evaluate, batch_size=min(recipe.evaluate.batch_size, scored))
        yield Job(dataclasses.replace(recipe, evaluate=evaluate), trained, scored, setting.device)


def _recipe(setting: Setting, batch: int, epochs: int) -> Recipe:
    recipe = setting.recipe
    schedule = dataclasses.replace(recipe.schedule, warmup_epochs=min(recipe.schedule.warmup_epochs, epochs / 2))
    train = dataclasses.replace(recipe.train, batch_size=batch, epochs=epochs)
    return dataclasses.replace(recipe, schedule=schedule, train=train)


def engine_steps(job: Job, backend: str, steps: int) -> Work:
    engine = job.engine(backend)
    return Work(lambda: engine.step.run(steps), steps, note=lambda: _describe(engine))


def _describe(engine: Engine) -> str:
    step = f"{engine.backend} step ({engine.backend_reason})"
    return f"{step}, {engine.loader.augment} augmentation, {engine.recipe.train.precision}"


def plain_steps(job: Job, steps: int) -> Work:
    plain = PlainTraining(job.recipe, job.device)
    images, labels = _ready_batch(job)
    return Work(lambda: [plain.step(images, labels) for _ in range(steps)], steps)


def recipe_steps(job: Job, steps: int) -> Work:
    """Train with the recipe's arithmetic, without the engine."""
    recipe, device = job.recipe, job.device
    model = to_weights_dtype(build_model(recipe.model), recipe.train.precision)
    model.to(device, memory_format=torch.channels_last)
    forward = forward_loss(model, device, recipe)
    step = train_step(build_optimizer(model, recipe.optimizer), lambda images, labels: forward(images, labels)[0])
    images, labels = _ready_batch(job)
    images = images.to(PRECISIONS[recipe.train.precision].compute, memory_format=torch.channels_last)

    def run() -> None:
        with arithmetic(recipe.train.precision, deterministic=recipe.train.deterministic):
            for _ in range(steps):
                step(images, labels)

    return Work(run, steps, note=lambda: f"{recipe.train.precision}, channels last")


def _ready_batch(job: Job) -> tuple[torch.Tensor, torch.Tensor]:
    shape = job.recipe.train.batch_size, SHAPE[2], *job.recipe.augment.output_size(*SHAPE)
    labels = torch.randint(0, job.recipe.model.num_classes, shape[:1], device=job.device)
    return torch.randn(shape, device=job.device), labels


def engine_epochs(job: Job) -> Work:
    engine = job.engine()
    evaluator = engine.evaluator("val")

    def run() -> float:
        engine.step.run(len(engine.loader))
        evaluator.run()
        return evaluator.score().loss

    return Work(run, job.trained, note=lambda: _describe(engine))


@contextmanager
def plain_epochs(job: Job) -> Iterator[Work]:
    plain = PlainTraining(job.recipe, job.device)
    with TemporaryDirectory() as folder:
        plain.load(random_dataset(job.trained, job.scored), Path(folder))
        yield Work(plain.epoch, job.trained, note=_workers)


def our_training(job: Job) -> Work:
    dataset = random_dataset(job.trained, job.scored)
    summaries = []

    def run() -> RunSummary:
        if job.device.type == "cuda":
            torch.compiler.reset()  # compile as a new process would, and stay below the recompilation limit
        with TemporaryDirectory() as folder:
            out, device = Path(folder, "run"), str(job.device)
            result = train(job.recipe, dataset, out, device=device, loader="resident", reporter=Reporter.silent())
        summaries.append(result.summary)
        return summaries[-1]

    def note() -> str:
        last = summaries[-1]
        parts = {"warm-up": last.warm_up_seconds, "train": last.train_seconds, "evaluate": last.evaluate_seconds}
        return "in the last run " + ", ".join(f"{name} {seconds:.3g} s" for name, seconds in parts.items())

    return Work(run, job.trained, note)


@contextmanager
def plain_training(job: Job) -> Iterator[Work]:
    dataset = random_dataset(job.trained, job.scored)

    def run() -> float:
        with TemporaryDirectory() as folder:
            plain = PlainTraining(job.recipe, job.device)
            plain.load(dataset, Path(folder))
            for _ in range(job.recipe.train.epochs):
                plain.epoch()
            return plain.score()  # in place of the test split, which has the same size

    yield Work(run, job.trained, note=_workers)


def _workers() -> str:
    return f"{CORES} workers"
