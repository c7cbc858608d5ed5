"""Ctrl-C as a request instead of an exception: the run stops between two steps, with a checkpoint."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_on_interrupt(echo: float = 0.0) -> Iterator[Callable[[], bool]]:
    """Yield a function that returns True after the first Ctrl-C or SIGTERM; a second one interrupts at once.

    Signals within `echo` seconds of the first count as the same one: torchrun forwards to its processes the Ctrl-C that the
    terminal has already sent them.
    """
    requested = threading.Event()
    first = 0.0

    def request(number: int, frame: object) -> None:
        nonlocal first
        if not requested.is_set():
            first = time.monotonic()
            requested.set()
        elif time.monotonic() - first >= echo:
            raise KeyboardInterrupt

    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requested.is_set
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
