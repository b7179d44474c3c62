"""Where measurements go besides `metrics.jsonl`: TensorBoard, Weights & Biases, or a tracker of the user's own.

A tracker is told every line there is, from the first one on, whenever training begins or goes on. So it shows what
`metrics.jsonl` holds, without gaps and without what came after the checkpoint that training went on from; a tracker
that is added later, or failed the last time, shows all of it as well.
"""

import dataclasses
import importlib
import io
import json
import math
import os
import queue
import shutil
import struct
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from qlax.config.settings import Config, written
from qlax.errors import UserError, described
from qlax.storage.measurements import in_group
from qlax.util.imports import import_object

MOST_RUNS = 256  # as many files are open, and W&B runs begun
QUEUED = 1000  # lines that wait for a tracker that is slow, before it misses some
HANGING_SECONDS = 300.0  # that a tracker may take for a call, before it is named
FINISH_SECONDS = 30.0  # that training waits in the end for what trackers still have to do
FLUSH_SECONDS = 5.0  # between event files' being synchronised with the disk, a file a run
PATIENT_SECONDS = 3.0  # of FINISH_SECONDS, before it says what it waits for
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
NO_SETTINGS = ("seeds", "runs", "derived", "trackers")  # of a single run


class Tracked(NamedTuple):
    """The runs that are tracked: R of them train side by side."""

    directory: Path
    config: Config
    runs: list[dict[str, Any]]  # what each has of its own: the seed and the settings that differ
    seconds: float  # of training before it went on; 0 where it begins
    say: Callable[[str], None]  # prints a line above the progress display

    @property
    def names(self) -> list[str]:
        """Of each run, as `seed=0,lam=0.65`."""
        return [",".join(f"{name}={value}" for name, value in run.items()) for run in self.runs]

    def settings(self, index: int) -> dict[str, Any]:
        """Every choice of one run."""
        shared = dataclasses.asdict(self.config)
        return {name: value for name, value in shared.items() if name not in NO_SETTINGS} | self.runs[index]


class Tracker(Protocol):
    """What is told of a training, in a thread of its own: whatever it raises, and however long it takes.

    Args:
      tracked: the runs.
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


class TensorBoard:
    """Event files under `tensorboard/` in the run's directory, a folder a run."""

    def __init__(self, tracked: Tracked):
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter

        # Written here and not by tensorboardX's SummaryWriter: that has a thread a run, which a full disk ends with a
        # traceback, and whoever writes to it then waits for ever.
        self._seconds, self._flushed = tracked.seconds, -math.inf
        self._writers = []
        for index, name in enumerate(tracked.names):
            folder = tracked.directory.resolve() / "tensorboard" / name
            folder.mkdir(parents=True, exist_ok=True)
            for earlier in folder.glob("events.out.tfevents.*"):
                earlier.unlink()
            self._writers.append(EventsWriter(str(folder / "events")))
            settings = {key: _word(value) for key, value in tracked.settings(index).items() if value is not None}
            rows = "\n".join(f"| {key} | {value} |" for key, value in settings.items())
            text = summary.text("settings", f"| setting | value |\n| --- | --- |\n{rows}")
            compared = {measurement.key: None for measurement in in_group("return")}
            for part in (text, *summary.hparams(settings, compared)):
                self._write(index, part, step=0, wall_time=time.time())
        self._flush()

    def log(self, line: dict[str, Any]) -> None:
        """Every value as a scalar of its name."""
        from tensorboardX.proto.summary_pb2 import Summary

        # A line of before is as much older as it was trained on since.
        wall_time = time.time() - max(0.0, self._seconds - line["seconds"])
        for index in range(len(self._writers)):
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in _own(line, index).items()]
            self._write(index, Summary(value=values), line["steps"], wall_time)
        self._flush()

    def finish(self, summary: dict[str, Any] | None, video: bytes | None) -> None:
        """The film as an image, which moves in TensorBoard."""
        from tensorboardX.proto.summary_pb2 import Summary

        if summary and video:
            width, height = struct.unpack_from("<HH", video, 6)  # where a GIF has them
            image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=video)
            value = Summary.Value(tag="video", image=image)
            self._write(best_run(summary), Summary(value=[value]), summary["total_steps"], time.time())
        for writer in self._writers:
            writer.close()

    def _write(self, index: int, summary: Any, step: int, wall_time: float) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._writers[index].write_event(Event(wall_time=wall_time, step=step, summary=summary))

    def _flush(self) -> None:
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            for writer in self._writers:
                writer.flush()
            self._flushed = time.monotonic()


