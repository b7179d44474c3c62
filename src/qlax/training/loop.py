"""One process's part of a run: pieces of work on the device; log, evaluate and save between them."""

import contextlib
import dataclasses
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from qlax._version import __version__
from qlax.agents.agent import Agent
from qlax.config.settings import Config
from qlax.errors import DivergedError, HostError, Stopped, UserError
from qlax.play import film
from qlax.pqn import TrainState
from qlax.reports import ranking
from qlax.storage import measurements
from qlax.storage.directory import RunDirectory
from qlax.storage.history import History
from qlax.storage.metrics import curves
from qlax.trackers import tracking
from qlax.trackers.base import Tracked
from qlax.training import memory, processes, summary
from qlax.training.device_runs import DeviceRuns, Evaluation, HostRuns
from qlax.training.display import ProgressDisplay
from qlax.training.guard import Record
from qlax.training.plan import Program
from qlax.training.population import Exchange
from qlax.types import PyTree
from qlax.util.text import six_digits

CHANGEABLE = ("total_steps", "keep", "host_timeout", "trackers")  # in the config.json of a run that was begun
PIECE_SECONDS = 1.0  # of work that is handed to the device at once, so that who asks to stop does not wait long


@dataclass(frozen=True)
class Result:
    """What a training run leaves behind.

    Attributes:
      directory: of the run.
      config: every choice made.
      summary: what `summary.json` holds.
      curves: the lines of `metrics.jsonl` as arrays: `steps [lines]`, `eval_return [lines, R]`, nan without a value.
      agents: one a run, in the order of `config.all_runs()`.
    """

    directory: Path
    config: Config
    summary: dict[str, Any]
    curves: dict[str, np.ndarray]
    agents: list[Agent]


class Saved(NamedTuple):
    """What a checkpoint holds."""

    state: TrainState  # [R, ...]
    record: Record  # [R, ...]


class _Clock:
    """Seconds of compilation, training and evaluation, which come one after the other."""

    def __init__(self, info: dict[str, Any]):
        self.seconds = {name: info.get(name, 0.0) for name in ("compile_seconds", "train_seconds", "eval_seconds")}
        self._last = time.perf_counter()

    def spend(self, name: str) -> float:
        """Count the time since the last call as this; returns it."""
        now = time.perf_counter()
        elapsed, self._last = now - self._last, now
        self.seconds[name] += elapsed
        return elapsed


class _Boundary(NamedTuple):
    """What was dispatched with a piece of work, to be read while the next one is computed."""

    updates: int  # done
    piece: int  # updates of it
    record: Record
    ends_line: bool
    evaluation: Evaluation | None
    variables: PyTree | None  # of the network that was evaluated
    exchange: Exchange | None  # within a population
    snapshot: Saved | None
    votes: Callable[[], np.ndarray]  # of every process: the signal that asked it to stop or 0, the piece it would take


