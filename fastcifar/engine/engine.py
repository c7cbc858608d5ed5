"""What training needs, built once: model, optimizer, loaders, step and evaluators. Any number of runs may use it in turn."""

import dataclasses
import time
from typing import Any

import torch

from fastcifar.config import Recipe
from fastcifar.data.dataset import Dataset
from fastcifar.data.streaming import choose_loader, open_loader
from fastcifar.engine import step as steps
from fastcifar.engine.caches import warm_start
from fastcifar.engine.distributed import World, seed_rank, synchronise_batchnorm
from fastcifar.engine.environment import device_name, environment, make_current
from fastcifar.engine.evaluate import Evaluator, Logits, evaluation_loader, logits_of
from fastcifar.engine.memory import keep_freed_memory
from fastcifar.engine.onednn import check_convolutions
from fastcifar.engine.precision import (
    PRECISIONS,
    gradient_scaler,
    reset_scaler,
    resolve_precision,
    scaler_state,
    to_weights_dtype,
)
from fastcifar.models import build_model
from fastcifar.models.padding import pad_widths
from fastcifar.optim.optimizers import build_optimizer


class Engine:
    """Everything on the device that a run of `recipe` on `dataset` works with, ready for its first step.

    Use it inside `fastcifar.engine.precision.arithmetic(recipe.train.precision)`. On a CPU the process keeps from now on the
    memory that it frees; see `fastcifar.engine.memory.keep_freed_memory`.

    Args:
        recipe: its number of classes and channels is taken from the data set.
        world: this process's place among those of the run, and its device; see `fastcifar.engine.distributed.joined`.
        backend: "auto", "captured", "compiled" or "eager".
        loader: "auto", "resident" or "streaming".
        mark: called at the end of every phase of a step; see `fastcifar.engine.step.EagerStep`.

    Attributes:
        recipe: with the classes, channels, precision and seed of the run.
        precision_reason: why that precision.
        backend, why: what the step's back end is, and why that one.
        loader_kind, loader_reason: the same of the loader.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        world: World,
        *,
        backend: str = "auto",
        loader: str = "auto",
        mark: steps.Mark | None = None,
    ) -> None:
        recipe = recipe.with_classes(len(dataset.manifest.classes), dataset.manifest.image_shape[2])
        self.dataset, self.world, self.device = dataset, world, world.device
        self.recipe, self.precision_reason = resolve_precision(recipe, self.device)
        recipe = self.recipe
        make_current(self.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self._asked_loader = loader
        self.loader_kind, self.loader_reason = self._choose_loader("train")
        streaming = self.loader_kind == "streaming"
        self.backend, self.why = steps.choose_backend(backend, self.device, streaming=streaming)
        torch.manual_seed(recipe.train.seed)
        self.model = self._build_model()
        if self.device.type == "cpu" and PRECISIONS[recipe.train.precision].compute == torch.float32:
            check_convolutions(self.model)
        seed_rank(recipe.train.seed, world)
        self.optimizer = build_optimizer(self.model, recipe.optimizer)
        self.loader = open_loader(
            self.loader_kind,
            dataset,
            "train",
            recipe.augment,
            batch_size=recipe.train.batch_size,
            seed=recipe.train.seed,
            device=self.device,
            num_classes=recipe.model.num_classes,
            shard=world.shard,
        )
        self.scaler = gradient_scaler(self.device, recipe.train.precision)
        options = {"scaler": self.scaler, "average_gradients": world.gradients(self.model), "mark": mark}
        self.step = steps.build(self.model, self.optimizer, self.loader, recipe, self.backend, **options)
        self._logits = self._build_logits()
        self._evaluators: dict[str, Evaluator | None] = {}
        self._warm = False

    def warm_up(self) -> float:
        """Compile, tune and capture, with what an earlier process has kept of it; seconds that it took.

        Weights, counters and random state are afterwards as they were. The second time there is nothing to do.
        """
        if self.backend == "eager" or self._warm:
            return 0.0
        begun, self._warm = time.perf_counter(), True
        with warm_start(self._compiled_for()):
            self.step.warm_up()
            self.why = "; ".join(filter(None, (self.step.failure or self.why, self.step.note)))
            if self.step.failure:
                self.backend = self.step.backend
                self._logits = self._build_logits()
            self._warm_up_evaluators()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        return time.perf_counter() - begun

    def _warm_up_evaluators(self) -> None:
        """Compile and capture the evaluation; where it cannot be compiled, it goes on eagerly, and `why` says so."""
        try:
            self._warm_up_splits()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers fail in many ways; where the model is at fault, eager evaluation says so again
            self.why += f"; evaluation is eager: {steps.first_line(error)}"
            self._logits = logits_of(self.model, self.recipe.train.precision, self.recipe.evaluate.tta)
            self._evaluators.clear()
            self._warm_up_splits()

    def _warm_up_splits(self) -> None:
        for split in ("val", "test"):
            if evaluator := self.evaluator(split):
                evaluator.warm_up()

    def reset(self, seed: int) -> None:
        """Begin anew, as an engine built with this seed does: in place, so that nothing is compiled or captured again."""
        self.recipe = self.recipe.with_seed(seed)
        torch.manual_seed(seed)
        self.model.load_state_dict(build_model(self.recipe.model).state_dict())
        seed_rank(seed, self.world)
        for state in self.optimizer.state.values():
            for tensor in state.values():
                tensor.zero_()
        reset_scaler(self.scaler)
        self.loader.reseed(seed)
        self.step.losses.fill_(float("nan"))
        self.step.seek(0)

    def close(self) -> None:
        """Give up graphs, which the end of NCCL waits for, and threads that read."""
        if self.backend == "captured":
            self.step.graphs.clear()
        self._evaluators.clear()

    def evaluator(self, split: str) -> Evaluator | None:
        """What scores the model on "val" or "test"; None for a split that there is not."""
        if split not in self._evaluators:
            self._evaluators[split] = self._build_evaluator(split)
        return self._evaluators[split]

    def _build_logits(self) -> Logits:
        recipe, compiled = self.recipe, self.backend != "eager"
        return logits_of(self.model, recipe.train.precision, recipe.evaluate.tta, compiled=compiled)

    def _build_evaluator(self, split: str) -> Evaluator | None:
        kind, _ = self._choose_loader(split)
        loader = evaluation_loader(self.dataset, split, self.recipe, self.device, kind=kind, shard=self.world.shard)
        if loader is None:
            return None
        captured = self.backend == "captured" and kind == "resident"
        classes = self.recipe.model.num_classes
        return Evaluator(self.model, self._logits, loader, classes, captured=captured, world=self.world)

    def _choose_loader(self, split: str) -> tuple[str, str]:
        """Each split is judged by its own size and the memory that is free when it is its turn."""
        return self.world.first(lambda: choose_loader(self._asked_loader, self.dataset.split_bytes(split), self.device))

    def scaler_state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps of the loss scaling."""
        return {f"scaler_{name}": tensor for name, tensor in scaler_state(self.scaler).items()}

    def describe(self) -> dict[str, Any]:
        """Versions, device, data and what was chosen, ready for JSON."""
        return environment(self.device) | {
            "dataset": self.dataset.manifest.name,
            "dataset_sha256": self.dataset.manifest.sha256,
            "processes": self.world.size,
            "precision": self.recipe.train.precision,
            "precision_reason": self.precision_reason,
            "step": self.backend,
            "step_reason": self.why,
            "loader": self.loader_kind,
            "loader_reason": self.loader_reason,
            "augment": self.loader.augment,
            "augment_reason": self.loader.augment_reason,
        }

    def _build_model(self) -> torch.nn.Module:
        train = self.recipe.train
        model = build_model(self.recipe.model)
        if train.pad_widths:
            pad_widths(model, train.pad_widths)
        model = to_weights_dtype(model, train.precision).to(self.device, memory_format=torch.channels_last)
        return synchronise_batchnorm(model, self.world) if train.sync_batchnorm else model

    def _compiled_for(self) -> dict[str, Any]:
        """What the compiled code depends on."""
        recipe = self.recipe
        shape = {"image_shape": self.dataset.manifest.image_shape, "processes": self.world.size, "step": self.backend}
        shape |= {"device": [self.device.type, device_name(self.device)]}
        tables = {"model": recipe.model, "optimizer": recipe.optimizer, "train": recipe.train, "evaluate": recipe.evaluate}
        tables["train"] = dataclasses.replace(recipe.train, seed=0, epochs=1, log_every=1)
        return shape | {name: dataclasses.asdict(table) for name, table in tables.items()}
