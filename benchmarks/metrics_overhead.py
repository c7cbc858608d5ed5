"""What does recording cost? A whole run of one epoch, with its log, progress and files, against the same steps alone.

    python benchmarks/metrics_overhead.py [RECIPE] [STEPS]

Both train the same engine, in turns, on random images without validation; the figure is the median of the ratios of rounds
side by side. Weights are not saved: that is not recording.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from fastcifar.bench.setting import random_dataset
from fastcifar.config import load_recipe
from fastcifar.engine.distributed import World
from fastcifar.engine.engine import Engine
from fastcifar.engine.environment import choose_device, device_name
from fastcifar.engine.rundir import RunDirectory
from fastcifar.engine.trainer import Trainer, arithmetic_of
from fastcifar.engine.transfer import Clock
from fastcifar.report.console import Reporter

ROUNDS = 15


def main(name: str = "cpu", steps: int = 20) -> None:
    recipe = load_recipe(name, ["train.epochs=1", "schedule.warmup_epochs=0"])
    device = choose_device("auto")
    clock, silent = Clock(device), Reporter(console=Console(quiet=True, force_terminal=False))
    times: dict[str, list[float]] = {"steps": [], "run": []}
    with tempfile.TemporaryDirectory() as folder, arithmetic_of(recipe):
        engine = Engine(recipe, random_dataset(steps * recipe.train.batch_size, 0), World(device))
        engine.warm_up()
        engine.model.train()

        def alone() -> None:
            engine.step.run(steps)

        def recorded() -> None:
            run = RunDirectory(Path(tempfile.mkdtemp(dir=folder)))
            Trainer(engine, run, silent, started=time.perf_counter(), keep_weights=False).fit(lambda: False)

        for number in range(ROUNDS + 1):
            turns = [("steps", alone), ("run", recorded)]
            for what, work in turns if number % 2 else turns[::-1]:
                engine.step.seek(0)
                begun = clock.now()
                work()
                times[what].append(clock.seconds(begun, clock.now()))
    ratios = sorted(one / other for one, other in zip(times["run"][1:], times["steps"][1:], strict=True))
    middle, quarter = statistics.median(ratios), len(ratios) // 4
    print(
        f"{device_name(device)}: recording costs {middle - 1:+.2%} of {recipe.name}'s training (quartiles "
        f"{ratios[quarter] - 1:+.2%} and {ratios[-1 - quarter] - 1:+.2%}, {ROUNDS} rounds of {steps} steps, "
        f"{statistics.median(times['steps'][1:]) / steps:.3g} s a step)"
    )


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
