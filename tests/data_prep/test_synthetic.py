"""The synthetic set: the same every time, even, learnable by a small network and not by a linear model."""

import numpy as np
import pytest
import torch
from torch import nn

from data_prep.synthetic import CLASSES, draw


@pytest.fixture(scope="module")
def sets():
    return draw(3000, seed=1), draw(500, seed=2)


def test_images_are_rgb_bytes_with_evenly_mixed_labels():
    images, labels = draw(500, seed=3)
    assert images.shape == (500, 32, 32, 3)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert np.bincount(labels).tolist() == [50] * len(CLASSES)
    assert set(labels[:100].tolist()) == set(range(len(CLASSES)))


def test_the_seed_decides_every_pixel():
    for one, same in zip(draw(200, seed=3), draw(200, seed=3), strict=True):
        np.testing.assert_array_equal(one, same)
    assert (draw(200, seed=3)[0] != draw(200, seed=4)[0]).mean() > 0.9


def test_no_image_is_drawn_twice(sets):
    images = np.concatenate([images for images, _ in sets])
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


def test_either_colour_may_be_the_brighter(sets):
    (images, _), _ = sets
    corners = images[:, [0, 0, -1, -1], [0, -1, 0, -1]].mean((1, 2))
    assert 0.45 < (corners > 128).mean() < 0.55


def accuracy(model, sets, *, epochs, rate):
    """Test accuracy of the model after training it on the first set."""
    (train, labels), (test, answers) = (
        (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.5, torch.from_numpy(labels)) for images, labels in sets
    )
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(train[batch]), labels[batch]).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        return (model(test).argmax(1) == answers).double().mean().item()


@pytest.mark.usefixtures("one_thread")
def test_a_linear_model_does_not_learn_it(sets):
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3072, len(CLASSES)))
    assert accuracy(linear, sets, epochs=5, rate=1e-3) < 0.6


@pytest.mark.usefixtures("one_thread")
def test_a_small_network_learns_it(sets):
    torch.manual_seed(0)
    layers = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.MaxPool2d(2), nn.BatchNorm2d(outputs), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(32, len(CLASSES)))
    assert accuracy(network, sets, epochs=3, rate=1e-2) > 0.95
