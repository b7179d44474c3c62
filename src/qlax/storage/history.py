"""What run directories hold, read without taking them: for all that looks at runs, finished or still trained."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qlax.config.settings import Config
from qlax.errors import UserError, described
from qlax.storage.formats import config_of_file
from qlax.storage.metrics import MetricsFile, curves

Paths = Path | str | Sequence[Path | str]


class History(NamedTuple):
    """Of the runs that trained side by side in one directory."""

    directory: Path
    config: Config
    curves: dict[str, np.ndarray]  # `[lines]` or `[lines, R]`, nan where there is no value; see `metrics.curves`
    summary: dict[str, Any] | None  # None until the runs are finished


def read(directory: Path | str) -> History:
    """The history of one directory.

    Raises:
      UserError: there is no run, or its configuration is damaged.
    """
    directory = Path(directory)
    config = config_of(directory)
    lines = MetricsFile(directory / "metrics.jsonl").read(config.num_members)
    return History(directory, config, curves(lines), summary_of(directory))


def config_of(directory: Path) -> Config:
    """Every choice of the runs of a directory.

    Raises:
      UserError: there is no run, or its configuration is damaged.
    """
    if not (directory / "config.json").exists():
        raise UserError(f"{directory} holds no run: there is no config.json")
    return config_of_file(directory / "config.json")


def summary_of(directory: Path) -> dict[str, Any] | None:
    """What the end of the runs left; None without one that can be read."""
    try:
        found = json.loads((directory / "summary.json").read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def read_all(directories: Paths) -> list[History]:
    """Of each directory; of a sweep's or a suite's those of its jobs.

    Raises:
      UserError: none is named, or one twice, there is no run in one of them, or its configuration is damaged.
    """
    histories = []
    for directory in map(Path, [directories] if isinstance(directories, Path | str) else directories):
        jobs = sorted(path.parent for path in directory.glob("*/config.json"))
        is_run = (directory / "config.json").exists()
        histories += [read(directory)] if is_run or not jobs else [read(job) for job in jobs]
    if not histories:
        raise UserError("there are no runs; name their directories")
    found = [history.directory.resolve() for history in histories]
    if twice := [history.directory for history in histories if found.count(history.directory.resolve()) > 1]:
        raise UserError(f"{twice[0]} is given twice")
    return histories


def undamaged(history: History, make: Callable[..., Any], *more: Any) -> Any:
    """What is made of a history, whose files may hold anything: `make(history, *more)`.

    Raises:
      UserError: what it raised, or that the files do not hold what they should.
    """
    try:
        return make(history, *more)
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        files = f"summary.json or metrics.jsonl of {history.directory}"
        raise UserError(f"{files} is damaged, or of another version of qlax ({described(error)})") from error
