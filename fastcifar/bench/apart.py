"""A contestant in a process of its own, as its users run it.

Some of what makes fastcifar fast is a setting of the whole process (`fastcifar.runtime.memory.keep_freed_memory`), which a
peer in the same process would have too.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.connection import Connection

import torch

from fastcifar.bench.race import Work

PATIENCE_S = 10
"""That a process has to end in when it is no longer needed."""


@contextmanager
def apart(ready: Callable[[], AbstractContextManager[Work]]) -> Iterator[Work]:
    """The work of `ready`, which must be picklable, done in a process of its own, on a CPU; its errors are raised here."""
    context = multiprocessing.get_context("spawn")
    connection, other_end = context.Pipe()
    process = context.Process(target=_serve, args=(ready, other_end, torch.get_num_threads()))
    process.start()
    other_end.close()
    try:
        amount = _answer(connection)
        yield Work(lambda: _ask(connection, "run"), amount, lambda: _ask(connection, "note"))
    finally:
        connection.close()
        process.join(PATIENCE_S)
        process.kill()
        process.join()


def _ask(connection: Connection, request: str) -> object:
    connection.send(request)
    return _answer(connection)


def _answer(connection: Connection) -> object:
    try:
        answer = connection.recv()
    except EOFError:
        raise RuntimeError("its process died") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _serve(ready: Callable[[], AbstractContextManager[Work]], connection: Connection, threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        with ready() as work:
            answers = {"run": work.run, "note": lambda: ", ".join(filter(None, (work.note(), "in a process of its own")))}
            connection.send(work.amount)
            while True:
                answer = answers[connection.recv()]()
                connection.send(answer if isinstance(answer, str) else None)
    except (EOFError, KeyboardInterrupt):
        return  # the race is over
    except Exception as error:
        connection.send(error)
