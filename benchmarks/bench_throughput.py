"""Every implementation of `fastcifar bench`, timed by pytest-benchmark: one group per case, so that its table compares them.

    pytest benchmarks --benchmark-only
    pytest benchmarks --benchmark-only -k "augment and 512" --benchmark-json=augment.json
    pytest benchmarks --benchmark-only --benchmark-compare    # against an earlier commit

A test prepares and times one implementation; on CUDA a round ends with a synchronisation. Slow peers do less work per round,
so times are per image (or step), and OPS is images/s; those of epoch and train are of the whole. pytest-benchmark runs one
implementation after the other, so on a shared machine prefer the ratios of `fastcifar bench`, whose rounds are interleaved.
"""

import re
import time

import pytest
import torch

from fastcifar.bench import SUBJECTS, TINY, make_cases
from fastcifar.bench.interleaved import Case
from fastcifar.bench.peers import Unavailable
from fastcifar.recipe import load_recipe
from fastcifar.runtime.device import choose_device
from fastcifar.runtime.environment import environment
from fastcifar.runtime.measurement import SECONDS

CASES: dict[str, Case] = {}
"""By group."""


class UnitTimer:
    """pytest-benchmark's clock: seconds divided by `amount`, the images or steps per round of what is timed."""

    __name__ = "seconds_per_unit"  # in the results file
    amount = 1

    def __call__(self) -> float:
        return time.perf_counter() / self.amount


timer = UnitTimer()


def pytest_generate_tests(metafunc):
    device, sizes = choose_device("auto"), TINY if metafunc.config.getoption("--tiny") else None
    parameters = []
    for subject in SUBJECTS:
        for case in make_cases(subject, device, load_recipe("seed"), sizes=sizes):
            group = f"{subject}: {case.title}"
            CASES[group] = case
            for implementation in case.implementations:
                marks = [pytest.mark.benchmark(group=group, timer=timer)]
                if not implementation.ours:
                    marks.append(pytest.mark.filterwarnings("ignore"))  # warnings of the peers' own code
                name = "-".join(re.sub(r"[^\w+]+", "_", part) for part in (subject, case.title, implementation.name))
                parameters.append(pytest.param(group, implementation.name, marks=marks, id=name))
    metafunc.parametrize(("group", "variant"), parameters)


def test_throughput(benchmark, group, variant):
    case = CASES[group]
    implementation = next(one for one in case.implementations if one.name == variant)
    try:
        with implementation.ready() as work:
            timer.amount = 1 if case.unit == SECONDS else work.amount

            def run():
                work.run()
                if case.device.type == "cuda":
                    torch.cuda.synchronize(case.device)

            benchmark.pedantic(run, rounds=case.rounds, warmup_rounds=case.warm_up)
            benchmark.extra_info |= {"note": work.note(), "environment": environment(case.device)}
            if case.unit != SECONDS and benchmark.enabled:
                rate = 1 / benchmark.stats.stats.median
                benchmark.extra_info |= {"unit": case.unit, "rate": rate, "amount_per_round": work.amount}
    except Unavailable as error:
        pytest.skip(str(error))
    finally:
        torch.compiler.reset()