class WeightsAndBiases:
    """A W&B run a run, in a group that is named as the directory; its files are under `wandb/` there.

    The project is `qlax`, unless WANDB_PROJECT says otherwise. Without an API key, or where the server cannot be
    reached, all is written to files for `wandb sync`: every line, so that they take the place of what was sent before.
    """

    def __init__(self, tracked: Tracked):
        folder = tracked.directory / "wandb"
        folder.mkdir(exist_ok=True)
        identifier = _identifier(folder / "id")
        for earlier in folder.glob(f"offline-run-*-{identifier}-*"):
            shutil.rmtree(earlier)
        mode, why = _wandb_mode()
        self._runs = [_begun(tracked, index, f"{identifier}-{index}", mode) for index in range(len(tracked.runs))]
        if mode == "offline":
            tracked.say(f"wandb writes to files{why}; send them with: wandb sync {folder / 'offline-run-*'}")

    def log(self, line: dict[str, Any]) -> None:
        """Every value under its name; W&B's step is the steps of the environment."""
        for index, run in enumerate(self._runs):
            if line["steps"] >= run.starting_step:  # else it was sent before
                run.log(_own(line, index), step=line["steps"], commit=True)

    def finish(self, summary: dict[str, Any] | None, video: bytes | None) -> None:
        """What is known in the end as W&B's summary, and the film."""
        import wandb

        if summary is not None:
            for index, run in enumerate(self._runs):
                run.summary.update(_own_summary(summary, index))
            if video:
                run = self._runs[best_run(summary)]
                run.log({"video": wandb.Video(io.BytesIO(video), format="gif")}, commit=True)
        failures = []

        def end(run: Any) -> None:
            try:
                run.finish(exit_code=int(summary is None))
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=end, args=[run], daemon=True) for run in self._runs]
        for thread in threads:  # side by side: each waits for the server
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]


def _wandb_mode() -> tuple[str, str]:
    """Online, offline or disabled, as settings of wandb say, and why; offline without an API key: nobody is asked."""
    import wandb

    mode = wandb.setup(settings=wandb.Settings(silent=True)).settings.mode
    if mode == "online" and wandb.run is None:  # somebody who has one is logged in
        try:
            if not wandb.login(prompt=False, verify=True):  # some seconds, where a run would wait much longer
                return "offline", ", as it has no API key (wandb login)"
        except Exception as error:
            return "offline", f" ({described(error)})"
    return mode, ""


def _begun(tracked: Tracked, index: int, identifier: str, mode: str) -> Any:
    """A W&B run."""
    import wandb

    name = tracked.directory.resolve().name
    return wandb.init(
        project=os.environ.get("WANDB_PROJECT", "qlax"),
        group=name,
        name=f"{name} {tracked.names[index]}",
        id=identifier,
        dir=tracked.directory,
        config=tracked.settings(index),
        mode=mode,  # type: ignore[arg-type]
        reinit="create_new",
        resume="allow" if mode == "online" else None,
        settings=wandb.Settings(
            silent=True,
            console="off",
            init_timeout=FINISH_SECONDS,
            finish_timeout=FINISH_SECONDS,
            x_disable_stats=index > 0,  # of the machine: the same for all
        ),
    )


