"""Reading run directories without locking them, whether their runs are finished or still training."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qlax.config.settings import Config
from qlax.errors import UserError, described
from qlax.storage.formats import config_of_file
from qlax.storage.metrics import MetricsFile, curves
from qlax.util.files import given_path

Paths = Path | str | Sequence[Path | str]


class History(NamedTuple):
    """Settings, learning curves and summary of one run directory."""

    directory: Path  # run directory
    config: Config  # all settings of the run
    curves: dict[str, np.ndarray]  # `[lines]` or, over the R agents, `[lines, R]`; nan where a line has no value
    summary: dict[str, Any] | None  # content of `summary.json`; None until training ends


def read(directory: Path | str) -> History:
    """Read the settings, learning curves and summary of one run, which may still be training.

    Args:
      directory: Run directory.

    Raises:
      UserError: The directory holds no run, or its configuration is damaged.

    Example:
      ```python
      history = qlax.read("runs/a")
      steps, returns = history.curves["steps"], history.curves["eval_return"]
      is_evaluated = ~np.isnan(returns).all(axis=1)
      print(steps[is_evaluated], np.nanmean(returns[is_evaluated], axis=1))
      ```
    """
    directory = given_path(directory)
    config = config_of(directory)
    lines = MetricsFile(directory / "metrics.jsonl").read(config.num_members)
    return History(directory, config, curves(lines), summary_of(directory))


def config_of(directory: Path) -> Config:
    """Read the configuration of a run directory.

    Raises:
      UserError: The directory holds no run, or its configuration is damaged.
    """
    if not (directory / "config.json").exists():
        raise UserError(
            f"{directory} holds no run: there is no {'config.json' if directory.is_dir() else 'such directory'}"
        )
    return config_of_file(directory / "config.json")


def summary_of(directory: Path) -> dict[str, Any] | None:
    """Read `summary.json` of a run directory; return None if it is missing or damaged."""
    try:
        found = json.loads((directory / "summary.json").read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def read_all(directories: Paths) -> list[History]:
    """Read the histories of several directories; the directory of a sweep gives the histories of its jobs.

    Raises:
      UserError: No directory is named, or one is named twice, holds no run, or has a damaged configuration.
    """
    histories = []
    for directory in map(given_path, [directories] if isinstance(directories, Path | str) else directories):
        jobs = sorted(path.parent for path in directory.glob("*/config.json"))
        is_run = (directory / "config.json").exists()
        histories += [read(directory)] if is_run or not jobs else [read(job) for job in jobs]
    if not histories:
        raise UserError("no runs are given; name their directories")
    found = [history.directory.resolve() for history in histories]
    if twice := [history.directory for history in histories if found.count(history.directory.resolve()) > 1]:
        raise UserError(f"{twice[0]} is given twice")
    return histories


def derive(history: History, make: Callable[..., Any], *more: Any) -> Any:
    """Return `make(history, *more)`, and report errors caused by damaged files as a `UserError`.

    Raises:
      UserError: `make` raised it, or the files of the run lack expected values.
    """
    try:
        return make(history, *more)
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        files = f"summary.json or metrics.jsonl of {history.directory}"
        raise UserError(f"{files} is damaged, or of another version of qlax ({described(error)})") from error