class Session:
    """One process's part of a run: from the beginning, or from a checkpoint, to the end or an interruption."""

    def __init__(self, program: Program, initial: PyTree, progress: bool | None):
        self.program, self.config, self.stop = program, program.config, _Stop()
        processes.in_all(self._find_trackers)
        self.runs: DeviceRuns | HostRuns = (
            HostRuns(program, initial, lambda: bool(self.stop.requests))
            if program.on_host
            else DeviceRuns(program, initial)
        )
        processes.in_all(lambda: memory.check(program, program.placement.groups))
        self.all_steps = self.config.steps_per_update * len(program.seeds)  # of one update of all runs
        self.progress = progress
        self.names = [_named(run, self.config) for run in self.config.all_runs()]
        self.diverged: list[dict[str, Any] | None] = [None] * len(program.seeds)
        self.why = ""  # the first that diverged did
        self.asked = 0  # the signal that asked to stop

    def _find_trackers(self) -> None:
        self.make_trackers = tracking.makers(self.config) if processes.is_first() else {}

    def open(self, run: RunDirectory, newest: tuple[dict[str, Any], Saved] | None) -> None:
        """Take up what a directory holds.

        Raises:
          UserError: it was begun with other settings or plug-ins.
        """
        self.directory = run
        info, saved = newest or ({}, None)
        self.made_with = _made_with(self.config, self.runs.num_devices)
        self.inexact: list[str] = list(info.get("inexact", []))
        self.notices: list[str] = []
        if saved is not None:
            self._compare(info)
        self.done: int = info.get("updates", 0)
        self.line: int = info.get("line", 0)  # updates at the end of the last one
        self.saved = saved
        self.waited_before = {name: seconds for name, seconds in info.items() if name.startswith("waited_")}
        interval = self.config.checkpoint_interval
        assert interval is not None
        written = processes.from_first(lambda: run.begin_metrics(info, interval))
        if not processes.is_first():
            run.metrics.rewrite(written)
        self.best = [-np.inf] * len(self.program.seeds)
        if saved is not None:
            # The settings of a population change, the seed of a member does not.
            kept = ("seed",) if self.program.exchange is not None else ("seed", *self.config.swept)
            runs = zip(self.config.all_runs(), info["best"], strict=True)
            self.best = [
                run.best(index, {name: own[name] for name in kept}, before) for index, (own, before) in enumerate(runs)
            ]
        self.notices += run.damage
        self.display = ProgressDisplay(
            self.config.num_updates * self.all_steps,
            self.done * self.all_steps,
            self.progress,
            quiet=not processes.is_first(),
        )
        self.clock = _Clock(info)
        self.since_line = (0, 0.0)  # updates and seconds
        self.begun = self.line  # updates at the beginning of the line under way
        self.piece = self.wanted = 1  # updates handed to the device at once, and what this process would take
        lines = run.metrics.read()
        if self.done == self.line and (lines[-1]["updates"] if lines else 0) < self.line:
            self.line = 0  # what it says is still in the record
        tracked = Tracked(
            run.path,
            self.config,
            [{name: own[name] for name in ("seed", *self.config.swept)} for own in self.config.all_runs()],
            lines[-1]["seconds"] if lines else 0.0,
            lambda text: self.display.say(text, always=True),
        )
        self.tracking = tracking.Tracking(self.make_trackers, tracked, lines)

    def train(self) -> Result:
        """Piece after piece of work; the host reads what came of one while the device computes the next."""
        with self.tracking:
            return self._train()

    def _train(self) -> Result:
        resume = f"go on with: qlax resume {self.directory.path}"
        processes.say_if_lost(resume)
        with (
            self.display,
            contextlib.closing(self.runs) as runs,
            memory.out_of_memory(self.program, num_devices=self.program.placement.groups),
            self.stop.listening(self.display.say),
        ):
            try:
                self._say_how()
                runs.compile()
                state = runs.begin(self.saved.state if self.saved else None)
                record = runs.record(self.saved.record if self.saved else self.program.new_record())
            except _AtOnce as stopped:
                raise Stopped(f"stopped before training went on; {resume}", stopped.signal_number) from None
            self.stop.at_once = False
            self.saved = None
            self.clock.spend("compile_seconds")
            if self.config.init is not None and self.done == 0:
                # The weights may not be where they were when it is resumed.
                self._save(0, runs.copy(state), runs.gathered(record))
            state, record = self._loop(state, record)
            if self._is_asked_to_stop() and (self.done < self.config.num_updates or self.line < self.done):
                steps, all_steps = (n * self.config.steps_per_update for n in (self.done, self.config.num_updates))
                message = f"stopped after {steps:,} of {all_steps:,} steps a run"
                raise Stopped(f"{message}; {resume}", self.asked)
            variables = jax.device_get(runs.variables(state))
        return self._finish(variables)

    def _loop(self, state: TrainState, record: Record) -> tuple[TrainState, Record]:
        total, runs = self.config.num_updates, self.runs
        log_interval = self.program.intervals.log
        pending: _Boundary | None = None
        settled = (self.done, state, record, self._seconds())
        self._report_divergence(jax.device_get(runs.gathered(record)))
        if self.line < self.done and self._ends_line(self.done):  # stopped while it was evaluated, or the line was lost
            self._settle(self._boundary(state, record, 0)[0])
        try:
            while self.done < total and not self._is_asked_to_stop() and not all(self.diverged):
                updates = min(log_interval - self.done % log_interval, total - self.done, self.piece)
                state, record = runs.chunk(state, record, updates, self.done == self.begun)
                self.done += updates
                # It reads the state, so it has to be dispatched before the next chunk takes it.
                boundary: _Boundary | None
                boundary, state, record = self._boundary(state, record, updates)
                if runs.asynchronous:
                    pending, boundary = boundary, pending
                if boundary:
                    self._settle(boundary)
                settled = (self.done, state, record, self._seconds())
            if pending and not all(self.diverged):
                self._settle(pending)
        except HostError as error:
            self.done = settled[0]
            self._save(*settled)  # on the host nothing takes its memory, and nothing of the chunk was written
            self.directory.wait()
            resume = f"the state before it is saved; go on with: qlax resume {self.directory.path}"
            raise HostError(f"{error}; {resume}") from error
        self._save(self.done, runs.gathered(state), runs.gathered(record))
        self.directory.wait()
        return state, record

    def _is_asked_to_stop(self) -> bool:
        """Whether anybody was; where there are several processes, what all of them know by now."""
        if self.stop.requests and not processes.are_several():
            self.asked = self.stop.requests[0]
        return bool(self.asked)

    def _boundary(self, state: TrainState, record: Record, piece: int) -> tuple[_Boundary, TrainState, Record]:
        """What is to be read of a piece of work whose end was dispatched just now, and what the next begins with."""
        total, (_, eval_interval, checkpoint_interval) = self.config.num_updates, self.program.intervals
        votes = self.runs.votes(self.stop.requests[0] if self.stop.requests else 0, self.wanted)
        measured = self.runs.gathered(record)
        if not self._ends_line(self.done):
            return _Boundary(self.done, piece, measured, False, None, None, None, None, votes), state, record
        self.begun = self.done
        due = self.done % eval_interval == 0 or self.done == total
        evaluation = self.runs.evaluate(state) if due else None
        variables = self.runs.variables(state) if due else None
        exchange = None
        if evaluation and self.program.exchange and piece:  # where an evaluation is repeated, it was done before
            assert isinstance(self.runs, DeviceRuns)
            state, record, exchange = self.runs.exchange(state, record, evaluation, self.done == total)
        snapshot = None
        if self.done % checkpoint_interval == 0 and self.done < total:
            snapshot = Saved(self.runs.copy(state), self.runs.gathered(record))
        boundary = _Boundary(self.done, piece, measured, True, evaluation, variables, exchange, snapshot, votes)
        return boundary, state, record

    def _ends_line(self, updates: int) -> bool:
        return updates % self.program.intervals.log == 0 or updates == self.config.num_updates

    def _settle(self, boundary: _Boundary) -> None:
        """Wait for a piece of work, and write what came of it."""
        record: Record = jax.device_get(boundary.record)
        seconds = self.clock.spend("train_seconds")
        self.since_line = (self.since_line[0] + boundary.piece, self.since_line[1] + seconds)
        if boundary.piece:
            self.wanted = max(1, min(2 * boundary.piece, int(PIECE_SECONDS * boundary.piece / max(seconds, 1e-9))))
            self.piece = self.wanted
        if processes.are_several():  # the first process's clock counts
            votes = boundary.votes()
            self.asked, self.piece = int(votes[:, 0].max()), int(votes[0, 1])
        self._report_divergence(record)
        if not boundary.ends_line:
            return
        evaluation = boundary.evaluation.wait() if boundary.evaluation else None
        self.clock.spend("eval_seconds")
        if boundary.evaluation and evaluation is None:
            return  # stopped: it is evaluated when the run goes on
        (updates, seconds), self.since_line = self.since_line, (0, 0.0)
        line: dict[str, Any] = {
            "updates": boundary.updates,
            "steps": boundary.updates * self.config.steps_per_update,
            "seconds": round(self.clock.seconds["train_seconds"], 3),
            "steps_per_second": round(updates * self.all_steps / seconds, 1) if updates else None,
            **summary.means(record.sums),
            **summary.evaluated(evaluation, np.asarray(record.diverged) >= 0),
        }
        if boundary.exchange is not None:
            exchange = jax.device_get(boundary.exchange)
            line |= {"parent": exchange.parent, **exchange.settings}
        self.directory.append(line)
        self.tracking.log(line)
        self.line = boundary.updates
        if evaluation is not None:
            settings = {} if boundary.exchange is None else exchange.settings
            self._keep_best(boundary.updates, line["eval_return"], boundary.variables, settings)
        if boundary.snapshot is not None:
            self._save(boundary.updates, *boundary.snapshot)
        speed = line["steps_per_second"] or 0.0
        self.display.show(boundary.updates * self.all_steps, speed, line["episode_return"], line["eval_return"])

    def _keep_best(
        self, updates: int, eval_return: np.ndarray, variables: PyTree, settings: dict[str, np.ndarray]
    ) -> None:
        variables = jax.device_get(variables)
        for index, found in enumerate(eval_return):
            if found > self.best[index]:
                self.best[index] = float(found)
                more = {"updates": updates, "eval_return": float(found)}
                own = {name: six_digits(values[index]) for name, values in settings.items()}  # of a population by now
                self._save_agent("best", index, variables, own | more)

    def _save_agent(self, folder: str, index: int, variables: PyTree, more: dict[str, Any]) -> Agent:
        own = jax.tree.map(lambda x: np.asarray(x[index]), variables)
        agent = Agent(own, {**self.program.agent_info, **self.config.all_runs()[index], **more})
        self.directory.save_agent(folder, index, own, agent.info)
        return agent

    def _seconds(self) -> dict[str, float]:
        """Spent and waited since the run began, interruptions left out."""
        waited = {name: self.waited_before.get(name, 0.0) + value for name, value in self.runs.waited.items()}
        return self.clock.seconds | waited

    def _save(self, updates: int, state: TrainState, record: Record, seconds: dict[str, float] | None = None) -> None:
        info = {
            "updates": updates,
            "line": self.line,
            "config": dataclasses.asdict(self.config),
            "plugins": self.program.plugins,
            "made_with": self.made_with,
            "inexact": self.inexact,
            "best": list(self.best),  # it is written later
        }
        self.directory.save(updates, Saved(state, record), info | (seconds or self._seconds()), self.config.keep)

    def _report_divergence(self, record: Record) -> None:
        """Say which runs are frozen since the last time."""
        reports = []
        for index in np.flatnonzero(np.asarray(record.diverged) < 0):  # a member of a population may be revived
            self.diverged[index] = None
        for index in np.flatnonzero(np.asarray(record.diverged) >= 0):
            if self.diverged[index] is None:
                updates, what = int(record.diverged[index]), measurements.watched()[int(record.cause[index])]
                begun, end = (n * self.config.steps_per_update for n in (updates, updates + 1))
                self.diverged[index] = {"steps": begun, "what": what.key}
                where = f"run {index} of {len(self.names)} ({self.names[index]})"
                when = f"in update {updates + 1}, between {begun:,} and {end:,} steps"
                reports.append(f"{what.key} not finite in {where} {when}: {what.cause}")
        self.why = reports[0] if reports else self.why
        if not all(self.diverged):
            for report in reports:
                self.display.say(f"qlax: {report}; its last good weights are kept, the others go on", always=True)

    def _compare(self, info: dict[str, Any]) -> None:
        """Refuse to go on otherwise than the run was begun, and say what may change the last bits."""
        if info["plugins"] != self.program.plugins:
            raise UserError(
                f"{self.directory.path} was begun with the plugins {info['plugins']}, not {self.program.plugins}"
            )
        there = info["config"]
        for name, value in dataclasses.asdict(self.config).items():
            before = there.get(name)
            before = tuple(before) if isinstance(before, list) else before
            if name not in CHANGEABLE and before != value:
                raise UserError(
                    f"{self.directory.path} was begun with {name}={before}, but its config.json says {value}; "
                    "put it back, or begin anew with: qlax train --config"
                )
        steps = info["updates"] * self.config.steps_per_update
        if info["updates"] > self.config.num_updates:
            raise UserError(
                f"{self.directory.path} has {steps:,} steps a run already, but its config.json says "
                f"total_steps={self.config.total_steps}; expected as many at least"
            )
        news = [
            f"{name} {self.made_with.get(name)} instead of {before}"
            for name, before in info.get("made_with", {}).items()
            if self.made_with.get(name) != before
        ]
        if self.program.on_host:
            news.append("new episodes in all environments, as those on the host cannot be saved")
        if jax.default_backend() == "gpu" and not self.config.deterministic:
            news.append("operations of a GPU that are not deterministic, as --deterministic was not asked for")
        if news:
            self.inexact.append(f"after {steps:,} steps a run: {', '.join(news)}")
            self.notices.append(f"going on {self.inexact[-1]}: not bit for bit what an undisturbed run would have been")
        if there.get("total_steps") != self.config.total_steps:
            progress = info["updates"] / self.config.num_updates
            self.notices.append(
                f"extended from {there.get('total_steps'):,} to {self.config.total_steps:,} steps: learning rate and "
                f"epsilon go on as {100 * progress:.0f} % into a run of that length"
            )

    def _say_how(self) -> None:
        """What is not as one might think."""
        self.display.say(f"run directory {self.directory.path}")
        if str(self.runs):
            is_short = self.runs.num_devices < (self.config.devices or 0)
            self.display.say(f"{len(self.program.seeds)} runs: {self.runs}", always=is_short)
        for notice in self.notices:
            self.display.say(f"qlax: {notice}", always=True)

    def _finish(self, variables: PyTree) -> Result:
        """Weights, learning curve and, last of all, the summary."""
        config, path = self.config, self.directory.path
        arrays = curves(self.directory.metrics.read())
        final = [name for name in config.swept if name in arrays]  # of a population
        settings = [{name: six_digits(arrays[name][-1, index]) for name in final} for index in range(len(self.names))]
        agents = [self._save_agent("agents", index, variables, own) for index, own in enumerate(settings)]
        self.directory.wait()
        found = summary.summarise(
            self.program, arrays, self._seconds(), self.diverged, self.inexact, self.done, self.runs.num_devices
        )
        if all(self.diverged):
            self.directory.write("summary.json", found)
            again = f"begin from them, with other settings: qlax train ... --init {path}"
            raise DivergedError(f"{self.why}; its last good weights are in {path / 'agents'}; {again}")
        if processes.is_first():
            with self.directory.writing():
                self._draw(arrays, found)
        self.directory.write("summary.json", found)
        if self.tracking:
            self.tracking.finish(found, film.best_run_as_gif(path, found, self.display.say))
        return Result(path, config, found, arrays, agents)

    def _draw(self, arrays: dict[str, np.ndarray], found: dict[str, Any]) -> None:
        """The learning curve, and what compares settings."""
        from qlax.reports import pictures, plot, style  # matplotlib takes its time to import

        config, path = self.config, self.directory.path
        title = config.preset or config.env
        history = History(path, config, arrays, found)
        curve = plot.curve_figure([history], y=("eval_return", "episode_return"), title=title)
        style.save(curve, path / "curve.png")
        if fields := config.compared:
            ranking.write(path, config, ranking.rows(config, found), fields)
        if "parent" in arrays:
            seeds = list(range(config.seed, config.seed + config.seeds))
            style.save(pictures.lineage(arrays, config.swept, seeds, title), path / "population.png")


