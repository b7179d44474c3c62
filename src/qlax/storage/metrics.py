"""Where measurements go: a file of JSON lines, and the terminal."""

import hashlib
import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from qlax.util.files import free_name, write_whole

CHECKSUM = 16  # hexadecimal digits


class MetricsFile:
    """`metrics.jsonl`: a line a logging interval, appended and flushed; what has no value is null."""

    def __init__(self, path: Path):
        self.path = path
        self._checksums: list[str] = []  # of the lines that are in it

    def append(self, line: dict[str, Any]) -> None:
        """Add one line; arrays become lists."""
        written = (json.dumps({name: _plain(value) for name, value in line.items()}) + "\n").encode()
        with self.path.open("ab") as file:
            file.write(written)
        self._checksums.append(_checksum(written))

    def read(self) -> list[dict[str, Any]]:
        """All lines; one that a crash cut short, or that is damaged, is left out."""
        return _lines(self.content())

    def checksums(self) -> str:
        """What `cut` goes by: `CHECKSUM` characters a line."""
        return "".join(self._checksums)

    def sync(self) -> None:
        """Have what was appended survive a loss of power."""
        if self.path.exists():
            with self.path.open("rb+") as file:
                os.fsync(file.fileno())

    def cut(self, checksums: str) -> str:
        """Drop whatever is not, or no longer, a line that was there once: what came later will be written again.

        Args:
          checksums: of the lines that were there.

        Returns:
          What was lost, if the file does not begin with them; it is then set aside, and those still in it are kept.
        """
        wanted = [checksums[begin : begin + CHECKSUM] for begin in range(0, len(checksums), CHECKSUM)]
        content = self.content()
        lines = [line + b"\n" for line in content.split(b"\n")[:-1]]
        kept, lost = lines[: len(wanted)], ""
        if list(map(_checksum, kept)) != wanted:
            found = {_checksum(line): line for line in lines}
            kept = [found[checksum] for checksum in wanted if checksum in found]
            lost = f"{self.path} is damaged: {len(kept)} of {len(wanted)} lines are as they were{self._set_aside()}"
        self._begin(kept, content)
        return lost

    def clear(self, set_aside_from: int) -> str:
        """Drop all: it will be written again.

        Args:
          set_aside_from: a file whose lines come as far as this number of updates, or are damaged, is set aside.

        Returns:
          Where it was set aside, if it was.
        """
        content = self.content()
        lines = _lines(content)
        is_kept = any(line["updates"] >= set_aside_from for line in lines) or len(lines) < content.count(b"\n")
        aside = f"{self.path} was written already{self._set_aside()}" if is_kept else ""
        self._begin([], content)
        return aside

    def _begin(self, kept: list[bytes], content: bytes) -> None:
        if b"".join(kept) != content or not self.path.exists():
            write_whole(self.path, b"".join(kept))
        self._checksums = list(map(_checksum, kept))

    def _set_aside(self) -> str:
        if not self.path.exists():
            return ""
        aside = free_name(self.path.with_suffix(".damaged.jsonl"))
        self.path.rename(aside)
        return f"; set aside as {aside.name}"

    def rewrite(self, content: bytes) -> None:
        """Have it hold just this."""
        self.path.write_bytes(content)

    def content(self) -> bytes:
        """What it holds."""
        return self.path.read_bytes() if self.path.exists() else b""


def _checksum(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()[:CHECKSUM]


def _lines(content: bytes) -> list[dict[str, Any]]:
    """Those that are whole; each has its `updates`."""
    lines = []
    for written in content.split(b"\n")[:-1]:
        try:
            line = json.loads(written)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and type(line.get("updates")) is int and all(map(_is_measurement, line.values())):
            lines.append(line)
    return lines


def _is_measurement(value: Any) -> bool:
    return all(x is None or type(x) in (int, float) for x in (value if isinstance(value, list) else [value]))


def curves(lines: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """The lines as one array a name, `[lines]` or `[lines, R]` float64, nan where there is no value."""
    if not lines:
        return {}
    wide = max((len(v) for v in lines[0].values() if isinstance(v, list)), default=1)
    per_run = {name for line in lines for name, value in line.items() if isinstance(value, list)}

    def row(line: dict[str, Any], name: str) -> Any:
        value = line.get(name)
        return value if value is not None else [None] * wide if name in per_run else None

    names = dict.fromkeys(name for line in lines for name in line)
    return {name: np.array([row(line, name) for line in lines], dtype=np.float64) for name in names}


class ProgressDisplay:
    """Steps, steps per second, return and time left, on a terminal; silent where there is none.

    Args:
      total_steps: environment steps of all runs together.
      done: of them, in an earlier part of the run.
      visible: None: if standard error is a terminal.
      quiet: say and show nothing: another process does.
    """

    def __init__(self, total_steps: int, done: int = 0, visible: bool | None = None, quiet: bool = False):
        console = Console(stderr=True, quiet=quiet)
        self._returns = (math.nan, math.nan)  # the newest of training and of evaluation
        self._visible = console.is_terminal if visible is None else visible
        self._progress = Progress(
            BarColumn(bar_width=None),
            _Steps(),
            TextColumn("{task.fields[speed]}"),
            TextColumn("[bold]return {task.fields[shown]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not self._visible,
            expand=True,
        )
        self._task = self._progress.add_task("", total=total_steps, completed=done, speed="compiling", shown="-")

    def show(self, done: int, steps_per_second: float, episode_return: np.ndarray, eval_return: np.ndarray) -> None:
        """Steps done by all runs, and their returns `[R]`; where there are none, the last known ones stay."""
        means = (_mean(episode_return), _mean(eval_return))
        training, greedy = (new if math.isfinite(new) else old for new, old in zip(means, self._returns, strict=True))
        self._returns = (training, greedy)
        shown = f"{training:.4g}" if math.isfinite(training) else "-"
        shown += f", greedy {greedy:.4g}" if math.isfinite(greedy) else ""
        self._progress.update(self._task, completed=done, speed=f"{steps_per_second:,.0f} steps/s", shown=shown)

    def say(self, text: str, always: bool = False) -> None:
        """A line of its own above the display; `always`: even where there is none."""
        if self._visible or always:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


class _Steps(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.completed:,.0f}/{task.total or 0:,.0f}")


def _mean(x: np.ndarray) -> float:
    """Over the runs that have a value; nan without any."""
    valid = x[np.isfinite(x)]
    return float(valid.mean()) if valid.size else math.nan


def _plain(value: Any) -> Any:
    """The value as JSON can hold it."""
    if isinstance(value, np.ndarray):
        return [_plain(x) for x in value.tolist()]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