KNOWN: dict[str, MakeTracker] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def makers(config: Config) -> dict[str, MakeTracker]:
    """What makes each tracker that is asked for, by name.

    Raises:
      UserError: one cannot be imported, or there are too many runs.
    """
    if config.trackers and config.num_runs > MOST_RUNS:
        what = f"trackers={','.join(config.trackers)}: each run has curves of its own"
        raise UserError(f"{what}, and there are {config.num_runs:,}; expected at most {MOST_RUNS} runs")
    for name in filter(KNOWN.get, config.trackers):
        package = PACKAGES[name]
        try:
            importlib.import_module(package)
        except Exception as error:
            install = f"pip install 'qlax[{name}]'"
            raise UserError(f"trackers={name}: cannot import {package!r} ({described(error)}): {install}") from error
    return {name: KNOWN.get(name) or import_object(name) for name in config.trackers}


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
        self._make, self._lines = make, lines
        self._tracked = tracked._replace(say=lambda text: tracked.say(f"qlax: {text}"))
        self._queue: queue.Queue[Callable[[Tracker], bool]] = queue.Queue(QUEUED)
        self._is_named = False
        self._since = time.monotonic()  # of the last call
        # A daemon: one that hangs does not keep the process from ending.
        self._thread = threading.Thread(target=self._tell, name=f"tracker {name}", daemon=True)
        self.start = self._thread.start

    def _tell(self) -> None:
        try:
            tracker = self._make(self._tracked)
            for line in self._lines:
                tracker.log(line)
            while True:
                tell = self._queue.get()
                self._since = time.monotonic()
                if not tell(tracker):
                    return
                self._since = math.inf
        except BaseException as error:  # whatever somebody else's code does
            was_listening, self.listens = self.listens, False
            if was_listening:
                self._tracked.say(f"the tracker {self.name} failed and is told no more: {described(error)}")

    def log(self, line: dict[str, Any]) -> None:
        def tell(tracker: Tracker) -> bool:
            tracker.log(line)
            return True

        if not self.listens:
            return
        is_late = not self._put(tell) or time.monotonic() - self._since > HANGING_SECONDS
        if is_late and not self._is_named:
            self._is_named = True
            self._tracked.say(f"the tracker {self.name} hangs or is slow, and may miss lines; metrics.jsonl has them")

    def finish(self, summary: dict[str, Any] | None, video: bytes | None) -> None:
        def tell(tracker: Tracker) -> bool:
            tracker.finish(summary, video)
            return False

        if self.listens and not self._put(tell):
            self._queue.get_nowait()  # it misses lines anyway
            self._put(tell)

    def wait(self, deadline: float) -> None:
        self._thread.join(min(PATIENT_SECONDS, max(0.0, deadline - time.monotonic())))
        if self._thread.is_alive() and (seconds := deadline - time.monotonic()) > 0:
            self._tracked.say(f"waiting for the tracker {self.name}, {seconds:.0f} seconds at most")
            self._thread.join(seconds)
        if self._thread.is_alive():
            self.listens = False
            self._tracked.say(f"the tracker {self.name} did not finish in {FINISH_SECONDS:.0f} seconds; not waited for")

    def _put(self, tell: Callable[[Tracker], bool]) -> bool:
        try:
            self._queue.put_nowait(tell)
        except queue.Full:
            return False
        return True


def best_run(summary: dict[str, Any]) -> int:
    """The run of the best evaluation."""
    found = [-math.inf if x is None else x for x in summary["best_eval_return"]["per_run"]]
    return int(np.argmax(found))


def _own(line: dict[str, Any], index: int) -> dict[str, float]:
    """What a line says of one run."""
    axis = {measurement.key for measurement in in_group("axis")}
    values = {name: x[index] if isinstance(x, list | np.ndarray) else x for name, x in line.items()}
    return {name: float(x) for name, x in values.items() if name not in axis and x is not None and math.isfinite(x)}


def _own_summary(summary: dict[str, Any], index: int) -> dict[str, Any]:
    """What a summary says of one run, or of all together."""
    found = {name: x["per_run"][index] if isinstance(x, dict) and "per_run" in x else x for name, x in summary.items()}
    found |= {"diverged": summary["diverged"][index], "eval_cut": summary["eval_cut"][index]}
    return {name: x for name, x in found.items() if name not in ("seeds", "settings", "final_settings", "preset")}


def _word(value: Any) -> Any:
    """A setting as TensorBoard takes it."""
    if isinstance(value, dict):
        return json.dumps(value)
    return value if isinstance(value, bool | int | float) else written(value)


def _identifier(path: Path) -> str:
    """Of these runs at W&B, the same whenever they go on."""
    found = path.read_text(errors="replace") if path.exists() else ""
    if not (len(found) == 8 and found.isalnum()):
        found = uuid.uuid4().hex[:8]
        path.write_text(found)
    return found
