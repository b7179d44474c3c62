"""Progress display of training on a terminal."""

import math

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class ProgressDisplay(Progress):
    """Progress bar with steps, steps per second, returns and the time left.

    Args:
      total_steps: Environment steps of all agents together.
      done: Environment steps of all agents before the run was resumed.
      visible: Show the display; None for showing it only if standard error is a terminal.
      quiet: Show and print nothing, because another process does.
    """

    def __init__(self, total_steps: int, done: int = 0, visible: bool | None = None, quiet: bool = False):
        console = Console(stderr=True, quiet=quiet)
        self._returns = (math.nan, math.nan)  # newest mean returns: exploring, greedy
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
        """Update the display.

        Args:
          done: Environment steps of all agents so far.
          steps_per_second: Environment steps per second, all agents together.
          episode_return: Exploring return of each agent, `[R]`; if all are nan, the last mean stays.
          eval_return: Greedy return of each agent, `[R]`; if all are nan, the last mean stays.
        """
        means = (_mean(episode_return), _mean(eval_return))
        training, greedy = (new if math.isfinite(new) else old for new, old in zip(means, self._returns, strict=True))
        self._returns = (training, greedy)
        shown = f"{training:.4g}" if math.isfinite(training) else "-"
        shown += f", greedy {greedy:.4g}" if math.isfinite(greedy) else ""
        self.update(self._task, completed=done, speed=f"{steps_per_second:,.0f} steps/s", shown=shown)

    def say(self, text: str, always: bool = False) -> None:
        """Print a line above the display; without a display only if `always`."""
        if self._visible or always:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _mean(x: np.ndarray) -> float:
    """Return the mean of the finite values; nan if there are none."""
    valid = x[np.isfinite(x)]
    return float(valid.mean()) if valid.size else math.nan
