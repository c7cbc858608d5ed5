"""What a source of images is, found and read."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Arrays = tuple[np.ndarray, np.ndarray]
"""Images (N, H, W, 3) uint8 and labels (N,) int64."""
Progress = Callable[[str, float], None]
"""Is told a stage and the share of it that is done, 0 to 1."""


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
        stats = ((os.path.abspath(path), path.stat()) for path in self.files)
        return [self.name, *((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats)]
