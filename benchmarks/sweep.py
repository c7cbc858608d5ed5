"""Plot of one subject over the batch size, a line per implementation.

fastcifar bench augment --batch-size 64 --batch-size 512 --batch-size 4096 --json results.json
python benchmarks/sweep.py augment results.json augment.png
"""

import json
import sys
from pathlib import Path

from fastcifar.display.bars import plot_sweep
from fastcifar.display.measurements import read_document

if __name__ == "__main__":
    subject, results, picture = sys.argv[1:]
    rows = read_document(json.loads(Path(results).read_text()))
    plot_sweep([row for row in rows if row.subject == subject], Path(picture))
