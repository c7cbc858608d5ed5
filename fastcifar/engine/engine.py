"""Everything that training needs, built once: model, optimizer, loaders, step, evaluators. Several runs may use it in turn."""

import dataclasses
import time
from typing import Any, Self

import torch

from fastcifar.data.choice import choose_loader, open_loader
from fastcifar.data.dataset import Dataset
from fastcifar.data.resident import ResidentLoader
from fastcifar.engine.backends import build_step, choose_backend
from fastcifar.engine.evaluate import Evaluator, Logits, evaluation_loader, logits_of
from fastcifar.engine.step import Mark, plain_inductor
from fastcifar.models import build_model
from fastcifar.models.norm import choose_norms, fuse_norms
from fastcifar.models.padding import pad_widths
from fastcifar.models.summary import too_small
from fastcifar.optim.averaging import build_average
from fastcifar.optim.muon import Muon
from fastcifar.optim.optimizers import build_optimizer
from fastcifar.recipe import Recipe
from fastcifar.runtime.compile_cache import warm_start
from fastcifar.runtime.device import device_name, make_current
from fastcifar.runtime.distributed import World, synchronise_batchnorm
from fastcifar.runtime.environment import environment
from fastcifar.runtime.errors import UserError, first_line
from fastcifar.runtime.memory import keep_freed_memory
from fastcifar.runtime.onednn import check_convolutions
from fastcifar.runtime.precision import PRECISIONS, gradient_scaler, reset_scaler, scaler_state, to_weights_dtype
from fastcifar.runtime.random_state import seed_rank

INITIALIZING_IMAGES = 5_000
"""Training images that a model with `initialize_from` is given."""


