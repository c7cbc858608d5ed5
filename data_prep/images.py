"""A source of images, before and after it is read."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Arrays = tuple[np.ndarray, np.ndarray]
"""Images (N, H, W, 3) uint8 and labels (N,) int64."""
Progress = Callable[[str, float], None]
"""Called with a stage and the share of it that is done, 0 to 1."""


@dataclass(frozen=True)
class Images:
    """The images of a source. `val` and `test` are None where it has no such split."""

    classes: tuple[str, ...]
    train: Arrays
    val: Arrays | None
    test: Arrays | None


@dataclass(frozen=True)
class Source:
    """A source that was found and is not read yet.

    Attributes:
        name: of the data set.
        files: its files; their names, sizes and times show whether it has changed.
        read: reads it and reports its progress.
    """

    name: str
    files: tuple[Path, ...]
    read: Callable[[Progress], Images]

    def fingerprint(self) -> list[Any]:
        """Identify the source's content without reading it."""
        stats = ((os.path.abspath(path), path.stat()) for path in self.files)
        return [self.name, *((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats)]
