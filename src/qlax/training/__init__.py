"""Training runs: begun, gone on with, made longer."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import jax
import platformdirs

from qlax.config.configure import configure
from qlax.config.settings import Config
from qlax.errors import UserError
from qlax.storage import directory
from qlax.storage.directory import RunDirectory
from qlax.storage.paths import check_free
from qlax.training import processes
from qlax.training.launch import launch
from qlax.training.placement import use_cores
from qlax.training.plan import Plan, make
from qlax.training.result import Result


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
        processes.from_first(lambda: check_free(out))
        return launch(plan, progress, lambda: _opened(lambda: directory.claim(out, plan.config)))


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
        return launch(_plan(config, plugins), progress, lambda: nullcontext(run), run)


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

        def lengthen() -> None:
            run.move_earlier_end_aside()
            run.write_config(longer)

        def lengthened() -> AbstractContextManager[RunDirectory]:
            processes.from_first(lengthen)
            return nullcontext(run)

        return launch(_plan(longer, plugins), progress, lengthened, run)


@contextmanager
def _together(compilation_cache: bool) -> Iterator[None]:
    """Make this process one of those that there are, within."""
    if compilation_cache:
        enable_compilation_cache()
    use_cores()
    processes.join()
    with processes.losing():
        yield


def _plan(config: Config, plugins: dict[str, Any] | None) -> Plan:
    """The plan, which is the same in all processes.

    Raises:
      UserError: some were started with other settings.
    """
    plan = make(config, plugins or {})
    here = dataclasses.asdict(plan.config) | {"plugins": plan.plugins}
    there = processes.from_first(lambda: here)

    def compare() -> None:
        differing = [f"{name}={value!r}, not {there[name]!r}" for name, value in here.items() if value != there[name]]
        if differing:
            raise UserError(f"this process was started with other settings than the first: {', '.join(differing)}")

    processes.in_all(compare)
    return plan


def _opened(make: Callable[[], RunDirectory]) -> RunDirectory:
    """The directory of the first process, which writes; in the others one that does not."""
    opened: list[RunDirectory] = []

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
