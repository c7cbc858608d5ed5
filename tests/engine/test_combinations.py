"""Any combination of a recipe's keys trains, or is refused in one line that names the keys in conflict."""

import json
import math
import re

import numpy as np
import pytest
from helpers import quiet
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from fastcifar.data.dataset import Dataset, Manifest, Split
from fastcifar.engine.engine import Engine
from fastcifar.engine.trainer import train
from fastcifar.recipe import load_recipe, recipe_names
from fastcifar.runtime.distributed import process_group
from fastcifar.runtime.errors import UserError

RESNET = {
    "model.name": ["resnet"],
    "model.stem_channels": [8],
    "model.channels": [[8, 16]],
    "model.blocks": [[1, 2]],
    "model.strides": [[1, 2]],
    "model.block": ["basic", "bottleneck", "preactivation"],
    "model.squeeze": [0, 4],
    "model.stochastic_depth": [0.0, 0.5],
    "model.dropout": [0.0, 0.5],
}
SPEEDNET = {
    "model.name": ["speednet"],
    "model.widths": [[8, 16]],
    "model.depth": [1, 2],
    "model.activation": ["gelu", "silu", "relu"],
    "model.head_scale": [1.0, 0.1],
}
KEYS = {
    "optimizer.name": ["sgd", "adam", "adamw", "muon"],
    "optimizer.lr": [0.001],
    "optimizer.momentum": [0.0, 0.9],
    "optimizer.nesterov": [False, True],
    "optimizer.sam_rho": [0.0, 0.05],
    "optimizer.groups": [
        [],
        [{"match": "first", "lr": 0.01, "epochs": 1.0}, {"match": "head", "momentum": 0.5}],
        [{"match": "norms", "weight_decay": 0.0}, {"match": "biases", "lr": 0.1}, {"match": "filters", "lr": 0.002}],
    ],
    "schedule.name": ["constant", "step", "cosine", "linear", "triangular", "one_cycle"],
    "schedule.warmup_epochs": [0.0, 0.5],
    "schedule.initial_factor": [0.0, 0.0, 0.0, 0.2],
    "schedule.final_factor": [0.0, 0.1],
    "train.epochs": [1, 3],
    "train.batch_size": [16, 24],
    "train.splits": [["train"], ["train", "val"]],
    "train.image_sizes": [[], [{"pixels": 12, "until": 0.5}], [{"pixels": 1, "until": 0.3}, {"pixels": 20, "until": 1.0}]],
    "train.keep": [1.0, 0.6],
    "train.precision": ["auto", "fp32", "tf32", "bf16", "fp16", "pure_bf16", "pure_fp16"],
    "train.pad_widths": [0, 8, 32],
    "train.label_smoothing": [0.0, 0.2],
    "train.deterministic": [False, True],
    "evaluate.tta": ["none", "flip", "multi_crop"],
    "evaluate.tta_share": [1.0, 0.5],
    "average.name": ["none", "ema", "lookahead"],
    "average.every": [1, 2],
    "average.power": [0.0, 3.0],
    "augment.transforms": [
        [],
        [{"name": "Normalize"}],
        [{"name": "RandomCrop", "padding": 2}, {"name": "RandomHorizontalFlip"}, {"name": "Normalize"}, {"name": "CutMix"}],
        [{"name": "Translate", "pixels": 2}, {"name": "AlternatingFlip"}, {"name": "Normalize"}, {"name": "RandomErasing"}],
    ],
}
COUNTS = {"train": 2_000, "val": 100, "test": 100}
A_KEY = re.compile(r"\b[a-z_]+(?:\.[a-z_]+)* = ")


def choices(tables):
    return st.fixed_dictionaries({}, optional={key: st.sampled_from(values) for key, values in tables.items()})


combinations = st.one_of(
    st.tuples(st.just(recipe), choices(model), choices(KEYS)) for recipe, model in (("seed", RESNET), ("speed94", SPEEDNET))
)
"""Name of a recipe, keys of its model, keys of the other tables."""
SMALL = {"train.batch_size": 16, "evaluate.batch_size": 32, "optimizer.nesterov": False}


def toml(value):
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {toml(item)}' for key, item in value.items())}}}"
    return json.dumps(value)


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(combinations)
def test_every_combination_trains_three_steps_or_is_refused(dataset, one_thread, combination):
    recipe, model, keys = combination
    smallest = {key: values[0] for key, values in (RESNET if recipe == "seed" else SPEEDNET).items()}
    overrides = [f"{key}={toml(value)}" for key, value in (SMALL | smallest | model | keys).items()]
    note("; ".join(overrides))
    try:
        with process_group("cpu") as world, Engine(load_recipe(recipe, overrides), dataset, world) as engine:
            steps = min(3, len(engine.step.losses))
            engine.step.run(steps)
            assert engine.step.losses[:steps].isfinite().all()
            evaluator = engine.evaluator("test")
            evaluator.run()
            assert math.isfinite(evaluator.score().loss)
    except UserError as error:
        refused = str(error)
        assert "\n" not in refused
        assert len(A_KEY.findall(refused)) >= 2 or "too small" in refused or "issue 191763" in refused, refused


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_that_comes_with_fastcifar_trains_and_is_within_its_budget(dataset, name):
    recipe = load_recipe(name, ["train.batch_size=16", "evaluate.batch_size=32"])
    assert recipe.model.budget == 5_000_000
    with process_group("cpu") as world, Engine(recipe, dataset, world) as engine:
        engine.step.run(3)
        assert engine.step.losses[:3].isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
def test_quick_trains_on_letters_of_28_pixels_without_any_other_key(channels, tmp_path):
    """26 classes, as EMNIST, mean and deviation from the manifest."""
    rng = np.random.default_rng(0)
    shape = 28, 28, channels
    pixels = {name: rng.integers(0, 256, (count, *shape), dtype=np.uint8) for name, count in COUNTS.items()}
    splits = {name: Split(images, np.arange(len(images)) % 26) for name, images in pixels.items()}
    manifest = Manifest(
        name="letters",
        classes=tuple("abcdefghijklmnopqrstuvwxyz"),
        image_shape=shape,
        counts=COUNTS,
        split_seed=0,
        val_fraction=0.1,
        mean=(0.5,) * channels,
        std=(0.29,) * channels,
        sha256=dict.fromkeys(COUNTS, "0" * 64),
        source="made by the test",
    )
    recipe = load_recipe("quick", ["train.epochs=1"])
    result = train(recipe, Dataset(tmp_path, manifest, **splits), tmp_path / "run", device="cpu", reporter=quiet())
    assert result.model.head.out_features == 26
    assert result.model.first.in_channels == channels
    assert math.isfinite(result.summary.test_loss)
