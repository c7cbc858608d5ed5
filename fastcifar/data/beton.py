"""FFCV's `.beton` files, read and written in plain NumPy: raw RGB images of one size with integer labels.

The layout (FFCV's version 2), little-endian throughout:

    header             version, number of fields, page size, number of samples, place of the allocation table
    field descriptors  one per field: type, name, 1,024 bytes of arguments
    metadata           one record per sample: for an image its mode, width, height and place; for a label its value
    pages              begin at the next multiple of the page size; no image crosses the end of a page
    allocation table   (sample, place, bytes) of every image, to the end of the file

"Place" is an offset from the beginning of the file, in bytes.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from fastcifar.runtime.errors import UserError
from fastcifar.runtime.files import replacing

VERSION = 2
PAGE_SIZE = 2**23
MIN_PAGE_SIZE = 2**21
INT_FIELD, IMAGE_FIELD = 1, 2
RAW_MODE = 1

HEADER = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page_size", "<u4"), ("samples", "<u8"), ("allocations", "<u8")],
    align=True,
)
FIELD = np.dtype([("type", "u1"), ("name", "S16"), ("arguments", "u1", (1024,))], align=True)
IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("place", "<u8")])
LABEL = np.dtype("<i8")
ALLOCATION = np.dtype([("sample", "<u8"), ("place", "<u8"), ("bytes", "<u8")])


@dataclass(frozen=True)
class Beton:
    """An open file; its pixels are read on first use.

    Attributes:
        labels: (N,) int64, a copy in memory.
        image_shape: (H, W, 3).
        fields: names of the image field and the label field.
    """

    labels: np.ndarray
    image_shape: tuple[int, int, int]
    fields: tuple[str, str]
    _data: np.ndarray
    _places: np.ndarray

    @cached_property
    def images(self) -> np.ndarray:
        """(N, H, W, 3) uint8, a copy in memory."""
        return self[:]

    def __getitem__(self, samples: slice) -> np.ndarray:
        """Read some of the images, (n, H, W, 3) uint8, a new copy in memory."""
        return _gather(self._data, self._places[samples], self.image_shape)


def write_beton(
    path: str | os.PathLike[str],
    images: np.ndarray,
    labels: np.ndarray,
    *,
    page_size: int = PAGE_SIZE,
    progress: Callable[[float], None] = lambda share: None,
) -> None:
    """Write images and labels as FFCV's fields "image" and "label", whole or not at all.

    Args:
        images: (N, H, W, 3) uint8, N at least 1; may be memory-mapped, it is read one page at a time.
        labels: (N,) integers.
        page_size: bytes; a power of two, at least 2 MiB and at least one image.
        progress: called after each page with the share written, 0 to 1.
    """
    if images.dtype != np.uint8 or images.shape[3:] != (3,) or not images.size or len(labels) != len(images):
        raise ValueError(f"images {images.dtype} {images.shape} with {len(labels)} labels: need uint8 (N, H, W, 3) and N")
    count, height, width, _ = images.shape
    image_bytes = height * width * 3
    if page_size < max(MIN_PAGE_SIZE, image_bytes) or page_size & (page_size - 1):
        raise ValueError(f"page_size = {page_size}: must be a power of two, at least {MIN_PAGE_SIZE} and {image_bytes}")
    fields = np.array([(IMAGE_FIELD, b"image", 0), (INT_FIELD, b"label", 0)], FIELD)
    metadata = np.zeros(count, _record([IMAGE_FIELD, INT_FIELD]))
    first_page = -(-(HEADER.itemsize + fields.nbytes + metadata.nbytes) // page_size) * page_size
    per_page = page_size // image_bytes
    page, slot = np.divmod(np.arange(count), per_page)
    places = first_page + page * page_size + slot * image_bytes
    end = first_page + (int(page[-1]) + 1) * page_size
    metadata["f0"]["mode"], metadata["f0"]["place"] = RAW_MODE, places
    metadata["f0"]["width"], metadata["f0"]["height"] = width, height
    metadata["f1"] = labels
    header = np.array((VERSION, len(fields), page_size, count, end), HEADER)
    allocations = np.zeros(count, ALLOCATION)
    allocations["sample"], allocations["place"], allocations["bytes"] = np.arange(count), places, image_bytes
    with replacing(path) as temporary, open(temporary, "wb") as file:
        for part in (header, fields, metadata):
            file.write(part.tobytes())
        for start in range(0, count, per_page):
            file.seek(places[start])
            file.write(np.ascontiguousarray(images[start : start + per_page]).data)
            progress(min(start + per_page, count) / count)
        file.truncate(end)
        file.seek(end)
        file.write(allocations.tobytes())


def read_beton(path: str | os.PathLike[str]) -> Beton:
    """Open a file written here or by FFCV: one raw RGB image field and one integer field, all images of one size.

    Everything but the pixels is checked; these are read on first use of `images`.

    Raises:
        UserError: the file is missing, truncated, damaged, or holds something else; the message names the byte.
    """
    path = Path(path)
    data = _map(path)
    header = _take(path, data, 0, HEADER, 1, "header")[0]
    _check_header(path, header)
    fields = _take(path, data, HEADER.itemsize, FIELD, header["fields"], "field descriptors")
    types = fields["type"].tolist()
    if sorted(types) != [INT_FIELD, IMAGE_FIELD]:
        odd = next((i for i, kind in enumerate(types) if kind not in (INT_FIELD, IMAGE_FIELD)), 0)
        byte = HEADER.itemsize + odd * FIELD.itemsize
        raise UserError(f"{path}: field types {types}, see byte {byte}: need one image field (2) and one integer field (1)")
    start = HEADER.itemsize + fields.nbytes
    metadata = _take(path, data, start, _record(types), header["samples"], "metadata")
    image, label = (metadata[f"f{types.index(kind)}"] for kind in (IMAGE_FIELD, INT_FIELD))
    names = tuple(_name(path, fields["name"][types.index(kind)]) for kind in (IMAGE_FIELD, INT_FIELD))
    first_byte = start + metadata.dtype.fields[f"f{types.index(IMAGE_FIELD)}"][1]
    table_place = int(header["allocations"])
    pages = range(start + metadata.nbytes, table_place)
    _check_images(path, image, first_byte, pages)
    _check_allocations(path, data, table_place, image)
    shape = int(image["height"][0]), int(image["width"][0]), 3
    return Beton(label.astype(np.int64), shape, names, data, image["place"].astype(np.int64))


def _map(path: Path) -> np.ndarray:
    """Memory-map the bytes of the file."""
    try:
        return np.memmap(path, np.uint8, mode="r")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; write it with `fastcifar prep`") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:  # an empty file cannot be mapped
        raise UserError(f"{path}: truncated: the file is empty, at byte 0 a header should begin") from None


def _take(path: Path, data: np.ndarray, start: int, dtype: np.dtype, count: int, what: str) -> np.ndarray:
    """View `count` records that begin at byte `start`."""
    end = start + int(count) * dtype.itemsize
    if end > len(data):
        raise UserError(f"{path}: truncated: the {what} would end at byte {end}, the file ends at byte {len(data)}")
    return data[start:end].view(dtype)


def _name(path: Path, name: bytes) -> str:
    """Decode a field's name as FFCV does."""
    try:
        return name.decode("ascii")
    except UnicodeDecodeError:
        raise UserError(f"{path}: damaged: a field has the name {name!r}, which is not ASCII") from None


