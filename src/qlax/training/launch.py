"""From a plan to its result: compile, check the memory, claim the directory, train."""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, closing
from typing import Any

import jax
import numpy as np

from qlax.storage import checkpoint
from qlax.storage.directory import RunDirectory
from qlax.trackers import tracking
from qlax.trackers.base import MakeTracker, Tracked
from qlax.training import memory, population, processes
from qlax.training.best import Best
from qlax.training.clock import Clock
from qlax.training.compare import compare, made_with
from qlax.training.device_runs import DeviceRuns
from qlax.training.display import ProgressDisplay
from qlax.training.divergence import Divergence
from qlax.training.host_runs import HostRuns
from qlax.training.initial import weights_of
from qlax.training.loop import Loop, Saved
from qlax.training.plan import Plan, variables_of
from qlax.training.result import Result, finish
from qlax.training.stop import Stop
from qlax.types import PyTree


def launch(
    plan: Plan,
    progress: bool | None,
    claim: Callable[[], AbstractContextManager[RunDirectory]],
    begun: RunDirectory | None = None,
) -> Result:
    """Train what a plan says; the directory is written to once nothing can be refused any more.

    Args:
      plan: of what to train.
      progress: whether to show it on the terminal; None: if there is one.
      claim: gives the directory to write to.
      begun: the same directory, where there is a run to go on with.

    Raises:
      UserError, Stopped, DivergedError, HostError, RunError: as in `qlax.train`.
    """
    config, is_first = plan.config, processes.is_first()
    info, saved = (begun and _newest(begun, plan)) or ({}, None)
    inexact, notices = compare(begun.path, plan, info) if begun and saved else ([], [])
    damage = list(begun.damage) if begun else []
    makers: dict[str, MakeTracker] = {}
    processes.in_all(lambda: makers.update(tracking.makers(config) if is_first else {}))
    how = f"go on with: qlax resume {begun.path}" if begun else "nothing was written"
    stop, initial = Stop(f"stopped before training began; {how}"), () if saved else _initial(plan)
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
            memory.out_of_memory(config, runs),
            stop.listening(display.say),
        ):
            if str(runs):
                is_short = plan.placement.num_devices < (config.devices or 0)
                display.say(f"{config.num_members} agents: {runs}", always=is_short)
            notify(notices + damage)
            runs.compile()
            after_evaluation = population.compile(plan)
            processes.in_all(lambda: memory.fit(config, runs))
            state = runs.begin(saved and saved.state)
            record = runs.record(saved.record if saved else plan.new_record())
            stop.at_once = ""
            clock.spend("compile_seconds")
            saved = None  # its memory is as large as the state's
            run = outside.enter_context(claim())
            display.say(f"run directory {run.path}")
            processes.say_if_lost(f"go on with: qlax resume {run.path}")
            written = processes.from_first(lambda: run.begin_metrics(info, config))
            if not is_first:
                run.metrics.rewrite(written)
            best = Best(plan, run, info)
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
                    "made_with": made_with(plan),
                    "inexact": inexact,
                },
                done=done,
                line=0 if is_lost else line,
                begun=line,
                since=(done, clock.spent["train_seconds"]),
            )
            variables = jax.device_get(runs.variables(loop.train(state, record)))
        return finish(loop, variables)


def _initial(plan: Plan) -> PyTree:
    """Read the weights to begin with, `[R, ...]`; () for new ones."""
    init = plan.config.init
    return () if init is None else processes.from_first(lambda: weights_of(init, variables_of(plan.shapes)))


def _newest(run: RunDirectory, plan: Plan) -> tuple[dict[str, Any], Saved] | None:
    """Read the newest checkpoint, as the first process finds it."""
    like = Saved(plan.shapes, plan.new_record())

    def found() -> tuple[dict[str, Any], list[np.ndarray]] | None:
        newest = run.newest(like)
        return newest and (newest[0], [checkpoint.as_numbers(leaf) for leaf in jax.tree.leaves(newest[1])])

    newest = processes.from_first(found)
    leaves, structure = jax.tree.flatten(like)
    return newest and (newest[0], jax.tree.unflatten(structure, map(checkpoint.from_numbers, newest[1], leaves)))
