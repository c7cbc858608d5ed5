"""The one exception that means "you can fix this"."""


class UserError(ValueError):
    """Bad input: the message says in one line what is wrong, where, and how to fix it.

    The command line prints the message to stderr and exits with code 2.
    """