class Engine:
    """Everything on the device that a run of `recipe` on `dataset` needs, ready for its first step.

    Use it as a context manager, or call `close`. Step and evaluators set PyTorch's switches for the recipe's precision while
    they run. On a CPU the process keeps the memory that it frees; see `fastcifar.runtime.memory.keep_freed_memory`.

    Args:
        recipe: its number of classes and channels is taken from the data set, its precision from the device if "auto".
        world: the ranks of the run, and this rank's device; see `fastcifar.runtime.distributed.process_group`.
        backend: "auto", "captured", "compiled" or "eager".
        loader: "auto", "resident" or "streaming".
        mark: called at the end of every phase of a step; see `fastcifar.engine.step.EagerStep`.

    Attributes:
        recipe: with the classes, channels, precision and seed of the run.
        precision_reason: why that precision.
        average: the average of the weights; None without one.
        norm, norm_reason: the implementation of BatchNorm in training, and why.
        scored_model: the model that is evaluated and kept: the average (EMA), else `model`.
        backend, backend_reason: the step's back end, and why.
        loader_kind, loader_reason: the training loader, and why.
        initialize_seconds: to initialise the model, or to reset it and all else for the run of another seed.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        world: World,
        *,
        backend: str = "auto",
        loader: str = "auto",
        mark: Mark | None = None,
    ) -> None:
        self.world, self.device = world, world.device
        recipe = recipe.fitted_to(dataset.manifest)
        self.dataset = dataset.train_on(recipe.train.splits)
        self.recipe, self.precision_reason = recipe.resolved(self.device)
        self._asked_loader, self._warm = loader, False
        self._evaluators: dict[str, Evaluator | None] = {}
        make_current(self.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        train = self.recipe.train
        self.loader_kind, self.loader_reason = self._choose_loader("train")
        streaming = self.loader_kind == "streaming"
        if streaming and len(train.splits) > 1:
            raise UserError("train.splits = ['train', 'val']: a streamed run trains on one file; use `loader=resident`")
        self.backend, self.backend_reason = choose_backend(backend, self.device, streaming=streaming)
        torch.manual_seed(train.seed)
        began = time.perf_counter()
        self.model = self._build_model()
        self.initialize_seconds = self._seconds_since(began)
        self._check_image_sizes()
        if self.device.type == "cpu" and PRECISIONS[train.precision].compute == torch.float32:
            check_convolutions(self.model)
        seed_rank(train.seed, world)
        self.optimizer = build_optimizer(self.model, self.recipe.optimizer)
        self.loader = open_loader(
            self.loader_kind,
            self.dataset,
            "train",
            self.recipe.augment,
            batch_size=train.batch_size,
            seed=train.seed,
            device=self.device,
            dtype=PRECISIONS[train.precision].compute,
            num_classes=self.recipe.model.num_classes,
            shard=world.shard,
            keep=train.keep,
        )
        self.average = build_average(self.model, self.recipe.average, train.epochs * len(self.loader))
        self.scored_model = self.average.model if self.recipe.average.name == "ema" else self.model
        self.scaler = gradient_scaler(self.device, train.precision)
        options = {"scaler": self.scaler, "average": self.average, "mark": mark}
        options["average_gradients"] = world.gradient_averager(self.model)
        self.step = build_step(self.model, self.optimizer, self.loader, self.recipe, self.backend, **options)
        self._logits = self._build_logits(self.backend != "eager")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def warm_up(self) -> float:
        """Compile, tune and capture, from the cache of an earlier process where possible; return the seconds spent.

        Weights, counters and random state are restored. A second call does nothing.
        """
        if self.backend == "eager" or self._warm:
            return 0.0
        began, self._warm = time.perf_counter(), True
        with warm_start(self._compiled_for()):
            self.step.warm_up()
            reasons = self.step.failure or self.backend_reason, self.step.note
            self.backend_reason = "; ".join(filter(None, reasons))
            if self.step.failure:
                self.backend = self.step.backend
                self._logits = self._build_logits(self.backend != "eager")
            self._warm_up_evaluators()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        return time.perf_counter() - began

    def _warm_up_evaluators(self) -> None:
        """Compile and capture the evaluation.

        If compiling fails, it is tried again with plain options; if that fails too, evaluation is eager. `backend_reason`
        says so.
        """
        failure = self._try_to_compile_evaluators()
        if not failure:
            return
        self._rebuild_evaluators(compiled=True)
        with plain_inductor():
            again = self._try_to_compile_evaluators()
        if again:
            self._rebuild_evaluators(compiled=False)
            self._warm_up_splits()
        how = f"is eager: {again}" if again else f"is compiled with plain options: {failure}"
        self.backend_reason += f"; evaluation {how}"

    def _try_to_compile_evaluators(self) -> str:
        """Warm up the evaluators; return why that failed, or ""."""
        try:
            self._warm_up_splits()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers raise many types; if the model is at fault, eager evaluation raises again
            return first_line(error)
        return ""

    def _warm_up_splits(self) -> None:
        for split in ("val", "test"):
            if evaluator := self.evaluator(split):
                evaluator.warm_up()

    def _rebuild_evaluators(self, *, compiled: bool) -> None:
        self._logits = self._build_logits(compiled)
        self._evaluators.clear()

    def reset(self, seed: int) -> None:
        """Reset to the state of a new engine with this seed, in place, so that nothing is compiled or captured again."""
        began = time.perf_counter()
        self.recipe = self.recipe.with_seed(seed)
        torch.manual_seed(seed)
        self.model.load_state_dict(self._new_model().state_dict())
        if self.average:
            self.average.reset()
        seed_rank(seed, self.world)
        for state in self.optimizer.state.values():
            for tensor in state.values():
                tensor.zero_()
        reset_scaler(self.scaler)
        self.loader.reseed(seed)
        self.step.losses.fill_(float("nan"))
        self.step.seek(0)
        self.initialize_seconds = self._seconds_since(began)

    def _seconds_since(self, began: float) -> float:
        """Return the seconds from `began`, by `time.perf_counter`, until the device has done all work given to it so far."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - began

    def close(self) -> None:
        """Free CUDA graphs (NCCL's shutdown waits for them), and end the loaders' threads."""
        if self.backend == "captured":
            self.step.graphs.clear()
        for loader in (self.loader, *(evaluator.loader for evaluator in self._evaluators.values() if evaluator)):
            loader.close()
        self._evaluators.clear()

    def evaluator(self, split: str) -> Evaluator | None:
        """Return the evaluator of "val" or "test"; None for an absent split."""
        if split not in self._evaluators:
            self._evaluators[split] = self._build_evaluator(split)
        return self._evaluators[split]

    def _build_logits(self, compiled: bool) -> Logits:
        evaluate = self.recipe.evaluate
        options = {"tta": evaluate.tta, "tta_share": evaluate.tta_share, "compiled": compiled}
        return logits_of(self.scored_model, self.recipe.train.precision, **options)

    def _build_evaluator(self, split: str) -> Evaluator | None:
        kind, _ = self._choose_loader(split)
        loader = evaluation_loader(self.dataset, split, self.recipe, self.device, kind=kind, shard=self.world.shard)
        if loader is None:
            return None
        captured = self.backend == "captured" and kind == "resident"
        classes = self.recipe.model.num_classes
        options = {"captured": captured, "world": self.world, "arithmetic": self.step.arithmetic}
        return Evaluator(self.scored_model, self._logits, loader, classes, **options)

    def _choose_loader(self, split: str) -> tuple[str, str]:
        """Choose by the split's own size and the memory that is free at this moment."""
        return self.world.run_on_rank_0(
            lambda: choose_loader(self._asked_loader, self.dataset.split_bytes(split), self.device)
        )

    def scaler_state(self) -> dict[str, torch.Tensor]:
        """Return the state of the loss scaling, as stored in a checkpoint."""
        return {f"scaler_{name}": tensor for name, tensor in scaler_state(self.scaler).items()}

    def describe(self) -> dict[str, Any]:
        """Return versions, device, data and all choices with their reasons, as JSON values."""
        described = environment(self.device) | {
            "dataset": self.dataset.manifest.name,
            "dataset_sha256": self.dataset.manifest.sha256,
            "processes": self.world.size,
            "precision": self.recipe.train.precision,
            "precision_reason": self.precision_reason,
            "step": self.backend,
            "step_reason": self.backend_reason,
            "loader": self.loader_kind,
            "loader_reason": self.loader_reason,
            "augment": self.loader.augment,
            "augment_reason": self.loader.augment_reason,
            "norm": self.norm,
            "norm_reason": self.norm_reason,
        }
        if self.muon_update:
            described["muon"], described["muon_reason"] = self.muon_update
        return described

    @property
    def muon_update(self) -> tuple[str, str] | None:
        """The implementation of Muon's update and its reason; None for another optimizer."""
        optimizer = self.optimizer
        return (optimizer.implementation, optimizer.implementation_reason) if isinstance(optimizer, Muon) else None

    def _build_model(self) -> torch.nn.Module:
        train, model = self.recipe.train, self._new_model()
        if train.pad_widths:
            pad_widths(model, train.pad_widths)
            if self.recipe.optimizer.name == "muon":
                self._check_muon_padding(model)
        model = to_weights_dtype(model, train.precision).to(self.device, memory_format=torch.channels_last)
        model = synchronise_batchnorm(model, self.world) if train.sync_batchnorm else model
        self.norm, self.norm_reason = choose_norms(model, self.device)
        return fuse_norms(model, self.norm, self.norm_reason)

    def _new_model(self) -> torch.nn.Module:
        """A new model on the CPU in float32, fitted to the training images where it wants that."""
        model = build_model(self.recipe.model)
        if hasattr(model, "initialize_from"):
            images = self.dataset.train.part(0, INITIALIZING_IMAGES)
            loader = ResidentLoader(images, self.recipe.augment.evaluation(), batch_size=len(images.labels), shuffle=False)
            model.initialize_from(loader.batch(0)[0])
        return model

    def _check_muon_padding(self, model: torch.nn.Module) -> None:
        """Refuse padding of filters, whose number sets the size of Muon's update."""
        for name, (real, padded) in model.padded_shapes.items():
            if len(real) == 4 and real[0] != padded[0] and model.get_parameter(name).requires_grad:
                raise UserError(
                    f"train.pad_widths = {self.recipe.train.pad_widths} and optimizer.name = 'muon': padding {name} from "
                    f"{real[0]} to {padded[0]} filters would change Muon's update; choose widths that are multiples of 8"
                )

    def _check_image_sizes(self) -> None:
        """Refuse images that are too small for the model, in training at any of its sizes or in evaluation."""
        *own, channels = self.dataset.manifest.image_shape
        sides = {side for side in self.recipe.train.image_sides() if side}
        for height, width in {tuple(own), self.recipe.augment.output_size(*own, channels), *zip(sides, sides, strict=True)}:
            if why := too_small(self.model, (channels, height, width)):
                key = "train.image_sizes: " if {height, width} <= sides else ""
                raise UserError(f"{key}images of {height} x {width} pixels are too small for the model: {why}")

    def _compiled_for(self) -> dict[str, Any]:
        """Return everything that the compiled code depends on, as JSON values."""
        recipe = self.recipe
        shape = {"image_shape": self.dataset.manifest.image_shape, "processes": self.world.size, "step": self.backend}
        shape["norm"] = self.norm
        shape |= {"device": [self.device.type, device_name(self.device)]}
        tables = {"model": recipe.model, "optimizer": recipe.optimizer, "train": recipe.train, "evaluate": recipe.evaluate}
        tables["train"] = dataclasses.replace(recipe.train, seed=0, epochs=1, log_every=1)
        return shape | {name: dataclasses.asdict(table) for name, table in tables.items()}
