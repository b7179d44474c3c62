"""Trackers of a run, each in a thread of its own: TensorBoard, Weights & Biases, or a user's own class.

Whenever training begins or is resumed, every tracker receives all lines from the first one on. Each tracker therefore
shows exactly what `metrics.jsonl` holds: without gaps, without lines from after the checkpoint that training resumed
from, and in full even if the tracker was added later or failed before.
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

MOST_RUNS = 256  # agents, each of which needs an open file or a W&B run
QUEUED = 1000  # lines waiting for a slow tracker, before it misses some
HANGING_SECONDS = 300.0  # duration of a tracker's call, before a warning names the tracker
PATIENT_SECONDS = 3.0  # part of FINISH_SECONDS, before a message says what training waits for
CLASSES = {"tensorboard": "TensorBoard", "wandb": "WeightsAndBiases"}  # class in the module `qlax.trackers.NAME`


def makers(config: Config) -> dict[str, MakeTracker]:
    """Import the classes of the trackers that the configuration names.

    Returns:
      Class, or another callable that makes a tracker, by its name in the configuration.

    Raises:
      UserError: A tracker cannot be imported, or the run has too many agents.
    """
    if config.trackers and config.num_members > MOST_RUNS:
        what = f"trackers={','.join(config.trackers)} draws curves for every agent"
        raise UserError(f"{what}, and the run has {config.num_members:,}; expected at most {MOST_RUNS} agents")
    return {name: _maker(name) for name in config.trackers}


def _maker(name: str) -> MakeTracker:
    if name not in CLASSES:
        return import_object(name)
    try:
        return getattr(importlib.import_module(f"qlax.trackers.{name}"), CLASSES[name])
    except Exception as error:
        install = f"pip install 'qlax[{name}]'"
        raise UserError(f"trackers={name}: cannot import its package ({described(error)}): {install}") from error


class Tracking:
    """All trackers of a run; none of them can stop or delay training.

    Args:
      makers: Callable that makes each tracker, by the tracker's name.
      tracked: Description of the run.
      lines: Lines of metrics from before the run was resumed.
    """

    def __init__(self, makers: dict[str, MakeTracker], tracked: Tracked, lines: list[dict[str, Any]]):
        self._threads = [_TrackerThread(name, make, tracked, lines) for name, make in makers.items()]
        self._end: tuple[dict[str, Any] | None, bytes | None] = (None, None)

    def __bool__(self) -> bool:
        return any(thread.listens for thread in self._threads)

    def log(self, line: dict[str, Any]) -> None:
        """Send one line of metrics to all trackers."""
        for thread in self._threads:
            thread.log(line)

    def finish(self, summary: dict[str, Any], video: bytes | None) -> None:
        """Set the summary and the video that all trackers receive when the context ends."""
        self._end = (summary, video)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is KeyboardInterrupt:  # the user wants to stop at once
            return
        deadline = time.monotonic() + FINISH_SECONDS
        for thread in self._threads:
            thread.finish(*self._end)
        for thread in self._threads:
            thread.wait(deadline)


class _TrackerThread:
    """One tracker, and the thread that calls it."""

    def __init__(self, name: str, make: MakeTracker, tracked: Tracked, lines: list[dict[str, Any]]):
        self.name, self.listens = name, True
        self._make, self._earlier = make, [("log", (line,)) for line in lines]
        self._tracked = tracked._replace(say=lambda text: tracked.say(f"qlax: {text}"))
        self._queue: queue.Queue[tuple[str, tuple]] = queue.Queue(QUEUED)  # method names and their arguments
        self._was_reported_slow = False
        self._since = time.monotonic()  # when the tracker's current call began; infinite between calls
        # A daemon thread, so that a hanging tracker does not keep the process alive.
        self._thread = threading.Thread(target=self._call_tracker, name=f"tracker {name}", daemon=True)
        self.start = self._thread.start

    def _call_tracker(self) -> None:
        try:
            tracker = self._make(self._tracked)
            self._since = math.inf
            for method, arguments in itertools.chain(self._earlier, iter(self._queue.get, None)):
                self._since = time.monotonic()
                getattr(tracker, method)(*arguments)
                self._since = math.inf
                if method == "finish":
                    return
        except BaseException as error:  # a user's tracker may raise anything
            was_listening, self.listens = self.listens, False
            if was_listening:
                self._tracked.say(f"the tracker {self.name} failed and receives no more lines: {described(error)}")

    def log(self, line: dict[str, Any]) -> None:
        if not self.listens:
            return
        is_late = not self._put("log", line) or time.monotonic() - self._since > HANGING_SECONDS
        if is_late and not self._was_reported_slow:
            self._was_reported_slow = True
            self._tracked.say(f"the tracker {self.name} hangs or is slow, and may miss lines; metrics.jsonl has them")

    def finish(self, summary: dict[str, Any] | None, video: bytes | None) -> None:
        if self.listens and not self._put("finish", summary, video):
            self._queue.get_nowait()  # make room: a full queue means that lines are missing anyway
            self._put("finish", summary, video)

    def wait(self, deadline: float) -> None:
        self._thread.join(min(PATIENT_SECONDS, max(0.0, deadline - time.monotonic())))
        if self._thread.is_alive() and (seconds := deadline - time.monotonic()) > 0:
            self._tracked.say(f"waiting for the tracker {self.name}, at most {seconds:.0f} seconds")
            self._thread.join(seconds)
        if self._thread.is_alive():
            self.listens = False
            late = f"did not finish within {FINISH_SECONDS:.0f} seconds; no longer waiting"
            self._tracked.say(f"the tracker {self.name} {late}")

    def _put(self, method: str, *arguments: Any) -> bool:
        try:
            self._queue.put_nowait((method, arguments))
        except queue.Full:
            return False
        return True
