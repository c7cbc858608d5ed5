"""An implementation in its own process, as its users run it.

Part of fastcifar's speed is a setting of the whole process (`fastcifar.runtime.memory.keep_freed_memory`), which a peer in the
same process would share.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.connection import Connection

import torch

from fastcifar.bench.interleaved import Work

EXIT_TIMEOUT_S = 10
"""Time that a process has to exit before it is killed."""


@contextmanager
def in_own_process(ready: Callable[[], AbstractContextManager[Work]]) -> Iterator[Work]:
    """Run the work of `ready`, which must be picklable, in its own process on a CPU; its errors are raised here."""
    context = multiprocessing.get_context("spawn")
    connection, child_end = context.Pipe()
    process = context.Process(target=_serve, args=(ready, child_end, torch.get_num_threads()))
    process.start()
    child_end.close()

    def ask(request: str) -> object:
        connection.send(request)
        return _receive(connection)

    try:
        amount = _receive(connection)
        yield Work(lambda: ask("run"), amount, lambda: ask("note"))
    finally:
        connection.close()
        process.join(EXIT_TIMEOUT_S)
        process.kill()
        process.join()


def _receive(connection: Connection) -> object:
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
            connection.send(work.amount)
            while True:
                if connection.recv() == "note":
                    connection.send(", ".join(filter(None, (work.note(), "in its own process"))))
                else:
                    work.run()
                    connection.send(None)
    except (EOFError, KeyboardInterrupt):
        return  # the parent has closed the connection
    except Exception as error:
        connection.send(error)
