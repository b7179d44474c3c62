"""Budget of a run's evaluations: those that would take more than a tenth of its work are left out."""

import math
from typing import Any

import numpy as np

from qlax.config.intervals import SHARE, evaluation_steps
from qlax.config.settings import Config

LONGEST = 5  # longest of 64 episodes over the mean, if lengths are distributed exponentially: 1 + 1/2 + ... + 1/64


class Budget:
    """Decides which evaluations are played, from numbers of steps alone, so that equal runs decide alike.

    An evaluation is played if it and all earlier ones together take at most a tenth of the work that training has done
    until then, or of the first tenth of the run's work if that is more. Each is expected to take as many steps as the
    one before, and the first as many as training's episodes suggest. The last evaluation of a run is always played. So
    are all evaluations if the user chose their interval, or if agents are exchanged after them.

    Args:
      config: Settings of the run.
      on_host: Whether the environments are on the host.
      info: Description of the checkpoint that training resumes from; empty for a new run.
      lines: Lines of metrics that were written before.

    Attributes:
      steps: Number of steps of each evaluation so far, by the number of updates before it; only of the newest one if
        all evaluations are played.
    """

    def __init__(self, config: Config, on_host: bool, info: dict[str, Any], lines: list[dict[str, Any]]):
        self._is_limited = "eval_interval" in config.derived and config.population == "none"
        self._per_update = SHARE * evaluation_steps(config, on_host)
        self._head_start = config.num_updates / 10
        self._most = config.eval_max_steps or math.inf
        self._length = math.nan
        self.steps = {int(updates): steps for updates, steps in info.get("evaluations", {}).items()}
        for line in lines:
            self.see(np.array(line.get("episode_length", []), float))

    def see(self, episode_length: np.ndarray) -> None:
        """Record the mean lengths `[R]` of training episodes, from a line of metrics; nan for an agent without any."""
        if np.isfinite(episode_length).any():
            self._length = float(np.nanmax(episode_length))

    def add(self, updates: int, episode_length: np.ndarray) -> None:
        """Record the number of steps that an evaluation took.

        Args:
          updates: Number of updates before the evaluation.
          episode_length: Lengths of its episodes, `[R, E]`, which were played side by side until the longest ended.
        """
        self.steps = (self.steps if self._is_limited else {}) | {updates: int(episode_length.max())}

    def allows(self, updates: int) -> bool:
        """Return whether an evaluation after this number of updates is played, if it is not the last of the run."""
        if not self._is_limited:
            return True
        before = {at: steps for at, steps in self.steps.items() if at < updates}  # not of one that is repeated
        longest = min(self._most, LONGEST * self._length) if math.isfinite(self._length) else self._most
        expected = before[max(before)] if before else longest
        return sum(before.values()) + expected <= self._per_update * max(updates, self._head_start)
