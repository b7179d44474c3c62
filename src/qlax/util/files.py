"""Atomic file writing: a file exists completely or not at all, even after a crash."""

import contextlib
import itertools
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from qlax.errors import UserError, nearest

PARTIAL = ".partial"  # suffix of files still being written, or left by a process that was killed


def write_whole(path: Path, data: bytes, sync: bool = True) -> None:
    """Write a file atomically: readers find the old or the new content, even after a power failure.

    Args:
      path: File to write; an existing file is replaced.
      data: Content of the file.
      sync: Make the file's name durable at once. If False, call `sync_folder` later.

    Raises:
      OSError: The file cannot be written; an existing file is unchanged.
    """
    with _written_aside(path, data) as aside:
        os.replace(aside, path)
        if sync:
            sync_folder(path.parent)


def write_result(path: Path, data: bytes, is_named: bool) -> Path:
    """Write a new file that a user asked for; never replace an existing file.

    Args:
      path: File to write. If another process has created it in the meantime, a free name beside it is used.
      data: Content of the file.
      is_named: The user chose the file's name.

    Returns:
      Path of the file that was written.

    Raises:
      UserError: The file cannot be written, or the user chose its name and another process has created it in the
        meantime; in the second case the data are in a file beside it.
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
        raise UserError(f"{path} was created by another process in the meantime; the result is in {taken} instead")
    return taken


@contextlib.contextmanager
def _written_aside(path: Path, data: bytes) -> Iterator[Path]:
    """Write data to a temporary file beside the path, under a unique name; remove the file at the end."""
    aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        with open(aside, "xb") as file:  # create only: an existing name might be a link to another place
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield aside
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def _has_taken(aside: Path, path: Path) -> bool:
    """Give the temporary file its final name; return False if another process has taken the name."""
    try:
        try:
            os.link(aside, path)
        except FileExistsError:
            raise
        except OSError:  # file system without hard links: an empty file reserves the name until it is replaced
            path.open("xb").close()
            os.replace(aside, path)
    except FileExistsError:
        return False
    return True


def sync_folder(folder: Path) -> None:
    """Write the entries of a folder to the disk, so that they survive a power failure; do nothing without POSIX."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def free_name(path: Path) -> Path:
    """Return the path, or the path with a number appended if it exists already."""
    numbered = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))
    return next(other for other in itertools.chain([path], numbered) if not os.path.lexists(other))


def given_path(path: Path | str) -> Path:
    """Return the path that a user gave, with `~` as the home directory."""
    return Path(path).expanduser()


def check_is_new(path: Path | str) -> Path:
    """Return the path after checking that it does not exist and that its folder does.

    Raises:
      UserError: The path exists already, or its folder does not exist.
    """
    path = given_path(path)
    if os.path.lexists(path):
        raise UserError(f"{path} exists already; name a new file, or remove this one")
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path.name}: there is no folder {path.parent}; create it, or name another")
    return path


def new_file(out: Path | str | None, default: Path, suffixes: Sequence[str]) -> Path:
    """Choose the path of a new file for a result.

    Args:
      out: File that the user asked for; None for the default.
      default: File to use without `out`; a number is appended if it exists.
      suffixes: Allowed file name extensions, each with its dot.

    Raises:
      UserError: `out` exists already, its folder does not exist, or its name has another extension.
    """
    if out is None:
        return free_name(default)
    path = check_is_new(out)
    if path.suffix not in suffixes:
        hint = nearest(path.suffix, suffixes)
        raise UserError(f"{path}: expected a file that ends with {' or '.join(suffixes)}{hint}")
    return path
