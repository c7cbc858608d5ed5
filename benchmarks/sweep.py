"""A picture of one subject against the batch size, a line for each contestant: where each of them saturates.

    python benchmarks/sweep.py augment results.json augment.png

The results are those of `pytest benchmarks --benchmark-json=results.json` or of `fastcifar bench --json results.json`; what
they hold of other subjects is left out.
"""

import json
import sys
from pathlib import Path

from fastcifar.bench import Measurement
from fastcifar.display.bars import plot_sweep


def read_results(path: str) -> list[Measurement]:
    """The measurements of a file of either kind."""
    content = json.loads(Path(path).read_text())
    rows = content.get("measurements") or [entry["extra_info"] for entry in content["benchmarks"]]
    return [Measurement.from_json(row) for row in rows if "subject" in row]


if __name__ == "__main__":
    subject, results, picture = sys.argv[1:]
    plot_sweep([row for row in read_results(results) if row.subject == subject], Path(picture))
