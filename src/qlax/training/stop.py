"""Requests to stop training by Ctrl-C or SIGTERM."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from qlax.errors import Stopped
from qlax.training import processes


class Stop:
    """Requests to stop this process, and the agreement of several processes.

    Args:
      at_once: See the attribute; ignored where several processes train together, which all stop at the same update.

    Attributes:
      request: First signal that this process received; 0 before that.
      agreed: Signal that one of several processes received, once all know of it; else 0.
      at_once: Message with which a request interrupts the process at once, as long as there is nothing to save; else
        empty.
    """

    def __init__(self, at_once: str):
        self.request = self.agreed = 0
        self.at_once = "" if processes.are_several() else at_once

    @property
    def asked(self) -> int:
        """Signal that asks this process to stop now; 0 if there is none."""
        return self.agreed if processes.are_several() else self.request

    @contextmanager
    def listening(self, say: Callable[[str], None]) -> Iterator[None]:
        """Handle Ctrl-C and SIGTERM within the context; a second Ctrl-C stops at once, without a checkpoint.

        Raises:
          Stopped: A request came while there was nothing to save.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, _: Any) -> None:
            self.request = self.request or number
            if self.at_once:
                raise Stopped(self.at_once, number)
            say("stopping after the chunk in progress; press Ctrl-C again to stop at once, without a checkpoint")
            signal.signal(signal.SIGINT, signal.default_int_handler)

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
