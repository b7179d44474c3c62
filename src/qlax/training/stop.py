"""Requests to stop a training, by Ctrl-C or SIGTERM."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from qlax.errors import Stopped
from qlax.training import processes


class Stop:
    """Requests to stop this process, and what several processes agreed on.

    Args:
      at_once: as the attribute; processes that train together never stop at once, as all stop at the same point.

    Attributes:
      request: the first signal that came to this process; 0 without any.
      agreed: where there are several processes, the signal that came to one of them, once all know of it; else 0.
      at_once: what a request says that interrupts whatever is done, as there is nothing to save yet; else empty.
    """

    def __init__(self, at_once: str):
        self.request = self.agreed = 0
        self.at_once = "" if processes.are_several() else at_once

    @property
    def asked(self) -> int:
        """The signal that asks this process to stop now; 0 without any."""
        return self.agreed if processes.are_several() else self.request

    @contextmanager
    def listening(self, say: Callable[[str], None]) -> Iterator[None]:
        """Hear requests within; a second Ctrl-C stops at once, without a checkpoint.

        Raises:
          Stopped: asked to while there was nothing to save.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, _: Any) -> None:
            self.request = self.request or number
            if self.at_once:
                raise Stopped(self.at_once, number)
            say("stopping after the work in progress; Ctrl-C again stops at once, without a checkpoint")
            signal.signal(signal.SIGINT, signal.default_int_handler)

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
