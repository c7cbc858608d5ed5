"""A race: contestants that do the same work take turns, round by round.

So whatever slows the machine for a while slows all of them, and a ratio of two rounds side by side is of the two programs.
"""

import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass

import torch

from fastcifar.bench.floors import Floor
from fastcifar.bench.peers import Unavailable
from fastcifar.runtime.measurement import Measurement, figure, speed_ratio
from fastcifar.runtime.timing import Clock


@dataclass(frozen=True)
class Work:
    """What one contestant does in a round.

    Attributes:
        run: does it; on CUDA it need not wait for the device.
        amount: images or steps that are done then.
        note: asked after the last round: how it was done.
    """

    run: Callable[[], object]
    amount: int
    note: Callable[[], str] = str


@dataclass(frozen=True)
class Contestant:
    """One who takes part.

    Attributes:
        name: as in the tables.
        ready: a context whose work is ready to be timed; it may raise `Unavailable`.
        ours: part of fastcifar. An error of a peer is its note and the race goes on; one of ours is a bug, and raised.
    """

    name: str
    ready: Callable[[], AbstractContextManager[Work]]
    ours: bool = False


@dataclass(frozen=True)
class Case:
    """One question. The first contestant is the one that the others are held against.

    Attributes:
        subject, name, batch_size, unit: see `Measurement`.
        device: whose clock counts.
        floor: measures the ceilings, where that was not done yet.
        rounds, warm_up: rounds that count, and rounds before them that do not.
    """

    subject: str
    name: str
    batch_size: int | None
    unit: str
    device: torch.device
    floor: Callable[[], Floor]
    contestants: tuple[Contestant, ...]
    rounds: int
    warm_up: int = 2

    @property
    def title(self) -> str:
        """Of one line, different for every case of a subject."""
        return self.name if self.batch_size is None else f"{self.name}, batch {self.batch_size}"


def race(case: Case) -> list[Measurement]:
    """Run a case: a measurement of each contestant, in their order."""
    runners = [Runner(contestant, case.device) for contestant in case.contestants]
    with ExitStack() as stack:
        for runner in runners:
            stack.callback(runner.stop)
            runner.start(case.warm_up)
        for number in range(case.rounds):
            first = number % len(runners)
            for runner in runners[first:] + runners[:first]:  # nobody is always the one behind the slowest
                runner.take_turn()
        return results(case, runners)


def results(case: Case, runners: list["Runner"]) -> list[Measurement]:
    """The rows of a case whose runners have taken all their turns."""
    rounds = [tuple(figure(runner.amount, seconds, case.unit) for seconds in runner.seconds) for runner in runners]
    floor = case.floor() if any(rounds) else None
    rows = []
    for runner, own in zip(runners, rounds, strict=True):
        paired = own and rounds[0] and runner is not runners[0]
        rows.append(
            Measurement(
                subject=case.subject,
                case=case.name,
                batch_size=case.batch_size,
                variant=runner.contestant.name,
                unit=case.unit,
                rounds=own,
                warm_up_s=runner.warm_up_s,
                floor=floor.value if floor and own else None,
                floor_of=floor.of if floor else "",
                ratio=speed_ratio(rounds[0], own, case.unit) if paired else None,
                note=runner.note(),
            )
        )
    return rows


class Runner:
    """A contestant in a race.

    Attributes:
        seconds: of every counted round; empty where it failed.
        failure: why it is out of the race; "" while it is in.
    """

    def __init__(self, contestant: Contestant, device: torch.device) -> None:
        self.contestant, self.clock = contestant, Clock(device)
        self.threads = torch.get_num_threads()
        self.seconds: list[float] = []
        self.warm_up_s = 0.0
        self.failure = ""
        self.work: Work | None = None
        self.resources = ExitStack()

    @property
    def amount(self) -> int:
        return self.work.amount if self.work else 0

    def note(self) -> str:
        return self.work.note() if self.work else self.failure

    def start(self, warm_up: int) -> None:
        """Get ready, and run as many rounds that do not count."""
        begun = time.perf_counter()
        self._attempt(self._prepare)
        for _ in range(warm_up):
            self._attempt(self._time)
        self.warm_up_s = time.perf_counter() - begun

    def take_turn(self) -> None:
        """Run a round that counts."""
        self._attempt(lambda: self.seconds.append(self._time()))

    def stop(self) -> None:
        """Give back what it holds."""
        self.work = None
        self.resources.close()
        torch.set_num_threads(self.threads)

    def _prepare(self) -> None:
        self.work = self.resources.enter_context(self.contestant.ready())

    def _time(self) -> float:
        torch.set_num_threads(self.threads)  # FFCV sets it, for all
        begun = self.clock.now()
        self.work.run()
        return self.clock.seconds(begun, self.clock.now())

    def _attempt(self, action: Callable[[], object]) -> None:
        if self.failure:
            return
        if self.contestant.ours:
            try:
                return action()
            except (Unavailable, torch.OutOfMemoryError) as error:
                return self._leave(error)
        with warnings.catch_warnings(action="ignore"):  # of libraries that are not ours to mend
            try:
                action()
            except Exception as error:
                self._leave(error)

    def _leave(self, error: Exception) -> None:
        """Leave the race, and the memory to the others."""
        if isinstance(error, Unavailable):
            self.failure = str(error)
        elif isinstance(error, torch.OutOfMemoryError):
            self.failure = "out of device memory"
        else:
            self.failure = f"failed: {type(error).__name__}: {' '.join(str(error).split())}"
        self.seconds.clear()
        error.__traceback__ = None  # it holds what the work held
        with suppress(Exception):
            self.stop()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
