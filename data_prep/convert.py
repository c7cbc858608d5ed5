"""Convert a source to a prepared data set: split, write, verify, describe, and replace the folder atomically."""

import ctypes
import errno
import fcntl
import glob
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from data_prep.images import Images, Progress, Source
from data_prep.sources import find_source
from fastcifar.data.beton import read_beton, write_beton
from fastcifar.data.dataset import FORMAT_VERSION, MANIFEST, SPLITS, Manifest, file_sha256, load_manifest
from fastcifar.runtime.errors import UserError

RENAME_EXCHANGE = 2  # linux/fs.h
AT_FDCWD = -100  # fcntl.h


@dataclass(frozen=True)
class PrepResult:
    """Result of `prepare`.

    Attributes:
        manifest: of the prepared data set.
        changed: False where `out` was up to date and nothing was written.
        seconds: time that `prepare` took.
    """

    manifest: Manifest
    changed: bool
    seconds: float


def prepare(
    source: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    *,
    val_fraction: float = 0.2,
    seed: int = 0,
    resize: int | None = None,
    progress: Progress = lambda stage, share: None,
) -> PrepResult:
    """Convert a source to train.beton, val.beton, test.beton and dataset.json in the folder `out`.

    The folder is replaced atomically: if interrupted, it holds either the complete old set or the complete new one. Everything
    is written to a hidden folder beside `out`, which then replaces `out` in one system call: a rename where `out` is absent or
    empty, else an exchange. Where the file system cannot exchange folders (a mount point, some network file systems), the old
    set stays and an error says so. Nothing is written where `out` is up to date.

    Args:
        source: see `find_source`.
        out: the folder to make, or to replace if an earlier `prepare` made it.
        val_fraction: share of the training images drawn for validation, 0 to below 1; 0 makes no val.beton. A source with its
            own validation split keeps it.
        seed: of that draw.
        resize: N resizes the images of a folder to N x N pixels.
        progress: called with a stage and the share of it that is done, 0 to 1.

    Raises:
        UserError: a bad argument, no such source, a damaged source, or an `out` that holds other files.
    """
    began = time.perf_counter()
    out = Path(out).resolve()  # replaces the target of a symbolic link, not the link
    _check_arguments(val_fraction, seed, resize)
    _check_replaceable(out)
    found = find_source(source, resize)
    fingerprint = _fingerprint(found, val_fraction, seed, resize)
    _remove_leftovers(out)
    manifest = _current(out, fingerprint)
    changed = manifest is None
    if manifest is None:
        with _replacing_folder(out) as folder:
            manifest = _convert(found, folder, fingerprint, val_fraction, seed, progress)
    return PrepResult(manifest, changed, time.perf_counter() - began)


def _check_arguments(val_fraction: float, seed: int, resize: int | None) -> None:
    if not 0 <= val_fraction < 1:
        raise UserError(f"`val_fraction={val_fraction}`: must be at least 0 and below 1")
    if seed < 0:
        raise UserError(f"`seed={seed}`: must be at least 0")
    if resize is not None and resize < 1:
        raise UserError(f"`resize={resize}`: must be at least 1")


