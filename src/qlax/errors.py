"""What a user is told when something they asked for cannot be."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something a user asked for cannot be; the message says what was wrong and what was expected."""


class RunError(RuntimeError):
    """A run that had begun cannot go on; the message says why, what is saved, and how to go on."""


class HostError(RunError):
    """Environments on the host crashed, or gave no answer in time; the message says which and what."""


class DivergedError(RunError):
    """A reward, value, loss, gradient or parameter of every run was not finite; the message says where and why."""


class LostError(RunError):
    """Another process is gone; how to go on is printed when this one ends."""


class Stopped(KeyboardInterrupt):
    """Training was interrupted and a checkpoint saved; the message says how to go on."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


def described(error: BaseException) -> str:
    """An exception of somebody else's code in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error message: what was probably meant, or nothing."""
    matches = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""
