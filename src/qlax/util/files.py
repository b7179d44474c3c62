"""Files that are there whole or not at all, whatever happens while they are written."""

import contextlib
import itertools
import os
from pathlib import Path

from qlax.errors import UserError

PARTIAL = ".partial"  # ends the name of a file that is being written


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a reader finds the old one or the new one, after a loss of power too.

    Raises:
      OSError: it cannot be written; an old one is left as it was.
    """
    aside = path.with_name(path.name + PARTIAL)
    try:
        aside.unlink(missing_ok=True)
        with open(aside, "xb") as file:  # a new one: an old name may be a link to elsewhere
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        sync_folder(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


def write_result(path: Path, data: bytes) -> None:
    """The same, of a file that a user asked for.

    Raises:
      UserError: it cannot be written.
    """
    try:
        write_whole(path, data)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def sync_folder(folder: Path) -> None:
    """Have the names in a folder survive a loss of power, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def free_name(path: Path) -> Path:
    """The path, or with a number where there is such a file already."""
    numbered = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))
    return next(other for other in itertools.chain([path], numbered) if not os.path.lexists(other))


def check_is_new(path: Path | str) -> Path:
    """The path, once it is sure that a file can be made there and that none is lost.

    Raises:
      UserError: there is something, or no folder for it.
    """
    path = Path(path)
    if os.path.lexists(path):
        raise UserError(f"{path} is there already; name a new file, or remove it")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} to write {path.name} to")
    return path
