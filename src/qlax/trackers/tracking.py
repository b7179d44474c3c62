"""Trackers of a training, each told of it in a thread of its own: TensorBoard, Weights & Biases, or the user's own.

A tracker is told every line there is, from the first one on, whenever training begins or goes on. So it shows what
`metrics.jsonl` holds, without gaps and without what came after the checkpoint that training went on from; a tracker
that is added later, or failed the last time, shows all of it as well.
"""

import importlib
import itertools
import math
import queue
import threading
import time
from types import TracebackType
from typing import Any, Self

from qlax.config.settings import Config
from qlax.errors import UserError, described
from qlax.trackers.base import FINISH_SECONDS, MakeTracker, Tracked
from qlax.util.imports import import_object

MOST_RUNS = 256  # as many files are open, and W&B runs begun
QUEUED = 1000  # lines that wait for a tracker that is slow, before it misses some
HANGING_SECONDS = 300.0  # that a tracker may take for a call, before it is named
PATIENT_SECONDS = 3.0  # of FINISH_SECONDS, before it says what it waits for
CLASSES = {"tensorboard": "TensorBoard", "wandb": "WeightsAndBiases"}  # in `qlax.trackers.NAME`


def makers(config: Config) -> dict[str, MakeTracker]:
    """What makes each tracker that is asked for, by name.

    Raises:
      UserError: one cannot be imported, or there are too many runs.
    """
    if config.trackers and config.num_members > MOST_RUNS:
        what = f"trackers={','.join(config.trackers)}: each run has curves of its own"
        raise UserError(f"{what}, and there are {config.num_members:,}; expected at most {MOST_RUNS} runs")
    return {name: _maker(name) for name in config.trackers}


def _maker(name: str) -> MakeTracker:
    if name not in CLASSES:
        return import_object(name)
    try:
        return getattr(importlib.import_module(f"qlax.trackers.{name}"), CLASSES[name])
    except Exception as error:
        install = f"pip install 'qlax[{name}]'"
        raise UserError(f"trackers={name}: its package cannot be imported ({described(error)}): {install}") from error


class Tracking:
    """All trackers of a training; none of them stops it, and none holds it up.

    Args:
      makers: of each tracker, by name.
      tracked: the runs.
      lines: those that there are already.
    """

    def __init__(self, makers: dict[str, MakeTracker], tracked: Tracked, lines: list[dict[str, Any]]):
        self._told = [_Told(name, make, tracked, lines) for name, make in makers.items()]
        self._end: tuple[dict[str, Any] | None, bytes | None] = (None, None)

    def __bool__(self) -> bool:
        return any(told.listens for told in self._told)

    def log(self, line: dict[str, Any]) -> None:
        """Tell all a line."""
        for told in self._told:
            told.log(line)

    def finish(self, summary: dict[str, Any], video: bytes | None) -> None:
        """What they are told at the end."""
        self._end = (summary, video)

    def __enter__(self) -> Self:
        for told in self._told:
            told.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is KeyboardInterrupt:  # who stops at once does not wait
            return
        deadline = time.monotonic() + FINISH_SECONDS
        for told in self._told:
            told.finish(*self._end)
        for told in self._told:
            told.wait(deadline)


class _Told:
    """One tracker, and the thread in which it is told."""

    def __init__(self, name: str, make: MakeTracker, tracked: Tracked, lines: list[dict[str, Any]]):
        self.name, self.listens = name, True
        self._make, self._earlier = make, [("log", (line,)) for line in lines]
        self._tracked = tracked._replace(say=lambda text: tracked.say(f"qlax: {text}"))
        self._queue: queue.Queue[tuple[str, tuple]] = queue.Queue(QUEUED)  # names of methods, and their arguments
        self._is_named = False
        self._since = time.monotonic()  # of the call that the tracker is in; infinite in between
        # A daemon: one that hangs does not keep the process from ending.
        self._thread = threading.Thread(target=self._tell, name=f"tracker {name}", daemon=True)
        self.start = self._thread.start

    def _tell(self) -> None:
        try:
            tracker = self._make(self._tracked)
            self._since = math.inf
            for method, arguments in itertools.chain(self._earlier, iter(self._queue.get, None)):
                self._since = time.monotonic()
                getattr(tracker, method)(*arguments)
                self._since = math.inf
                if method == "finish":
                    return
        except BaseException as error:  # whatever somebody else's code does
            was_listening, self.listens = self.listens, False
            if was_listening:
                self._tracked.say(f"the tracker {self.name} failed and is told no more: {described(error)}")

    def log(self, line: dict[str, Any]) -> None:
        if not self.listens:
            return
        is_late = not self._put("log", line) or time.monotonic() - self._since > HANGING_SECONDS
        if is_late and not self._is_named:
            self._is_named = True
            self._tracked.say(f"the tracker {self.name} hangs or is slow, and may miss lines; metrics.jsonl has them")

    def finish(self, summary: dict[str, Any] | None, video: bytes | None) -> None:
        if self.listens and not self._put("finish", summary, video):
            self._queue.get_nowait()  # it misses lines anyway
            self._put("finish", summary, video)

    def wait(self, deadline: float) -> None:
        self._thread.join(min(PATIENT_SECONDS, max(0.0, deadline - time.monotonic())))
        if self._thread.is_alive() and (seconds := deadline - time.monotonic()) > 0:
            self._tracked.say(f"waiting for the tracker {self.name}, {seconds:.0f} seconds at most")
            self._thread.join(seconds)
        if self._thread.is_alive():
            self.listens = False
            self._tracked.say(f"the tracker {self.name} did not finish in {FINISH_SECONDS:.0f} seconds; not waited for")

    def _put(self, method: str, *arguments: Any) -> bool:
        try:
            self._queue.put_nowait((method, arguments))
        except queue.Full:
            return False
        return True
