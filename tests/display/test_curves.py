"""The curves are a picture, with validation or without."""

import pytest
from PIL import Image

from fastcifar.display.curves import plot_curves


@pytest.mark.parametrize("validation", [0.5, None])
def test_the_curves_are_drawn(tmp_path, validation):
    rows = [
        {"epoch": e, "train_loss": 2 / e, "train_accuracy": 0.1 * e, "val_loss": validation, "val_accuracy": validation}
        for e in (1, 2, 3)
    ]
    plot_curves(rows, tmp_path / "curves.png", "seed on cifar10")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG"
        assert len(set(picture.convert("L").tobytes())) > 5
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
