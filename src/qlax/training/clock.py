"""Seconds that a training takes, interruptions left out."""

import time
from collections.abc import Callable
from typing import Any


class Clock:
    """Seconds of compilation, training and evaluation, which come one after the other, and seconds waited meanwhile.

    Args:
      info: of the checkpoint that training goes on from; empty where it begins.
      waited: seconds waited since then, by name.

    Attributes:
      spent: seconds by name.
    """

    def __init__(self, info: dict[str, Any], waited: Callable[[], dict[str, float]]):
        self.spent = {name: info.get(name, 0.0) for name in ("compile_seconds", "train_seconds", "eval_seconds")}
        self._before = {name: seconds for name, seconds in info.items() if name.startswith("waited_")}
        self._waited = waited
        self._last = time.perf_counter()

    def spend(self, name: str) -> float:
        """Count the time since the last call under this name, and return it."""
        now = time.perf_counter()
        elapsed, self._last = now - self._last, now
        self.spent[name] += elapsed
        return elapsed

    def seconds(self) -> dict[str, float]:
        """Seconds spent and waited, by name."""
        return self.spent | {name: self._before.get(name, 0.0) + value for name, value in self._waited().items()}
