"""The .beton codec: what is written reads back, and what is no sound .beton is refused with the byte that says so."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.data.beton import ALLOCATION, FIELD, HEADER, IMAGE, MIN_PAGE_SIZE, _record, read_beton, write_beton
from fastcifar.runtime.errors import UserError

METADATA = HEADER.itemsize + 2 * FIELD.itemsize  # where it begins, with two fields
RECORD = _record([2, 1])


def some_images(count, height=8, width=8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, height, width, 3), np.uint8), rng.integers(0, 100, count)


@pytest.fixture
def beton(tmp_path):
    path = tmp_path / "some.beton"
    write_beton(path, *some_images(20))
    return path


@settings(max_examples=15, deadline=None)
@given(count=st.integers(1, 50), height=st.integers(1, 70), width=st.integers(1, 70), seed=st.integers(0, 99))
def test_what_is_written_reads_back(tmp_path_factory, count, height, width, seed):
    path = tmp_path_factory.mktemp("beton") / "some.beton"
    images, labels = some_images(count, height, width, seed)
    write_beton(path, images, labels)
    read = read_beton(path)
    assert read.images.dtype == np.uint8
    assert read.labels.dtype == np.int64
    np.testing.assert_array_equal(read.images, images)
    np.testing.assert_array_equal(read.labels, labels)


def test_images_that_do_not_divide_the_page_are_padded_at_its_end(tmp_path):
    images, labels = some_images(5, 600, 700)  # 1.26 MB: one to a page of 2 MiB
    write_beton(tmp_path / "some.beton", images, labels, page_size=MIN_PAGE_SIZE)
    np.testing.assert_array_equal(read_beton(tmp_path / "some.beton").images, images)
    assert (tmp_path / "some.beton").stat().st_size == 6 * MIN_PAGE_SIZE + 5 * ALLOCATION.itemsize


def test_no_image_crosses_the_end_of_a_page(tmp_path):
    write_beton(tmp_path / "some.beton", *some_images(1500), page_size=MIN_PAGE_SIZE)
    write_beton(tmp_path / "odd.beton", *some_images(1500, 31, 33), page_size=MIN_PAGE_SIZE)
    for name, size in (("some", 8 * 8 * 3), ("odd", 31 * 33 * 3)):
        data = np.fromfile(tmp_path / f"{name}.beton", np.uint8)
        places = data[METADATA : METADATA + 1500 * RECORD.itemsize].view(RECORD)["f0"]["place"]
        assert (places // MIN_PAGE_SIZE == (places + np.uint64(size - 1)) // MIN_PAGE_SIZE).all()


def test_the_images_that_are_read_are_a_copy(beton):
    read = read_beton(beton)
    read.images[:] = 0  # a map of the file would refuse
    assert read_beton(beton).images.any()


@pytest.mark.parametrize("part", [slice(0, 7), slice(19, 40), slice(5, 5), slice(None)])
def test_some_of_the_images_are_read_without_the_others(beton, part):
    images, _ = some_images(20)
    read = read_beton(beton)
    np.testing.assert_array_equal(read[part], images[part])
    assert read[part].dtype == np.uint8
    assert read.image_shape == images.shape[1:]
    assert "images" not in vars(read)  # all of them, kept


def test_progress_rises_to_1(tmp_path):
    told = []
    write_beton(tmp_path / "b", *some_images(3, 600, 700), page_size=MIN_PAGE_SIZE, progress=told.append)
    assert told == pytest.approx([1 / 3, 2 / 3, 1])


def test_a_writer_that_fails_leaves_the_old_file(beton):
    before = beton.read_bytes()

    def fail(share):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_beton(beton, *some_images(3), progress=fail)
    assert beton.read_bytes() == before
    assert list(beton.parent.iterdir()) == [beton]


@pytest.mark.parametrize(
    ("images", "labels", "page_size"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), [0, 1], 2**21),
        (np.zeros((2, 4, 4, 1), np.uint8), [0, 1], 2**21),
        (np.zeros((2, 4, 4), np.uint8), [0, 1], 2**21),
        (np.zeros((0, 4, 4, 3), np.uint8), [], 2**21),
        (np.zeros((2, 4, 4, 3), np.uint8), [0], 2**21),
        (np.zeros((2, 4, 4, 3), np.uint8), [0, 1], 2**20),
        (np.zeros((2, 4, 4, 3), np.uint8), [0, 1], 3 * 2**20),
        (np.zeros((1, 1000, 1000, 3), np.uint8), [0], 2**21),
    ],
)
def test_what_the_format_cannot_hold_is_not_written(tmp_path, images, labels, page_size):
    with pytest.raises(ValueError, match=r"must be|need"):
        write_beton(tmp_path / "some.beton", images, np.array(labels), page_size=page_size)
    assert not list(tmp_path.iterdir())


def refusal(path):
    with pytest.raises(UserError) as caught:
        read_beton(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_every_truncation_is_refused_and_says_where_the_file_ends(beton):
    whole = beton.read_bytes()
    table = HEADER.itemsize, METADATA, METADATA + 5, 2**23, len(whole) - 20 * ALLOCATION.itemsize, len(whole) - 1
    for size in (1, 23, *table):
        beton.write_bytes(whole[:size])
        assert f"ends at byte {size}" in refusal(beton)
    beton.write_bytes(b"")
    assert "byte 0" in refusal(beton)


def test_what_is_no_file_is_refused(tmp_path):
    assert "no such file" in refusal(tmp_path / "nothing.beton")
    assert "cannot be read" in refusal(tmp_path)


def test_a_foreign_file_is_refused(tmp_path):
    foreign = tmp_path / "foreign.beton"
    foreign.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(5000))
    assert "byte 0 says version 20617" in refusal(foreign)


PLACE = IMAGE.fields["place"][1]
DAMAGES = {
    "another version": (0, "<u2", 3, "byte 0 says version 3"),
    "page size": (4, "<u4", 3_000_000, "byte 4 says a page size of 3000000"),
    "no samples": (8, "<u8", 0, "byte 8 says that it holds no samples"),
    "too many samples": (8, "<u8", 2**60, f"metadata would end at byte {METADATA + 24 * 2**60}"),
    "fewer samples than written": (8, "<u8", 19, f"24 bytes too many from byte {2 * 2**23 + 19 * 24} on"),
    "more samples than written": (8, "<u8", 21, "byte "),
    "too many fields": (2, "<u2", 60_000, "field descriptors would end at byte 62460024"),
    "interrupted writer": (16, "<u8", 0, "byte 16 names no allocation table"),
    "allocation table past the end": (16, "<u8", 2**40, f"allocation table would end at byte {2**40 + 480}"),
    "allocation table too early": (16, "<u8", 2**23 + 192, f"byte {METADATA + 24 + PLACE} gives sample 1 the place"),
    "unknown type of field": (24 + 1041, "u1", 255, f"byte {24 + 1041}: need one image field"),
    "two images": (24 + 1041, "u1", 2, "byte 24: need one image field"),
    "float labels": (24 + 1041, "u1", 0, f"byte {24 + 1041}: need one image field"),
    "jpeg": (METADATA + 3 * 24, "u1", 0, f"byte {METADATA + 72} gives sample 3 the mode 0"),
    "another width": (METADATA + 7 * 24 + 1, "<u2", 9, f"byte {METADATA + 169} gives sample 7 the width 9"),
    "another height": (METADATA + 7 * 24 + 3, "<u2", 9, f"byte {METADATA + 171} gives sample 7 the height 9"),
    "no width": (METADATA + 1, "<u2", 0, f"byte {METADATA + 1} gives sample 0 the width 0"),
    "pointer past the end": (METADATA + 5 * 24 + PLACE, "<u8", 2**30, f"byte {METADATA + 120 + PLACE} gives sample 5 the"),
    "pointer that wraps": (METADATA + 5 * 24 + PLACE, "<u8", 2**64 - 100, f"byte {METADATA + 120 + PLACE} gives sample 5"),
    "pointer into the table": (METADATA + PLACE, "<u8", 2 * 2**23 - 1, f"byte {METADATA + PLACE} gives sample 0 the place"),
    "pointer into the header": (METADATA + PLACE, "<u8", 24, f"images lie from byte {METADATA + 480} to byte {2 * 2**23}"),
    "pointer to another image": (METADATA + PLACE, "<u8", 2**23 + 192, f"allocation at byte {2 * 2**23} is of no image"),
    "allocation of another sample": (2 * 2**23 + 24, "<u8", 7, f"allocation at byte {2 * 2**23 + 24} is of no image"),
    "allocation of no sample": (2 * 2**23 + 24, "<u8", 20, f"allocation at byte {2 * 2**23 + 24} is of no image"),
    "allocation of another size": (2 * 2**23 + 40, "<u8", 100, f"allocation at byte {2 * 2**23 + 24} is of no image"),
}


@pytest.mark.parametrize(("byte", "dtype", "value", "words"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_refused_and_the_byte_is_named(beton, byte, dtype, value, words):
    data = bytearray(beton.read_bytes())
    np.frombuffer(data, dtype, 1, byte)[0] = value
    beton.write_bytes(data)
    assert words in refusal(beton)


def test_bytes_after_the_end_are_refused(beton):
    size = beton.stat().st_size
    with beton.open("ab") as file:
        file.write(b"more")
    assert f"4 bytes too many from byte {size} on" in refusal(beton)


@settings(max_examples=60, deadline=None)
@given(byte=st.integers(0, METADATA + 479), value=st.integers(0, 255))
def test_no_damaged_byte_before_the_pages_ends_in_anything_but_a_refusal(tmp_path_factory, byte, value):
    path = tmp_path_factory.getbasetemp() / "damaged.beton"
    write_beton(path, *some_images(20))
    with path.open("r+b") as file:
        file.seek(byte)
        file.write(bytes([value]))
    with suppress(UserError):
        assert read_beton(path).images.shape == (20, 8, 8, 3)  # a name, an argument, a label or padding
