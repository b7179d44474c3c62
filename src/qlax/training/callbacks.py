"""Callbacks: functions that receive every line of metrics and may end training before its planned length."""

from collections.abc import Callable
from typing import Any

import numpy as np

from qlax.config.settings import Config
from qlax.errors import RunError, UserError, described
from qlax.training import processes

Callback = Callable[[dict[str, Any]], bool | None]


def until(target: float) -> Callback:
    """Make a callback that ends training once every agent's greedy return has reached a target.

    Agents that diverged are left out, as their weights no longer change.

    Args:
      target: Mean undiscounted return over the episodes of one evaluation.
    """

    def reached(line: dict[str, Any]) -> bool:
        known = line["eval_return"][np.isfinite(line["eval_return"])]
        return bool(known.size and (known >= target).all())

    return reached


def minutes(limit: float) -> Callback:
    """Make a callback that ends training after a number of minutes.

    Args:
      limit: Minutes of training, including those before the run was resumed; compilation and evaluation do not count.
    """
    return lambda line: bool(line["seconds"] >= 60 * limit)


class Callbacks:
    """All callbacks of a run: the settings `until` and `minutes`, and the user's own function.

    If several processes train together, only the first one calls them and sends the answer to the others, so that all
    end training after the same update.

    Args:
      config: Settings of the run.
      own: The user's callback; None if there is none.

    Attributes:
      reason: Name of the callback that asked to end training: "until", "minutes" or "callback"; "" before that.
      failure: Exception of the user's callback; in processes other than the first, a `RunError` with its message.

    Raises:
      UserError: The user's callback is not a function.
    """

    def __init__(self, config: Config, own: Callback | None):
        if own is not None and not callable(own):
            raise UserError(f"callback={own!r}: expected a function that takes a line of metrics")
        self._callbacks: dict[str, Callback] = {"callback": own} if own is not None else {}
        if config.until is not None:
            self._callbacks["until"] = until(config.until)
        if config.minutes is not None:
            self._callbacks["minutes"] = minutes(config.minutes)
        self.reason = ""
        self.failure: Exception | None = None

    def __bool__(self) -> bool:
        return bool(self._callbacks)

    def call(self, line: dict[str, Any]) -> None:
        """Call every callback with a line of metrics, and store the answer in `reason` and `failure`."""
        if not self:
            return
        failures: list[Exception] = []

        def asked() -> tuple[str, str]:
            reasons = []
            for name, callback in self._callbacks.items():
                try:
                    answer = callback(line)
                    if answer is not None and not isinstance(answer, bool | np.bool):
                        raise TypeError(
                            f"the callback returned {answer!r}; expected True to end training, or else False or None"
                        )
                    reasons += [name] * bool(answer)
                except Exception as error:
                    failures.append(error)
            return next(iter(reasons), ""), " and ".join(map(described, failures))

        self.reason, said = processes.from_first(asked)
        if said:
            self.failure = failures[0] if failures else RunError(f"the callback failed in the first process: {said}")

    @property
    def asks_to_end(self) -> bool:
        """True if training must end now, because a callback asked for it or failed."""
        return bool(self.reason) or self.failure is not None
