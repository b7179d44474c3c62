"""The contract of trackers, and what all of them read from a line of metrics and a summary."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from qlax.config.settings import Config, fields_where
from qlax.storage.measurements import in_group

FINISH_SECONDS = 30.0  # that training waits in the end for what trackers still have to do


class Tracked(NamedTuple):
    """Run that is tracked, with its R agents."""

    directory: Path  # run directory
    config: Config  # all settings of the run
    runs: list[dict[str, Any]]  # seed and differing settings of each agent
    seconds: float  # seconds of training before the run was resumed; 0 for a new run
    say: Callable[[str], None]  # function that prints a line above the progress display

    @property
    def names(self) -> list[str]:
        """Name of each agent, such as `seed=0,lam=0.65`."""
        return [",".join(f"{name}={value}" for name, value in run.items()) for run in self.runs]

    def settings(self, index: int) -> dict[str, Any]:
        """Every choice of one run."""
        return {name: getattr(self.config, name) for name in fields_where(tracked=True)} | self.runs[index]


class Tracker(Protocol):
    """What is told of a training, in a thread of its own: whatever it raises, and however long it takes.

    Args:
      tracked: the runs.

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
        """A line of `metrics.jsonl`, where each value is one number, or one a run: a list or an array `[R]`.

        What has no value is nan or None. Lines come in order, `steps` says how many each run has done.
        """

    def finish(self, summary: dict[str, Any] | None, video: bytes | None) -> None:
        """No more lines.

        Args:
          summary: what `summary.json` holds; None where training was interrupted, or all runs diverged.
          video: a GIF of the best run; None where there is no picture.
        """


MakeTracker = Callable[[Tracked], Tracker]


def best_run(summary: dict[str, Any]) -> int:
    """The run of the best evaluation."""
    found = [-math.inf if x is None else x for x in summary["best_eval_return"]["per_run"]]
    return int(np.argmax(found))


def own_values(line: dict[str, Any], index: int) -> dict[str, float]:
    """What a line says of one run."""
    axis = {measurement.key for measurement in in_group("axis")}
    values = {name: x[index] if isinstance(x, list | np.ndarray) else x for name, x in line.items()}
    return {name: float(x) for name, x in values.items() if name not in axis and x is not None and math.isfinite(x)}
