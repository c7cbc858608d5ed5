"""The grid shows originals and exactly the draws that training would see."""

import numpy as np
import pytest
import torch
from PIL import Image

from fastcifar.augment import MixUp, Normalize, Policy, RandomCrop, RandomHorizontalFlip, augment
from fastcifar.data.beton import read_beton, write_beton
from fastcifar.data.dataset import Split
from fastcifar.data.resident import ResidentLoader
from fastcifar.display import grid
from fastcifar.runtime.errors import UserError

CLASSES = ["cat", "dog"]


@pytest.fixture(params=[1, 3])
def split(request):
    rng = np.random.default_rng(0)
    return Split(rng.integers(0, 256, (6, 12, 10, request.param), dtype=np.uint8), rng.integers(0, 2, 6))


def draw(split, policy, out, **changes):
    options = {"images": 3, "draws": 2, "seed": 5, "device": torch.device("cpu")} | changes
    grid.draw_grid(split, policy, CLASSES, out, **options)


def test_the_columns_are_the_originals_and_the_draws_of_the_epochs(split, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("matplotlib.axes.Axes.imshow", lambda axes, picture, **options: shown.append(picture))
    policy = Policy((RandomCrop(8, padding=2), RandomHorizontalFlip(), Normalize(0.5, 0.25)))
    draw(split, policy, tmp_path / "grid.png")
    originals, *epochs = (np.stack(shown[column * 3 : column * 3 + 3]) for column in range(3))
    np.testing.assert_allclose(originals, split.images[:3] / 255, atol=1e-7)
    for epoch, pictures in enumerate(epochs):
        expected = augment(torch.from_numpy(split.images[:3]), torch.arange(3), epoch=epoch, seed=5, policy=policy)
        np.testing.assert_allclose(pictures, (expected * 0.25 + 0.5).clamp(0, 1).permute(0, 2, 3, 1), atol=1e-6)


@pytest.mark.parametrize("mixing", [(), (MixUp(0.4),)])
def test_the_draws_are_those_of_the_whole_split_of_which_no_more_is_read_than_is_needed(tmp_path, monkeypatch, mixing):
    rng = np.random.default_rng(0)
    write_beton(tmp_path / "a.beton", rng.integers(0, 256, (40, 12, 10, 3), np.uint8), np.arange(40) % 2)
    beton, shown = read_beton(tmp_path / "a.beton"), []
    monkeypatch.setattr("matplotlib.axes.Axes.imshow", lambda axes, picture, **options: shown.append(picture))
    policy = Policy((RandomCrop(8, padding=2), Normalize(0.5, 0.25), *mixing))
    draw(Split(beton, beton.labels), policy, tmp_path / "grid.png", draws=1)
    assert ("images" in vars(beton)) == bool(mixing)  # all of them, kept
    whole = ResidentLoader(Split(beton, beton.labels), policy, batch_size=40, seed=5, shuffle=False, num_classes=2)
    np.testing.assert_array_equal(np.stack(shown[3:]), grid.restored(whole.batch(0)[0], policy)[:3])


def test_a_policy_that_does_nothing_shows_the_originals(split):
    batch = augment(torch.from_numpy(split.images), torch.arange(6), epoch=0, seed=0, policy=Policy((Normalize(0.3, 0.2),)))
    np.testing.assert_allclose(grid.restored(batch, Policy((Normalize(0.3, 0.2),))), split.images / 255, atol=4e-3)


@pytest.mark.parametrize("name", ["grid.png", "grid.svg"])
def test_the_picture_is_whole_and_alone(split, tmp_path, name):
    draw(split, Policy(), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    if name.endswith("png"):
        with Image.open(tmp_path / name) as picture:
            picture.verify()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": 7}, "`images=7`: .* 6, "),
        ({"images": 0}, "`images=0`"),
        ({"draws": 0}, "`draws=0`"),
        ({"draws": 900}, "`draws=900`: .* fewer than 483"),
        ({}, "grid.txt"),
    ],
)
def test_what_cannot_be_drawn_is_refused(split, tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        draw(split, Policy(), tmp_path / "grid.txt", **changes)
    assert list(tmp_path.iterdir()) == []
