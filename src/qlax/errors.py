"""Exceptions that users see, and how messages describe exceptions of other people's code."""

import difflib
import re
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

_named_by_user: set[str] = set()  # names of modules, see `count_as_user_code`


class UserError(ValueError):
    """Request that cannot be met; the message says what was wrong and what was expected."""


class RunError(RuntimeError):
    """Failure of a run in progress; the message says why, what was saved, and how to continue."""


class HostError(RunError):
    """An environment on the host crashed or did not answer in time; the message says which and why."""


class DivergedError(RunError):
    """Every agent diverged: one of its numbers, such as the loss, was not finite. The message says which, and when."""


class LostError(RunError):
    """Another process of the same run has ended; this process then ends with a message that says how to continue."""


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
    """Return where in the user's code an exception was raised, as " (corridor.py:31, in step)"; empty if nowhere."""
    frame = place_of(error)
    return "" if frame is None else _place_in_words(frame.filename, frame.lineno, frame.name)


def _place_in_words(filename: str, line: int | None, function: str) -> str:
    path = Path(filename)
    with_folder = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path.name
    return f" ({with_folder}:{line}, in {function})"


def place_of(error: BaseException) -> traceback.FrameSummary | None:
    """Return the innermost frame of the user's code that an exception, or else its cause, passed through.

    Returns:
      The frame; None if there is none outside of qlax, Python's standard library and installed packages. Modules that
      the user named, see `count_as_user_code`, are the user's wherever they are installed.
    """
    for each in _with_causes(error):
        for frame, line in reversed(list(traceback.walk_tb(each.__traceback__))):
            if _is_of_user(frame):
                return traceback.FrameSummary(frame.f_code.co_filename, line, frame.f_code.co_name, lookup_line=False)
    return None


def callback_in_words(error: BaseException) -> str:
    """Return the exception of a Python callback, such as `jax.pure_callback`, in one line, with the user's place.

    JAX raises an exception of its own, whose message holds the traceback of the callback's exception.

    Returns:
      The line; empty if the exception has another cause.
    """
    _, marker, trace = str(error).partition("error calling callback: Traceback (most recent call last):")
    if not marker:
        return ""
    places = re.findall(r'^  File "(.+)", line (\d+), in (.+)$', trace, re.MULTILINE)
    own = [place for place in places if _is_file_of_user(place[0])]
    said = trace.rstrip().rpartition("\n")[2]
    return said + (_place_in_words(own[-1][0], int(own[-1][1]), own[-1][2]) if own else "")


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Name what failed in exceptions of the user's code; others are bugs of qlax and pass unchanged.

    Use it where code of qlax and of the user run together.

    Args:
      what: Beginning of the message, such as "network 'mine:Net' breaks its contract".

    Raises:
      UserError: The user's code raised an exception, which is the cause.
    """
    try:
        yield
    except (UserError, RunError):
        raise
    except Exception as error:
        if place_of(error) is None:
            raise
        raise UserError(f"{what}: {described(error)}") from error


def count_as_user_code(module: str) -> None:
    """Count a module that the user named as the user's code, even if it is an installed package."""
    _named_by_user.add(module)


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, then what caused it, and so on."""
    seen: list[int] = []
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        # The traceback of these causes is the whole call stack, with the user's program that called qlax.
        if type(following).__name__ not in ("UnfilteredStackTrace", "JaxStackTraceBeforeTransformation"):
            yield following
        seen.append(id(following))
        context = None if following.__suppress_context__ else following.__context__
        trace = context and context.__traceback__
        if trace and _is_of_user(trace.tb_frame):  # the user's program called qlax while it handled this one
            context = None
        following = following.__cause__ or context


def _is_of_user(frame: FrameType) -> bool:
    return _is_file_of_user(frame.f_code.co_filename, frame.f_globals.get("__name__"))


def _is_file_of_user(filename: str, module: str | None = None) -> bool:
    if filename.startswith("<"):
        return filename.startswith(("<ipython", "<python-input", "<stdin>"))
    path = Path(filename).resolve()
    if path.is_relative_to(Path(__file__).resolve().parent):
        return False
    if module in _named_by_user:
        return True
    # Not "data", which is the root of the virtual environment, where a user's own files may be.
    paths = sysconfig.get_paths()
    installed = [Path(paths[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib", "scripts")]
    is_installed = any(path.is_relative_to(folder) for folder in installed)
    return not (is_installed or {"site-packages", "dist-packages"} & set(path.parts))


def matching(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is this word, or else the only one that differs from it in case alone, or None."""
    known = list(known)
    alike = [each for each in known if each.casefold() == word.casefold()]
    return word if word in alike else alike[0] if len(alike) == 1 else None


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the end of an error message that proposes the most similar known word; empty if none is similar."""
    known = list(known)
    alike = [repr(each) for each in known if each.casefold() == word.casefold()]
    if len(alike) > 1:
        return f"; {' and '.join(alike)} differ only in case: write one of them exactly"
    words = {each.casefold(): each for each in known}
    matches = difflib.get_close_matches(word.casefold(), list(words), n=1)
    return f"; did you mean {words[matches[0]]!r}?" if matches else ""


def remedy(error: BaseException) -> str:
    """Return the end of an error message that says what to install; empty if no module or library is missing."""
    library = re.search(r"([\w.+-]+\.so[\w.]*): cannot open shared object file", str(error))
    if library:
        return f"; install the package of the operating system that has {library[1]}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"; install the package that has the module {error.name.partition('.')[0]!r}, as with pip"
    return ""


def is_failed_import(error: BaseException) -> bool:
    """Return True if an exception comes from importing a module, though it may be of any type."""
    frames = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
    return isinstance(error, ImportError) or "<module>" in frames[1:]
