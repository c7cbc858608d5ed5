"""The first Ctrl-C is a request to stop, the second one interrupts."""

import os
import signal

import pytest

from fastcifar.runtime.interrupt import stop_on_interrupt


def test_the_first_signal_asks_and_the_second_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with stop_on_interrupt() as should_stop:
        assert not should_stop()
        os.kill(os.getpid(), signal.SIGINT)
        assert should_stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_an_echo_of_the_first_signal_is_not_a_second():
    with stop_on_interrupt(echo=60.0) as should_stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert should_stop()
