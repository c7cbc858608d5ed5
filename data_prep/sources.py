"""Sources of images: CIFAR's published files, a folder of class folders, or the synthetic set."""

import functools
import hashlib
import io
import os
import pickle
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data_prep import synthetic
from data_prep.folder import image_folder
from data_prep.images import Arrays, Images, Progress, Source
from fastcifar.runtime.errors import UserError

DOWNLOADS = Path("data")
DAMAGED_ARCHIVE = (tarfile.TarError, OSError, EOFError, zlib.error)  # raised while reading one


@dataclass(frozen=True)
class Cifar:
    """One of CIFAR's published layouts (https://www.cs.toronto.edu/~kriz/cifar.html).

    Attributes:
        name: of the data set.
        archive, folder: as published; the archive holds the folder.
        train, test: file names.
        meta: the file with the class names.
        md5: of each file, where published; files are checked against it.
        label: pickle key of the labels, or in binary files the index of the label byte (pixels follow the last label).
        classes: pickle key of the class names; None in binary files.
        counts: images in train and in test.
    """

    name: str
    archive: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    md5: dict[str, str]
    label: bytes | int
    classes: bytes | None
    counts: tuple[int, int] = (50_000, 10_000)

    @property
    def files(self) -> tuple[str, ...]:
        return (self.meta, *self.train, *self.test)


BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
LAYOUTS = (
    Cifar(
        name="cifar10",
        archive="cifar-10-python.tar.gz",
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
        archive="cifar-10-binary.tar.gz",
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
        archive="cifar-100-python.tar.gz",
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
        archive="cifar-100-binary.tar.gz",
        folder="cifar-100-binary",
        train=("train.bin",),
        test=("test.bin",),
        meta="fine_label_names.txt",
        md5={},
        label=1,
        classes=None,
    ),
)
IMAGE_BYTES = 3 * 32 * 32


def find_source(source: str | os.PathLike[str] | None, resize: int | None = None) -> Source:
    """Find a source by name or path; None tries $FASTCIFAR_SOURCE, then ./data, then downloads CIFAR-10.

    A source is "cifar10" or "cifar100" (downloaded to ./data unless it is there), "synthetic", one of CIFAR's folders or
    archives, a folder that holds one of these, or a folder of class folders of images: train/<class>/ and, if present,
    val/<class>/ and test/<class>/.

    Raises:
        UserError: there is no such source.
    """
    if source is None:
        source = os.environ.get("FASTCIFAR_SOURCE") or (DOWNLOADS if _holds_source(DOWNLOADS) else "cifar10")
    path = Path(source)
    if source not in ("synthetic", "cifar10", "cifar100") and (path / "train").is_dir():
        return image_folder(path, resize)
    if resize is not None:
        raise UserError(f"`resize={resize}`: only for a folder of class folders of images, not for {source}")
    if source == "synthetic":  # its only file is the code that draws it
        return Source("synthetic", (Path(synthetic.__file__),), _read_synthetic)
    if source in ("cifar10", "cifar100"):
        return _published(_downloaded(str(source)))
    if path.is_file():
        return _archive(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder or archive; nor is it cifar10, cifar100 or synthetic")
    return _published(path)


def _holds_source(path: Path) -> bool:
    names = (name for layout in LAYOUTS for name in (layout.folder, layout.archive, layout.train[0]))
    return any((path / name).exists() for name in names)  # CIFAR-100's file "train" is also the folder of an image folder


def _published(path: Path) -> Source:
    """Find CIFAR's files in `path`, or in a folder or archive in it that has a published name."""
    for layout in LAYOUTS:
        for folder in (path, path / layout.folder):
            missing = [name for name in layout.files if not (folder / name).is_file()]
            if not missing:
                read = functools.partial(_read_files, folder, layout)
                return Source(layout.name, tuple(folder / name for name in layout.files), read)
            if folder.name == layout.folder and folder.is_dir():
                raise UserError(f"{folder}: {missing[0]} is missing; unpack {layout.archive} again")
        if (path / layout.archive).is_file():
            return _archive(path / layout.archive)
    raise UserError(
        f"{path}: holds neither CIFAR's files ({', '.join(layout.folder for layout in LAYOUTS)}) "
        "nor train/<class>/ folders of images"
    )


def _read_files(folder: Path, layout: Cifar, progress: Progress) -> Images:
    return read_cifar(layout, lambda name: (folder / name).read_bytes(), str(folder), progress)


def _archive(path: Path) -> Source:
    """Find CIFAR's files in an archive; its first file tells the layout, so the rest is not unpacked for that."""
    try:
        with tarfile.open(path, "r:gz") as archive:
            first = next((entry.name for entry in archive if entry.isfile()), "")
    except DAMAGED_ARCHIVE as error:
        raise UserError(f"{path}: not a readable .tar.gz: {error}") from None
    for layout in LAYOUTS:
        if layout.folder in PurePosixPath(first).parts:
            return Source(layout.name, (path,), functools.partial(_read_archive, path, layout))
    raise UserError(f"{path}: holds none of {', '.join(layout.folder for layout in LAYOUTS)}")


def _read_archive(path: Path, layout: Cifar, progress: Progress) -> Images:
    try:
        with tarfile.open(path, "r:gz") as archive:
            contents = {
                PurePosixPath(entry.name).name: archive.extractfile(entry).read() for entry in archive if entry.isfile()
            }
    except DAMAGED_ARCHIVE as error:
        raise UserError(f"{path}: damaged archive: {error}") from None
    missing = [name for name in layout.files if name not in contents]
    if missing:
        raise UserError(f"{path}: {missing[0]} is missing; download it again")
    return read_cifar(layout, contents.pop, str(path), progress)


def _downloaded(name: str) -> Path:
    """Return the data set's folder in ./data; torchvision downloads it if it is absent."""
    layout = next(layout for layout in LAYOUTS if layout.name == name and layout.md5)
    folder = DOWNLOADS / layout.folder
    if all((folder / file).is_file() for file in layout.files):
        return folder
    from torchvision import datasets  # here: slow to import, and needed only for a download

    DOWNLOADS.mkdir(exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=DOWNLOADS, prefix=".download-") as temporary:
            {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name](temporary, download=True)
            (Path(temporary) / layout.folder).rename(folder)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{name} could not be downloaded ({reason}); name a cifar-10-batches-py or cifar-10-batches-bin folder or its "
            ".tar.gz, put one into ./data, set FASTCIFAR_SOURCE to one, or try `fastcifar prep synthetic`"
        ) from None
    finally:
        with suppress(OSError):  # not empty
            DOWNLOADS.rmdir()
    return folder


