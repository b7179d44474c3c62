"""TensorBoard tracker: event files in the run's directory."""

import json
import math
import struct
import time
from typing import Any

from tensorboardX import summary as summaries
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

from qlax.config.command_line import written
from qlax.storage.measurements import in_group
from qlax.trackers.base import Tracked, best_run, own_values

FLUSH_SECONDS = 5.0  # between flushes of the event files, of which each agent has one


class TensorBoard:
    """Tracker that writes event files under `tensorboard/` in the run's directory, one folder per agent."""

    def __init__(self, tracked: Tracked):
        # Not tensorboardX's SummaryWriter: it starts one thread per agent, which dies with a traceback when the disk
        # is full, and later writes then block forever.
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
            text = summaries.text("settings", f"| setting | value |\n| --- | --- |\n{rows}")
            compared = {measurement.key: None for measurement in in_group("return")}
            for part in (text, *summaries.hparams(settings, compared)):
                self._write(index, part, step=0, wall_time=time.time())
        self._flush()

    def log(self, line: dict[str, Any]) -> None:
        """Write every value as a scalar."""
        # Lines from before the run was resumed are dated back by the training time since then.
        wall_time = time.time() - max(0.0, self._seconds - line["seconds"])
        for index in range(len(self._writers)):
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in own_values(line, index).items()]
            self._write(index, Summary(value=values), line["steps"], wall_time)
        self._flush()

    def finish(self, summary: dict[str, Any] | None, video: bytes | None) -> None:
        """Write the video, a GIF, as an image, which TensorBoard shows animated; the summary is not used."""
        if summary and video:
            width, height = struct.unpack_from("<HH", video, 6)  # from the header of a GIF
            image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=video)
            value = Summary.Value(tag="video", image=image)
            self._write(best_run(summary), Summary(value=[value]), summary["total_steps"], time.time())
        for writer in self._writers:
            writer.close()

    def _write(self, index: int, summary: Any, step: int, wall_time: float) -> None:
        self._writers[index].write_event(Event(wall_time=wall_time, step=step, summary=summary))

    def _flush(self) -> None:
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            for writer in self._writers:
                writer.flush()
            self._flushed = time.monotonic()


def _word(value: Any) -> Any:
    """Convert the value of a setting to a bool, a number or text, which TensorBoard accepts."""
    if isinstance(value, dict):
        return json.dumps(value)
    return value if isinstance(value, bool | int | float) else written(value)
