"""Where images come from: CIFAR's published files, folders of class folders, or the synthetic set."""

import functools
import hashlib
import io
import os
import pickle
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_prep import synthetic
from fastcifar.errors import UserError

DOWNLOADS = Path("data")
Arrays = tuple[np.ndarray, np.ndarray]
"""Images (N, H, W, 3) uint8 and labels (N,) int64."""
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Images:
    """A source, read. `val` and `test` are None where the source has no such split."""

    classes: tuple[str, ...]
    train: Arrays
    val: Arrays | None
    test: Arrays | None


@dataclass(frozen=True)
class Source:
    """A source, found but not read yet.

    Attributes:
        name: of the data set.
        files: what it is made of; their names, sizes and times tell whether it has changed.
        read: reads it, telling its progress.
    """

    name: str
    files: tuple[Path, ...]
    read: Callable[[Progress], Images]

    def fingerprint(self) -> list[Any]:
        """What identifies the source's content without reading it."""
        return [self.name, *((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in self.files)]


@dataclass(frozen=True)
class Cifar:
    """One of CIFAR's published layouts (https://www.cs.toronto.edu/~kriz/cifar.html).

    Attributes:
        name: of the data set.
        folder: as the published archive names it.
        train, test: file names.
        meta: the file with the class names.
        md5: of each file, where published; files are checked against it.
        label: of an image: the pickle's key, or in binary files the byte's place (images follow the last label).
        classes: the pickle's key of the class names; None in binary files.
    """

    name: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    md5: dict[str, str]
    label: bytes | int
    classes: bytes | None


BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
LAYOUTS = (
    Cifar(
        name="cifar10",
        folder="cifar-10-batches-py",
        train=BATCHES,
        test=("test_batch",),
        meta="batches.meta",
        md5={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
            "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        },
        label=b"labels",
        classes=b"label_names",
    ),
    Cifar(
        name="cifar10",
        folder="cifar-10-batches-bin",
        train=tuple(f"{name}.bin" for name in BATCHES),
        test=("test_batch.bin",),
        meta="batches.meta.txt",
        md5={},
        label=0,
        classes=None,
    ),
    Cifar(
        name="cifar100",
        folder="cifar-100-python",
        train=("train",),
        test=("test",),
        meta="meta",
        md5={
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "7973b15100ade9c7d40fb424638fde48",
        },
        label=b"fine_labels",
        classes=b"fine_label_names",
    ),
    Cifar(
        name="cifar100",
        folder="cifar-100-binary",
        train=("train.bin",),
        test=("test.bin",),
        meta="fine_label_names.txt",
        md5={},
        label=1,
        classes=None,
    ),
)
PIXELS = 3 * 32 * 32


def find_source(source: str | os.PathLike[str] | None, resize: int | None = None) -> Source:
    """The source of that name or path; None looks at $FASTCIFAR_SOURCE, then ./data, then downloads CIFAR-10.

    Raises:
        UserError: there is no such source.
    """
    if source is None:
        source = os.environ.get("FASTCIFAR_SOURCE") or (DOWNLOADS if DOWNLOADS.is_dir() else "cifar10")
    if source == "synthetic":
        return Source("synthetic", (), _read_synthetic)
    if source in ("cifar10", "cifar100"):
        return _published(_download(str(source)))
    path = Path(source)
    if path.is_file():
        return _archive(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder or archive; nor is it cifar10, cifar100 or synthetic")
    if (path / "train").is_dir():
        return _image_folder(path, resize)
    return _published(path)


def _published(path: Path) -> Source:
    """CIFAR's files in `path` or in a folder in it that has a published name."""
    for layout in LAYOUTS:
        names = (*layout.train, *layout.test, layout.meta)
        for folder in (path, path / layout.folder):
            if all((folder / name).is_file() for name in names):
                read = functools.partial(_read_published, folder, layout)
                return Source(layout.name, tuple(folder / name for name in names), read)
    raise UserError(
        f"{path}: holds neither CIFAR's files ({', '.join(layout.folder for layout in LAYOUTS)}) "
        "nor train/<class>/ folders of images"
    )


def _read_published(folder: Path, layout: Cifar, progress: Progress) -> Images:
    return read_cifar(layout, lambda name: (folder / name).read_bytes(), str(folder), progress)


def _archive(path: Path) -> Source:
    """CIFAR's files in the published .tar.gz."""
    try:
        with tarfile.open(path) as archive:
            held = archive.getnames()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{path}: not a readable .tar.gz: {error}") from None
    for layout in LAYOUTS:
        if f"{layout.folder}/{layout.train[0]}" in held:
            return Source(layout.name, (path,), functools.partial(_read_archive, path, layout))
    raise UserError(f"{path}: holds none of {', '.join(layout.folder for layout in LAYOUTS)}")


def _read_archive(path: Path, layout: Cifar, progress: Progress) -> Images:
    with tarfile.open(path) as archive:
        try:
            contents = {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}
        except (tarfile.TarError, OSError, EOFError) as error:
            raise UserError(f"{path}: damaged archive: {error}") from None

    def read(name: str) -> bytes:
        try:
            return contents[f"{layout.folder}/{name}"]
        except KeyError:
            raise UserError(f"{path}: holds no {layout.folder}/{name}") from None

    return read_cifar(layout, read, str(path), progress)


def _download(name: str) -> Path:
    """Have torchvision download and check CIFAR into ./data; what is there already is not fetched again."""
    from torchvision import datasets  # heavy, and needed for this alone

    dataset = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    try:
        dataset(DOWNLOADS, download=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{name} could not be downloaded ({reason}); name a cifar-10-batches-py or cifar-10-batches-bin folder or its "
            ".tar.gz, put one into ./data, set FASTCIFAR_SOURCE to one, or try `fastcifar prep synthetic`"
        ) from None
    return DOWNLOADS / {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name]


def read_cifar(layout: Cifar, read: Callable[[str], bytes], where: str, progress: Progress) -> Images:
    """Read CIFAR's files, `read` giving the content of each.

    Raises:
        UserError: a file whose MD5 sum is not the published one, or whose size or content is not CIFAR's.
    """
    contents = {}
    names = (*layout.train, *layout.test, layout.meta)
    for number, name in enumerate(names, 1):
        contents[name] = read(name)
        if name in layout.md5 and hashlib.md5(contents[name], usedforsecurity=False).hexdigest() != layout.md5[name]:
            raise UserError(f"{where}: {name} is not the published file (its MD5 sum differs); download it again")
        progress("reading", number / len(names))
    if layout.classes is None:
        classes = tuple(contents[layout.meta].decode().split())
    else:
        classes = tuple(name.decode() for name in _unpickle(contents[layout.meta])[layout.classes])
    parse = _parse_binary if layout.classes is None else _parse_pickle
    splits = []
    for split in (layout.train, layout.test):
        parts = [parse(contents.pop(name), layout.label, f"{where}: {name}") for name in split]
        splits.append(tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    return Images(classes, train=splits[0], val=None, test=splits[1])


def _parse_pickle(content: bytes, label: bytes, where: str) -> Arrays:
    batch = _unpickle(content)
    return _from_planes(batch[b"data"]), np.array(batch[label], np.int64)


def _parse_binary(content: bytes, label: int, where: str) -> Arrays:
    labels = label + 1  # CIFAR-100 has the coarse label before the fine one
    if not content or len(content) % (labels + PIXELS):
        raise UserError(f"{where}: {len(content)} bytes, not a multiple of {labels + PIXELS}: truncated or not CIFAR's")
    records = np.frombuffer(content, np.uint8).reshape(-1, labels + PIXELS)
    return _from_planes(records[:, labels:]), records[:, label].astype(np.int64)


def _from_planes(planes: np.ndarray) -> np.ndarray:
    """Rows of a red, a green and a blue plane as images (N, 32, 32, 3)."""
    return np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


class _Unpickler(pickle.Unpickler):
    """Loads numpy arrays and plain values; refuses everything else, so that a pickle cannot run code."""

    ALLOWED = frozenset({("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")})

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np._core.multiarray._reconstruct
        if (module, name) in self.ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


def _unpickle(content: bytes) -> dict[bytes, Any]:
    return _Unpickler(io.BytesIO(content), encoding="bytes").load()


def _read_synthetic(progress: Progress) -> Images:
    train = synthetic.draw(synthetic.TRAIN_COUNT, seed=1)
    progress("drawing", 0.8)
    test = synthetic.draw(synthetic.TEST_COUNT, seed=2)
    progress("drawing", 1.0)
    return Images(synthetic.CLASSES, train, None, test)


def _image_folder(root: Path, resize: int | None) -> Source:
    splits = {name: _class_files(root / name) for name in ("train", "val", "test") if (root / name).is_dir()}
    classes = tuple(splits["train"])
    for name, by_class in splits.items():
        for odd in sorted(set(by_class) ^ set(classes)):
            raise UserError(f"{root}: class folder {odd!r} is in one of train/ and {name}/ only; the classes must be the same")
    files = tuple(path for by_class in splits.values() for paths in by_class.values() for path in paths)
    return Source(root.resolve().name, files, functools.partial(_read_folder, root, splits, resize))


def _class_files(split: Path) -> dict[str, list[Path]]:
    """Class name -> its images, both sorted; hidden files and empty classes are left out."""
    folders = sorted(path for path in split.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = {f.name: sorted(p for p in f.rglob("*") if p.is_file() and not p.name.startswith(".")) for f in folders}
    found = {name: files for name, files in found.items() if files}
    if not found:
        raise UserError(f"{split}: holds no class folders with images")
    return found


def _read_folder(root: Path, splits: dict[str, dict[str, list[Path]]], resize: int | None, progress: Progress) -> Images:
    first = next(iter(splits["train"].values()))[0]
    size = (resize, resize) if resize else _decode(first, None).shape[:2]
    arrays: dict[str, Arrays] = {}
    for name, by_class in splits.items():
        files = [path for paths in by_class.values() for path in paths]
        labels = np.repeat(np.arange(len(by_class)), [len(paths) for paths in by_class.values()])
        images = np.empty((len(files), *size, 3), np.uint8)
        for number, (path, image) in enumerate(zip(files, _decoded(files, resize), strict=True)):
            if image.shape[:2] != size:
                raise UserError(
                    f"{path}: {image.shape[1]}x{image.shape[0]} pixels, but {first} has {size[1]}x{size[0]}; "
                    "make them one size with --resize N"
                )
            images[number] = image
            progress(f"reading {name}", (number + 1) / len(files))
        arrays[name] = images, labels
    return Images(tuple(splits["train"]), arrays["train"], arrays.get("val"), arrays.get("test"))


def _decoded(files: list[Path], resize: int | None) -> Iterator[np.ndarray]:
    """Decode in threads (Pillow releases the interpreter's lock), a bounded number ahead."""
    chunk = 1024
    with ThreadPoolExecutor() as threads:
        for start in range(0, len(files), chunk):
            yield from threads.map(lambda path: _decode(path, resize), files[start : start + chunk])


def _decode(path: Path, resize: int | None) -> np.ndarray:
    """An image file as (H, W, 3) uint8; grey images and palettes become RGB."""
    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
    except OSError as error:
        raise UserError(f"{path}: not an image that Pillow can open: {error}") from None
    return np.asarray(rgb.resize((resize, resize), Image.Resampling.LANCZOS) if resize else rgb)
