"""Contract of trackers, and helpers to read lines of metrics and summaries."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from qlax.config.settings import Config, fields_where
from qlax.storage.measurements import in_group

FINISH_SECONDS = 30.0  # longest time that training waits for trackers at its end


class Tracked(NamedTuple):
    """Description of a run for its trackers; R agents train in the run side by side."""

    directory: Path  # run directory
    config: Config  # all settings of the run
    runs: list[dict[str, Any]]  # seed and differing settings of each agent
    seconds: float  # wall-clock time of training before the run was resumed; 0 for a new run
    say: Callable[[str], None]  # function that prints a line above the progress display

    @property
    def names(self) -> list[str]:
        """Name of each agent, such as `seed=0,lam=0.65`."""
        return [",".join(f"{name}={value}" for name, value in run.items()) for run in self.runs]

    def settings(self, index: int) -> dict[str, Any]:
        """Return all tracked settings of one agent.

        Args:
          index: Number of the agent in the run, 0 to R - 1.
        """
        return {name: getattr(self.config, name) for name in fields_where(tracked=True)} | self.runs[index]


class Tracker(Protocol):
    """Receiver of a run's measurements, called in a thread of its own.

    Neither an exception nor a slow call of a tracker affects training.

    Args:
      tracked: Description of the run.

    Example:
      ```python
      class Printer:
          def __init__(self, tracked):
              self.names = tracked.names

          def log(self, line):
              print(dict(zip(self.names, line["eval_return"])))

          def finish(self, summary, video):
              pass


      qlax.train("cartpole-fast", total_steps=100_000, trackers=["printer:Printer"])
      ```
    """

    def __init__(self, tracked: Tracked): ...

    def log(self, line: dict[str, Any]) -> None:
        """Receive one line of `metrics.jsonl`; lines come in the order of training.

        Args:
          line: For each key one number, or a list or array `[R]` with one number per agent; nan or None where there
            is no value. `steps` is the number of environment steps of each agent.
        """

    def finish(self, summary: dict[str, Any] | None, video: bytes | None) -> None:
        """Receive the results after the last line.

        Args:
          summary: Content of `summary.json`; None if training was interrupted, or if all agents diverged.
          video: GIF of an episode of the best agent; None if the environment cannot be rendered.
        """


MakeTracker = Callable[[Tracked], Tracker]


def best_run(summary: dict[str, Any]) -> int:
    """Return the index of the agent with the best evaluation."""
    found = [-math.inf if x is None else x for x in summary["best_eval_return"]["per_run"]]
    return int(np.argmax(found))


def own_values(line: dict[str, Any], index: int) -> dict[str, float]:
    """Return the finite measurements of one agent from a line of metrics."""
    axis = {measurement.key for measurement in in_group("axis")}
    values = {name: x[index] if isinstance(x, list | np.ndarray) else x for name, x in line.items()}
    return {name: float(x) for name, x in values.items() if name not in axis and x is not None and math.isfinite(x)}