def read_cifar(layout: Cifar, read: Callable[[str], bytes], where: str, progress: Progress) -> Images:
    """Read CIFAR's files; `read` returns the content of each.

    Raises:
        UserError: a file's MD5 sum is not the published one, or its size or content is not CIFAR's.
    """

    def checked(name: str) -> bytes:
        content = read(name)
        if name in layout.md5 and hashlib.md5(content, usedforsecurity=False).hexdigest() != layout.md5[name]:
            raise UserError(f"{where}: {name} is not the published file (its MD5 sum differs); remove it and get it again")
        progress("reading", (layout.files.index(name) + 1) / len(layout.files))
        return content

    meta = checked(layout.meta)
    if layout.classes is None:
        classes = tuple(meta.decode(errors="replace").split())
    else:
        classes = tuple(name.decode() for name in unpickle(meta, f"{where}: {layout.meta}")[layout.classes])
    splits = []
    for names, count in zip((layout.train, layout.test), layout.counts, strict=True):
        parts = [_parse(checked(name), layout, f"{where}: {name}") for name in names]
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        if len(labels) != count or labels.max() >= len(classes):
            held = f"{len(labels)} images with labels to {labels.max()}"
            raise UserError(f"{where}: {', '.join(names)}: {held}; CIFAR has {count} of {len(classes)} classes")
        splits.append((images, labels))
    return Images(classes, train=splits[0], val=None, test=splits[1])


def _parse(content: bytes, layout: Cifar, where: str) -> Arrays:
    """Parse the images and labels of one file; each row holds a red, a green and a blue plane."""
    if isinstance(layout.label, bytes):
        batch = unpickle(content, where)
        planes, labels = batch[b"data"], np.array(batch[layout.label], np.int64)
    else:
        first = layout.label + 1  # CIFAR-100 has the coarse label before the fine one
        length = first + IMAGE_BYTES
        if not content or len(content) % length:
            raise UserError(f"{where}: {len(content)} bytes, not a multiple of {length}: truncated or not CIFAR's")
        records = np.frombuffer(content, np.uint8).reshape(-1, length)
        planes, labels = records[:, first:], records[:, layout.label].astype(np.int64)
    return np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels


def unpickle(content: bytes, where: str) -> dict[bytes, Any]:
    """Load a pickle of NumPy arrays and plain values only, so that it cannot run code.

    Raises:
        UserError: it holds anything else, or is not a pickle.
    """
    try:
        return _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle may raise any exception (manual of pickle)
        raise UserError(f"{where}: not CIFAR's: {error}") from None


class _Unpickler(pickle.Unpickler):
    """Resolve only the three names that a pickled array needs, to our own functions."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray") and name in _ARRAY_NAMES:
            return _ARRAY_NAMES[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


_ARRAY_NAMES = {
    "ndarray": np.ndarray,
    "dtype": lambda kind, align, copy: np.dtype(kind),
    "_reconstruct": lambda kind, shape, dtype: np.ndarray(shape, dtype),
}


def _read_synthetic(progress: Progress) -> Images:
    train = synthetic.draw(synthetic.TRAIN_COUNT, seed=1)
    progress("drawing", 0.8)
    test = synthetic.draw(synthetic.TEST_COUNT, seed=2)
    progress("drawing", 1.0)
    return Images(synthetic.CLASSES, train, None, test)
