"""The cases of `fastcifar bench` as tests of pytest-benchmark: one for each contestant, in a group for each case.

Contestants take turns (`fastcifar.bench.race`), and pytest-benchmark would time one test after the other. So the first test of
a case runs its race, and each test's timer plays back the rounds of its contestant: seconds for an image, a step, or as they
are where the unit is seconds. The whole `Measurement` is in the extra information.
"""

import itertools
import re

import pytest

from fastcifar.bench import TINY, Measurement, make_cases, measure
from fastcifar.bench.race import Case
from fastcifar.recipe import load_recipe
from fastcifar.runtime.device import choose_device
from fastcifar.runtime.measurement import SECONDS

CASES: dict[tuple[str, str], Case] = {}
"""By subject and title."""
times = iter(())


def playback() -> float:
    """The timer, asked before and after every round."""
    return next(times)


def pytest_addoption(parser):
    parser.addoption("--tiny", action="store_true", help="see that everything runs; of no use as a measurement")


def pytest_generate_tests(metafunc):
    """A parameter for each contestant of the subject that the test is named after, as in `test_augment`."""
    subject = metafunc.function.__name__.removeprefix("test_")
    sizes = TINY if metafunc.config.getoption("--tiny") else None
    parameters = []
    for case in make_cases(subject, choose_device("auto"), load_recipe("seed"), sizes=sizes):
        CASES[subject, case.title] = case
        mark = pytest.mark.benchmark(group=f"{subject}: {case.title}", timer=playback)
        for variant in (contestant.name for contestant in case.contestants):
            name = "-".join(re.sub(r"[^\w+]+", "_", part) for part in (case.title, variant))
            parameters.append(pytest.param(case.title, variant, marks=mark, id=name))
    metafunc.parametrize(("case", "variant"), parameters)


@pytest.fixture(scope="session")
def raced() -> dict[tuple[str, str], list[Measurement]]:
    """The races that were run."""
    return {}


@pytest.fixture
def play(benchmark, raced, request):
    """A function of (case, variant) that reports a contestant's rounds, after its race was run."""

    def report(case: str, variant: str) -> None:
        global times
        key = request.function.__name__.removeprefix("test_"), case
        raced[key] = raced.get(key) or measure(CASES[key])
        row = next(row for row in raced[key] if row.variant == variant)
        if not row.rounds:
            pytest.skip(f"{variant} not measured: {row.note}")
        seconds = row.rounds if row.unit == SECONDS else [1 / rate for rate in row.rounds]
        times = itertools.chain.from_iterable((0.0, duration) for duration in seconds)
        benchmark.extra_info |= row.to_json()
        benchmark.pedantic(lambda: None, rounds=len(seconds))

    return report
