"""Training runs: started, resumed and extended."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Unpack

import jax
import numpy as np
import platformdirs

from qlax.agents.zoo import located
from qlax.config.configure import Overrides, configure
from qlax.config.settings import FIELDS, Config, checked
from qlax.errors import UserError
from qlax.learning.mixing import Mixing
from qlax.storage import checkpoint, directory, paths
from qlax.switches import usual_switches
from qlax.trackers import tracking
from qlax.trackers.base import MakeTracker, Tracked
from qlax.training import compare, memory, population, processes, weights
from qlax.training.budget import Budget
from qlax.training.callbacks import Callback, Callbacks
from qlax.training.device_runs import DeviceRuns
from qlax.training.display import Progressing, display_of
from qlax.training.guard import Divergence
from qlax.training.host_runs import HostRuns
from qlax.training.loop import Clock, Loop, Saved
from qlax.training.placement import use_cores
from qlax.training.plan import Plan, contract, make
from qlax.training.result import Result, finish
from qlax.training.stop import Stop
from qlax.types import Explore, Loss, Optimizer, Returns


def train(
    target: str | Config,
    *,
    out: Path | str | None = None,
    callback: Callback | None = None,
    explore: Explore | None = None,
    loss: Loss | None = None,
    returns: Returns | None = None,
    progress: Progressing = None,
    compilation_cache: bool = True,
    **settings: Unpack[Overrides],
) -> Result:
    """Train agents in one program, and write everything about them to a directory.

    On a CPU, several agents share the cores if this is the first use of JAX in the process: JAX then counts every core
    as a device.

    Args:
      target: A preset such as "cartpole", an environment as "suite/name" or "module:Name", or a whole `qlax.Config`.
      out: Directory of the run, new or empty; None: a new one under `runs/`.
      callback: Function that is called with every line of metrics, as `metrics.jsonl` has it: a dictionary with
        numbers such as `steps`, and float arrays `[R]` over the R agents such as `eval_return`, which is nan on lines
        without an evaluation. It returns True to end training; False or None to go on. `log_interval` and
        `eval_interval` set how often there are lines and evaluations; by default a short run has few of both, and the
        last update always has one. A run that a callback ended is complete, and `qlax.resume` goes on to its planned
        length. An exception it raises ends training after a checkpoint was saved.
      explore: Function of `(key, q, legal, epsilon)` that returns actions, see `qlax.pqn.make`.
      loss: Function of the error `target - q`, see `qlax.pqn.make`.
      returns: Targets in place of `qlax.q_lambda`, see `qlax.pqn.make`.
      progress: Whether to show progress; None to show it only on a terminal. "live" also draws the learning curves
        there, as a notebook always does.
      compilation_cache: Whether to keep compiled programs in the user's cache directory for the next time.
      settings: Fields of `qlax.Config` that replace those of the target. If fields that can be swept have several
        values, all combinations train side by side. `mixing` may also be a `qlax.Mixing`, and `optimizer` a function of
        `(hyper, num_gradient_steps)` that returns an Optax transformation, see `qlax.pqn.make`.

    Returns:
      The finished run: its directory, summary, learning curves and agents.

    Raises:
      UserError: A setting is invalid, or the run does not fit into memory; nothing was written.
      Stopped: Ctrl-C or SIGTERM interrupted training, after a checkpoint or before anything was written.
      DivergedError: Every agent diverged, as one of its numbers was not finite. As long as other agents are left, an
        agent that diverges is frozen with its last finite weights, and named in the summary.
      HostError: Environments on the host crashed or hang; if training had begun, a checkpoint was saved.
      RunError: The disk is full, or memory ran out; what was saved before is still there.

    Example:
      ```python
      result = qlax.train("cartpole-fast", seeds=2, total_steps=100_000, until=475)
      print(result.summary["eval_return"]["mean"])

      returns = []

      def no_longer_improves(line):  # ends a run whose last three evaluations were no better than the one before
          if not np.isnan(line["eval_return"]).all():
              returns.append(np.nanmean(line["eval_return"]))
          return len(returns) > 3 and max(returns[-3:]) <= returns[-4]

      qlax.train(
          "cartpole-fast", total_steps=200_000, callback=no_longer_improves, log_interval=4, eval_interval=4
      )
      ```
    """
    own = {name: settings.pop(name) for name in ("optimizer", "mixing") if not isinstance(settings.get(name, ""), str)}  # type: ignore[misc]
    plugins = _given(explore=explore, loss=loss, returns=returns) | own
    if isinstance(settings.get("init"), Path):
        settings["init"] = str(settings["init"])
    config = configure(target, **settings)
    if config.init is not None:
        config = dataclasses.replace(config, init=str(located(config.init).resolve()))
    with _together(compilation_cache):
        plan = _plan(config, plugins)
        processes.from_first(lambda: paths.check_free(out))
        callbacks = Callbacks(config, callback)
        return _launch(plan, callbacks, progress, lambda: _opened(lambda: directory.claim(out, plan.config)))


def resume(
    path: Path | str,
    *,
    until: float | None = None,
    minutes: float | None = None,
    callback: Callback | None = None,
    optimizer: Optimizer | None = None,
    explore: Explore | None = None,
    loss: Loss | None = None,
    returns: Returns | None = None,
    mixing: Mixing | None = None,
    progress: Progressing = None,
    compilation_cache: bool = True,
) -> Result:
    """Continue an interrupted run, or one that a callback ended, to its planned length.

    With the same versions and devices the numbers are the same bit for bit as without the interruption. Whatever
    differs, so that the last bits may differ too, is printed, and kept in the summary as `inexact`.

    Args:
      path: Directory of the run.
      until: As in `train`; None for the setting of the run, unless it ended the run.
      minutes: As in `train`; None for the setting of the run, unless it ended the run.
      callback: As in `train`.
      optimizer: As in `train`, and the same as when the run was begun.
      explore: As in `train`, and the same as when the run was begun.
      loss: As in `train`, and the same as when the run was begun.
      returns: As in `train`, and the same as when the run was begun.
      mixing: The `qlax.Mixing` with which the run was begun; None if it was begun without one.
      progress: As in `train`.
      compilation_cache: As in `train`.

    Returns:
      The finished run.

    Raises:
      UserError: There is no such run, it has its planned length already, is in use, or was begun with other settings.
      Stopped: As in `train`.
      DivergedError: As in `train`.
      HostError: As in `train`.
      RunError: As in `train`.

    Example:
      ```python
      result = qlax.resume("runs/b")
      ```
    """
    plugins = _given(optimizer=optimizer, explore=explore, loss=loss, returns=returns, mixing=mixing)
    with _together(compilation_cache), _opened(lambda: directory.existing(path)) as run:
        if processes.from_first(lambda: run.is_finished(run.config)):
            raise UserError(
                f"{path} holds a finished run; train it longer with: qlax extend {path} --total-steps STEPS"
            )
        changes = _given(until=until, minutes=minutes)
        return _continue(run, changes, plugins, callback, progress)


def extend(
    path: Path | str,
    total_steps: int,
    *,
    until: float | None = None,
    minutes: float | None = None,
    callback: Callback | None = None,
    optimizer: Optimizer | None = None,
    explore: Explore | None = None,
    loss: Loss | None = None,
    returns: Returns | None = None,
    mixing: Mixing | None = None,
    progress: Progressing = None,
    compilation_cache: bool = True,
) -> Result:
    """Train a run longer than it was planned.

    Schedules continue as those of a run of `total_steps`: a learning rate that had fallen to its end is again what it
    would be at this point of such a run, and so is epsilon. What the earlier end left (weights, summary, curve) is
    kept in `earlier/<steps>/`.

    Args:
      path: Directory of the run, finished or not.
      total_steps: Environment steps of each agent, those already done included.
      until: As in `resume`.
      minutes: As in `resume`.
      callback: As in `train`.
      optimizer: As in `train`, and the same as when the run was begun.
      explore: As in `train`, and the same as when the run was begun.
      loss: As in `train`, and the same as when the run was begun.
      returns: As in `train`, and the same as when the run was begun.
      mixing: The `qlax.Mixing` with which the run was begun; None if it was begun without one.
      progress: As in `train`.
      compilation_cache: As in `train`.

    Returns:
      The finished run.

    Raises:
      UserError: As in `resume`, or the run already has as many steps.
      Stopped: As in `train`.
      DivergedError: As in `train`.
      HostError: As in `train`.
      RunError: As in `train`.
    """
    plugins = _given(optimizer=optimizer, explore=explore, loss=loss, returns=returns, mixing=mixing)
    with _together(compilation_cache), _opened(lambda: directory.existing(path)) as run:
        config = processes.from_first(lambda: run.config)
        longer = dataclasses.replace(config, total_steps=total_steps)
        if longer.num_updates <= config.num_updates:
            steps = config.num_updates * config.steps_per_update
            is_finished = processes.from_first(lambda: run.is_finished(config))
            hint = "" if is_finished else f"; to finish these: qlax resume {path}"
            raise UserError(f"total_steps={total_steps}: {path} is planned for {steps:,} steps; expected more{hint}")
        changes = _given(total_steps=total_steps, until=until, minutes=minutes)
        return _continue(run, changes, plugins, callback, progress)


def _given(**arguments: Any) -> dict[str, Any]:
    """Return the arguments that are not None."""
    return {name: value for name, value in arguments.items() if value is not None}


def _continue(
    run: directory.RunDirectory,
    changes: dict[str, Any],
    plugins: dict[str, Any],
    callback: Callback | None,
    progress: Progressing,
) -> Result:
    """Continue a run with some of its settings changed; what an earlier end of it left is moved aside.

    The setting that ended the run no longer holds, unless it is among the changes.
    """
    before = processes.from_first(lambda: run.config)
    ended_by = processes.from_first(lambda: run.stopped_by)
    changes = ({ended_by: None} if ended_by in ("until", "minutes") else {}) | changes
    changes = {name: checked(FIELDS[name], value) for name, value in changes.items()}
    config = dataclasses.replace(before, **changes)
    plan = _plan(config, plugins)

    def reopened() -> directory.RunDirectory:
        processes.from_first(run.move_earlier_end_aside)
        if config != before:
            processes.from_first(lambda: run.write_config(config))
        return run

    return _launch(plan, Callbacks(config, callback), progress, reopened, run)


@contextmanager
def _together(compilation_cache: bool) -> Iterator[None]:
    """Join the other processes, if there are any, and name the loss of one within the context."""
    if compilation_cache:
        enable_compilation_cache()
    use_cores()
    processes.join()
    with usual_switches(), processes.losing():
        yield


def _launch(
    plan: Plan,
    callbacks: Callbacks,
    progress: Progressing,
    claim: Callable[[], directory.RunDirectory],
    begun: directory.RunDirectory | None = None,
) -> Result:
    """Compile a plan, check the memory, claim the directory and train; before the claim nothing is written.

    Args:
      plan: Plan of the run.
      callbacks: Callbacks that may end training.
      progress: See `qlax.train`.
      claim: Function that returns the directory to write to, which is closed at the end.
      begun: The same directory if it holds a run to continue; None for a new run.

    Raises:
      UserError: As in `qlax.train`.
      Stopped: As in `qlax.train`.
      DivergedError: As in `qlax.train`.
      HostError: As in `qlax.train`.
      RunError: As in `qlax.train`.
    """
    config, is_first = plan.config, processes.is_first()
    info, saved = (begun and _newest(begun, plan)) or ({}, None)
    inexact, notices = compare.on_resume(begun.path, plan, info) if begun and saved else ([], [])
    damage = list(begun.damage) if begun else []
    makers: dict[str, MakeTracker] = {}
    processes.in_all(lambda: makers.update(tracking.makers(config) if is_first else {}))
    how = f"go on with: qlax resume {begun.path}" if begun else "nothing was written"
    stop = Stop(f"stopped before training began; {how}")
    initial = () if saved or config.init is None else processes.from_first(lambda: weights.initial(plan))
    runs: DeviceRuns | HostRuns = (
        HostRuns(plan, initial, lambda: bool(stop.asked)) if plan.make_envs else DeviceRuns(plan, initial)
    )
    clock = Clock(info, lambda: runs.waited)
    done, line, steps = info.get("updates", 0), info.get("line", 0), config.steps_per_update * config.num_members
    display = display_of(progress, config.num_updates * steps, done * steps, quiet=not is_first)

    def notify(texts: list[str]) -> None:
        for text in texts:
            display.say(f"qlax: {text}", always=True)

    with ExitStack() as outside:  # the directory and the trackers are in use after the display has ended
        with (
            display,
            closing(runs),
            memory.out_of_memory(config, runs.needs),
            stop.listening(display.say),
            ExitStack() as inside,
        ):
            inside.enter_context(plan.precision())
            if str(runs):
                is_short = plan.placement.num_devices < (config.devices or 0)
                display.say(f"{config.num_members} agents: {runs}", always=is_short)
            notify(notices + damage + plan.advice)
            with contract(config, plan.plugins):
                runs.compile()
            after_evaluation = population.compile(plan)
            processes.in_all(lambda: memory.fit(config, runs.needs, runs.compile_fewer))
            state, record = runs.begin(*saved) if saved else runs.begin(None, plan.new_record())
            stop.at_once = ""
            clock.spend("compile_seconds")
            saved = None  # it takes as much memory as the state
            run = outside.enter_context(claim())
            if is_first and not begun:
                inside.push(run.discard_failed_start)
            display.say(f"run directory {run.path}")
            processes.say_if_lost(f"go on with: qlax resume {run.path}")
            written = processes.from_first(lambda: run.begin_metrics(info, config))
            if not is_first:
                run.metrics.path.write_bytes(written)
            best = weights.Best(plan, run, info)
            notify(run.damage[len(damage) :])
            lines = run.metrics.read(config.num_members)
            for earlier in lines:
                returns = (np.array(earlier.get(name, []), float) for name in ("episode_return", "eval_return"))
                display.remember(earlier["updates"] * steps, *returns)
            is_lost = (
                done == line and (lines[-1]["updates"] if lines else 0) < line
            )  # its measurements are still in the record
            tracked = Tracked(
                run.path,
                config,
                [{name: agent[name] for name in ("seed", *config.swept)} for agent in config.members],
                lines[-1]["seconds"] if lines else 0.0,
                lambda text: display.say(text, always=True),
            )
            loop = Loop(
                plan,
                runs,
                after_evaluation,
                run,
                outside.enter_context(tracking.Tracking(makers, tracked, lines)),
                display,
                stop,
                clock,
                Divergence(config),
                Budget(config, plan.make_envs is not None, info, lines),
                best,
                callbacks,
                about={
                    "config": dataclasses.asdict(config),
                    "plugins": plan.plugins,
                    "made_with": compare.made_with(plan),
                    "inexact": inexact,
                },
                done=done,
                line=0 if is_lost else line,
                begun=line,
                since=(done, clock.spent["train_seconds"]),
            )
            variables = jax.device_get(runs.variables(loop.train(state, record)))
        return finish(loop, variables)


def _newest(run: directory.RunDirectory, plan: Plan) -> tuple[dict[str, Any], Saved] | None:
    """Return description and contents of the newest checkpoint that the first process finds; None if there is none."""
    like = Saved(plan.shapes, plan.new_record())

    def found() -> tuple[dict[str, Any], list[np.ndarray]] | None:
        newest = run.newest(like)
        return newest and (newest[0], [checkpoint.as_numbers(leaf) for leaf in jax.tree.leaves(newest[1])])

    newest = processes.from_first(found)
    leaves, structure = jax.tree.flatten(like)
    return newest and (newest[0], jax.tree.unflatten(structure, map(checkpoint.from_numbers, newest[1], leaves)))


def _plan(config: Config, plugins: dict[str, Any] | None) -> Plan:
    """Return the plan, after a check that it is the same in all processes.

    Raises:
      UserError: Another process was started with other settings.
    """
    plan = make(config, plugins or {})
    here = dataclasses.asdict(plan.config) | {"plugins": plan.plugins}
    there = processes.from_first(lambda: here)

    def check() -> None:
        differing = [f"{name}={value!r}, not {there[name]!r}" for name, value in here.items() if value != there[name]]
        if differing:
            raise UserError(f"the settings of this process differ from the first process's: {', '.join(differing)}")

    processes.in_all(check)
    return plan


def _opened(make: Callable[[], directory.RunDirectory]) -> directory.RunDirectory:
    """Return the directory that `make` opens in the first process, and non-writing ones in the others."""
    opened: list[directory.RunDirectory] = []

    def path() -> Path:
        opened.append(make())
        return opened[0].path

    found = processes.from_first(path)
    return opened[0] if opened else directory.NonWritingRunDirectory(found)


def enable_compilation_cache() -> None:
    """Keep compiled programs in the user's cache directory, unless JAX is configured to use another one.

    A directory that cannot be written holds nothing: JAX would warn about each program.
    """
    if not jax.config.values["jax_compilation_cache_dir"]:
        folder = platformdirs.user_cache_path("qlax") / "jax"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return
        if not os.access(folder, os.W_OK):
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
