"""Exceptions that users see, and how messages describe exceptions of other people's code."""

import difflib
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path


class UserError(ValueError):
    """Request that cannot be met; the message says what was wrong and what was expected."""


class RunError(RuntimeError):
    """Failure of a run in progress; the message says why, what was saved, and how to continue."""


class HostError(RunError):
    """Environments on the host crashed or did not answer in time; the message says which and why."""


class DivergedError(RunError):
    """In every agent a reward, value, loss, gradient or parameter was not finite; the message says which and when."""


class LostError(RunError):
    """Another process of the same run has ended; the message of this process's end says how to continue."""


class Stopped(KeyboardInterrupt):
    """Training was interrupted by a signal after a checkpoint was saved; the message says how to continue."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number  # signal that interrupted training


def described(error: BaseException) -> str:
    """Return an exception in one line: its type, its message and, if it came from the user's code, the place there."""
    return f"{in_one_line(error)}{place_in_words(error)}"


def in_one_line(error: BaseException) -> str:
    """Return type and message of an exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def place_in_words(error: BaseException) -> str:
    """Return the place of an exception in the user's code, as " (corridor.py:31, in step)"; empty without one."""
    frame = place_of(error)
    if frame is None:
        return ""
    path = Path(frame.filename)
    with_folder = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path.name
    return f" ({with_folder}:{frame.lineno}, in {frame.name})"


def place_of(error: BaseException | None) -> traceback.FrameSummary | None:
    """Return the innermost frame of the user's code that an exception, or else its cause, passed through.

    Returns:
      The frame; None if there is none outside of qlax, Python's standard library and installed packages.
    """
    for each in _with_causes(error):
        for frame in reversed(traceback.extract_tb(each.__traceback__)):
            if _is_of_user(frame.filename):
                return frame
    return None


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception, then what caused it, and so on."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__


def _is_of_user(filename: str) -> bool:
    if filename.startswith("<"):
        return filename.startswith("<ipython")
    path = Path(filename).resolve()
    installed = {Path(folder).resolve() for folder in sysconfig.get_paths().values()}
    own = Path(__file__).resolve().parent
    is_installed = any(path.is_relative_to(folder) for folder in installed - {Path(path.anchor)})
    return not (path.is_relative_to(own) or is_installed or {"site-packages", "dist-packages"} & set(path.parts))


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the end of an error message that proposes the most similar known word; empty if none is similar."""
    matches = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""
