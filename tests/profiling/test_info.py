"""`fastcifar info`: figures of the seed model, and a floor that follows from them."""

import json

import pytest

from fastcifar.display.info import print_info
from fastcifar.models import build_model
from fastcifar.models.summary import training_flops
from fastcifar.profiling.info import describe
from fastcifar.recipe import load_recipe


@pytest.fixture(scope="module")
def described():
    return describe(load_recipe("seed", ["train.precision=fp32"]), "cpu")


def test_the_floor_is_the_arithmetic_over_the_measured_rate(described):
    flops = 2 * described["model"]["training_macs"] * 40 * 40_000
    assert described["floor_seconds"] == pytest.approx(flops / described["peaks"]["flops_per_s"])


def test_size_images_and_classes_are_those_of_the_data_set(recipe, dataset):
    described = describe(recipe, "cpu", dataset.manifest)
    assert described["images_trained"] == recipe.train.epochs * 80
    assert described["data"] == "tiny"
    assert described["model"]["layers"][0]["output_shape"] == (8, 16, 16)


def test_the_description_is_json(described):
    assert json.loads(json.dumps(described))["model"]["parameters"] == 4_662_098


@pytest.mark.parametrize("layers", [False, True])
def test_what_is_printed(described, layers, capsys):
    print_info(described, layers=layers)
    text = capsys.readouterr().out
    for words in ("4,662,098", "17.78 MB", "14.43 MB", "0.497 G", "cpu: ", "torch "):
        assert words in text
    assert ("stages.3.0.shortcut.conv" in text) is layers
    assert ("384x4x4" in text) is layers


def test_a_recipe_that_takes_mean_and_deviation_from_its_data_is_described_without_any():
    described = describe(load_recipe("quick", ["train.precision=fp32"]), "cpu")
    assert described["model"]["parameters"] == 498_104
    assert "assumed" in described["data"]


def test_the_work_of_a_run_follows_its_splits_sizes_and_kept_images():
    keys = ["train.precision=fp32", "train.epochs=4", "train.keep=0.5", "train.image_sizes=[{pixels=24,until=0.5}]"]
    described = describe(load_recipe("speed94", keys), "cpu")
    model = build_model(load_recipe("speed94").model)
    assert described["images_trained"] == 4 * 25_000
    flops = 50_000 * (training_flops(model, (3, 24, 24)) + training_flops(model, (3, 32, 32)))
    assert described["floor_seconds"] == pytest.approx(flops / described["peaks"]["flops_per_s"])