def _record(types: list[int]) -> np.dtype:
    """Return the dtype of a sample's metadata, one member per field, aligned as in FFCV."""
    return np.dtype([("", IMAGE if kind == IMAGE_FIELD else LABEL) for kind in types], align=True)


def _check_header(path: Path, header: np.void) -> None:
    page_size = int(header["page_size"])
    if header["version"] != VERSION:
        raise UserError(f"{path}: not a .beton of version {VERSION}: byte 0 says version {header['version']}")
    if page_size < MIN_PAGE_SIZE or page_size & (page_size - 1):
        raise UserError(f"{path}: damaged or not a .beton: byte 4 says a page size of {page_size}")
    if not header["samples"]:
        raise UserError(f"{path}: byte 8 says that it holds no samples")
    if not header["allocations"]:  # FFCV fills it in last
        raise UserError(f"{path}: byte 16 names no allocation table: its writer was interrupted")


def _check_images(path: Path, image: np.ndarray, first_byte: int, pages: range) -> None:
    """Check that every image is stored raw, has the size of the first one, and lies in the pages.

    Args:
        image: (N,) IMAGE, strided over the metadata.
        first_byte: offset of the first record in the file.
        pages: the bytes where images may lie.
    """

    def refuse(sample: int, name: str, meaning: str) -> UserError:
        byte = first_byte + int(sample) * image.strides[0] + IMAGE.fields[name][1]
        return UserError(f"{path}: byte {byte} gives sample {sample} the {name} {image[name][sample]}: {meaning}")

    height, width = int(image["height"][0]), int(image["width"][0])
    if not height or not width:
        raise refuse(0, "width" if height else "height", "the image is empty")
    for name, expected, meaning in (
        ("mode", RAW_MODE, f"its images must be stored raw ({RAW_MODE}), not as JPEG"),
        ("height", height, f"all images must be of one size, sample 0 has {height}"),
        ("width", width, f"all images must be of one size, sample 0 has {width}"),
    ):
        odd = np.flatnonzero(image[name] != expected)
        if len(odd):
            raise refuse(odd[0], name, meaning)
    last = pages.stop - height * width * 3
    # `place` is compared, not added to: a damaged one may be close to 2**64 and would wrap.
    outside = np.flatnonzero((image["place"] < pages.start) | (image["place"] > max(last, 0)))
    if len(outside):
        raise refuse(outside[0], "place", f"images lie from byte {pages.start} to byte {pages.stop}")


def _check_allocations(path: Path, data: np.ndarray, table_place: int, image: np.ndarray) -> None:
    """Check that the allocation table agrees with the metadata and ends the file; the file is then complete."""
    count, image_bytes = len(image), int(image["height"][0]) * int(image["width"][0]) * 3
    table = _take(path, data, table_place, ALLOCATION, count, "allocation table")
    surplus = len(data) - table_place - table.nbytes
    if surplus:
        raise UserError(f"{path}: damaged: {surplus} bytes too many from byte {table_place + table.nbytes} on")
    known = table["sample"] < count
    owner = np.where(known, table["sample"], 0)
    wrong = np.flatnonzero(~known | (table["bytes"] != image_bytes) | (table["place"] != image["place"][owner]))
    if len(wrong):
        byte = table_place + int(wrong[0]) * ALLOCATION.itemsize
        raise UserError(f"{path}: damaged: the allocation at byte {byte} is of no image in the metadata: {table[wrong[0]]}")


def _gather(data: np.ndarray, places: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Copy the images at `places`, one copy for each run of images that are adjacent in the file."""
    size = math.prod(shape)
    images = np.empty((len(places), size), np.uint8)
    starts = np.flatnonzero(np.diff(places, prepend=-1 - size) != size)
    for first, last in pairwise([*starts, len(places)]):
        images[first:last] = data[places[first] : places[first] + (last - first) * size].reshape(-1, size)
    return images.reshape(-1, *shape)
