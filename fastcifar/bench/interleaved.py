"""Interleaved rounds: implementations of the same work run one round each, again and again.

Whatever slows the machine for a while slows all of them, so the ratio of two adjacent rounds compares the two programs.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass

import torch

from fastcifar.bench.bounds import Bound
from fastcifar.bench.peers import Unavailable
from fastcifar.bench.setting import Setting
from fastcifar.runtime.measurement import Measurement, figure, speed_ratio
from fastcifar.runtime.timing import Clock


@dataclass(frozen=True)
class Work(AbstractContextManager):
    """One implementation's work in a round; as a context, one with nothing to clean up.

    Attributes:
        run: does the work; on CUDA it need not synchronise.
        amount: images or steps per round.
        note: called after the last round; says how the work was done.
    """

    run: Callable[[], object]
    amount: int
    note: Callable[[], str] = str

    def __exit__(self, *_: object) -> None:
        pass


@dataclass(frozen=True)
class Implementation:
    """A program that is measured.

    Attributes:
        name: as in the tables.
        ready: makes a context whose work is ready to be timed; it may raise `Unavailable`.
        ours: part of fastcifar. A peer's error becomes its note and the others go on; an error of ours is a bug, and raised.
    """

    name: str
    ready: Callable[[], AbstractContextManager[Work]]
    ours: bool = False


@dataclass(frozen=True)
class Case:
    """Implementations to compare on the same work; ratios are relative to the first.

    Attributes:
        subject, name, batch_size, unit: see `Measurement`.
        device: whose clock is read.
        bound: computes the roofline, or the floor; called only if something was measured, as it may measure the peaks first.
        rounds, warm_up: counted rounds, and warm-up rounds, which run first and are not counted.
    """

    subject: str
    name: str
    batch_size: int | None
    unit: str
    device: torch.device
    bound: Callable[[], Bound]
    implementations: tuple[Implementation, ...]
    rounds: int
    warm_up: int = 2

    @property
    def title(self) -> str:
        """One line, unique within the subject."""
        return self.name if self.batch_size is None else f"{self.name}, batch {self.batch_size}"


def throughput_case(
    setting: Setting,
    subject: str,
    name: str,
    batch_size: int | None,
    bound: Callable[[], Bound],
    implementations: Sequence[Implementation],
    warm_up: int = 2,
) -> Case:
    """Build a case in images/s with the device and the rounds of `setting`."""
    rounds, device = setting.size.rounds, setting.device
    return Case(subject, name, batch_size, "images/s", device, bound, tuple(implementations), rounds, warm_up)


def run_interleaved(case: Case) -> list[Measurement]:
    """Measure every implementation of a case; return a row for each, in their order."""
    runners = [_Runner(implementation, case.device) for implementation in case.implementations]
    with ExitStack() as stack:
        for runner in runners:
            stack.callback(runner.stop)
            runner.start(case.warm_up)
        for number in range(case.rounds):
            first = number % len(runners)  # rotated, so that no implementation always runs after the same one
            for runner in runners[first:] + runners[:first]:
                runner.run_round()
        return _measurements(case, runners)


def _measurements(case: Case, runners: list["_Runner"]) -> list[Measurement]:
    rounds = [tuple(figure(runner.work.amount, seconds, case.unit) for seconds in runner.seconds) for runner in runners]
    bound = case.bound() if any(rounds) else None
    rows = []
    for runner, own in zip(runners, rounds, strict=True):
        paired = own and rounds[0] and runner is not runners[0]
        rows.append(
            Measurement(
                subject=case.subject,
                case=case.name,
                batch_size=case.batch_size,
                variant=runner.implementation.name,
                unit=case.unit,
                rounds=own,
                warm_up_s=runner.warm_up_s,
                floor=bound.value if bound and own else None,
                floor_of=bound.of if bound else "",
                ratio=speed_ratio(rounds[0], own, case.unit) if paired else None,
                note=runner.work.note() if runner.work else runner.failure,
            )
        )
    return rows


class _Runner:
    """An implementation with its times.

    Attributes:
        seconds: of every counted round; empty after a failure.
        failure: why it stopped; "" while it takes part.
        work: None before the start and after a failure.
    """

    def __init__(self, implementation: Implementation, device: torch.device) -> None:
        self.implementation, self.clock = implementation, Clock(device)
        self.threads = torch.get_num_threads()
        self.seconds: list[float] = []
        self.warm_up_s = 0.0
        self.failure = ""
        self.work: Work | None = None
        self.resources = ExitStack()

    def start(self, warm_up: int) -> None:
        """Prepare the work, and run `warm_up` rounds that are not counted."""
        began = time.perf_counter()
        self._attempt(self._prepare)
        for _ in range(warm_up):
            self._attempt(self._time)
        self.warm_up_s = time.perf_counter() - began

    def run_round(self) -> None:
        """Run a counted round."""
        self._attempt(lambda: self.seconds.append(self._time()))

    def stop(self) -> None:
        """Release the work and its resources."""
        self.work = None
        self.resources.close()
        torch.set_num_threads(self.threads)

    def _prepare(self) -> None:
        self.work = self.resources.enter_context(self.implementation.ready())

    def _time(self) -> float:
        torch.set_num_threads(self.threads)  # FFCV changes the number for the whole process
        began = self.clock.now()
        self.work.run()
        return self.clock.seconds(began, self.clock.now())

    def _attempt(self, action: Callable[[], object]) -> None:
        if self.failure:
            return
        if self.implementation.ours:
            try:
                return action()
            except (Unavailable, torch.OutOfMemoryError) as error:
                return self._fail(error)
        with warnings.catch_warnings(action="ignore"):  # warnings of the peers' own code
            try:
                action()
            except Exception as error:
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Record the error, and free the memory for the other implementations."""
        if isinstance(error, Unavailable):
            self.failure = str(error)
        elif isinstance(error, torch.OutOfMemoryError):
            self.failure = "out of device memory"
        else:
            self.failure = f"failed: {type(error).__name__}: {' '.join(str(error).split())}"
        self.seconds.clear()
        error.__traceback__ = None  # its frames hold the work's tensors
        with suppress(Exception):
            self.stop()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
