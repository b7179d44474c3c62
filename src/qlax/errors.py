"""What a user is told when something they asked for cannot be."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something a user asked for cannot be; the message says what was wrong and what was expected."""


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error message: what was probably meant, or nothing."""
    matches = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""
