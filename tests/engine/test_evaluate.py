"""Scores equal counts made by hand, for any batch size and padding."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastcifar.augment import Normalize, Policy
from fastcifar.data.dataset import Split
from fastcifar.data.resident import ResidentLoader
from fastcifar.engine.evaluate import VIEW_COUNTS, VIEWS, Evaluator, evaluate, logits_of

POLICY = Policy((Normalize(0.5, 0.5),))


@pytest.fixture
def split():
    rng = np.random.default_rng(0)
    return Split(rng.integers(0, 256, (70, 6, 6, 3), dtype=np.uint8), rng.integers(0, 4, 70))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(108, 4))


def by_hand(model, split, flip=False):
    images = torch.from_numpy(split.images).permute(0, 3, 1, 2).float() / 255 * 2 - 1
    labels = torch.from_numpy(split.labels)
    model.eval()
    with torch.no_grad():
        logits = model(images)
        if flip:
            logits = (logits + model(images.flip(3))) / 2
    confusion = torch.zeros(4, 4, dtype=torch.int64)
    for true, predicted in zip(labels, logits.argmax(1), strict=True):
        confusion[true, predicted] += 1
    return F.cross_entropy(logits, labels).item(), confusion


@pytest.mark.parametrize("tta", ["none", "flip"])
@pytest.mark.parametrize("batch_size", [1, 32, 70, 100])
def test_the_score_is_that_of_a_plain_loop(model, split, batch_size, tta):
    loader = ResidentLoader(split, POLICY, batch_size=batch_size, shuffle=False)
    score = evaluate(model, loader, 4, precision="fp32", tta=tta)
    loss, confusion = by_hand(model, split, flip=tta == "flip")
    assert torch.equal(score.confusion, confusion)
    assert score.loss == pytest.approx(loss, rel=1e-5)
    assert score.images == 70
    assert score.accuracy == pytest.approx(confusion.diagonal().sum().item() / 70)
    assert score.per_class[0] == pytest.approx(confusion[0, 0].item() / confusion[0].sum().item())


def test_multi_crop_weighs_six_views_as_airbench_does(model, split):
    images = torch.from_numpy(split.images).permute(0, 3, 1, 2).float()
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    moved = [padded[:, :, 0:6, 0:6], padded[:, :, 2:8, 2:8]]
    model.eval()
    with torch.no_grad():
        mirror = [(model(view) + model(view.flip(3))) / 2 for view in (images, *moved)]
        expected = mirror[0] / 2 + (mirror[1] + mirror[2]) / 4
        torch.testing.assert_close(logits_of(model, "fp32", "multi_crop")(images), expected)


def test_only_the_images_that_the_model_is_least_sure_of_get_the_other_views(model, split):
    images = torch.from_numpy(split.images).permute(0, 3, 1, 2).float()
    model.eval()
    with torch.no_grad():
        alone, augmented = model(images), logits_of(model, "fp32", "multi_crop")(images)
        selective = logits_of(model, "fp32", "multi_crop", tta_share=0.3)(images)
    best, second = alone.sort(descending=True).values[:, :2].unbind(1)
    unsure = torch.zeros(len(images), dtype=torch.bool)
    unsure[(best - second).argsort()[:21]] = True
    torch.testing.assert_close(selective[unsure], augmented[unsure])
    torch.testing.assert_close(selective[~unsure], alone[~unsure])
    assert not torch.allclose(alone, augmented)


@pytest.mark.parametrize("tta", VIEWS)
def test_the_views_of_an_image_have_weights_that_sum_to_1_and_are_counted(tta):
    views = VIEWS[tta](torch.randn(2, 3, 6, 6))
    assert sum(weight for _, weight in views) == 1.0
    assert len(views) == VIEW_COUNTS[tta]
    assert {view.shape for view, _ in views} == {(2, 3, 6, 6)}


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_its_mode(model, split, training):
    model.train(training)
    evaluate(model, ResidentLoader(split, POLICY, batch_size=32, shuffle=False), 4)
    assert model.training is training


def test_a_rank_without_images_warms_up_too(model):
    evaluator = Evaluator(model, logits_of(model, "fp32"), [], 4)
    evaluator.warm_up()
    assert not evaluator.sums.any()
