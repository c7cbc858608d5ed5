"""The one exception that means "you can fix this", and the hint that its messages end with."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: the message says in one line what is wrong, where, and how to fix it.

    The command line prints the message to stderr and exits with code 2.
    """


class RepeatedError(UserError):
    """What another process of the same run has said already: the command line exits with code 2 and stays silent."""


def nearest(word: str, valid: Iterable[str]) -> str:
    """The end of a message about an unknown word: the valid word most like it, or all of them where none is."""
    choices = list(valid)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; valid are {', '.join(choices)}"
