"""A prepared data set: betons and their manifest, `dataset.json`."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np

from fastcifar.data.beton import Beton, read_beton
from fastcifar.runtime.errors import UserError

FORMAT_VERSION = 1
MANIFEST = "dataset.json"
SPLITS = "train", "val", "test"


@dataclass(frozen=True)
class Manifest:
    """The contents of `dataset.json`.

    Attributes:
        name: of the data set, as in "cifar10".
        classes: names, in the order of the labels.
        image_shape: (H, W, C).
        counts: images of each split that there is, by name; always "train".
        split_seed, val_fraction: the draw of the validation split from the training images; the fraction is 0 without one.
        mean, std: of each channel over the training split, pixels in 0 .. 1.
        sha256: of each split's beton.
        source: fingerprint of the source; `prep` compares it to see whether anything changed.
    """

    name: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    counts: dict[str, int]
    split_seed: int
    val_fraction: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: dict[str, str]
    source: str
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"


class Split:
    """One split. Its labels are in memory; its images are read on first use.

    Args:
        images: (N, H, W, C) uint8, or the file that holds them.
        labels: (N,) int64.
    """

    def __init__(self, images: np.ndarray | Beton, labels: np.ndarray) -> None:
        self._images, self.labels = images, labels

    @property
    def images(self) -> np.ndarray:
        """(N, H, W, C) uint8."""
        return self._images.images if isinstance(self._images, Beton) else self._images

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self._images.image_shape if isinstance(self._images, Beton) else self._images.shape[1:]

    def part(self, first: int, last: int) -> "Split":
        """Return samples `first` to `last` - 1; only their images are read from a file."""
        return Split(self._images[first:last], self.labels[first:last])


@dataclass(frozen=True)
class Dataset:
    """A data set; absent splits are None."""

    root: Path
    manifest: Manifest
    train: Split
    val: Split | None
    test: Split | None

    def train_on(self, splits: Sequence[str]) -> "Dataset":
        """This data set with all images of `splits` to train on; a validation split among them is not validated on.

        Raises:
            UserError: there is no such split.
        """
        if tuple(splits) == ("train",):
            return self
        parts = [getattr(self, name) for name in splits]
        if None in parts:
            raise UserError(f"train.splits = {list(splits)}: {self.root} has no {splits[parts.index(None)]} split")
        images, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("images", "labels"))
        counts = {"train": len(labels)} | {name: n for name, n in self.manifest.counts.items() if name not in splits}
        val = None if "val" in splits else self.val
        return replace(self, train=Split(images, labels), val=val, manifest=replace(self.manifest, counts=counts))

    def split_bytes(self, split: str) -> int:
        """Return the bytes of pixels of "train", "val" or "test"; 0 for an absent split."""
        return self.manifest.counts.get(split, 0) * math.prod(self.manifest.image_shape)


def load_dataset(root: str | Path) -> Dataset:
    """Open the data set that `fastcifar prep` wrote to `root`, after checking every file against the manifest.

    It reads no pixels into memory, so a split that is streamed or not used is never in memory.

    Raises:
        UserError: no data set there, or a file is damaged or belongs to another data set.
    """
    root = Path(root)
    manifest = load_manifest(root)
    splits = {name: _load_split(root, manifest, name) if name in manifest.counts else None for name in SPLITS}
    return Dataset(root, manifest, **splits)


def load_manifest(root: Path) -> Manifest:
    """Read `dataset.json`, without the betons.

    Raises:
        UserError: the file is missing, damaged, or of another version.
    """
    path = root / MANIFEST
    if not path.is_file():
        raise UserError(f"{root}: holds no {MANIFEST}; make it with: fastcifar prep --out {root}")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:  # not JSON, or not even text
        raise UserError(f"{path}: not JSON ({error}); run fastcifar prep again") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(f"{path}: format_version is {version}, not {FORMAT_VERSION}; run fastcifar prep again")
    expected = {field.name for field in fields(Manifest)}
    for key in sorted(expected ^ content.keys()):
        raise UserError(f"{path}: {'missing' if key in expected else 'unknown'} key {key!r}; run fastcifar prep again")
    for key in ("counts", "sha256"):
        value = content[key]
        if not isinstance(value, dict) or not {"train"} <= value.keys() == content["counts"].keys() <= set(SPLITS):
            raise UserError(f"{path}: {key} = {value}: not of train and the other splits; run fastcifar prep again")
    for key, kind in (("classes", str), ("image_shape", int), ("mean", float), ("std", float)):
        value = content[key]
        if not isinstance(value, list) or not all(type(item) is kind for item in value):
            raise UserError(f"{path}: {key} = {value}: not a list of {kind.__name__}; run fastcifar prep again")
    return Manifest(**{key: tuple(value) if isinstance(value, list) else value for key, value in content.items()})


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load_split(root: Path, manifest: Manifest, name: str) -> Split:
    path = root / f"{name}.beton"
    beton = read_beton(path)
    found = (len(beton.labels), *beton.image_shape)
    expected = (manifest.counts[name], *manifest.image_shape)
    if found != expected:
        raise UserError(
            f"{path}: of another data set: holds images {found}, {MANIFEST} says {expected}; run fastcifar prep again"
        )
    if file_sha256(path) != manifest.sha256[name]:
        raise UserError(f"{path}: not the file that {MANIFEST} describes (its SHA-256 differs); run fastcifar prep again")
    if beton.labels.min() < 0 or beton.labels.max() >= len(manifest.classes):
        raise UserError(f"{path}: labels {beton.labels.min()} to {beton.labels.max()}, but {len(manifest.classes)} classes")
    return Split(beton, beton.labels)
