"""Progress of training on a terminal."""

import math

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class ProgressDisplay(Progress):
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
        super().__init__(
            BarColumn(bar_width=None),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            TextColumn("{task.fields[speed]}"),
            TextColumn("[bold]return {task.fields[shown]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not self._visible,
            expand=True,
        )
        self._task = self.add_task("", total=total_steps, completed=done, speed="compiling", shown="-")

    def show(self, done: int, steps_per_second: float, episode_return: np.ndarray, eval_return: np.ndarray) -> None:
        """Steps done by all runs, and their returns `[R]`; where there are none, the last known ones stay."""
        means = (_mean(episode_return), _mean(eval_return))
        training, greedy = (new if math.isfinite(new) else old for new, old in zip(means, self._returns, strict=True))
        self._returns = (training, greedy)
        shown = f"{training:.4g}" if math.isfinite(training) else "-"
        shown += f", greedy {greedy:.4g}" if math.isfinite(greedy) else ""
        self.update(self._task, completed=done, speed=f"{steps_per_second:,.0f} steps/s", shown=shown)

    def say(self, text: str, always: bool = False) -> None:
        """A line of its own above the display; `always`: even where there is none."""
        if self._visible or always:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _mean(x: np.ndarray) -> float:
    """Over the runs that have a value; nan without any."""
    valid = x[np.isfinite(x)]
    return float(valid.mean()) if valid.size else math.nan
