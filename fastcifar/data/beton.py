"""FFCV's `.beton` files, read and written in plain NumPy: raw RGB images of one size with integer labels.

The layout (FFCV's version 2), little-endian throughout:

    header             version, number of fields, page size, number of samples, place of the allocation table
    field descriptors  one for each field: type, name, 1,024 bytes of arguments
    metadata           one record a sample: for an image its mode, width, height and place; for a label its value
    pages              from the next multiple of the page size on; no image crosses the end of a page
    allocation table   (sample, place, bytes) of every image, to the end of the file

"Place" is an offset from the beginning of the file.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastcifar.errors import UserError
from fastcifar.files import replacing

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
    """The contents of a file.

    Attributes:
        images: (N, H, W, 3) uint8, a copy in memory.
        labels: (N,) int64.
    """

    images: np.ndarray
    labels: np.ndarray


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
        images: (N, H, W, 3) uint8, N at least 1; may be memory-mapped, a page's worth is read at a time.
        labels: (N,) integers.
        page_size: bytes, a power of two of at least 2 MiB that holds an image.
        progress: told the share written, 0 to 1, after each page.
    """
    count, height, width, channels = images.shape
    image_bytes = height * width * channels
    if images.dtype != np.uint8 or channels != 3 or not count or len(labels) != count:
        raise ValueError(f"images {images.dtype} {images.shape} with {len(labels)} labels: need uint8 (N, H, W, 3) and N")
    if page_size < max(MIN_PAGE_SIZE, image_bytes) or page_size & (page_size - 1):
        raise ValueError(f"page_size = {page_size}: must be a power of two, at least {MIN_PAGE_SIZE} and {image_bytes}")
    fields = np.array([(IMAGE_FIELD, b"image", 0), (INT_FIELD, b"label", 0)], FIELD)
    metadata = np.zeros(count, _record([IMAGE_FIELD, INT_FIELD]))
    first_page = _align(HEADER.itemsize + fields.nbytes + metadata.nbytes, page_size)
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
    """Read a file, written here or by FFCV: one raw RGB image field and one integer field, all images of one size.

    Raises:
        UserError: the file is missing, truncated, damaged, or holds something else; the message names the byte.
    """
    path = Path(path)
    try:
        data = np.memmap(path, np.uint8, mode="r")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; write it with `fastcifar prep`") from None
    except ValueError:  # a memory map of nothing
        raise UserError(f"{path}: truncated: empty, a header of {HEADER.itemsize} bytes expected at byte 0") from None
    header = _take(path, data, 0, HEADER, 1, "header")[0]
    if header["version"] != VERSION or not 0 < header["fields"] < 1000:
        raise UserError(f"{path}: not a .beton of version {VERSION}: byte 0 holds version {header['version']}")
    fields = _take(path, data, HEADER.itemsize, FIELD, header["fields"], "field descriptors")
    types = [int(kind) for kind in fields["type"]]
    if sorted(types) != [INT_FIELD, IMAGE_FIELD]:
        where = HEADER.itemsize + next((i for i, t in enumerate(types) if t not in (1, 2)), 0) * FIELD.itemsize
        raise UserError(f"{path}: field types {types} at byte {where}: need one image (2) and one integer (1) field")
    start = HEADER.itemsize + fields.nbytes
    metadata = _take(path, data, start, _record(types), header["samples"], "metadata")
    image, label = (metadata[f"f{types.index(kind)}"] for kind in (IMAGE_FIELD, INT_FIELD))
    if not len(metadata):
        raise UserError(f"{path}: holds no samples (byte 8)")
    _check_images(path, image, start, metadata.dtype, types.index(IMAGE_FIELD))
    _check_allocations(path, data, int(header["allocations"]), image)
    return Beton(_gather(data, image), label.astype(np.int64))


def _check_images(path: Path, image: np.ndarray, start: int, record: np.dtype, field: int) -> None:
    """Every sample raw and of the first one's size."""
    for name, expected, meaning in (
        ("mode", RAW_MODE, "its images must be stored raw"),
        ("height", image["height"][0], "all images must be of one size"),
        ("width", image["width"][0], "all images must be of one size"),
    ):
        odd = np.flatnonzero(image[name] != expected)
        if len(odd):
            byte = start + int(odd[0]) * record.itemsize + record.fields[f"f{field}"][1] + IMAGE.fields[name][1]
            value = image[name][odd[0]]
            raise UserError(f"{path}: sample {odd[0]} has {name} {value}, not {expected}, at byte {byte}: {meaning}")
    if not image["height"][0] or not image["width"][0]:
        raise UserError(f"{path}: damaged: images of no size in the metadata at byte {start}")


def _check_allocations(path: Path, data: np.ndarray, table_place: int, image: np.ndarray) -> None:
    """The allocation table, which is written last, agrees with the metadata: the file is whole and consistent."""
    count, image_bytes = len(image), int(image["height"][0]) * int(image["width"][0]) * 3
    table = _take(path, data, table_place, ALLOCATION, count, "allocation table")
    if table_place + table.nbytes != len(data):
        raise UserError(f"{path}: damaged: {len(data) - table_place - table.nbytes} bytes too many at byte {len(data)}")
    places = np.zeros(count, np.uint64)
    known = table["sample"] < count
    places[table["sample"][known]] = table["place"][known]
    wrong = np.flatnonzero(~known | (table["bytes"] != image_bytes))
    if len(wrong):
        byte = table_place + int(wrong[0]) * ALLOCATION.itemsize
        raise UserError(f"{path}: damaged: the allocation at byte {byte} is not one of an image of {image_bytes} bytes")
    lost = np.flatnonzero((places != image["place"]) | (places + np.uint64(image_bytes) > table_place))
    if len(lost):
        raise UserError(f"{path}: damaged: sample {lost[0]} is said to lie at byte {image['place'][lost[0]]}, where it is not")


def _gather(data: np.ndarray, image: np.ndarray) -> np.ndarray:
    """All images, copied once: stretches that lie one after the other in the file at a time."""
    height, width = int(image["height"][0]), int(image["width"][0])
    size = height * width * 3
    places = image["place"].astype(np.int64)
    images = np.empty((len(places), size), np.uint8)
    starts = np.flatnonzero(np.diff(places, prepend=-1 - size) != size)
    for first, last in zip(starts, [*starts[1:], len(places)], strict=True):
        images[first:last] = data[places[first] : places[first] + (last - first) * size].reshape(-1, size)
    return images.reshape(-1, height, width, 3)


def _take(path: Path, data: np.ndarray, start: int, dtype: np.dtype, count: int, what: str) -> np.ndarray:
    """`count` records from byte `start` on."""
    end = start + int(count) * dtype.itemsize
    if end > len(data):
        raise UserError(f"{path}: truncated: the {what} would end at byte {end}, the file ends at byte {len(data)}")
    return data[start:end].view(dtype)


def _record(types: list[int]) -> np.dtype:
    """The metadata of a sample, one member a field, aligned as FFCV aligns it."""
    return np.dtype([("", IMAGE if kind == IMAGE_FIELD else LABEL) for kind in types], align=True)


def _align(place: int, page_size: int) -> int:
    return -(-place // page_size) * page_size
