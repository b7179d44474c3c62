"""Files that are there whole or not at all, whatever happens while they are written."""

import contextlib
import itertools
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from qlax.errors import UserError, nearest

PARTIAL = ".partial"  # ends the name of a file that is being written, or that a process which was killed left


def write_whole(path: Path, data: bytes, sync: bool = True) -> None:
    """Write a file so that a reader finds the old one or the new one, after a loss of power too.

    Args:
      path: of the file; an old one is replaced.
      data: content.
      sync: False: the name survives a loss of power once `sync_folder` was called.

    Raises:
      OSError: it cannot be written; an old one is left as it was.
    """
    with _written_aside(path, data) as aside:
        os.replace(aside, path)
        if sync:
            sync_folder(path.parent)


def write_result(path: Path, data: bytes, is_named: bool) -> Path:
    """Write a new file that a user asked for; one that is there is never replaced.

    Args:
      path: of the file, which was not there when it was asked for; if one appeared meanwhile, a free name is taken.
      data: content.
      is_named: whether the user named the file.

    Returns:
      The path that was written.

    Raises:
      UserError: it cannot be written, or the user named it and it appeared meanwhile; then the data are beside it.
    """
    try:
        with _written_aside(path, data) as aside:
            taken = path
            while not _has_taken(aside, taken):
                taken = free_name(path)
            sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    if is_named and taken != path:
        raise UserError(f"{path} appeared meanwhile, made by another process; the result is in {taken} instead")
    return taken


@contextlib.contextmanager
def _written_aside(path: Path, data: bytes) -> Iterator[Path]:
    """Write data to a file beside the path, of a name that no other process takes; it is gone in the end."""
    aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        with open(aside, "xb") as file:  # a new one: an old name may be a link to elsewhere
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield aside
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def _has_taken(aside: Path, path: Path) -> bool:
    """Give the file aside its name, unless another process was quicker; return whether it was given."""
    try:
        try:
            os.link(aside, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without links: an empty file holds the name until it is replaced
            path.open("xb").close()
            os.replace(aside, path)
    except FileExistsError:
        return False
    return True


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


def new_file(out: Path | str | None, default: Path, suffixes: Sequence[str]) -> Path:
    """Choose a new file for a result: the one asked for, or else the default, with a number where there is one.

    Args:
      out: the file asked for; None: the default.
      default: a file that fits.
      suffixes: ends that the name may have.

    Raises:
      UserError: the file is there already, its folder is not, or its name ends otherwise.
    """
    if out is None:
        return free_name(default)
    path = check_is_new(out)
    if path.suffix not in suffixes:
        hint = nearest(path.suffix, suffixes)
        raise UserError(f"{path}: expected a file that ends with {' or '.join(suffixes)}{hint}")
    return path
