"""The operations of a run: a small one counted by hand, and those of a shipped recipe."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from helpers import quiet, with_train

from fastcifar.engine.trainer import train
from fastcifar.engine.work import run_pflop
from fastcifar.recipe import ImageSize, load_recipe

STEM = 3 * 8 * 9 * 16**2
OTHERS = 2 * 8 * 8 * 9 * 16**2 + (8 * 16 * 9 + 16 * 16 * 9 + 8 * 16) * 8**2
HEAD = 16 * 3
FORWARD = 2 * (STEM + OTHERS + HEAD)
"""Operations of the fixture's model on an image of 16 x 16 pixels."""
TRAINING = 2 * (2 * STEM + 3 * OTHERS + 3 * HEAD)
SMALL_TRAINING = 2 * (2 * STEM // 4 + 3 * OTHERS // 4 + 3 * HEAD)  # 8 x 8 pixels
STEPS, BATCH, EPOCHS, VAL, TEST = 5, 16, 2, 20, 20


def flops(recipe, dataset, steps=STEPS):
    return run_pflop(recipe.fitted_to(dataset.manifest), dataset, steps) * 1e15


def with_evaluate(recipe, **changes):
    return dataclasses.replace(recipe, evaluate=dataclasses.replace(recipe.evaluate, **changes))


def test_training_validations_and_test_are_counted(recipe, dataset):
    assert flops(recipe, dataset) == pytest.approx(EPOCHS * STEPS * BATCH * TRAINING + (EPOCHS * VAL + TEST) * FORWARD)


@pytest.mark.parametrize(("every", "epochs", "validations"), [(1, 5, 5), (2, 5, 3), (5, 5, 1), (7, 5, 1), (2, 4, 2)])
def test_epochs_without_validation_do_not_count_one(recipe, dataset, every, epochs, validations):
    recipe = with_evaluate(with_train(recipe, epochs=epochs), every=every)
    training = epochs * STEPS * BATCH * TRAINING
    assert flops(recipe, dataset) == pytest.approx(training + (validations * VAL + TEST) * FORWARD)


@pytest.mark.parametrize(
    ("tta", "share", "passes"), [("flip", 1.0, 2), ("multi_crop", 1.0, 6), ("multi_crop", 0.25, 1 + 6 / 4)]
)
def test_an_image_counts_once_for_each_view(recipe, dataset, tta, share, passes):
    scored = (EPOCHS * VAL + TEST) * FORWARD
    views = with_evaluate(recipe, tta=tta, tta_share=share)
    assert flops(views, dataset) - flops(recipe, dataset) == pytest.approx((passes - 1) * scored)


def test_an_epoch_of_small_images_counts_them_small_and_they_are_evaluated_at_their_own_size(recipe, dataset):
    recipe = with_train(recipe, image_sizes=(ImageSize(pixels=8, until=0.5),))
    training = STEPS * BATCH * (TRAINING + SMALL_TRAINING)
    assert flops(recipe, dataset) == pytest.approx(training + (EPOCHS * VAL + TEST) * FORWARD)


def test_sharpness_aware_minimisation_trains_twice(recipe, dataset):
    sam = dataclasses.replace(recipe, optimizer=dataclasses.replace(recipe.optimizer, sam_rho=0.05))
    assert flops(sam, dataset) - flops(recipe, dataset) == pytest.approx(EPOCHS * STEPS * BATCH * TRAINING)


def test_an_absent_split_and_a_shorter_epoch_count_less(recipe, dataset):
    without = dataclasses.replace(dataset, val=None)
    assert flops(recipe, without, steps=3) == pytest.approx(EPOCHS * 3 * BATCH * TRAINING + TEST * FORWARD)


def test_padding_is_not_counted_and_nothing_is_drawn(recipe, dataset):
    plain, state = flops(recipe, dataset), torch.get_rng_state()
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, dropout=0.25))  # not counted before
    assert flops(with_train(recipe, pad_widths=64), dataset) == plain
    assert torch.equal(torch.get_rng_state(), state)


def test_the_count_of_a_run_is_in_its_summary(recipe, dataset, tmp_path):
    summary = train(recipe, dataset, tmp_path / "run", device="cpu", reporter=quiet()).summary
    assert summary.pflop * 1e15 == pytest.approx(flops(recipe, dataset))


def test_airbenchs_network_for_8_epochs():
    """50,000 images at 118 million multiply-accumulates, of which the first layer's 0.3 have no backward; six views of each
    test image."""
    recipe = load_recipe("speed94", ["train.epochs=8", "evaluate.tta=multi_crop", "evaluate.tta_share=1.0"])
    first = 24 * 12 * 31**2
    others = (24 * 64 * 31**2 + 64 * 64 * 15**2 + 64 * 256 * 15**2 + 2 * 256 * 256 * 7**2 + 256 * 256 * 3**2) * 9 + 2560
    expected = 8 * 50_000 * 2 * (first + 3 * others) + 10_000 * 6 * 2 * (first + others)
    test = SimpleNamespace(labels=range(10_000))
    dataset = SimpleNamespace(manifest=SimpleNamespace(image_shape=(32, 32, 3)), val=None, test=test)
    pflop = run_pflop(recipe, dataset, 50_000 // recipe.train.batch_size)
    assert pflop == pytest.approx(expected / 1e15)
    assert pflop == pytest.approx(0.297, abs=5e-4)
