"""Trackers receive what metrics.jsonl holds, and no failure of theirs stops training."""

import os
import shutil
import signal
import struct
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import wandb
from PIL import Image
from runs import CARTPOLE, SMALL, interrupt_at, is_refused_in_one_line, lines_of, same_weights
from tensorboardX.proto.event_pb2 import Event
from wandb.proto.wandb_internal_pb2 import Record

import qlax
from qlax.config.configure import configure
from qlax.errors import RunError, Stopped, UserError
from qlax.playing import film as video
from qlax.storage.metrics import MetricsFile
from qlax.trackers import tracking as trackers
from qlax.trackers.base import Tracked, best_run
from qlax.training.display import ProgressDisplay

SETTINGS = {**SMALL, "seed": 3, "seeds": 2}
NAMES = ["seed=3", "seed=4"]


class Failing:
    """Tracker that fails at its second line."""

    def __init__(self, tracked):
        self.lines = 0

    def log(self, line):
        self.lines += 1
        if self.lines == 2:
            raise OSError(28, "No space left on device")


class Remembering:
    """Tracker that keeps everything it receives; `last` is the newest instance."""

    def __init__(self, tracked):
        self.tracked, self.lines, self.end = tracked, [], None
        Remembering.last = self

    def log(self, line):
        self.lines.append(line)

    def finish(self, summary, video):
        self.end = (summary, video)


def events(path):
    """Read an event file of TensorBoard: TFRecords, each between its length and checksums."""
    data, at = path.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        yield Event.FromString(data[at + 12 : at + 12 + length])
        at += length + 16


def records(path):
    """Read a file of W&B: a log in LevelDB's format, in blocks of 32 KiB, after a header of 7 bytes."""
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 < len(data):
        if (left := 2**15 - at % 2**15) < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield Record.FromString(whole)
            whole = b""


def values(items):
    """Return the values of a record of W&B, by name."""
    return {item.key or "/".join(item.nested_key): item.value_json for item in items}


def curves_of(directory, index):
    """Yield the steps and the numbers of one agent from every line of metrics.jsonl."""
    for line in MetricsFile(directory / "metrics.jsonl").read(len(NAMES)):
        own = {name: value[index] if isinstance(value, list) else value for name, value in line.items()}
        yield line["steps"], {name: x for name, x in own.items() if x is not None and name not in ("updates", "steps")}


