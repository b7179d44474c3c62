"""Progress display of training on a terminal or in a notebook."""

import html
import math
import time
from collections.abc import Iterable
from typing import Any, Literal, Self

import numpy as np
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from qlax.errors import UserError
from qlax.training.curves import Curves

Progressing = bool | Literal["live"] | None  # what users may ask for, see `qlax.train`
SECONDS = 0.3  # between two pictures in a notebook


class _Returns:
    """Newest mean returns over the agents, and their curves."""

    def __init__(self, total_steps: int):
        self.curves = Curves(total_steps)
        self._newest = (math.nan, math.nan)  # exploring, greedy

    def add(self, done: int, episode_return: np.ndarray, eval_return: np.ndarray) -> None:
        """Add a line of metrics; see `ProgressDisplay.show`."""
        means = (_mean(episode_return), _mean(eval_return))
        self.curves.add(done, *means)
        training, greedy = (new if math.isfinite(new) else old for new, old in zip(means, self._newest, strict=True))
        self._newest = (training, greedy)

    def __str__(self) -> str:
        training, greedy = self._newest
        shown = f"{training:.4g}" if math.isfinite(training) else "-"
        return shown + (f", greedy {greedy:.4g}" if math.isfinite(greedy) else "")


class ProgressDisplay(Progress):
    """Progress bar with steps, steps per second, returns and the time left.

    Args:
      total_steps: Environment steps of all agents together.
      done: Environment steps of all agents before the run was resumed.
      visible: Whether to show the display; None to show it only if standard error is a terminal.
      quiet: Show and print nothing, because another process does.
      live: Show the learning curves above the bar.
    """

    def __init__(
        self, total_steps: int, done: int = 0, visible: bool | None = None, quiet: bool = False, live: bool = False
    ):
        console = Console(stderr=True, quiet=quiet)
        self._returns, self._live = _Returns(total_steps), live
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

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return the learning curves, if they were asked for, and the bar, as rich asks for them."""
        if self._live:
            yield self._returns.curves
        yield from super().get_renderables()

    def show(self, done: int, steps_per_second: float, episode_return: np.ndarray, eval_return: np.ndarray) -> None:
        """Update the display.

        Args:
          done: Environment steps of all agents so far.
          steps_per_second: Environment steps per second, all agents together.
          episode_return: Exploring return of each agent, `[R]`; if all are nan, the last mean stays.
          eval_return: Greedy return of each agent, `[R]`; if all are nan, the last mean stays.
        """
        self._returns.add(done, episode_return, eval_return)
        self.update(self._task, completed=done, speed=f"{steps_per_second:,.0f} steps/s", shown=str(self._returns))

    def remember(self, done: int, episode_return: np.ndarray, eval_return: np.ndarray) -> None:
        """Add a line of metrics that was written before the run was resumed, see `show`."""
        self._returns.add(done, episode_return, eval_return)

    def say(self, text: str, always: bool = False) -> None:
        """Print a line above the display; without a display only if `always`."""
        if self._visible or always:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)


class NotebookDisplay:
    """Progress in a notebook: one output of a bar, returns and learning curves that is renewed in its place.

    Args:
      total_steps: See `ProgressDisplay`.
      done: See `ProgressDisplay`.
    """

    def __init__(self, total_steps: int, done: int = 0):
        self._total, self._begun, self._done = total_steps, done, done
        self._returns, self._said = _Returns(total_steps), list[str]()
        self._speed, self._last = "compiling", 0.0

    def __enter__(self) -> Self:
        from IPython.display import HTML, display

        self._output: Any = display(HTML(self._page()), display_id=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._renew()

    def show(self, done: int, steps_per_second: float, episode_return: np.ndarray, eval_return: np.ndarray) -> None:
        """See `ProgressDisplay`."""
        self._returns.add(done, episode_return, eval_return)
        self._done, self._speed = done, f"{steps_per_second:,.0f} steps/s"
        if time.monotonic() - self._last > SECONDS:
            self._renew()

    def remember(self, done: int, episode_return: np.ndarray, eval_return: np.ndarray) -> None:
        """See `ProgressDisplay`."""
        self._returns.add(done, episode_return, eval_return)

    def say(self, text: str, always: bool = False) -> None:
        """Add a line below the bar."""
        del always
        self._said.append(text)
        self._renew()

    def _renew(self) -> None:
        from IPython.display import HTML

        self._last = time.monotonic()
        self._output.update(HTML(self._page()))

    def _page(self) -> str:
        bar = f'<progress value="{self._done}" max="{self._total}" style="width: 100%"></progress>'
        said = [f"{self._done:,}/{self._total:,}   {self._speed}   return {self._returns}", *self._said]
        return f"<div>{bar}<pre>{html.escape(chr(10).join(said))}</pre>{self._returns.curves.svg()}</div>"


def display_of(progress: Progressing, total_steps: int, done: int, quiet: bool) -> ProgressDisplay | NotebookDisplay:
    """Return the display that a user asked for.

    Args:
      progress: See `qlax.train`.
      total_steps: See `ProgressDisplay`.
      done: See `ProgressDisplay`.
      quiet: See `ProgressDisplay`.

    Raises:
      UserError: `progress` is neither a bool nor None nor "live".
    """
    if progress not in (True, False, None, "live"):
        raise UserError(f"progress={progress!r}: expected True, False, None or 'live'")
    if progress is not False and not quiet and Console().is_jupyter:
        return NotebookDisplay(total_steps, done)
    if progress == "live":
        return ProgressDisplay(total_steps, done, quiet=quiet, live=True)
    return ProgressDisplay(total_steps, done, progress, quiet)


def _mean(x: np.ndarray) -> float:
    """Return the mean of the finite values; nan if there are none."""
    valid = x[np.isfinite(x)]
    return float(valid.mean()) if valid.size else math.nan
