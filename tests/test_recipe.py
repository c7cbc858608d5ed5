"""Recipes: what loads, what is refused and how, and that a recipe survives being written."""

from dataclasses import replace

import pytest

from fastcifar.recipe import dump_recipe, explain, load_recipe, recipe_names
from fastcifar.runtime.errors import UserError

SEED = {
    "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": False},
    "schedule": {"name": "step", "step_epochs": 10, "gamma": 0.1, "warmup_epochs": 0.0},
    "train": {"epochs": 40, "batch_size": 64, "label_smoothing": 0.0, "log_every": 100},
    "model": {"channels": (48, 196, 192, 384), "blocks": (2, 2, 2, 1), "strides": (1, 2, 2, 2), "dropout": 0.5},
}


def test_the_seed_recipe_is_the_seed():
    recipe = load_recipe("seed")
    for table, values in SEED.items():
        for key, value in values.items():
            assert getattr(getattr(recipe, table), key) == value, (table, key)
    names = [transform["name"] for transform in recipe.augment.to_config()["transforms"]]
    assert names == [
        "RandomCrop",
        "RandomHorizontalFlip",
        "ColorJitter",
        "RandomRotation",
        "Normalize",
        "RandomErasing",
    ]


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_survives_being_written_and_read_back(name, tmp_path):
    recipe = load_recipe(name)
    path = tmp_path / "recipe.toml"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path) == recipe


@pytest.mark.parametrize("name", recipe_names())
def test_every_key_of_every_recipe_has_a_meaning(name):
    assert [key for key, _, meaning in explain(load_recipe(name)) if not meaning] == []


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("optimizer.lr=0.5", "lr", 0.5),
        ("optimizer.lr=1", "lr", 1.0),
        ("optimizer.name=adamw", "name", "adamw"),
        ("optimizer.nesterov=true", "nesterov", True),
    ],
)
def test_set_overrides_one_key(override, key, value):
    assert getattr(load_recipe("seed", [override]).optimizer, key) == value


def test_set_replaces_a_list():
    recipe = load_recipe("seed", ["model.channels=[8, 16, 16, 32]"])
    assert recipe.model.channels == (8, 16, 16, 32)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.momentun=0.5", ["optimizer.momentun", "0.5", "'momentum'"]),
        ("optimiser.lr=0.5", ["optimiser", "'optimizer'"]),
        ("optimizer.lr=fast", ["optimizer.lr", "'fast'", "float"]),
        ("optimizer.lr=-1", ["optimizer.lr", "-1", "above 0"]),
        ("optimizer.lr=nan", ["optimizer.lr", "nan", "finite"]),
        ("optimizer.nesterov=1", ["optimizer.nesterov", "1", "bool"]),
        ("optimizer.name=sdg", ["optimizer.name", "'sdg'", "sgd"]),
        ("train.epochs=0", ["train.epochs", "0", "at least 1"]),
        ("train.epochs=1.5", ["train.epochs", "1.5", "int"]),
        ("train.batch_size=true", ["train.batch_size", "True", "int"]),
        ("train.pad_widths=8.0", ["train.pad_widths", "8.0", "16"]),
        ("train.pad_widths=false", ["train.pad_widths", "False", "16"]),
        ("train.keep=0", ["train.keep", "above 0"]),
        ("train.image_sizes=[{pixels=24,until=0.5},{pixels=28,until=0.5}]", ["image_sizes", "0.5, 0.5", "must rise"]),
        ("train.image_sizes=[{pixels=0,until=0.5}]", ["image_sizes", "pixels = 0", "at least 1"]),
        ("optimizer.groups=[{match='first',epochs=0.0}]", ["epochs = 0.0", "above 0"]),
        ("evaluate.tta_share=0.5", ["tta_share = 0.5", "tta = 'none'"]),
        ("average.name=emma", ["average.name", "'emma'", "ema"]),
        ("average.decay=1.0", ["average.decay", "below 1"]),
        ("train.precision=bf17", ["train.precision", "'bf17'", "bf16"]),
        ("train.label_smoothing=1", ["train.label_smoothing", "below 1"]),
        ("train.seed=-1", ["train.seed", "-1"]),
        ("train.batch_size=1", ["train.batch_size", "at least 2"]),
        ("schedule.warmup_epochs=inf", ["schedule.warmup_epochs", "inf", "finite"]),
        ("model.name=[1]", ["model.name", "[1]", "resnet"]),
        ("model.name=resnets", ["model.name", "'resnets'", "resnet"]),
        ("model.channels=48", ["model.channels", "48", "list"]),
        ("model.dropout=1.5", ["model.dropout", "1.5"]),
        ("schedule.gamma=0", ["schedule.gamma", "0"]),
        ("evaluate.tta=mirror", ["evaluate.tta", "'mirror'", "flip"]),
        ("augment.transforms=[{name='RandomCorp'}]", ["RandomCorp", "RandomCrop"]),
        ("train=3", ["train = 3", "table"]),
        ("epochs", ["SECTION.KEY=VALUE"]),
    ],
)
def test_a_bad_value_is_one_line_that_names_file_key_value_and_way_out(override, words):
    with pytest.raises(UserError) as caught:
        load_recipe("seed", [override])
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_file_that_is_no_toml_is_refused_with_its_name(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[train\n")
    with pytest.raises(UserError, match=r"mine\.toml: not valid TOML"):
        load_recipe(path)


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(UserError, match="'seed'"):
        load_recipe("sed")


def test_precision_is_one_key_that_replace_changes():
    recipe = load_recipe("seed")
    assert replace(recipe, train=replace(recipe.train, precision="fp16")) == recipe.with_precision("fp16")


def test_any_text_survives_being_written_and_read_back(tmp_path):
    recipe = replace(load_recipe("seed"), description='fast \U0001f680 "quoted" \x7f \n schön')
    (tmp_path / "mine.toml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "mine.toml") == recipe


def test_parameter_groups_are_read_written_and_explained(tmp_path):
    recipe = load_recipe("speed94")
    first = recipe.optimizer.groups[0]
    assert (first.match, first.lr, first.epochs) == ("first", 106.0, 3.0)
    (tmp_path / "again.toml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "again.toml") == recipe
    explained = {key: value for key, value, _ in explain(recipe)}
    assert explained["optimizer.groups"][1] == {"match": "norms", "lr": 106.0, "momentum": 0.85}
    with pytest.raises(UserError, match=r"optimizer.groups.match = 'firt': must be one of first, head"):
        load_recipe("speed94", ["optimizer.groups=[{match='firt'}]"])
