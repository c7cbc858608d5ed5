"""`fastcifar info`: figures of the seed model, and a floor that follows from them."""

import json

import pytest

from fastcifar.display.info import print_info
from fastcifar.profiling.info import describe
from fastcifar.recipe import load_recipe


@pytest.fixture(scope="module")
def described():
    return describe(load_recipe("seed", ["train.precision=fp32"]), "cpu")


def test_the_floor_is_the_arithmetic_over_the_measured_rate(described):
    flops = 6 * described["model"]["macs"] * 40 * 40_000
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