@pytest.fixture(scope="module", autouse=True)
def _no_account(tmp_path_factory):
    """Log out of W&B, and redirect its own files to a temporary folder."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
            patch.setenv(name, str(tmp_path_factory.mktemp("home")))
        wandb.teardown()
        yield
        wandb.teardown()


@pytest.fixture(scope="module")
def gone_on(tmp_path_factory):
    """Resume a run from a checkpoint that is older than its last lines; return the result and all messages."""
    directory, said = tmp_path_factory.mktemp("run") / "tracked", []
    film = directory.with_name("film.gif")
    frames = [Image.new("P", (6, 4), color) for color in (1, 2)]
    frames[0].save(film, save_all=True, append_images=frames[1:])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProgressDisplay, "say", lambda display, text, always=False: said.append(text))
        patch.setattr(video, "render", lambda run, out, **how: shutil.copy(film, out))
        for module in ("tracking", "wandb"):  # on a busy machine W&B may take more than half a minute
            patch.setattr(f"qlax.trackers.{module}.FINISH_SECONDS", 300.0)
        with pytest.MonkeyPatch.context() as until_then:
            interrupt_at(until_then, len(NAMES) * 6, signal.SIGTERM)
            with pytest.raises(Stopped):
                qlax.train(
                    CARTPOLE, out=directory, trackers=("tensorboard", "wandb", "test_tracking:Failing"), **SETTINGS
                )
        *_, newest = sorted((directory / "checkpoints").iterdir())
        newest.unlink()
        steps = [line["steps"] for line in lines_of(directory)]
        files = sorted(directory.glob("wandb/offline-run-*/*.wandb"))
        result = qlax.resume(directory)
    return SimpleNamespace(directory=directory, result=result, steps=steps, files=files, said=said, film=film)


def test_what_is_trained_is_the_same_without_trackers(gone_on, tmp_path):
    alone = qlax.train(CARTPOLE, out=tmp_path / "alone", **SETTINGS)
    assert lines_of(gone_on.directory) == lines_of(alone.directory)
    assert same_weights(gone_on.result, alone)
    assert not {"tensorboard", "wandb"} & {path.name for path in alone.directory.iterdir()}


@pytest.mark.parametrize("index", range(2))
def test_tensorboard_shows_the_metrics_of_each_run_once(gone_on, index):
    (path,) = (gone_on.directory / "tensorboard" / NAMES[index]).iterdir()
    found, times = {}, []
    for event in events(path):
        scalars = {x.tag: x.simple_value for x in event.summary.value if x.WhichOneof("value") == "simple_value"}
        if "loss" in scalars:
            assert event.step not in found
            found[event.step] = scalars
            times.append(event.wall_time)
    expected = dict(curves_of(gone_on.directory, index))
    assert set(gone_on.steps) > set(list(expected)[:2])  # some lines were sent twice
    assert found.keys() == expected.keys()
    for steps, own in expected.items():
        assert found[steps] == pytest.approx(own, rel=1e-7)  # TensorBoard stores float32
    assert times == sorted(times)


def test_tensorboard_shows_settings_and_film(gone_on):
    shown = {}
    for name in NAMES:
        (path,) = (gone_on.directory / "tensorboard" / name).iterdir()
        shown[name] = {value.tag: value for event in events(path) for value in event.summary.value}
    (text,) = shown[NAMES[1]]["settings/text_summary"].tensor.string_val
    assert "| seed | 4 |" in text.decode()
    assert "| hidden | 8 |" in text.decode()
    assert "_hparams_/session_start_info" in shown[NAMES[1]]
    filmed = [name for name in NAMES if "video" in shown[name]]
    assert filmed == [NAMES[best_run(gone_on.result.summary)]]
    image = shown[filmed[0]]["video"].image
    assert (image.width, image.height) == (6, 4)
    assert image.encoded_image_string == gone_on.film.read_bytes()


def test_wandb_has_the_metrics_of_each_run_once(gone_on):
    assert len(gone_on.files) == 2  # files from before the interruption
    files = sorted(gone_on.directory.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stem)
    assert [path.name for path in files] == sorted(path.name for path in gone_on.files)
    for index, path in enumerate(files):
        found, summary, run = {}, {}, None
        for record in records(path):
            if record.HasField("run"):
                run = record.run
            if record.HasField("summary"):
                summary |= values(record.summary.update)
            if record.HasField("history"):
                history = {name: float(x) for name, x in values(record.history.item).items() if x[0] not in '{"'}
                assert history["_step"] not in found or "loss" not in history
                found.setdefault(history["_step"], history)
        assert (run.project, run.run_group, run.display_name) == ("qlax", "tracked", f"tracked {NAMES[index]}")
        assert values(run.config.update)["seed"] == ["3", "4"][index]
        for steps, own in curves_of(gone_on.directory, index):
            assert {name: found[steps][name] for name in own} == own
        best = gone_on.result.summary["best_eval_return"]["per_run"][index]
        assert float(summary["best_eval_return"]) == best
    assert list(gone_on.directory.glob("wandb/offline-run-*/files/media/videos/*.gif"))


def test_each_tracker_that_has_something_to_say_says_it_once_a_time(gone_on):
    about = [text for text in gone_on.said if "tracker " in text or "wandb" in text]
    about = [text for text in about if not text.startswith("qlax: waiting for")]  # said on a busy machine
    failed = "qlax: the tracker test_tracking:Failing failed and receives no more lines: OSError: [Errno 28] No space"
    assert sum(text.startswith(failed) for text in about) == 2  # once in each part of the run
    offline = [text for text in about if "wandb sync" in text]
    assert len(offline) == 2
    assert "no API key" in offline[0]
    assert len(about) == 4


def told(tmp_path, makers, lines=3, earlier=(), **options):
    """Send some lines to trackers, and return all messages."""
    said = []
    config = configure(CARTPOLE, **SETTINGS)
    runs = [{"seed": 3, "lam": 0.0}, {"seed": 3, "lam": 0.65}]
    tracking = trackers.Tracking(makers, Tracked(tmp_path, config, runs, 0.0, said.append), list(earlier))
    with tracking:
        for number in range(lines):
            tracking.log({"updates": number, "steps": number, "seconds": 0.1})
        tracking.finish({"done": True}, None)
    return said


def test_a_tracker_of_ones_own_is_told_all_in_order(tmp_path):
    earlier = [{"updates": -1, "steps": -1, "seconds": 0.0}]
    assert told(tmp_path, {"own": Remembering}, earlier=earlier) == []
    assert [line["steps"] for line in Remembering.last.lines] == [-1, 0, 1, 2]
    assert Remembering.last.end == ({"done": True}, None)
    assert Remembering.last.tracked.names == ["seed=3,lam=0.0", "seed=3,lam=0.65"]


@pytest.mark.parametrize("where", ["__init__", "log", "finish"])
def test_a_tracker_that_fails_is_named_once_and_others_go_on(where, tmp_path):
    def fail(*_):
        raise SystemExit("no such\nserver")

    broken = type("Broken", (Remembering,), {where: fail})
    said = told(tmp_path, {"broken": broken, "own": Remembering})
    assert len(said) == 1
    expected = "qlax: the tracker broken failed and receives no more lines: SystemExit: no such server ("
    assert said[0].startswith(expected)
    assert said[0].endswith(", in fail)")
    assert len(Remembering.last.lines) == 3


@pytest.mark.parametrize("where", ["__init__", "log", "finish"])
def test_a_tracker_that_hangs_is_named_once_and_holds_nothing_up(where, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "FINISH_SECONDS", 0.2)
    monkeypatch.setattr(trackers, "PATIENT_SECONDS", 0.2)
    let_go = threading.Event()

    def hang(*_):
        let_go.wait(60)
        raise RuntimeError("nobody is told any more")

    begun = time.monotonic()
    said = told(tmp_path, {"hanging": type("Hanging", (Remembering,), {where: hang}), "own": Remembering})
    assert time.monotonic() - begun < 30  # less than the minute for which the tracker hangs
    assert said == ["qlax: the tracker hanging did not finish within 0 seconds; no longer waiting"]
    let_go.set()
    for thread in threading.enumerate():
        if thread.name == "tracker hanging":
            thread.join()
    assert len(said) == 1
    assert len(Remembering.last.lines) == 3


def test_a_tracker_that_is_slow_misses_lines_and_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "QUEUED", 2)
    slow = type("Slow", (Remembering,), {"log": lambda self, line: time.sleep(0.3) or self.lines.append(line)})
    said = told(tmp_path, {"slow": slow}, lines=10)
    assert said == ["qlax: the tracker slow hangs or is slow, and may miss lines; metrics.jsonl has them"]
    assert len(Remembering.last.lines) < 10
    assert Remembering.last.end == ({"done": True}, None)


def test_a_call_that_takes_too_long_is_named_while_training_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "HANGING_SECONDS", 0.0)
    is_called, let_go, said = threading.Event(), threading.Event(), []

    def hang(*_):
        is_called.set()
        let_go.wait(60)

    tracked = Tracked(tmp_path, configure(CARTPOLE, **SETTINGS), [{"seed": 3}], 0.0, said.append)
    with trackers.Tracking({"hanging": type("Hanging", (Remembering,), {"log": hang})}, tracked, []) as tracking:
        tracking.log({"updates": 1})
        assert is_called.wait(60)
        for updates in (2, 3):
            tracking.log({"updates": updates})
        let_go.set()
    assert said == ["qlax: the tracker hanging hangs or is slow, and may miss lines; metrics.jsonl has them"]


def test_a_tracker_that_is_told_many_earlier_lines_does_not_hang(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(trackers, "time", SimpleNamespace(monotonic=lambda: now[0]))

    class Slow(Remembering):
        def log(self, line):
            super().log(line)
            now[0] += trackers.HANGING_SECONDS / 2
            if len(self.lines) == 3:  # a new line arrives while the tracker receives earlier ones
                tracking.log(line)

    said, lines = [], [{"updates": number} for number in range(5)]
    tracked = Tracked(tmp_path, configure(CARTPOLE, **SETTINGS), [{"seed": 3}], 0.0, said.append)
    tracking = trackers.Tracking({"slow": Slow}, tracked, lines)
    with tracking:
        begun = time.monotonic()
        while now[0] < 6 * trackers.HANGING_SECONDS / 2 and time.monotonic() < begun + 60:
            time.sleep(0.01)
    assert said == []
    assert [line["updates"] for line in Remembering.last.lines] == [0, 1, 2, 3, 4, 2]


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (UserError("no pictures"), []),
        (KeyboardInterrupt(), []),
        (RunError("no memory"), ["qlax: no video for the trackers: RunError: no memory"]),
    ],
)
def test_without_a_film_there_is_none(failure, expected, tmp_path, monkeypatch):
    def render(*_, **__):
        raise failure

    monkeypatch.setattr(video, "render", render)
    said = []
    assert video.best_run_as_gif(tmp_path, {"best_eval_return": {"per_run": [None, 1.0]}}, said.append) is None
    assert [line.partition(" (")[0] for line in said[1:]] == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("tensorbord", "trackers=tensorbord: expected tensorboard, wandb, or module:Name of your own; did you mean"),
        ("wandb,wandb", "trackers: wandb is given twice"),
        ("tensorboard", "pip install 'qlax[tensorboard]'"),
    ],
)
def test_what_cannot_be_tracked_is_refused_before_anything_is_written(names, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.delitem(sys.modules, "qlax.trackers.tensorboard", raising=False)
    is_refused_in_one_line(["train", "cartpole", "--trackers", names], message, capsys, tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trackers": ["nowhere:Tracker"]}, "cannot import 'nowhere' for 'nowhere:Tracker'"),
        (
            {"trackers": ["wandb"], "seeds": 300},
            "draws curves for every agent, and the run has 300; expected at most 256 agents",
        ),
    ],
)
def test_what_makes_trackers_is_looked_for_first(settings, message):
    with pytest.raises(UserError, match=message):
        trackers.makers(configure(CARTPOLE, **settings))
