"""What a user is told when something they asked for cannot be."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something a user asked for cannot be; the message says what was wrong and what was expected."""


def described(error: Exception) -> str:
    """An exception of somebody else's code in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error message: what was probably meant, or nothing."""
    matches = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""
