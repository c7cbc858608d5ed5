"""Compare recipes by the runs of `fastcifar train --runs N`: a measure's mean, its difference, and whether that is chance."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastcifar.run.statistics import (
    CONFIDENCE,
    POWER,
    SIGNIFICANCE,
    Difference,
    Interval,
    difference,
    holm,
    interval,
)
from fastcifar.run.summary import MEASURES
from fastcifar.runtime.errors import UserError, nearest

DIFFERS, NOT_SHOWN, EQUAL = "differs", "no difference shown", "equal"


@dataclass(frozen=True)
class Sample:
    """A measure of the runs in one folder.

    Attributes:
        folder: as it was given.
        recipe, dataset: names, from the folder's summary.json.
        interval: mean, spread and values of at least two runs.
    """

    folder: str
    recipe: str
    dataset: str
    interval: Interval

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, those of the interval beside the others."""
        table = asdict(self)
        return table | {"runs": len(self.interval.values)} | table.pop("interval")


@dataclass(frozen=True)
class Pair:
    """The first folder and another one.

    Attributes:
        first, other: the folders.
        difference: other minus first.
        p: what the verdict is by: that of `difference`, by Holm's correction if there are several pairs; None if undefined.
        verdict: "differs" if `p` is below 5 %, else "no difference shown"; where p is undefined, as all values of each folder
            are identical, "differs" or "equal".
    """

    first: str
    other: str
    difference: Difference
    p: float | None
    verdict: str

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, those of the difference beside the others; "p_uncorrected" is its own p."""
        table = asdict(self.difference)
        table |= {"difference": table.pop("mean"), "p_uncorrected": table.pop("p")}
        return {"first": self.first, "other": self.other, **table, "p": self.p, "verdict": self.verdict}


@dataclass(frozen=True)
class Comparison:
    """Result of `compare`.

    Attributes:
        measure: a name of `MEASURES`.
        samples: one for each folder.
        pairs: the first folder with each other one.
    """

    measure: str
    samples: tuple[Sample, ...]
    pairs: tuple[Pair, ...]

    @property
    def corrected(self) -> bool:
        """True if the p values are corrected for several pairs."""
        return len(self.pairs) > 1

    @property
    def warning(self) -> str | None:
        """One line if the folders are not of one data set; else None."""
        datasets = {sample.dataset: sample.folder for sample in self.samples}
        if len(datasets) == 1:
            return None
        return "warning: not of one data set: " + ", ".join(f"{folder} is of {name}" for name, folder in datasets.items())

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {
            "measure": self.measure,
            "confidence": CONFIDENCE,
            "significance": SIGNIFICANCE,
            "power": POWER,
            "correction": "holm" if self.corrected else None,
            "warning": self.warning,
            "folders": [sample.to_json() for sample in self.samples],
            "pairs": [pair.to_json() for pair in self.pairs],
        }


def compare(folders: Sequence[Path], measure: str = "test_accuracy") -> Comparison:
    """Compare a measure of the runs in the first folder with that in each other folder, by Welch's t test.

    With more than two folders, the p values are corrected by Holm's method; the intervals of the differences are not.

    Args:
        folders: of `fastcifar.engine.runs.train_runs`, at least two.
        measure: a name of `fastcifar.run.summary.MEASURES`.

    Raises:
        UserError: no such measure, fewer than two folders, or a folder does not hold at least two runs with finite values.
    """
    if measure not in MEASURES:
        raise UserError(f"`measure={measure}`: no measure of a run{nearest(measure, MEASURES)}")
    if len(folders) < 2:
        raise UserError("compare: needs at least two folders, each made by `fastcifar train --runs N`")
    first, *others = samples = [read_sample(Path(folder), measure) for folder in folders]
    differences = [difference(first.interval, other.interval) for other in others]
    corrected = iter(holm([found.p for found in differences if found.p is not None]))
    pairs = []
    for other, found in zip(others, differences, strict=True):
        p = None if found.p is None else next(corrected)
        pairs.append(Pair(first.folder, other.folder, found, p, _verdict(found, p)))
    return Comparison(measure, tuple(samples), tuple(pairs))


def read_sample(folder: Path, measure: str) -> Sample:
    """Read a measure of the runs in a folder of `fastcifar train --runs N`.

    Raises:
        UserError: there is no summary of at least two runs, or the measure is absent or not finite.
    """
    path = folder / "summary.json"
    content = _read_summary(path)
    table = content.get(measure)
    if not isinstance(table, dict) or not isinstance(table.get("values"), list):
        has = [name for name in MEASURES if isinstance(content.get(name), dict)]
        raise UserError(f"{path}: has no {measure}; it has {', '.join(has) or 'no measure at all'}")
    values = table["values"]
    for run, value in enumerate(values, 1):
        if type(value) not in (int, float) or not math.isfinite(value):
            raise UserError(f"{path}: {measure} of run {run} is {value!r}, not a finite number; leave that run out")
    if len(values) < 2:
        held = f"{len(values)} run{'' if values else 's'}"
        raise UserError(f"{path}: holds {held}, a spread needs at least 2; train with `runs=2` or more")
    names = (str(content.get(key, "unknown")) for key in ("recipe", "dataset"))
    return Sample(str(folder), *names, interval([float(value) for value in values]))


def _read_summary(path: Path) -> dict[str, Any]:
    """Read the summary.json of several runs, of this version or an older one."""
    if not path.is_file():
        raise UserError(f"{path.parent}: holds no summary.json; give a folder that `fastcifar train --runs N` wrote")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not even text
        raise UserError(f"{path}: not JSON ({error}); give a folder that `fastcifar train --runs N` wrote") from None
    if isinstance(content, dict) and "seeds" in content:
        return content
    single = isinstance(content, dict) and "seed" in content
    what = "the summary of a single run" if single else "not the summary of several runs"
    raise UserError(f"{path}: {what}; give a folder that `fastcifar train --runs N` wrote")


def _verdict(found: Difference, p: float | None) -> str:
    if p is None:
        return DIFFERS if found.mean else EQUAL
    return DIFFERS if p < SIGNIFICANCE else NOT_SHOWN