def _named(run: dict[str, Any], config: Config) -> str:
    settings = ", ".join(f"{field}={run[field]:g}" for field in config.swept)
    begun = "begun with " if config.population != "none" else ""
    return ", ".join([f"seed={run['seed']}", *([f"{begun}{settings}"] if settings else [])])


def _made_with(config: Config, num_devices: int) -> dict[str, Any]:
    """What the last bits of a run depend on beside its configuration."""
    device = jax.local_devices()[0]
    found = {
        "qlax": __version__,
        "device": _processor() if device.platform == "cpu" else device.device_kind,
        "num_devices": num_devices,
    }
    for package in ("jax", "jaxlib", "flax", "optax", "numpy", config.env.partition("/")[0]):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _processor() -> str:
    """For which XLA compiles, where the system tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class _AtOnce(BaseException):
    """A request to stop that came while there was nothing to save."""

    def __init__(self, signal_number: int):
        super().__init__(signal_number)
        self.signal_number = signal_number


class _Stop:
    """Requests to stop, by Ctrl-C or SIGTERM.

    Attributes:
      requests: the signals that came.
      at_once: whether there is nothing to save yet, so that a request interrupts whatever is done.
    """

    def __init__(self) -> None:
        self.requests: list[int] = []
        self.at_once = not processes.are_several()  # all have to stop at the same point

    @contextmanager
    def listening(self, say: Callable[[str], None]) -> Iterator[None]:
        """Within it requests are heard; a second Ctrl-C stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, _: Any) -> None:
            self.requests.append(number)
            if self.at_once:
                raise _AtOnce(number)
            say("stopping after the work in hand; Ctrl-C again stops at once, without a checkpoint")
            signal.signal(signal.SIGINT, signal.default_int_handler)

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
