"""A folder of class folders of images, in any format that Pillow opens."""

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.images import Arrays, Images, Progress, Source
from fastcifar.runtime.errors import UserError


def image_folder(root: Path, resize: int | None) -> Source:
    """Find the source in `root`: train/<class>/ and, if present, val/<class>/ and test/<class>/.

    Raises:
        UserError: no images, or splits with different classes.
    """
    splits = {name: _class_files(root / name) for name in ("train", "val", "test") if (root / name).is_dir()}
    classes = splits["train"].keys()
    for name, by_class in splits.items():
        for odd in sorted(by_class.keys() ^ classes):
            raise UserError(f"{root}: class folder {odd!r} is in one of train/ and {name}/ only; the classes must be the same")
    files = tuple(path for by_class in splits.values() for paths in by_class.values() for path in paths)
    return Source(root.resolve().name, files, functools.partial(_read_folder, splits, resize))


def _class_files(split: Path) -> dict[str, list[Path]]:
    """Map each class name to its images, both sorted; hidden files and empty classes are left out."""

    def visible(folder: Path) -> list[Path]:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))

    found = {folder.name: visible(folder) for folder in visible(split) if folder.is_dir()}
    found = {name: files for name, files in found.items() if files}
    if not found:
        raise UserError(f"{split}: holds no class folders with images")
    return found


def _read_folder(splits: dict[str, dict[str, list[Path]]], resize: int | None, progress: Progress) -> Images:
    first = next(iter(splits["train"].values()))[0]
    height, width, _ = _decode(first, resize).shape
    arrays: dict[str, Arrays] = {}
    for name, by_class in splits.items():
        files = [path for paths in by_class.values() for path in paths]
        labels = np.repeat(np.arange(len(by_class)), [len(paths) for paths in by_class.values()])
        images = np.empty((len(files), height, width, 3), np.uint8)
        for number, (path, image) in enumerate(_decoded(files, resize)):
            if image.shape != images.shape[1:]:
                raise UserError(
                    f"{path}: {image.shape[1]}x{image.shape[0]} pixels, but {first} has {width}x{height}; "
                    "make them one size with `resize=N`"
                )
            images[number] = image
            if number % 100 == 99 or number + 1 == len(files):
                progress(f"reading {name}", (number + 1) / len(files))
        arrays[name] = images, labels
    return Images(tuple(splits["train"]), arrays["train"], arrays.get("val"), arrays.get("test"))


def _decoded(files: list[Path], resize: int | None) -> Iterator[tuple[Path, np.ndarray]]:
    """Decode in threads (Pillow releases the GIL), a bounded number of images ahead."""
    ahead = 256
    with ThreadPoolExecutor() as threads:
        for start in range(0, len(files), ahead):
            some = files[start : start + ahead]
            yield from zip(some, threads.map(lambda path: _decode(path, resize), some), strict=True)


def _decode(path: Path, resize: int | None) -> np.ndarray:
    """Decode an image file to (H, W, 3) uint8; grey and palette images become RGB."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):  # converted to RGB, Pillow would clip these at 255
                raise UserError(f"{path}: more than 8 bits per channel (Pillow's mode {image.mode}); store it with 8")
            rgb = image.convert("RGB")
    except UserError:  # a ValueError too
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: Pillow cannot open it as an image: {error}") from None
    return np.asarray(rgb.resize((resize, resize), Image.Resampling.LANCZOS) if resize else rgb)
