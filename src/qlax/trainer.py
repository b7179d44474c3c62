"""Training runs: chunks of updates on the device; log, evaluate, save and resume between them."""

import contextlib
import json
import math
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import platformdirs

from qlax import checkpoint, pqn
from qlax.agent import Agent
from qlax.config import Config, configure, from_file
from qlax.errors import UserError
from qlax.host import HostError
from qlax.log import MetricsFile, ProgressDisplay, curves
from qlax.placement import use_cores
from qlax.program import Program
from qlax.runs import DeviceRuns, Evaluation, HostRuns

KEPT_CHECKPOINTS = 2
# What every evaluation measures, and its name in metrics.jsonl; an environment's own metrics get the prefix alone.
EVALUATED = {"episode_return": "eval_return", "episode_length": "eval_length", "cut": "eval_cut"}


class Stopped(KeyboardInterrupt):
    """Training was interrupted and a checkpoint saved; the message says how to go on."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


class DivergedError(RuntimeError):
    """A loss, gradient or value was not finite; the message says where, and what is left."""


@dataclass(frozen=True)
class Result:
    """What a training run leaves behind.

    Attributes:
      directory: of the run.
      config: every choice made.
      summary: what `summary.json` holds.
      curves: the lines of `metrics.jsonl` as arrays: `steps [lines]`, `eval_return [lines, R]`, nan without a value.
      agents: one a run, in the order of `config.runs()`.
    """

    directory: Path
    config: Config
    summary: dict[str, Any]
    curves: dict[str, np.ndarray]
    agents: list[Agent]


def train(
    target: str | Config,
    *,
    out: Path | str | None = None,
    progress: bool | None = None,
    compilation_cache: bool = True,
    plugins: dict[str, Any] | None = None,
    **overrides: Any,
) -> Result:
    """Train runs in one program, and write all about them to a directory.

    Several runs on a CPU get a core each, or take turns on it, if this is the first use of JAX in the process: JAX
    then counts every core as a device.

    Args:
      target: a preset such as "cartpole", an environment as "suite/name" or "module:Name", or a whole `Config`.
      out: the directory; None: a new one under `runs/`.
      progress: whether to show it on the terminal; None: if there is one.
      compilation_cache: keep compiled programs in the user's cache directory, for the next time.
      plugins: `optimizer`, `explore`, `loss`, `returns` or `mixing`, as `qlax.pqn.make` takes them.
      overrides: fields of `Config`; several values of a sweepable one make as many settings.

    Raises:
      UserError: something asked for cannot be; nothing was written.
      Stopped: interrupted by Ctrl-C or SIGTERM, after a checkpoint.
      DivergedError: a number was not finite.
      HostError: environments on the host crashed or hang; after a checkpoint, if training had begun.
    """
    if compilation_cache:
        _enable_compilation_cache()
    config = configure(target, **overrides)
    use_cores()
    program = Program(config, plugins or {})
    directory = _new_directory(out, config)
    (directory / "config.json").write_text(program.config.to_json())
    return _Session(program, directory, None, progress).train()


def resume(
    directory: Path | str,
    *,
    progress: bool | None = None,
    compilation_cache: bool = True,
    plugins: dict[str, Any] | None = None,
) -> Result:
    """Go on with an interrupted run: on as many devices to the same numbers bit for bit as if it had not been.

    Args:
      directory: of the run.
      progress: as in `train`.
      compilation_cache: as in `train`.
      plugins: the same as the run was begun with.

    Raises:
      UserError: there is no such run, it is finished, or it was begun otherwise.
    """
    if compilation_cache:
        _enable_compilation_cache()
    directory = Path(directory)
    if not (directory / "config.json").exists():
        raise UserError(f"{directory} holds no run: there is no config.json")
    if (directory / "summary.json").exists():
        raise UserError(f"{directory} holds a finished run; there is nothing to resume")
    config = from_file(directory / "config.json")
    use_cores()
    program = Program(config, plugins or {})
    newest = checkpoint.latest(directory / "checkpoints")
    return _Session(program, directory, newest, progress).train()


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
    """What was dispatched at the end of a chunk, to be read while the next one is computed."""

    updates: int  # done
    chunk_updates: int
    metrics: dict[str, pqn.Mean]
    evaluation: Evaluation | None
    snapshot: pqn.TrainState | None


class _Session:
    """One process's part of a run: from the beginning, or from a checkpoint, to the end or an interruption."""

    def __init__(self, program: Program, directory: Path, newest: Path | None, progress: bool | None):
        self.program, self.config, self.directory = program, program.config, directory
        info: dict[str, Any] = {"updates": 0, "plugins": program.plugins}
        self.restored: pqn.TrainState | None = None
        if newest is not None:
            info, self.restored = checkpoint.read_info(newest), checkpoint.restore(newest, program.shapes)
        if info["plugins"] != program.plugins:
            raise UserError(f"{directory} was begun with the plugins {info['plugins']}, not {program.plugins}")
        self.done: int = info["updates"]
        self.runs = HostRuns(program) if program.on_host else DeviceRuns(program)
        self.devices_before: int = info.get("num_devices", self.runs.num_devices)
        self.waited_before = {name: seconds for name, seconds in info.items() if name.startswith("waited_")}
        self.metrics_file = MetricsFile(directory / "metrics.jsonl")
        self.metrics_file.keep(self.done)
        self.all_steps = self.config.steps_per_update * len(program.seeds)  # of one update of all runs
        self.display = ProgressDisplay(self.config.num_updates * self.all_steps, self.done * self.all_steps, progress)
        self.clock = _Clock(info)

    def train(self) -> Result:
        """Chunk after chunk; the host reads what came of one while the device computes the next."""
        total = self.config.num_updates
        log_interval, eval_interval, checkpoint_interval = self.program.intervals
        with self.display, contextlib.closing(self.runs) as runs, _stop_requests(self.display.say) as stop:
            self.display.say(f"run directory {self.directory}")
            runs.compile()
            self._say_how()
            state = runs.begin(self.restored)
            self.restored = None
            self.clock.spend("compile_seconds")
            pending: _Boundary | None = None
            settled = (self.done, state, self._seconds())
            try:
                while self.done < total and not stop:
                    updates = min(log_interval - self.done % log_interval, total - self.done)
                    state, metrics = runs.chunk(state, updates)
                    self.done += updates
                    # Both read the state, so they have to be dispatched before the next chunk takes it.
                    due = self.done % eval_interval == 0 or self.done == total
                    evaluation = runs.evaluate(state) if due else None
                    snapshot = runs.copy(state) if self.done % checkpoint_interval == 0 and self.done < total else None
                    boundary: _Boundary | None = _Boundary(self.done, updates, metrics, evaluation, snapshot)
                    if runs.asynchronous:
                        pending, boundary = boundary, pending
                    if boundary:
                        self._settle(boundary)
                    settled = (self.done, state, self._seconds())
                if pending:
                    self._settle(pending)
            except HostError as error:
                self._save(*settled)  # on the host nothing takes its memory, and nothing of the chunk was written
                resume = f"the state before it is saved; go on with: qlax resume {self.directory}"
                raise HostError(f"{error}; {resume}") from error
            self._save(self.done, state, self._seconds())
            if self.done < total:
                steps, all_steps = (updates * self.config.steps_per_update for updates in (self.done, total))
                message = f"stopped after {steps:,} of {all_steps:,} steps a run"
                raise Stopped(f"{message}; go on with: qlax resume {self.directory}", stop[0])
        return self._finish(state)

    def _say_how(self) -> None:
        """What is not as one might think: where the runs are, and what will differ from an undisturbed one."""
        runs = self.runs
        if str(runs):
            self.display.say(f"{len(self.program.seeds)} runs: {runs}")
        if self.devices_before != runs.num_devices:
            before, now = self.devices_before, runs.num_devices
            self.display.say(f"begun on {before} devices, going on with {now}: the last bits may differ")
        if self.restored is not None and self.program.on_host:
            self.display.say("environments on the host cannot be saved: new episodes begin in all of them")

    def _settle(self, boundary: _Boundary) -> None:
        """Wait for the chunk, and write what came of it; its checkpoint counts once its metrics were finite."""
        sums = jax.device_get(boundary.metrics)
        seconds = self.clock.spend("train_seconds")
        evaluation = boundary.evaluation() if boundary.evaluation else None
        self.clock.spend("eval_seconds")
        line: dict[str, Any] = {
            "updates": boundary.updates,
            "steps": boundary.updates * self.config.steps_per_update,
            "seconds": round(self.clock.seconds["train_seconds"], 3),
            "steps_per_second": round(boundary.chunk_updates * self.all_steps / seconds, 1),
            **_means(sums),
            **_evaluated(evaluation, len(self.program.seeds)),
        }
        self.metrics_file.append(line)
        self._check_finite(sums, line["steps"], boundary.chunk_updates)
        if boundary.snapshot is not None:
            self._save(boundary.updates, boundary.snapshot, self._seconds())
        done, speed = boundary.updates * self.all_steps, line["steps_per_second"]
        self.display.show(done, speed, line["episode_return"], line["eval_return"])

    def _seconds(self) -> dict[str, float]:
        """Spent and waited since the run began, interruptions left out."""
        waited = {name: self.waited_before.get(name, 0.0) + value for name, value in self.runs.waited.items()}
        return self.clock.seconds | waited

    def _save(self, updates: int, state: pqn.TrainState, seconds: dict[str, float]) -> None:
        folder = self.directory / "checkpoints"
        folder.mkdir(exist_ok=True)
        info = {"updates": updates, "plugins": self.program.plugins, "jax_version": jax.__version__}
        info["num_devices"] = self.runs.num_devices
        checkpoint.save(folder / f"{updates:010d}{checkpoint.SUFFIX}", state, info | seconds)
        for old in sorted(folder.glob(f"*{checkpoint.SUFFIX}"))[:-KEPT_CHECKPOINTS]:
            old.unlink()

    def _check_finite(self, sums: dict[str, pqn.Mean], steps: int, chunk_updates: int) -> None:
        for name in ("loss", "grad_norm", "value"):
            for index in np.flatnonzero(~np.isfinite(sums[name].total)):
                run = self.config.runs()[index]
                which = ", ".join(f"{field}={run[field]:g}" for field in ("seed", *self.config.swept))
                begun = steps - chunk_updates * self.config.steps_per_update
                kept = checkpoint.latest(self.directory / "checkpoints")
                raise DivergedError(
                    f"{name} is not finite in run {index} ({which}) between {begun:,} and {steps:,} steps; "
                    f"last good checkpoint: {kept or 'none'}; try a lower learning_rate or max_grad_norm, or norm=layer"
                )

    def _finish(self, state: pqn.TrainState) -> Result:
        """Weights, learning curve and, last of all, the summary."""
        config, runs = self.config, self.config.runs()
        (self.directory / "agents").mkdir(exist_ok=True)
        weights = jax.device_get({"params": state.params, **state.stats})
        agents = []
        for index, run in enumerate(runs):
            variables = jax.tree.map(lambda x, index=index: x[index], weights)
            agents.append(Agent(variables, {**self.program.agent_info, **run}))
            agents[-1].save(self.directory / "agents" / f"{index}{checkpoint.SUFFIX}")
        from qlax.plot import learning_curve  # not before the run: matplotlib takes its time to import

        arrays = curves(self.metrics_file.read())
        title = config.preset or config.env
        learning_curve(self.directory / "curve.png", arrays, self.program.labels, title)
        summary = self._summary(arrays)
        aside = self.directory / "summary.partial"
        aside.write_text(json.dumps(summary, indent=2) + "\n")
        aside.replace(self.directory / "summary.json")
        return Result(self.directory, config, summary, arrays, agents)

    def _summary(self, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
        config, runs, seconds = self.config, self.config.runs(), self._seconds()
        late = arrays["updates"] > 0.9 * config.num_updates
        episodes = arrays["episodes"][late]
        with np.errstate(invalid="ignore"):
            train_return = np.nansum(arrays["episode_return"][late] * episodes, axis=0) / episodes.sum(axis=0)
        returns = {"train_return": train_return, "eval_return": arrays["eval_return"][-1]}
        if self.program.score:
            returns["eval_score"] = np.array([self.program.score(x) for x in returns["eval_return"]])
        own = [name for name in arrays if name.startswith("eval_") and name not in EVALUATED.values()]
        returns |= {name: arrays[name][-1] for name in own}
        device = jax.devices()[0]
        return {
            "env": config.env,
            "preset": config.preset,
            "seeds": [run["seed"] for run in runs],
            "settings": {name: [run[name] for run in runs] for name in config.swept},
            "network": self.program.description,
            "total_steps": config.num_updates * config.steps_per_update,
            "updates": config.num_updates,
            "device": f"{device.platform}: {device.device_kind}",
            "jax_version": jax.__version__,
            **{name: round(value, 3) for name, value in seconds.items()},
            "steps_per_second": round(config.num_updates * self.all_steps / seconds["train_seconds"], 1),
            **{name: _mean_and_runs(values) for name, values in returns.items()},
            "eval_episodes": config.eval_episodes,
            "eval_cut": arrays["eval_cut"][-1].tolist(),
        }


def _mean_and_runs(values: np.ndarray) -> dict[str, Any]:
    per_run = [float(x) if math.isfinite(x) else None for x in values]
    known = [x for x in per_run if x is not None]
    return {"mean": sum(known) / len(known) if known else None, "per_run": per_run}


def _means(sums: dict[str, pqn.Mean]) -> dict[str, np.ndarray]:
    """The metrics of a chunk `[R]`; nan where nothing was counted."""
    with np.errstate(invalid="ignore"):
        means = {name: np.asarray(total) / weight for name, (total, weight) in sums.items()}
    return {"episodes": np.asarray(sums["episode_return"].weight)} | means


def _evaluated(evaluation: dict[str, np.ndarray] | None, runs: int) -> dict[str, np.ndarray]:
    """Means over the episodes of an evaluation `[R]`; nan without one."""
    if evaluation is None:
        return {name: np.full(runs, np.nan) for name in EVALUATED.values()}
    with np.errstate(invalid="ignore"):  # an environment's own metric may have no value in any episode
        means = {name: np.nansum(x, axis=1) / (~np.isnan(x)).sum(axis=1) for name, x in evaluation.items()}
    return {EVALUATED.get(name, f"eval_{name}"): mean for name, mean in means.items()}


def _enable_compilation_cache() -> None:
    """Keep compiled programs in the user's cache directory, unless JAX was told of another place."""
    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(platformdirs.user_cache_path("qlax") / "jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _new_directory(out: Path | str | None, config: Config) -> Path:
    """An empty directory that was not there before, or was empty."""
    try:
        return _claimed(out, config)
    except OSError as error:
        raise UserError(f"cannot make the directory {error.filename}: {error.strerror}") from error


def _claimed(out: Path | str | None, config: Config) -> Path:
    if out is not None:
        directory = Path(out)
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            what = "already holds a run" if (directory / "config.json").exists() else "exists and is not empty"
            raise UserError(f"{directory} {what}; name another directory with --out, or resume a run with: qlax resume")
        directory.mkdir(parents=True, exist_ok=True)
        return directory
    name = re.sub(r"[^a-z0-9]+", "-", (config.preset or config.env).lower()).strip("-")
    Path("runs").mkdir(exist_ok=True)
    for number in range(1, 1_000_000):
        directory = Path("runs") / f"{name}-{number}"
        try:
            directory.mkdir()
        except FileExistsError:
            continue
        return directory
    raise UserError("runs/ is full")


@contextmanager
def _stop_requests(say: Callable[[str], None]) -> Iterator[list[int]]:
    """A list that is empty until Ctrl-C or SIGTERM asks to stop; a second Ctrl-C stops at once."""
    requests: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return

    def ask(number: int, _: Any) -> None:
        requests.append(number)
        say("stopping after the work in hand; Ctrl-C again stops at once, without a checkpoint")
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
