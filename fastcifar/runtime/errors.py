"""Errors that the user can fix, and helpers for their messages."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: the message says in one line what is wrong, where, and how to fix it.

    The command line prints the message to stderr and exits with code 2.
    """


class RepeatedError(UserError):
    """An error that another rank reports: the command line of this rank exits with code 2 and prints nothing."""


def nearest(word: str, valid: Iterable[str]) -> str:
    """Return the end of a message about an unknown word: the most similar valid word, or all valid words if none is."""
    choices = list(valid)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; valid are {', '.join(choices)}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; the name of its class if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
