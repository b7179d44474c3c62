"""Where measurements go: a file of JSON lines, and the terminal."""

import json
import math
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class MetricsFile:
    """`metrics.jsonl`: a line a logging interval, appended and flushed; what has no value is null."""

    def __init__(self, path: Path):
        self.path = path

    def append(self, line: dict[str, Any]) -> None:
        """Add one line; arrays become lists."""
        with self.path.open("a") as file:
            file.write(json.dumps({name: _plain(value) for name, value in line.items()}) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All lines; one that a crash cut short at the end is left out."""
        if not self.path.exists():
            return []
        complete = [line for line in self.path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [json.loads(line) for line in complete]

    def keep(self, updates: int) -> None:
        """Drop whatever lines are later than this number of updates: they will be written again."""
        kept = [line for line in self.read() if line["updates"] <= updates]
        aside = self.path.with_suffix(".partial")
        aside.write_text("".join(json.dumps(line) + "\n" for line in kept))
        aside.replace(self.path)


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
    """

    def __init__(self, total_steps: int, done: int = 0, visible: bool | None = None):
        console = Console(stderr=True)
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

    def say(self, text: str) -> None:
        """A line of its own above the display."""
        if self._visible:
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
