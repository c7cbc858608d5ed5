"""Work in its own process: it runs there, its errors are raised here, and the process ends with it."""

import functools
import multiprocessing
import os
from contextlib import contextmanager

import pytest
import torch

from fastcifar.bench.interleaved import Work
from fastcifar.bench.own_process import in_own_process
from fastcifar.bench.peers import Unavailable


@contextmanager
def writing(path):
    """Write a line per round: the process and its number of threads."""

    def run():
        with path.open("a") as file:
            print(os.getpid(), torch.get_num_threads(), file=file)

    yield Work(run, 3, note=lambda: "a note")


@contextmanager
def refusing():
    raise Unavailable("it is not installed")
    yield


@contextmanager
def dying():
    yield Work(lambda: os._exit(1), 1)


def test_the_work_runs_in_another_process_which_ends_after_it(tmp_path):
    lines = tmp_path / "lines"
    with in_own_process(functools.partial(writing, lines)) as work:
        assert work.amount == 3
        work.run()
        work.run()
        assert work.note() == "a note, in its own process"
        (process,) = multiprocessing.active_children()
    assert lines.read_text() == f"{process.pid} {torch.get_num_threads()}\n" * 2
    assert not multiprocessing.active_children()


def test_errors_of_the_process_are_raised_here():
    with pytest.raises(Unavailable, match="it is not installed"), in_own_process(refusing):
        pytest.fail("entered")


def test_a_process_that_dies_raises_an_error_instead_of_blocking():
    with in_own_process(dying) as work, pytest.raises(RuntimeError, match="its process died"):
        work.run()
    assert not multiprocessing.active_children()
