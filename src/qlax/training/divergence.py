"""Reports about agents whose numbers are no longer finite."""

from typing import Any

import numpy as np

from qlax.config.settings import Config
from qlax.storage import measurements
from qlax.training.guard import Record


class Divergence:
    """What is known of the agents that diverged.

    Args:
      config: of the run.

    Attributes:
      found: of every agent `steps` and `what`, when and where it diverged; None where it did not.
      why: reason why the first agent diverged; empty while none has.
    """

    def __init__(self, config: Config):
        self.found: list[dict[str, Any] | None] = [None] * config.num_members
        self.why = ""
        self._config = config

    @property
    def of_all(self) -> bool:
        """Whether every agent diverged, so that nothing is left to train."""
        return all(self.found)

    def update(self, record: Record) -> list[str]:
        """Learn which agents are frozen by now; return a line about each that was not the last time."""
        reports = []
        for index, updates in enumerate(np.asarray(record.diverged).tolist()):
            if updates < 0:
                self.found[index] = None  # a member of a population may be revived
            elif self.found[index] is None:
                what = measurements.watched()[int(record.cause[index])]
                begun, end = (n * self._config.steps_per_update for n in (updates, updates + 1))
                self.found[index] = {"steps": begun, "what": what.key}
                which = f"agent {index} of {len(self.found)} ({_named(self._config, index)})"
                when = f"in update {updates + 1}, between {begun:,} and {end:,} steps"
                reports.append(f"{what.key} not finite in {which} {when}: {what.cause}")
        self.why = reports[0] if reports else self.why
        return reports


def _named(config: Config, index: int) -> str:
    """The seed of an agent and its own settings; those of a population's member are what it began with."""
    agent = config.members[index]
    settings = ", ".join(f"{field}={agent[field]:g}" for field in config.swept)
    begun = "" if config.compared else "begun with "
    return ", ".join([f"seed={agent['seed']}", *([f"{begun}{settings}"] if settings else [])])
