"""Paths of new runs. Nothing here imports JAX, so that sweeps can check paths quickly."""

import contextlib
import re
from pathlib import Path

from qlax.errors import UserError
from qlax.util.files import PARTIAL, given_path

LOCK = "lock"  # name of the lock file in a run directory


def is_free(path: Path) -> bool:
    """Tell whether a new run may use a directory: it is empty, or a process was killed while it began a run there."""

    def is_left(name: str) -> bool:
        return name == LOCK or (name.startswith("config.json") and name.endswith(PARTIAL))

    return path.is_dir() and all(is_left(file.name) for file in path.iterdir())


def check_free(out: Path | str | None) -> None:
    """Refuse a path that a new run cannot use; write nothing.

    Args:
      out: Directory of the new run; None if a new directory will be made.

    Raises:
      UserError: The path exists and is not free.
    """
    if out is not None and (path := given_path(out)).exists() and not is_free(path):
        what = "already holds a run" if (path / "config.json").exists() else "exists and is not empty"
        raise UserError(f"{path} {what}; name another directory with --out, or resume a run with: qlax resume")


def fresh(name: str) -> Path:
    """Make a new numbered directory under `runs/` with a name of this form.

    Raises:
      UserError: The directory cannot be made.
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