def _check_replaceable(out: Path) -> None:
    """Refuse an `out` with anything in it that an earlier `prepare` did not write."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; choose another `out`")
    held = {path.name for path in out.iterdir()} if out.is_dir() else set()
    ours = {MANIFEST, *(f"{split}.beton" for split in SPLITS)} if MANIFEST in held else set()
    for name in sorted(held - ours):
        raise UserError(f"{out}: holds {name}, which fastcifar did not write; choose another `out`")


def _fingerprint(source: Source, val_fraction: float, seed: int, resize: int | None) -> str:
    described = [FORMAT_VERSION, source.fingerprint(), val_fraction, seed, resize]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def _current(out: Path, fingerprint: str) -> Manifest | None:
    """Return the manifest in `out` if it was made from the same source and its files are undamaged, else None."""
    try:
        manifest = load_manifest(out)
    except UserError:
        return None
    betons = {out / f"{split}.beton": digest for split, digest in manifest.sha256.items()}
    whole = manifest.source == fingerprint and all(
        path.is_file() and file_sha256(path) == digest for path, digest in betons.items()
    )
    return manifest if whole else None


def _convert(source: Source, folder: Path, fingerprint: str, val_fraction: float, seed: int, progress: Progress) -> Manifest:
    """Read the source; write its splits and the manifest to `folder`."""
    images = source.read(progress)
    if images.val is None:
        images = _draw_validation(images, val_fraction, seed)
    else:
        val_fraction = 0.0
    splits = {name: arrays for name in SPLITS if (arrays := getattr(images, name)) is not None}
    for name, arrays in splits.items():
        _write_and_verify(folder / f"{name}.beton", *arrays, partial(progress, f"writing {name}"))
    mean, std = _channel_statistics(images.train[0])
    manifest = Manifest(
        name=source.name,
        classes=images.classes,
        image_shape=images.train[0].shape[1:],
        counts={name: len(labels) for name, (_, labels) in splits.items()},
        split_seed=seed,
        val_fraction=val_fraction,
        mean=mean,
        std=std,
        sha256={name: file_sha256(folder / f"{name}.beton") for name in splits},
        source=fingerprint,
    )
    (folder / MANIFEST).write_text(manifest.to_json())
    return manifest


def _draw_validation(images: Images, val_fraction: float, seed: int) -> Images:
    """Move a random share of the training images to the validation split; both keep the source's order."""
    pixels, labels = images.train
    count = round(len(labels) * val_fraction)
    if not count:
        return images
    if count == len(labels):
        raise UserError(f"`val_fraction={val_fraction}`: leaves no image to train on, of {len(labels)}")
    chosen = np.zeros(len(labels), bool)
    chosen[np.random.Generator(np.random.PCG64(seed)).permutation(len(labels))[:count]] = True
    return replace(images, train=(pixels[~chosen], labels[~chosen]), val=(pixels[chosen], labels[chosen]))


def _write_and_verify(path: Path, images: np.ndarray, labels: np.ndarray, progress: Callable[[float], None]) -> None:
    write_beton(path, images, labels, progress=progress)
    written = read_beton(path)
    if not (np.array_equal(written.images, images) and np.array_equal(written.labels, labels)):
        raise OSError(errno.EIO, "the file reads back differently from what was written", str(path))


def _channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, pixels in 0 .. 1, from exact counts of the 256 values."""
    channels = images.shape[3]
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(images), 1000):  # in chunks: bincount widens each byte to eight
        pixels = images[start : start + 1000].reshape(-1, channels)
        counts += [np.bincount(pixels[:, channel], minlength=256) for channel in range(channels)]
    values = np.arange(256) / 255
    mean = counts @ values / counts.sum(1)
    variance = (counts * (values - mean[:, None]) ** 2).sum(1) / counts.sum(1)
    return tuple(mean.tolist()), tuple(np.sqrt(variance).tolist())


@contextmanager
def _replacing_folder(out: Path) -> Iterator[Path]:
    """Yield a new folder beside `out`; on success it replaces `out` atomically, on an error it is removed."""
    folder = out.with_name(f".{out.name}.tmp-{secrets.token_hex(4)}")
    try:
        folder.mkdir(parents=True)
        with _lock(folder):
            yield folder
            _put_in_place(folder, out)
    except OSError as error:  # no right to write there, disk full, ...
        raise UserError(f"{out}: not written: {error}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # the incomplete new folder, or after an exchange the old one


def _put_in_place(folder: Path, out: Path) -> None:
    try:
        folder.rename(out)  # allowed where `out` is absent or an empty folder
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        _exchange(folder, out)


def _exchange(one: Path, other: Path) -> None:
    """Exchange two folders atomically by Linux's renameat2(2), which Python's os module lacks."""
    libc = ctypes.CDLL(None, use_errno=True)
    renameat2 = getattr(libc, "renameat2", None)
    if renameat2 and renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return
    reason = os.strerror(ctypes.get_errno()) if renameat2 else "this system has no renameat2"
    raise UserError(f"{other}: cannot be replaced in one step ({reason}); choose another `out`, or remove it first")


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Lock a folder; the kernel releases the lock when the process ends, even if it is killed.

    Raises:
        BlockingIOError: another process holds it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _remove_leftovers(out: Path) -> None:
    """Remove the folders of killed processes; a folder that another process is writing is locked and stays."""
    for folder in out.parent.glob(f".{glob.escape(out.name)}.tmp-*"):
        with suppress(OSError), _lock(folder):
            shutil.rmtree(folder, ignore_errors=True)
