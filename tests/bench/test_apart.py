"""A process of its own does the work, and ends with it."""

import functools
import multiprocessing
import os
from contextlib import contextmanager

import pytest
import torch

from fastcifar.bench.apart import apart
from fastcifar.bench.peers import Unavailable
from fastcifar.bench.race import Work


@contextmanager
def writing(path):
    """Each round writes a line: the process, and its threads."""

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


def test_the_work_is_done_elsewhere_and_nothing_is_left_of_it(tmp_path):
    lines = tmp_path / "lines"
    with apart(functools.partial(writing, lines)) as work:
        assert work.amount == 3
        work.run()
        work.run()
        assert work.note() == "a note, in a process of its own"
        (process,) = multiprocessing.active_children()
    assert lines.read_text() == f"{process.pid} {torch.get_num_threads()}\n" * 2
    assert not multiprocessing.active_children()


def test_its_errors_are_raised_here():
    with pytest.raises(Unavailable, match="it is not installed"), apart(refusing):
        pytest.fail("entered")


def test_a_process_that_dies_is_an_error_and_no_wait():
    with apart(dying) as work, pytest.raises(RuntimeError, match="its process died"):
        work.run()
    assert not multiprocessing.active_children()
