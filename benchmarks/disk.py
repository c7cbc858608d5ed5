"""Speed of reading samples in random order from a file that is not in memory, with and without read-ahead.

    python benchmarks/disk.py RESULTS.json [FOLDER]

The file, 3 GB of a million 32x32 images, is written to FOLDER (default: the system's temporary folder) and dropped from memory
before every round; the variants run in interleaved rounds. Bytes read from the disk are the system's count for the device
that holds the file, of all programs together. Only reading is timed: no augmentation, no copy to a GPU.
"""

import mmap
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from fastcifar.data.beton import read_beton, write_beton
from fastcifar.runtime.environment import environment
from fastcifar.runtime.files import write_json

with warnings.catch_warnings(action="ignore"):  # FFCV's and numba's
    from fastcifar.data.ffcv_reader import Reader

SAMPLES, SIDE = 1_000_000, 32
IMAGES = 30_000
"""Images read per round: 3 % of the file."""
BATCHES = 64, 512, 2048
ROUNDS = 5


class WithoutReadAhead(Reader):
    """Reader that requests nothing ahead of time."""

    def ask_for(self, samples: np.ndarray) -> None:
        pass


def drop(readers: Iterable[Reader], path: Path) -> None:
    """Drop a file's pages from memory: first from every map of it, else they stay. They must have been written to disk."""
    for reader in readers:
        reader.memory_manager.context.mmap._mmap.madvise(mmap.MADV_DONTNEED)
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_off_disk(path: Path) -> int:
    """Return the bytes read so far from the device that holds a file."""
    number = path.stat().st_dev
    statistics_of = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat")
    return int(statistics_of.read_text().split()[2]) * 512


def read_round(reader: Reader, path: Path, seed: int) -> tuple[float, float]:
    """Read one round in a new random order, from a dropped file: (images/s, bytes read from disk per image)."""
    batches = IMAGES // reader.batch_size
    samples = np.random.default_rng(seed).permutation(SAMPLES)[: batches * reader.batch_size]
    before, began = read_off_disk(path), time.perf_counter()
    reader.start(samples)
    for _ in range(batches):
        reader.take()
        reader.release()
    seconds = time.perf_counter() - began
    reader.stop()
    amount = (read_off_disk(path) - before) / len(samples)
    if amount < SIDE * SIDE * 3:
        sys.exit(f"{path}: came from memory ({amount:.0f} bytes per image off the disk); choose a FOLDER on a disk")
    return len(samples) / seconds, amount


def measure(path: Path) -> list[dict]:
    """Measure both variants at every batch size, in interleaved rounds."""
    fields = read_beton(path).fields
    variants = {"asked for ahead": Reader, "as FFCV reads": WithoutReadAhead}
    # All readers stay open: each maps the file, and `drop` needs every map.
    readers = {(size, name): kind(str(path), *fields, size) for size in BATCHES for name, kind in variants.items()}
    rounds = {case: [] for case in readers}
    for number in range(ROUNDS):
        for case in sorted(readers, reverse=number % 2 == 1):
            drop(readers.values(), path)
            rounds[case].append(read_round(readers[case], path, seed=number))
    return [
        {
            "variant": variant,
            "batch_size": batch_size,
            "images_per_s": [rate for rate, _ in found],
            "median_images_per_s": statistics.median(rate for rate, _ in found),
            "median_bytes_off_disk_per_image": statistics.median(amount for _, amount in found),
        }
        for (batch_size, variant), found in rounds.items()
    ]


def main(results: str, folder: str | None = None) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = Path(temporary, "random.beton")
        pixels = np.random.default_rng(0).integers(0, 256, (1000, SIDE, SIDE, 3), np.uint8)
        write_beton(path, np.concatenate([pixels] * (SAMPLES // 1000)), np.arange(SAMPLES) % 10)
        os.sync()
        rows = measure(path)
    for row in rows:
        rate, amount = row["median_images_per_s"], row["median_bytes_off_disk_per_image"]
        print(
            f"batch {row['batch_size']:>5}, {row['variant']:>15}: {rate:>8,.0f} images/s, {amount:>8,.0f} bytes off the disk"
        )
    write_json(
        results, {"command": "python benchmarks/disk.py", "environment": environment(torch.device("cpu")), "rows": rows}
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
