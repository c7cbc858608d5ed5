"""Policies: valid and invalid ones, and the messages for the latter."""

import pytest
import torch

from fastcifar.augment import (
    ColorJitter,
    Cutout,
    Normalize,
    Policy,
    RandomCrop,
    RandomErasing,
    RandomHorizontalFlip,
    RandomRotation,
    Translate,
)
from fastcifar.runtime.errors import UserError

CONFIG = {
    "transforms": [
        {"name": "RandomCrop", "size": 28, "padding": 4, "padding_mode": "reflect"},
        {"name": "Translate", "pixels": 2},
        {"name": "AlternatingFlip"},
        {"name": "ColorJitter", "brightness": 0.2, "contrast": [0.5, 1.5]},
        {"name": "RandomRotation", "degrees": [-5, 10]},
        {"name": "Normalize", "mean": [0.1, 0.2, 0.3], "std": 0.5},
        {"name": "RandomErasing", "value": "random", "scale": [0.02, 0.2]},
        {"name": "Cutout", "size": 8},
    ],
}


def test_a_policy_survives_being_written_and_read_back():
    policy = Policy.from_config(CONFIG)
    assert Policy.from_config(policy.to_config()) == policy
    assert policy.transforms[0] == RandomCrop(28, padding=4, padding_mode="reflect")
    assert policy.transforms[4] == RandomRotation((-5, 10))


def test_lists_mean_the_same_as_tuples():
    assert Policy([Normalize([0.1, 0.2, 0.3], 0.5)]) == Policy((Normalize((0.1, 0.2, 0.3), 0.5),))


def test_evaluation_keeps_normalisation_alone():
    assert Policy.from_config(CONFIG).evaluation() == Policy((Normalize((0.1, 0.2, 0.3), 0.5),))


def test_the_output_has_the_crops_size():
    assert Policy.from_config(CONFIG).output_size(32, 40, 3) == (28, 28)
    assert Policy().output_size(32, 40, 3) == (32, 40)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RandomCrop(0), ["RandomCrop", "size = 0", "at least 1"]),
        (lambda: RandomCrop(32, padding=-1), ["padding = -1"]),
        (lambda: RandomCrop(32, padding_mode="edge"), ["'edge'", "constant, reflect"]),
        (lambda: Translate(1.5), ["pixels = 1.5", "whole number"]),
        (lambda: RandomHorizontalFlip(1.1), ["p = 1.1", "between 0 and 1"]),
        (lambda: RandomHorizontalFlip(float("nan")), ["p = nan"]),
        (lambda: ColorJitter(-0.1), ["brightness = -0.1", "at least 0"]),
        (lambda: ColorJitter(contrast=(2, 1)), ["contrast = [2, 1]", "low <= high"]),
        (lambda: RandomRotation(-1), ["degrees = -1"]),
        (lambda: RandomRotation((1, 2, 3)), ["degrees = [1, 2, 3]", "pair"]),
        (lambda: Normalize(0.5, 0), ["std = 0", "above 0"]),
        (lambda: Normalize("x", 1), ["mean = 'x'"]),
        (lambda: RandomErasing(p=2), ["p = 2"]),
        (lambda: RandomErasing(scale=(0.3, 0.1)), ["scale = [0.3, 0.1]"]),
        (lambda: RandomErasing(scale=(0.3, 1.1)), ["scale", "<= 1"]),
        (lambda: RandomErasing(ratio=(0, 1)), ["ratio", "above 0"]),
        (lambda: RandomErasing(value="noise"), ["value = 'noise'", '"random"']),
        (lambda: RandomErasing(value=float("inf")), ["value = inf"]),
        (lambda: RandomErasing(ratio=(0.3, float("inf"))), ["ratio = [0.3, inf]"]),
        (lambda: ColorJitter(saturation=float("nan")), ["saturation = nan"]),
        (lambda: Cutout(0), ["size = 0"]),
        (lambda: Policy((torch.nn.Identity(),)), ["Identity()", "RandomCrop"]),
        (lambda: Policy((RandomCrop(3), RandomCrop(3))), ["RandomCrop", "2 times"]),
        (lambda: Policy((Normalize(0, 1), ColorJitter(0.1))), ["ColorJitter", "before"]),
        (lambda: Policy.from_config({"dtype": "float16"}), ["dtype = 'float16'", "transforms"]),
        (lambda: Policy.from_config({"transforms": [{"name": "RandomCorp"}]}), ["'RandomCorp'", "'RandomCrop'"]),
        (lambda: Policy.from_config({"transforms": [{"name": "Cutout", "sise": 8}]}), ["sise = 8", "'size'"]),
        (lambda: Policy.from_config({"transforms": [{"name": "Cutout"}]}), ["Cutout", "size"]),
        (lambda: Policy.from_config({"transforms": [{}]}), ["name"]),
        (lambda: Policy.from_config({"transforms": "flip"}), ["'flip'", "list"]),
        (lambda: Policy.from_config({"transfroms": []}), ["transfroms = []", "'transforms'"]),
        (lambda: Policy.from_config({"transforms": [{"name": ["Cutout"]}]}), ["['Cutout']"]),
    ],
)
def test_an_impossible_policy_is_one_line_that_names_transform_value_and_bound(make, words):
    with pytest.raises(UserError) as caught:
        make()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
