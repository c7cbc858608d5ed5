"""FFCV reads what we write, and we read what FFCV writes, to the last pixel and label."""

import warnings

import numpy as np
import pytest

from data_prep.sources import find_source
from fastcifar.data.beton import read_beton, write_beton
from fastcifar.runtime.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")  # FFCV's own, and those of numba and multiprocessing under it

try:
    with warnings.catch_warnings(action="ignore"):  # the mark above does not reach this far
        from ffcv.fields import FloatField, IntField, RGBImageField
        from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.writer import DatasetWriter
except Exception as error:  # its compiled part fails in many ways
    pytest.skip(f"FFCV cannot be imported ({error}); see `make setup`", allow_module_level=True)


class Samples:
    """The input of FFCV's writer: an indexable of tuples."""

    def __init__(self, *columns):
        self.columns = columns

    def __len__(self):
        return len(self.columns[0])

    def __getitem__(self, index):
        return tuple(column[index] for column in self.columns)


def ffcv_writes(path, *columns, fields=("image", "label"), mode="raw", workers=2, **options):
    kinds = {"image": lambda: RGBImageField(write_mode=mode), "label": IntField, "weight": FloatField}
    named = {name: kinds[name]() for name in fields}
    writer = DatasetWriter(str(path), named, page_size=2**21, num_workers=workers)
    writer.from_indexed_dataset(Samples(*columns), chunksize=50, **options)


def ffcv_reads(path):
    """Images and labels as FFCV's Loader decodes them."""
    pipelines = {"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]}
    options = {"order": OrderOption.SEQUENTIAL, "os_cache": True, "drop_last": False}
    loader = Loader(str(path), batch_size=70, num_workers=1, pipelines=pipelines, **options)
    images, labels = zip(*(tuple(np.array(part) for part in batch) for batch in loader), strict=True)
    return np.concatenate(images), np.concatenate(labels).ravel()


@pytest.fixture(scope="module")
def cifar10(cifar10_source):
    """All 60,000 real images and labels."""
    images = find_source(cifar10_source).read(lambda stage, share: None)
    return tuple(np.concatenate(arrays) for arrays in zip(images.train, images.test, strict=True))


def odd(count=150, height=5, width=7):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, height, width, 3), np.uint8), rng.integers(-(2**40), 2**40, count)


@pytest.fixture(params=["odd sizes", "CIFAR-10"])
def samples(request):
    return odd() if request.param == "odd sizes" else request.getfixturevalue("cifar10")


def test_ffcv_reads_every_pixel_and_label_that_we_write(tmp_path, samples):
    write_beton(tmp_path / "ours.beton", *samples)
    images, labels = ffcv_reads(tmp_path / "ours.beton")
    np.testing.assert_array_equal(images, samples[0])
    np.testing.assert_array_equal(labels, samples[1])


def test_we_read_every_pixel_and_label_that_ffcv_writes(tmp_path, samples):
    ffcv_writes(tmp_path / "theirs.beton", *samples)
    read = read_beton(tmp_path / "theirs.beton")
    np.testing.assert_array_equal(read.images, samples[0])
    np.testing.assert_array_equal(read.labels, samples[1])


@pytest.mark.parametrize(("height", "width", "count"), [(5, 7, 150), (32, 32, 700), (600, 700, 4)])
def test_our_file_is_the_file_that_ffcv_writes_with_one_worker(tmp_path, height, width, count):
    images, labels = odd(count, height, width)
    write_beton(tmp_path / "ours.beton", images, labels, page_size=2**21)
    ffcv_writes(tmp_path / "theirs.beton", images, labels, workers=1)
    assert (tmp_path / "ours.beton").read_bytes() == (tmp_path / "theirs.beton").read_bytes()


def test_the_order_of_the_fields_does_not_matter(tmp_path):
    images, labels = odd()
    ffcv_writes(tmp_path / "theirs.beton", labels, images, fields=("label", "image"))
    read = read_beton(tmp_path / "theirs.beton")
    np.testing.assert_array_equal(read.images, images)
    np.testing.assert_array_equal(read.labels, labels)


def test_images_scattered_over_the_file_are_put_in_order(tmp_path):
    images, labels = odd()
    order = np.random.default_rng(1).permutation(len(labels))
    ffcv_writes(tmp_path / "theirs.beton", images, labels, indices=order)
    np.testing.assert_array_equal(read_beton(tmp_path / "theirs.beton").images, images[order])


def test_jpeg_mixed_sizes_and_other_fields_are_refused(tmp_path):
    images, labels = odd(10)
    path = tmp_path / "theirs.beton"
    ffcv_writes(path, images, labels, mode="jpg")
    with pytest.raises(UserError, match="gives sample 0 the mode 0: its images must be stored raw"):
        read_beton(path)
    path.unlink()
    ffcv_writes(path, [*images[:9], images[9].transpose(1, 0, 2)], labels)
    with pytest.raises(UserError, match="gives sample 9 the height 7: all images must be of one size, sample 0 has 5"):
        read_beton(path)
    path.unlink()
    ffcv_writes(path, images, labels, labels / 3, fields=("image", "label", "weight"))
    with pytest.raises(UserError, match=r"field types \[2, 1, 0\], see byte 2106: need one image field"):
        read_beton(path)
