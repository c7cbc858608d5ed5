"""Cost of recording: a whole run of one epoch, with its log, progress and files, compared with its steps alone.

    python benchmarks/metrics_overhead.py [RECIPE] [STEPS]

On random images, without validation. On a CPU a step has ended when it returns, so recording is the run's time outside of its
steps. On a GPU recording overlaps with steps, so runs and the same steps without a run are interleaved. Weights are not saved:
that is not recording.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from fastcifar.bench.setting import random_dataset
from fastcifar.display.console import Reporter
from fastcifar.engine.engine import Engine
from fastcifar.engine.step import EagerStep
from fastcifar.engine.trainer import Trainer
from fastcifar.recipe import load_recipe
from fastcifar.run.directory import RunDirectory
from fastcifar.runtime.device import choose_device, device_name
from fastcifar.runtime.distributed import World
from fastcifar.runtime.timing import Clock

ROUNDS = 15


class TimedSteps:
    """A step whose `run` is timed; everything else is passed on to it."""

    def __init__(self, step: EagerStep) -> None:
        self.step, self.seconds = step, 0.0

    def __getattr__(self, name: str) -> object:
        return getattr(self.step, name)

    def run(self, count: int) -> None:
        began = time.perf_counter()
        self.step.run(count)
        self.seconds += time.perf_counter() - began


def main(name: str = "seed", steps: int = 100) -> None:
    recipe = load_recipe(name, ["train.epochs=1", "schedule.warmup_epochs=0"])
    device = choose_device("auto")
    clock, silent = Clock(device), Reporter(console=Console(quiet=True, force_terminal=False))
    ratios, alone_s = [], []
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(recipe, random_dataset(steps * recipe.train.batch_size, 0), World(device))
        engine.warm_up()
        engine.model.train()
        engine.step = timed = TimedSteps(engine.step)

        def seconds_of_run() -> float:
            timed.seek(0)
            run = RunDirectory(Path(tempfile.mkdtemp(dir=folder)))
            began = clock.now()
            Trainer(engine, run, silent, started=time.perf_counter(), keep_weights=False).fit(lambda: False)
            return clock.seconds(began, clock.now())

        def seconds_of_steps() -> float:
            timed.seek(0)
            began = clock.now()
            timed.run(steps)
            return clock.seconds(began, clock.now())

        for _ in range(ROUNDS + 1):
            timed.seconds = 0.0
            run_s = seconds_of_run()
            alone_s.append(timed.seconds if device.type == "cpu" else seconds_of_steps())
            ratios.append(run_s / alone_s[-1])
    ratios = sorted(ratios[1:])
    middle, quarter = statistics.median(ratios), len(ratios) // 4
    print(
        f"{device_name(device)}: recording costs {middle - 1:+.2%} of {recipe.name}'s training (quartiles "
        f"{ratios[quarter] - 1:+.2%} and {ratios[-1 - quarter] - 1:+.2%}, {ROUNDS} rounds of {steps} steps, "
        f"{statistics.median(alone_s[1:]) / steps:.3g} s per step)"
    )


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
