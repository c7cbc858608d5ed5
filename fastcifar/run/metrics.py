"""`metrics.jsonl`: one JSON object per line, in order of time.

Two kinds of line: `{"kind": "steps", "epoch", "step", "global_step", "loss"}` is the mean training loss of the steps since
the last such line (`train.log_every` steps, fewer at an epoch's end); `{"kind": "epoch", ...}` is a finished epoch.
"""

import json
from pathlib import Path
from typing import Any

from fastcifar.runtime.errors import UserError
from fastcifar.runtime.files import write_text


class MetricsLog:
    """The rows of a run, in memory and, after `save`, in the file; the file is always complete."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []

    def add(self, kind: str, **values: Any) -> dict[str, Any]:
        row = {"kind": kind, **values}
        self.rows.append(row)
        return row

    def epochs(self) -> list[dict[str, Any]]:
        """The rows of the finished epochs."""
        return [row for row in self.rows if row["kind"] == "epoch"]

    def save(self) -> None:
        write_text(self.path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in self.rows))

    def load(self, global_step: int) -> None:
        """Load the file of an earlier process, up to and including `global_step`."""
        self.rows = [row for row in read_metrics(self.path) if row["global_step"] <= global_step]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a metrics file; [] if it does not exist."""
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON lines: {error}") from None
