"""The training loop: it hands chunks of updates to the device, and logs, evaluates and saves between them."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from qlax.errors import HostError, RunError, Stopped, callback_in_words
from qlax.playing.evaluation import distinct
from qlax.pqn import Mean, TrainState
from qlax.storage import measurements
from qlax.storage.directory import RunDirectory
from qlax.trackers.tracking import Tracking
from qlax.training import processes
from qlax.training.budget import Budget
from qlax.training.callbacks import Callbacks
from qlax.training.device_runs import DeviceRuns, Evaluation
from qlax.training.display import NotebookDisplay, ProgressDisplay
from qlax.training.guard import Divergence, Record
from qlax.training.host_runs import HostRuns
from qlax.training.plan import Plan
from qlax.training.population import Exchange
from qlax.training.stop import Stop
from qlax.training.weights import Best
from qlax.types import PyTree

CHUNK_SECONDS = 1.0  # of work in one chunk, so that a request to stop is answered soon


class Saved(NamedTuple):
    """Contents of a checkpoint."""

    state: TrainState  # [R, ...]
    record: Record  # [R, ...]


class _Boundary(NamedTuple):
    """Results at the end of a chunk, dispatched with it and read while the device computes the next one."""

    updates: int  # since the beginning of the run
    chunk: int  # updates of this chunk
    record: Record
    ends_line: bool
    votes: Callable[[], np.ndarray]  # [processes, 2]: signal that asked to stop or 0, preferred updates of a chunk
    evaluation: Evaluation | None = None
    variables: PyTree | None = None  # variables of the network that was evaluated
    columns: dict[str, jax.Array] | None = None  # what a population adds to the line of metrics
    snapshot: Saved | None = None  # contents of the checkpoint that is due


class Clock:
    """Seconds spent on compilation, training and evaluation, one after the other, and seconds of waiting within them.

    Args:
      info: Description in the checkpoint from which training continues; empty for a new run.
      waited: Function that returns the seconds of waiting since then, by name.

    Attributes:
      spent: Seconds of each activity, by name.
    """

    def __init__(self, info: dict[str, Any], waited: Callable[[], dict[str, float]]):
        self.spent = {name: info.get(name, 0.0) for name in ("compile_seconds", "train_seconds", "eval_seconds")}
        self._before = {name: seconds for name, seconds in info.items() if name.startswith("waited_")}
        self._waited = waited
        self._last = time.perf_counter()

    def spend(self, name: str) -> float:
        """Add the seconds since the last call to those of an activity, and return them."""
        now = time.perf_counter()
        elapsed, self._last = now - self._last, now
        self.spent[name] += elapsed
        return elapsed

    def seconds(self) -> dict[str, float]:
        """Return the seconds spent and the seconds waited, by name."""
        return self.spent | {name: self._before.get(name, 0.0) + value for name, value in self._waited().items()}


@dataclass
class Loop:
    """Training in one process, from the beginning or a checkpoint to the end or an interruption.

    Attributes:
      plan: Plan of the run.
      runs: Agents on the device or on the host, which compute chunks and evaluations.
      after_evaluation: Exchange within populations, called after every evaluation; None without populations.
      directory: Run directory.
      tracking: Trackers that receive every line of metrics.
      display: Progress on the terminal or in a notebook.
      stop: Requests to stop by a signal.
      clock: Seconds spent so far.
      divergence: Agents that diverged.
      budget: Decides which evaluations are played.
      best: Weights of the best evaluations.
      callbacks: Callbacks that may end training.
      about: Description that every checkpoint repeats.
      done: Number of updates handed to the device.
      line: Number of updates at the end of the last line of metrics.
      begun: Number of updates at the beginning of the line in progress.
      since: Updates and seconds of training when the last line was written, or when the loop began.
      chunk: Number of updates of the next chunk.
      preferred: Number of updates of a chunk that this process would choose.
      at_end: Metrics and explored settings `[R]` of agents that a callback ended, where the last line has others.
    """

    plan: Plan
    runs: DeviceRuns | HostRuns
    after_evaluation: Exchange | None
    directory: RunDirectory
    tracking: Tracking
    display: ProgressDisplay | NotebookDisplay
    stop: Stop
    clock: Clock
    divergence: Divergence
    budget: Budget
    best: Best
    callbacks: Callbacks
    about: dict[str, Any]
    done: int
    line: int
    begun: int
    since: tuple[int, float]
    chunk: int = 1
    preferred: int = 1
    at_end: dict[str, np.ndarray] = field(default_factory=dict)

    def train(self, state: TrainState, record: Record) -> TrainState:
        """Train chunk after chunk; the host reads the measurements of one while the device computes the next.

        A callback decides before the next chunk begins, so that the weights are those of the line it has seen.

        Args:
          state: State of the agents, `[R, ...]`; its memory is reused.
          record: Measurements so far, `[R, ...]`.

        Raises:
          Stopped: A signal asked to stop; a checkpoint was saved.
          HostError: Environments on the host crashed or hang; the state before was saved.
          RunError: A Python callback in an environment in JAX failed; the last checkpoint remains.
          Exception: Whatever the user's callback raised; a checkpoint was saved.
        """
        runs, config, gathered = self.runs, self.plan.config, self.plan.placement.gathered
        total, log_interval = config.num_updates, config.log_interval or 1  # the plan's settings have it derived
        resume = f"go on with: qlax resume {self.directory.path}"
        if config.init is not None and self.done == 0:  # the file of initial weights may be gone on resuming
            self._save(0, runs.copy(state), gathered(record))
        self._report(jax.device_get(gathered(record)))
        pending: deque[_Boundary] = deque()
        settled = (self.done, state, record, self.clock.seconds())
        try:
            # The run was interrupted during an evaluation, or its last line was lost.
            if self.line < self.done and self._is_due(log_interval):
                self._settle(self._boundary(state, record, 0)[0])
            while self.done < total and not self._is_over:
                updates = min(log_interval - self.done % log_interval, total - self.done, self.chunk)
                state, record = runs.chunk(state, record, updates, self.done == self.begun)
                self.done += updates
                if self._is_due(config.eval_interval):  # the budget needs the evaluation before
                    while pending:
                        self._settle(pending.popleft())
                # Evaluations read the state, so they are dispatched before the next chunk reuses its memory.
                boundary, state, record = self._boundary(state, record, updates)
                pending.append(boundary)
                waits = not runs.asynchronous or (boundary.ends_line and self.callbacks)
                while len(pending) > (0 if waits else 1):
                    self._settle(pending.popleft())
                settled = (self.done, state, record, self.clock.seconds())
            while pending and not self.divergence.of_all:
                self._settle(pending.popleft())
        except HostError as error:
            self._save(*settled)  # on the host, chunks do not reuse the memory of the state before
            self.directory.wait()
            raise HostError(f"{error}; the state before this chunk of training is saved; {resume}") from error
        except jax.errors.JaxRuntimeError as error:
            if not (failure := callback_in_words(error)):
                raise
            self.directory.wait()
            raise RunError(f"a Python callback of {config.env} failed: {failure}; fix it, then {resume}") from error
        self._save(self.done, gathered(state), gathered(record))
        self.directory.wait()
        if self.callbacks.failure is not None:
            self.callbacks.failure.add_note(f"qlax: a checkpoint was saved; {resume}")
            raise self.callbacks.failure
        if self.callbacks.reason and not self.divergence.of_all:
            self._evaluate_end(state, record)
        elif self.stop.asked and (self.done < total or self.line < self.done):
            steps, all_steps = (n * config.steps_per_update for n in (self.done, total))
            raise Stopped(f"stopped after {steps:,} of {all_steps:,} steps; {resume}", self.stop.asked)
        return state

    @property
    def _is_over(self) -> bool:
        """True if training has to end now, before its planned length."""
        return bool(self.stop.asked) or self.divergence.of_all or self.callbacks.asks_to_end

    def _evaluate_end(self, state: TrainState, record: Record) -> None:
        """Evaluate the agents that a callback ended, unless the last line of metrics is about the same weights."""
        if self.done in self.budget.steps and not self.after_evaluation:
            return
        gathered, names = self.plan.placement.gathered, self.plan.config.swept if self.after_evaluation else ()
        evaluation = self.runs.evaluate(state).wait()
        record, hyper = jax.device_get((gathered(record), gathered(state.hyper)))
        self.at_end = {name: getattr(hyper, name) for name in names}
        if evaluation is not None:
            self.at_end |= _evaluated(evaluation, record.diverged >= 0)
        self.clock.spend("eval_seconds")

    def _is_due(self, interval: Any) -> bool:
        """Return whether an action is due that happens every `interval` updates, and at the end of training."""
        return self.done % interval == 0 or self.done == self.plan.config.num_updates

    def _boundary(self, state: TrainState, record: Record, chunk: int) -> tuple[_Boundary, TrainState, Record]:
        """Dispatch the results of the last chunk; return them with the state and record that the next begins with."""
        runs, placement, config = self.runs, self.plan.placement, self.plan.config
        is_last = self.done == config.num_updates
        gathered, votes = placement.gathered, placement.votes(self.stop.request, self.preferred)
        boundary = _Boundary(self.done, chunk, gathered(record), self._is_due(config.log_interval), votes)
        if not boundary.ends_line:
            return boundary, state, record
        self.begun = self.done
        if is_last or (self._is_due(config.eval_interval) and self.budget.allows(self.done)):
            evaluation = runs.evaluate(state)
            boundary = boundary._replace(evaluation=evaluation, variables=runs.variables(state))
            if self.after_evaluation and chunk:  # a repeated evaluation follows an exchange that was made before
                state, record, columns = self.after_evaluation(state, record, evaluation.returns, is_last)
                boundary = boundary._replace(columns=columns)
        if self._is_due(config.checkpoint_interval) and not is_last:
            boundary = boundary._replace(snapshot=Saved(runs.copy(state), gathered(record)))
        return boundary, state, record

    def _settle(self, boundary: _Boundary) -> None:
        """Wait for a chunk, and write its results."""
        record: Record = jax.device_get(boundary.record)
        seconds = self.clock.spend("train_seconds")
        if done := boundary.chunk:
            self.preferred = self.chunk = max(1, min(2 * done, int(CHUNK_SECONDS * done / max(seconds, 1e-9))))
        if processes.are_several():  # all take the chunk that the first process prefers
            votes = boundary.votes()
            self.stop.agreed, self.chunk = int(votes[:, 0].max()), int(votes[0, 1])
        self._report(record)
        if not boundary.ends_line:
            return
        evaluation = boundary.evaluation.wait() if boundary.evaluation else None
        self.clock.spend("eval_seconds")
        if boundary.evaluation and evaluation is None:
            return  # a signal ended the evaluation; it is repeated when the run is resumed
        self._write(boundary, record, evaluation)

    def _write(self, boundary: _Boundary, record: Record, evaluation: dict[str, np.ndarray] | None) -> None:
        """Write and show a line of metrics, and save the best weights and the checkpoint that is due."""
        config, (before, seconds_before) = self.plan.config, self.since
        seconds = self.clock.spent["train_seconds"]
        steps = (boundary.updates - before) * config.steps_per_update * config.num_members
        line: dict[str, Any] = {
            "updates": boundary.updates,
            "steps": boundary.updates * config.steps_per_update,
            "seconds": round(seconds, 3),
            "steps_per_second": round(steps / (seconds - seconds_before), 1) if steps else None,
            **_means(record.sums),
            **_evaluated(evaluation, np.asarray(record.diverged) >= 0),
            **(jax.device_get(boundary.columns) or {}),
        }
        self.directory.append(line)
        self.tracking.log(line)
        self.line, self.since = boundary.updates, (boundary.updates, seconds)
        self.budget.see(line["episode_length"])
        if evaluation is not None:
            self.budget.add(boundary.updates, evaluation["episode_length"])
            self.best.keep(boundary.variables, line)
        if boundary.snapshot is not None:
            self._save(boundary.updates, *boundary.snapshot)
        done = boundary.updates * config.steps_per_update * config.num_members
        self.display.show(done, line["steps_per_second"] or 0.0, line["episode_return"], line["eval_return"])
        self.callbacks.call(line)

    def _save(self, updates: int, state: TrainState, record: Record, seconds: dict[str, float] | None = None) -> None:
        so_far = {
            "updates": updates,
            "line": self.line,
            "best": list(self.best.returns),
            "evaluations": dict(self.budget.steps),
        }  # copied, as the writer reads them later
        info = self.about | so_far | (seconds or self.clock.seconds())
        self.directory.save(updates, Saved(state, record), info, self.plan.config.keep)

    def _report(self, record: Record) -> None:
        """Report agents that diverged since the last report; if none is left, an error reports them instead."""
        reports = self.divergence.update(record)
        if not self.divergence.of_all:
            for report in reports:
                self.display.say(
                    f"qlax: {report}; its last finite weights are kept, the other agents go on", always=True
                )


def _means(sums: dict[str, Mean]) -> dict[str, np.ndarray]:
    """Return the mean of every measurement over the updates of a line, `[R]`; nan where nothing was counted."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found = {name: np.asarray(total) / weight for name, (total, weight) in sums.items()}
    return {"episodes": np.asarray(sums["episode_return"].weight)} | found


def _evaluated(evaluation: dict[str, np.ndarray] | None, frozen: np.ndarray) -> dict[str, np.ndarray]:
    """Return means over the episodes of an evaluation, `[R]`; nan without an evaluation and for frozen agents."""
    keys = measurements.evaluated()
    if evaluation is None:
        return {key: np.full(len(frozen), np.nan) for key in keys.values()}
    measured = {name: x for name, x in evaluation.items() if name != "fingerprint"}
    with np.errstate(invalid="ignore"):  # a metric of the environment may have no value in any episode
        found = {name: np.nansum(x, axis=1) / (~np.isnan(x)).sum(axis=1) for name, x in measured.items()}
    found["distinct"] = distinct(evaluation["fingerprint"])
    return {keys.get(name, f"eval_{name}"): np.where(frozen, np.nan, mean) for name, mean in found.items()}
