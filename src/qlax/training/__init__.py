"""Training runs: begun, gone on with, made longer."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import platformdirs

from qlax.config.configure import configure
from qlax.config.settings import Config
from qlax.errors import UserError
from qlax.storage import checkpoint, directory, paths
from qlax.trackers import tracking
from qlax.trackers.base import MakeTracker, Tracked
from qlax.training import compare, memory, population, processes, weights
from qlax.training.device_runs import DeviceRuns
from qlax.training.display import ProgressDisplay
from qlax.training.guard import Divergence
from qlax.training.host_runs import HostRuns
from qlax.training.loop import Clock, Loop, Saved
from qlax.training.placement import use_cores
from qlax.training.plan import Plan, make
from qlax.training.result import Result, finish
from qlax.training.stop import Stop


def train(
    target: str | Config,
    *,
    out: Path | str | None = None,
    progress: bool | None = None,
    compilation_cache: bool = True,
    plugins: dict[str, Any] | None = None,
    **overrides: Any,
) -> Result:
    """Train agents in one program, and write all about them to a directory.

    Several agents on a CPU get a core each, or take turns on it, if this is the first use of JAX in the process: JAX
    then counts every core as a device.

    Args:
      target: a preset such as "cartpole", an environment as "suite/name" or "module:Name", or a whole `Config`.
      out: the directory; None: a new one under `runs/`.
      progress: whether to show it on the terminal; None: if there is one.
      compilation_cache: keep compiled programs in the user's cache directory, for the next time.
      plugins: `optimizer`, `explore`, `loss`, `returns` or `mixing`, as `qlax.pqn.make` takes them.
      overrides: fields of `Config`; several values of a sweepable one make as many settings.

    Raises:
      UserError: something asked for cannot be, or does not fit into memory; nothing was written.
      Stopped: interrupted by Ctrl-C or SIGTERM, after a checkpoint, or before anything was written.
      DivergedError: in every agent a number was not finite. Where others are left, an agent that diverges is frozen
        with its last good weights, and named in the summary.
      HostError: environments on the host crashed or hang; after a checkpoint, if training had begun.
      RunError: the disk is full, or memory ran out; what was saved before is still there.
    """
    if isinstance(overrides.get("init"), Path):
        overrides["init"] = str(overrides["init"])
    config = configure(target, **overrides)
    if config.init is not None:
        config = dataclasses.replace(config, init=str(Path(config.init).resolve()))
    with _together(compilation_cache):
        plan = _plan(config, plugins)
        processes.from_first(lambda: paths.check_free(out))
        return _launch(plan, progress, lambda: _opened(lambda: directory.claim(out, plan.config)))


def resume(
    path: Path | str,
    *,
    progress: bool | None = None,
    compilation_cache: bool = True,
    plugins: dict[str, Any] | None = None,
) -> Result:
    """Go on with an interrupted run: with the same versions and devices to the same numbers bit for bit.

    Whatever is not as it was, so that the last bits may differ, is printed, and kept in the summary as `inexact`.

    Args:
      path: the directory of the run.
      progress: as in `train`.
      compilation_cache: as in `train`.
      plugins: the same as the run was begun with.

    Raises:
      UserError: there is no such run, it is finished, in use, or was begun otherwise.
      Stopped, DivergedError, HostError, RunError: as in `train`.
    """
    with _together(compilation_cache), _opened(lambda: directory.existing(path)) as run:
        config = processes.from_first(lambda: run.config)
        if processes.from_first(lambda: run.is_finished(config)):
            raise UserError(
                f"{path} holds a finished run; train it longer with: qlax extend {path} --total-steps STEPS"
            )
        return _launch(_plan(config, plugins), progress, lambda: run, run)


def extend(
    path: Path | str,
    total_steps: int,
    *,
    progress: bool | None = None,
    compilation_cache: bool = True,
    plugins: dict[str, Any] | None = None,
) -> Result:
    """Train a run longer than it was meant to be.

    Schedules go on as those of a run of `total_steps`: the learning rate, which may have come to its end, is then again
    what it would be at this point of such a run, and so is epsilon. What the earlier end left (weights, summary, curve)
    is kept in `earlier/<steps>/`.

    Args:
      path: the directory of the run, finished or not.
      total_steps: environment steps of each agent, the ones already done included.
      progress: as in `train`.
      compilation_cache: as in `train`.
      plugins: the same as the run was begun with.

    Raises:
      UserError: as in `resume`, or the run is as long already.
      Stopped, DivergedError, HostError, RunError: as in `train`.
    """
    with _together(compilation_cache), _opened(lambda: directory.existing(path)) as run:
        config = processes.from_first(lambda: run.config)
        longer = dataclasses.replace(config, total_steps=total_steps)
        if longer.num_updates <= config.num_updates:
            steps = config.num_updates * config.steps_per_update
            raise UserError(f"total_steps={total_steps}: {path} is of {steps:,} steps already; expected more")

        def lengthened() -> directory.RunDirectory:
            processes.from_first(run.move_earlier_end_aside)
            processes.from_first(lambda: run.write_config(longer))
            return run

        return _launch(_plan(longer, plugins), progress, lengthened, run)


@contextmanager
def _together(compilation_cache: bool) -> Iterator[None]:
    """Make this process one of those that there are, within."""
    if compilation_cache:
        enable_compilation_cache()
    use_cores()
    processes.join()
    with processes.losing():
        yield


def _launch(
    plan: Plan,
    progress: bool | None,
    claim: Callable[[], directory.RunDirectory],
    begun: directory.RunDirectory | None = None,
) -> Result:
    """Compile what a plan says, check the memory, claim the directory and train; until then nothing is written.

    Args:
      plan: of what to train.
      progress: whether to show it on the terminal; None: if there is one.
      claim: gives the directory to write to, which is closed at the end.
      begun: the same directory, where there is a run to go on with.

    Raises:
      UserError, Stopped, DivergedError, HostError, RunError: as in `qlax.train`.
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
    display = ProgressDisplay(config.num_updates * steps, done * steps, progress, quiet=not is_first)

    def notify(texts: list[str]) -> None:
        for text in texts:
            display.say(f"qlax: {text}", always=True)

    with ExitStack() as outside:  # the directory and the trackers are still used when the display has ended
        with (
            display,
            closing(runs),
            memory.out_of_memory(config, runs.needs),
            stop.listening(display.say),
        ):
            if str(runs):
                is_short = plan.placement.num_devices < (config.devices or 0)
                display.say(f"{config.num_members} agents: {runs}", always=is_short)
            notify(notices + damage)
            runs.compile()
            after_evaluation = population.compile(plan)
            processes.in_all(lambda: memory.fit(config, runs.needs, runs.compile_fewer))
            state, record = runs.begin(*saved) if saved else runs.begin(None, plan.new_record())
            stop.at_once = ""
            clock.spend("compile_seconds")
            saved = None  # its memory is as large as the state's
            run = outside.enter_context(claim())
            display.say(f"run directory {run.path}")
            processes.say_if_lost(f"go on with: qlax resume {run.path}")
            written = processes.from_first(lambda: run.begin_metrics(info, config))
            if not is_first:
                run.metrics.path.write_bytes(written)
            best = weights.Best(plan, run, info)
            notify(run.damage[len(damage) :])
            lines = run.metrics.read(config.num_members)
            is_lost = done == line and (lines[-1]["updates"] if lines else 0) < line  # but its sums are in the record
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
                best,
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
    """Read the newest checkpoint, as the first process finds it."""
    like = Saved(plan.shapes, plan.new_record())

    def found() -> tuple[dict[str, Any], list[np.ndarray]] | None:
        newest = run.newest(like)
        return newest and (newest[0], [checkpoint.as_numbers(leaf) for leaf in jax.tree.leaves(newest[1])])

    newest = processes.from_first(found)
    leaves, structure = jax.tree.flatten(like)
    return newest and (newest[0], jax.tree.unflatten(structure, map(checkpoint.from_numbers, newest[1], leaves)))


def _plan(config: Config, plugins: dict[str, Any] | None) -> Plan:
    """The plan, which is the same in all processes.

    Raises:
      UserError: some were started with other settings.
    """
    plan = make(config, plugins or {})
    here = dataclasses.asdict(plan.config) | {"plugins": plan.plugins}
    there = processes.from_first(lambda: here)

    def check() -> None:
        differing = [f"{name}={value!r}, not {there[name]!r}" for name, value in here.items() if value != there[name]]
        if differing:
            raise UserError(f"this process was started with other settings than the first: {', '.join(differing)}")

    processes.in_all(check)
    return plan


def _opened(make: Callable[[], directory.RunDirectory]) -> directory.RunDirectory:
    """The directory of the first process, which writes; in the others one that does not."""
    opened: list[directory.RunDirectory] = []

    def path() -> Path:
        opened.append(make())
        return opened[0].path

    found = processes.from_first(path)
    return opened[0] if opened else directory.NonWritingRunDirectory(found)


def enable_compilation_cache() -> None:
    """Keep compiled programs in the user's cache directory, unless JAX was told of another place."""
    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(platformdirs.user_cache_path("qlax") / "jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
