"""List of the run directories below a folder; nothing is changed in them, and damaged ones are marked."""

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from qlax.errors import UserError
from qlax.storage.history import config_of, summary_of
from qlax.storage.paths import LOCK
from qlax.util.files import given_path


class Listed(NamedTuple):
    """Run directory in a list.

    Attributes:
      path: The directory.
      state: "complete", also if a callback ended it; "in progress", while a process trains in it; "interrupted", so
        that `qlax resume` can go on; "failed" if every agent diverged; or "damaged".
      what: Preset, or environment; empty if it is not known.
      steps: Environment steps of each agent so far; None if it is not known.
      total: Planned environment steps of each agent; None if it is not known.
      score: Mean over the agents of the latest greedy return; None before the first evaluation.
      changed: When it last changed, in seconds since 1970.
      damage: What is damaged, in one line; empty if nothing is.
    """

    path: Path
    state: str
    what: str
    steps: int | None
    total: int | None
    score: float | None
    changed: float
    damage: str


def runs_below(folder: Path | str) -> list[Listed]:
    """Return the run directories in a folder and below it, those that changed last first.

    Raises:
      UserError: There is no such folder.
    """
    path = given_path(folder)
    if not path.is_dir():
        raise UserError(f"there is no folder {path}; expected one with run directories in it")
    return sorted(map(_listed, _directories(path)), key=lambda run: run.changed, reverse=True)


def _directories(folder: Path) -> Iterator[Path]:
    """Yield the run directories, without looking for others inside them."""
    for place, folders, files in os.walk(folder):
        if "config.json" in files:
            folders.clear()
            yield Path(place)


def _listed(path: Path) -> Listed:
    files = [path / name for name in ("config.json", "metrics.jsonl", "summary.json")]
    there = [file for file in files if file.exists()]
    changed = max((file.stat().st_mtime for file in there), default=time.time())
    try:
        config = config_of(path)
    except UserError as error:
        return Listed(path, "damaged", "", None, None, None, changed, str(error))
    summary, lines = summary_of(path), _Lines(files[1])
    damage = lines.damage
    if summary is None and files[2] in there:
        damage = f"{files[2]} is damaged"
    steps, score, has_failed = lines.steps, lines.score, False
    if summary is not None:
        try:
            steps = int(summary["total_steps"])
            score = summary["eval_return"]["mean"]
            has_failed = all(summary["diverged"])
        except (LookupError, TypeError, ValueError):
            damage = f"{files[2]} is damaged"
    if damage:
        state = "damaged"
    elif _is_locked(path):
        state = "in progress"
    elif summary is None:
        state = "interrupted"
    else:
        state = "failed" if has_failed else "complete"
    total = config.num_updates * config.steps_per_update
    return Listed(path, state, config.preset or config.env, steps, total, score, changed, damage)


class _Lines:
    """Content of the last lines of a `metrics.jsonl`, of which the last one may be half written.

    Attributes:
      steps: Environment steps of each agent; 0 if there is no line.
      score: Mean over the agents of the latest greedy return; None if there is none.
      damage: What is damaged, in one line; empty if nothing is.
    """

    def __init__(self, file: Path):
        self.steps, self.score, self.damage = 0, None, ""
        try:
            lines = file.read_bytes().splitlines() if file.exists() else []
        except OSError as error:
            self.damage = f"{file} cannot be read: {error.strerror or error}"
            return
        is_first = True
        for number in range(len(lines), 0, -1):
            try:
                line = json.loads(lines[number - 1])
                steps, score = int(line["steps"]), _mean(line["eval_return"])
            except (ValueError, LookupError, TypeError, RecursionError):
                if number < len(lines):
                    self.damage = f"line {number} of {file} is damaged"
                    return
                continue
            if is_first:
                self.steps, is_first = steps, False
            if score is not None:
                self.score = score
                return


def _mean(values: list[Any]) -> float | None:
    """Return the mean of the numbers that are finite; None if there are none."""
    known = [float(x) for x in values if x is not None and math.isfinite(x)]
    return sum(known) / len(known) if known else None


def _is_locked(path: Path) -> bool:
    """Return whether a process trains in a directory."""
    if not (path / LOCK).exists():
        return False
    lock = FileLock(path / LOCK, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    except OSError:  # a folder that this user may only read
        return False
    lock.release()
    return False
