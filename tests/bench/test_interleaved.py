"""Rounds are interleaved, a peer that fails says why, and warm-up rounds are not counted."""

import dataclasses
import time
import warnings
from contextlib import contextmanager

import pytest
import torch

from fastcifar.bench.bounds import Bound
from fastcifar.bench.interleaved import Case, Implementation, Work, run_interleaved
from fastcifar.bench.peers import Unavailable


class Entry:
    """An implementation that logs its rounds, and fails in one of them (0: before the first)."""

    def __init__(self, name, log, *, amount=10, fails_in=None, error=None):
        self.name, self.log, self.amount, self.fails_in, self.error = name, log, amount, fails_in, error
        self.rounds = 0

    @contextmanager
    def ready(self):
        if self.fails_in == 0:
            raise self.error
        yield Work(lambda: self.run(), self.amount, note=lambda: f"{self.name} ran {self.rounds} rounds")
        self.log.append(f"{self.name} ends")

    def run(self):
        self.rounds += 1
        self.log.append(self.name)
        if self.rounds == self.fails_in:
            raise self.error

    def implementation(self, *, ours=False):
        return Implementation(self.name, self.ready, ours)


def a_case(*implementations, rounds=3, warm_up=1):
    def bound():
        return Bound(1000.0, "a bound")

    return Case("subject", "case", 8, "images/s", torch.device("cpu"), bound, implementations, rounds, warm_up)


def test_rounds_are_interleaved_and_each_starts_with_another_implementation():
    log = []
    entries = [Entry(name, log) for name in "abc"]
    run_interleaved(a_case(*(entry.implementation() for entry in entries), warm_up=0))
    assert log[:9] == [*"abc", *"bca", *"cab"]


def test_warm_up_rounds_are_not_counted_and_their_time_is_reported():
    slow = Entry("a", [])
    slow.run = lambda: time.sleep(0.01)
    (row,) = run_interleaved(a_case(slow.implementation(), rounds=2, warm_up=3))
    assert len(row.rounds) == 2
    assert row.warm_up_s >= 0.03


def test_a_row_has_the_note_the_ratio_and_the_bound():
    log = []
    ours, theirs = run_interleaved(
        a_case(Entry("a", log, amount=20).implementation(ours=True), Entry("b", log).implementation())
    )
    assert (ours.subject, ours.case, ours.batch_size, ours.variant, ours.unit) == ("subject", "case", 8, "a", "images/s")
    assert (ours.floor, ours.floor_of, ours.note, ours.ratio) == (1000, "a bound", "a ran 4 rounds", None)
    assert theirs.ratio == sorted(one / other for one, other in zip(ours.rounds, theirs.rounds, strict=True))[1]


@pytest.mark.parametrize("fails_in", [0, 1, 3])
@pytest.mark.parametrize(
    ("error", "note"),
    [
        (Unavailable("b is not installed"), "b is not installed"),
        (torch.OutOfMemoryError("much"), "out of device memory"),
        (RuntimeError("two\nlines"), "failed: RuntimeError: two lines"),
    ],
)
def test_a_peer_that_fails_at_any_time_says_why_and_the_others_go_on(fails_in, error, note):
    log = []
    failing = Entry("b", log, fails_in=fails_in, error=error)
    ours, theirs = run_interleaved(a_case(Entry("a", log).implementation(ours=True), failing.implementation()))
    assert (theirs.rounds, theirs.floor, theirs.ratio, theirs.note) == ((), None, None, note)
    assert len(ours.rounds) == 3
    assert log.count("b ends") == (fails_in > 0)


def test_an_error_of_ours_is_a_bug_and_raised_after_all_have_ended():
    log = []
    ours = Entry("a", log, fails_in=2, error=RuntimeError("ours"))
    with pytest.raises(RuntimeError, match="ours"):
        run_interleaved(a_case(ours.implementation(ours=True), Entry("b", log).implementation()))
    assert {"a ends", "b ends"} <= set(log)


def test_peers_have_no_ratio_where_the_first_was_not_measured():
    first = Entry("a", [], fails_in=0, error=Unavailable("no"))
    _, other = run_interleaved(a_case(first.implementation(ours=True), Entry("b", []).implementation()))
    assert other.ratio is None
    assert len(other.rounds) == 3


def test_the_bound_is_not_computed_where_nothing_ran():
    case = a_case(Entry("a", [], fails_in=0, error=Unavailable("no")).implementation(ours=True))
    (row,) = run_interleaved(dataclasses.replace(case, bound=lambda: pytest.fail("measured")))
    assert (row.floor, row.floor_of) == (None, "")


def test_a_peer_that_sets_the_number_of_threads_sets_it_for_itself_alone():
    greedy, ours, counts = Entry("b", []), Entry("a", []), []
    greedy.run = lambda: torch.set_num_threads(7)
    ours.run = lambda: counts.append(torch.get_num_threads())
    before = torch.get_num_threads()
    try:
        run_interleaved(a_case(greedy.implementation(), ours.implementation(ours=True)))
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(before)
    assert set(counts) == {before}


def test_warnings_of_peers_are_not_shown_and_ours_are():
    noisy = Entry("b", [])
    noisy.run = lambda: warnings.warn("a warning", stacklevel=1)
    run_interleaved(a_case(noisy.implementation()))
    with pytest.raises(UserWarning, match="a warning"):
        run_interleaved(a_case(noisy.implementation(ours=True)))
