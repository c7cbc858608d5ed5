"""Image folders: what is read, in which order, and what is refused by name."""

import os

import numpy as np
import pytest
from helpers import no_progress
from PIL import Image

from data_prep.sources import find_source
from fastcifar.runtime.errors import UserError


def refusal(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_image(path, size=(5, 4), mode="RGB", value=None):
    """A PNG unless the name says otherwise; width x height, random pixels or all of one value. Returns the RGB array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(sum(map(ord, str(path.name))))
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    pixels = np.full(shape, value, np.uint8) if value is not None else rng.integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def folder(tmp_path):
    for split, names in (("train", "abc"), ("test", "d")):
        for label, kind in enumerate(("ant", "bee")):
            for number, name in enumerate(names):
                write_image(tmp_path / "pets" / split / kind / f"{name}.png", value=100 * label + number)
    return tmp_path / "pets"


def test_an_image_folder_is_read_class_by_class_in_sorted_order(folder):
    source = find_source(folder)
    images = source.read(no_progress)
    assert source.name == "pets"
    assert images.classes == ("ant", "bee")
    assert images.train[0].shape == (6, 4, 5, 3)
    assert images.train[0][:, 0, 0, 0].tolist() == [0, 1, 2, 100, 101, 102]
    assert images.train[1].tolist() == [0, 0, 0, 1, 1, 1]
    assert images.val is None
    assert images.test[0][:, 0, 0, 0].tolist() == [0, 100]


def test_an_image_folder_may_have_its_own_validation_split(folder):
    for kind in ("ant", "bee"):
        write_image(folder / "val" / kind / "x.png", value=7)
    assert find_source(folder).read(no_progress).val[0].shape == (2, 4, 5, 3)


def test_every_pixel_of_an_image_file_arrives(folder):
    pixels = write_image(folder / "train" / "ant" / "0.bmp")
    np.testing.assert_array_equal(find_source(folder).read(no_progress).train[0][0], pixels)


def test_grey_and_palette_images_become_rgb(folder):
    grey = write_image(folder / "train" / "ant" / "0.png", mode="L")
    Image.fromarray(grey).convert("P").save(folder / "train" / "ant" / "1.gif")
    images = find_source(folder).read(no_progress).train[0]
    for image in images[:2]:
        np.testing.assert_array_equal(image, np.repeat(grey[..., None], 3, 2))


def test_an_image_of_another_size_is_named(folder):
    write_image(folder / "train" / "bee" / "bb.png", (6, 4))
    message = refusal(find_source(folder).read, no_progress)
    assert message.startswith(f"{folder / 'train' / 'bee' / 'bb.png'}: 6x4 pixels")
    assert "5x4" in message
    assert "`resize=N`" in message


def test_resize_makes_images_one_size(folder):
    write_image(folder / "train" / "bee" / "bb.png", (16, 4), value=50)
    images = find_source(folder, resize=8).read(no_progress)
    assert images.train[0].shape == (7, 8, 8, 3)
    assert images.train[0][5].tolist() == np.full((8, 8, 3), 50).tolist()
    assert images.test[0].shape == (2, 8, 8, 3)


def test_a_file_that_is_no_image_is_named(folder):
    odd = folder / "train" / "ant" / "notes.txt"
    odd.write_text("not an image")
    assert f"{odd}: Pillow cannot open it as an image: " in refusal(find_source(folder).read, no_progress)


def test_an_image_cut_off_is_named(folder):
    write_image(folder / "train" / "ant" / "a.png", (5, 4))
    odd = folder / "train" / "ant" / "a.png"
    odd.write_bytes(odd.read_bytes()[:-30])
    assert f"{odd}: Pillow cannot open it as an image" in refusal(find_source(folder).read, no_progress)


def test_sixteen_bit_images_are_refused_and_not_cut_off(folder):
    Image.fromarray(np.full((4, 5), 40_000, np.uint16)).save(folder / "train" / "ant" / "a.png")
    assert "a.png: more than 8 bits per channel" in refusal(find_source(folder).read, no_progress)


def test_hidden_files_are_left_out(folder):
    (folder / "train" / ".cache").mkdir()
    (folder / "train" / "ant" / ".DS_Store").write_text("x")
    assert len(find_source(folder).read(no_progress).train[1]) == 6


def test_class_folders_of_the_splits_must_match(folder):
    write_image(folder / "test" / "cat" / "x.png")
    assert "class folder 'cat' is in one of train/ and test/ only" in refusal(find_source, folder)


def test_an_image_folder_without_images_is_refused(tmp_path):
    (tmp_path / "train" / "ant").mkdir(parents=True)
    assert "holds no class folders with images" in refusal(find_source, tmp_path)


def test_the_fingerprint_changes_with_any_file_and_with_nothing_else(folder):
    before = find_source(folder).fingerprint()
    assert find_source(folder).fingerprint() == before
    (folder / "train" / "ant" / "a.png").rename(folder / "train" / "ant" / "aa.png")
    renamed = find_source(folder).fingerprint()
    assert renamed != before
    (folder / "train" / "ant" / "aa.png").rename(folder / "train" / "bee" / "aa.png")
    assert find_source(folder).fingerprint() != renamed
    moved = find_source(folder).fingerprint()
    os.utime(folder / "train" / "bee" / "aa.png", (0, 0))
    assert find_source(folder).fingerprint() != moved
