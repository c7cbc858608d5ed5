"""From a source to a prepared data set: split, write, describe, and put in place in one step."""

import ctypes
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.sources import Arrays, Images, Progress, Source, find_source
from fastcifar.data.beton import write_beton
from fastcifar.data.dataset import FORMAT_VERSION, MANIFEST, SPLITS, Manifest, file_sha256, load_manifest
from fastcifar.errors import UserError

RENAME_EXCHANGE = 2  # linux/fs.h
AT_FDCWD = -100  # fcntl.h


@dataclass(frozen=True)
class PrepResult:
    """What `prepare` did: the manifest, whether anything was written, and the time it took in seconds."""

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

    The folder is replaced as a whole: interrupted at any moment, it is the old complete set or the new one. Nothing is done
    where it already holds what would be written.

    Args:
        source: see `find_source`.
        out: the folder to make, or to replace if an earlier `prepare` made it.
        val_fraction: share of the training images drawn for validation, 0 to below 1; 0 makes no val.beton. A source with a
            validation split of its own keeps that one.
        seed: of that draw.
        resize: N resizes the images of a folder to N x N pixels.
        progress: told a stage and the share of it that is done.

    Raises:
        UserError: a bad argument, no such source, a source that is damaged, or an `out` that holds other things.
    """
    begun = time.perf_counter()
    out = Path(out)
    _check(out, val_fraction, seed, resize)
    found = find_source(source, resize)
    fingerprint = _fingerprint(found, val_fraction, seed, resize)
    current = _current(out, fingerprint)
    if current:
        return PrepResult(current, changed=False, seconds=time.perf_counter() - begun)
    with _replacing_folder(out) as folder:
        manifest = _write(
            folder,
            found.name,
            _split(found.read(progress), val_fraction, seed),
            progress,
            fingerprint=fingerprint,
            val_fraction=val_fraction,
            seed=seed,
        )
    return PrepResult(manifest, changed=True, seconds=time.perf_counter() - begun)


def _check(out: Path, val_fraction: float, seed: int, resize: int | None) -> None:
    if not 0 <= val_fraction < 1:
        raise UserError(f"--val-fraction {val_fraction}: must be at least 0 and below 1")
    if seed < 0:
        raise UserError(f"--seed {seed}: must be at least 0")
    if resize is not None and resize < 1:
        raise UserError(f"--resize {resize}: must be at least 1")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; choose another --out")
    ours = {MANIFEST, *(f"{split}.beton" for split in SPLITS)}
    for path in out.iterdir() if out.is_dir() else ():
        if path.name not in ours:
            raise UserError(f"{out}: holds {path.name}, which fastcifar did not write; choose another --out")


def _fingerprint(source: Source, val_fraction: float, seed: int, resize: int | None) -> str:
    described = [FORMAT_VERSION, source.fingerprint(), val_fraction, seed, resize]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def _current(out: Path, fingerprint: str) -> Manifest | None:
    """The manifest in `out`, where it was made from the same source and its files are undamaged."""
    try:
        manifest = load_manifest(out)
    except UserError:
        return None
    if manifest.source != fingerprint:
        return None
    whole = all(
        (out / f"{split}.beton").is_file() and file_sha256(out / f"{split}.beton") == digest
        for split, digest in manifest.sha256.items()
    )
    return manifest if whole else None


def _split(images: Images, val_fraction: float, seed: int) -> tuple[tuple[str, ...], dict[str, Arrays]]:
    """Class names and the splits that there are; validation images are drawn at random, each split keeps its order."""
    splits = {"train": images.train, "val": images.val, "test": images.test}
    pixels, labels = images.train
    count = round(len(labels) * val_fraction)
    if images.val is None and count:
        if count == len(labels):
            raise UserError(f"--val-fraction {val_fraction}: leaves no image to train on, of {len(labels)}")
        chosen = np.zeros(len(labels), bool)
        chosen[np.random.Generator(np.random.PCG64(seed)).permutation(len(labels))[:count]] = True
        splits["train"] = pixels[~chosen], labels[~chosen]
        splits["val"] = pixels[chosen], labels[chosen]
    return images.classes, {name: arrays for name, arrays in splits.items() if arrays is not None}


def _write(
    folder: Path,
    name: str,
    content: tuple[tuple[str, ...], dict[str, Arrays]],
    progress: Progress,
    *,
    fingerprint: str,
    val_fraction: float,
    seed: int,
) -> Manifest:
    classes, splits = content
    for split, (images, labels) in splits.items():
        path = folder / f"{split}.beton"
        write_beton(path, images, labels, progress=lambda share, split=split: progress(f"writing {split}", share))
    mean, std = _channel_statistics(splits["train"][0])
    manifest = Manifest(
        name=name,
        classes=classes,
        image_shape=splits["train"][0].shape[1:],
        counts={split: len(labels) for split, (_, labels) in splits.items()},
        split_seed=seed,
        val_fraction=val_fraction,
        mean=mean,
        std=std,
        sha256={split: file_sha256(folder / f"{split}.beton") for split in splits},
        source=fingerprint,
    )
    (folder / MANIFEST).write_text(manifest.to_json())
    return manifest


def _channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, pixels in 0 .. 1, from exact integer sums."""
    total = squares = 0
    for start in range(0, len(images), 1000):
        pixels = images[start : start + 1000].reshape(-1, images.shape[3]).astype(np.uint32)
        total = total + pixels.sum(0, dtype=np.uint64)
        squares = squares + (pixels * pixels).sum(0, dtype=np.uint64)
    count = images[..., 0].size
    mean = total / count
    std = np.sqrt(squares / count - mean**2)
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


@contextmanager
def _replacing_folder(out: Path) -> Iterator[Path]:
    """Yield a new folder beside `out`; on success it takes the place of `out` in one step, on an error it is removed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(out)
    folder = out.with_name(f".{out.name}.tmp-{os.getpid()}")
    folder.mkdir()
    try:
        yield folder
        if out.exists():
            _exchange(folder, out)
        else:
            folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # what failed, or after the exchange what was there before


def _exchange(one: Path, other: Path) -> None:
    """Exchange two folders atomically: Linux's renameat2(2), which Python has no name for."""
    libc = ctypes.CDLL(None, use_errno=True)
    renameat2 = getattr(libc, "renameat2", None)
    if renameat2 and renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return
    reason = os.strerror(ctypes.get_errno()) if renameat2 else "this system has no renameat2"
    raise UserError(f"{other}: cannot be replaced in one step here ({reason}); remove it first: rm -r {other}")


def _remove_leftovers(out: Path) -> None:
    """Remove the folders of earlier processes that were killed; those of living processes stay."""
    for folder in out.parent.glob(f".{out.name}.tmp-*"):
        try:
            os.kill(int(folder.name.rpartition("-")[2]), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except (ValueError, PermissionError):
            continue
