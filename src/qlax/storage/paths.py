"""Paths of new runs: which directories they may have. Nothing here imports JAX, which jobs can do without."""

import contextlib
import re
from pathlib import Path

from qlax.errors import UserError
from qlax.util.files import PARTIAL

LOCK = "lock"  # file of a directory in which a process is at work


def is_free(path: Path) -> bool:
    """Tell whether a new run may have a directory: it is empty but for what a process left that was killed at once."""

    def is_left(name: str) -> bool:
        return name == LOCK or (name.startswith("config.json") and name.endswith(PARTIAL))

    return path.is_dir() and all(is_left(file.name) for file in path.iterdir())


def check_free(out: Path | str | None) -> None:
    """Refuse a path that a new run cannot have; write nothing.

    Args:
      out: the path; None: a new one.

    Raises:
      UserError: there is something, and it is not free.
    """
    if out is not None and (path := Path(out)).exists() and not is_free(path):
        what = "already holds a run" if (path / "config.json").exists() else "exists and is not empty"
        raise UserError(f"{path} {what}; name another directory with --out, or resume a run with: qlax resume")


def fresh(name: str) -> Path:
    """Make a new directory under `runs/`, called like this.

    Raises:
      UserError: it cannot be made.
    """
    name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:100]
    try:
        Path("runs").mkdir(exist_ok=True)
        for number in range(1, 1_000_000):
            path = Path("runs") / f"{name}-{number}"
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                return path
    except OSError as error:
        raise UserError(f"cannot make {error.filename}: {error.strerror}") from error
    raise UserError("runs/ is full")
