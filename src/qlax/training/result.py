"""End of a training run: weights, figures and, last of all, the summary."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qlax._version import __version__
from qlax.agents.agent import Agent
from qlax.config.settings import Config
from qlax.errors import DivergedError, RunError, described
from qlax.playing import film
from qlax.reports import results
from qlax.storage import measurements
from qlax.storage.history import History
from qlax.storage.metrics import curves
from qlax.training import population, processes, weights
from qlax.training.loop import Loop
from qlax.types import PyTree
from qlax.util.text import six_digits


@dataclass(frozen=True)
class Result:
    """Finished training run.

    Attributes:
      directory: Run directory.
      config: All settings, derived ones included.
      summary: Contents of `summary.json`, among others `stopped_by` ("until", "minutes" or "callback"; "" for a run of
        its planned length), `total_steps` and `updates` done by each agent, `diverged`, and `eval_return`,
        `best_eval_return` and `train_return`, each with `mean` and `per_run`.
      curves: Lines of `metrics.jsonl` as arrays by name: `[lines]`, such as `steps`, or `[lines, R]`, such as
        `eval_return`; nan where a line has no value, as `eval_return` between evaluations.
      agents: R agents, one for every setting and seed, in the order of `config.members`.
    """

    directory: Path
    config: Config
    summary: dict[str, Any]
    curves: dict[str, np.ndarray]
    agents: list[Agent]


def finish(loop: Loop, variables: PyTree) -> Result:
    """Write weights, figures and the summary of a training run.

    Args:
      loop: Training loop that has ended.
      variables: Variables of the network, `[R, ...]`.

    Raises:
      DivergedError: Every agent diverged.
    """
    plan, run, divergence = loop.plan, loop.directory, loop.divergence
    config = plan.config
    arrays = curves(run.metrics.read(config.num_members))
    last = {name: values[-1] for name, values in arrays.items()} | loop.at_end
    final = [name for name in config.swept if name in arrays]  # settings that a population changed
    more = {index: {name: six_digits(last[name][index]) for name in final} for index in range(config.num_members)}
    agents = weights.save(plan, run, "agents", variables, more)
    run.wait()
    found = _summarise(loop, arrays, last)
    if divergence.of_all:
        run.write("summary.json", found)
        again = f"begin from them, with other settings: qlax train ... --init {run.path}"
        raise DivergedError(f"{divergence.why}; its last finite weights are in {run.path / 'agents'}; {again}")
    if processes.is_first():
        with run.writing():
            _draw(run.path, config, arrays, found)
    run.write("summary.json", found)
    if loop.tracking:
        loop.tracking.finish(found, film.best_run_as_gif(run.path, found, loop.display.say))
    return Result(run.path, config, found, arrays, agents)


def _summarise(loop: Loop, curves: dict[str, np.ndarray], last: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return what `summary.json` holds.

    Args:
      loop: Training loop that has ended.
      curves: The lines of the metrics as arrays, `[lines]` or `[lines, R]`.
      last: Values of the last line `[R]`, or newer ones.
    """
    plan, updates, seconds = loop.plan, loop.done, loop.clock.seconds()
    config, runs = plan.config, plan.config.members
    if not curves:  # all agents diverged before the first line
        nothing = np.full((1, len(runs)), np.nan)
        keys = ("episodes", "episode_return", *measurements.evaluated().values())
        curves = {"updates": np.zeros(1)} | dict.fromkeys(keys, nothing)
        last = {name: values[-1] for name, values in curves.items()}
    late = curves["updates"] > 0.9 * updates
    episodes = curves["episodes"][late]
    with np.errstate(invalid="ignore"):
        train_return = np.nansum(curves["episode_return"][late] * episodes, axis=0) / episodes.sum(axis=0)
    returns = {"train_return": train_return, "eval_return": last["eval_return"]}
    if score := getattr(plan.env, "score", None):
        try:
            returns["eval_score"] = np.array([float(score(x)) for x in returns["eval_return"]])
        except Exception as error:
            fix = f"fix it, then: qlax resume {loop.directory.path}"
            failed = f"the method score of {config.env} failed: {described(error)}"
            raise RunError(f"{failed}; a checkpoint is saved; {fix}") from error
    own = [name for name in curves if name.startswith("eval_") and measurements.is_own(name)]
    returns |= {name: last[name] for name in own}
    returns["best_eval_return"] = np.fmax.reduce(curves["eval_return"], axis=0)
    device = jax.devices()[0]
    steps = updates * config.steps_per_update
    return {
        "env": config.env,
        "preset": config.preset,
        "seeds": [run["seed"] for run in runs],
        "settings": {name: [run[name] for run in runs] for name in config.swept},
        **population.outcome(config, curves, last),
        "network": plan.description,
        "total_steps": steps,
        "updates": updates,
        "device": f"{device.platform}: {device.device_kind}",
        "num_devices": plan.placement.num_devices,
        "jax_version": jax.__version__,
        "qlax_version": __version__,
        "stopped_by": loop.callbacks.reason if updates < config.num_updates else "",
        **_reached(config, curves),
        "inexact": loop.about["inexact"],
        "diverged": loop.divergence.found,
        **{name: round(value, 3) for name, value in seconds.items()},
        "steps_per_second": round(steps * len(runs) / max(seconds["train_seconds"], 1e-3), 1),
        **{name: _mean_and_runs(values) for name, values in returns.items()},
        "eval_episodes": config.eval_episodes,
        **{name: _or_none(last[name]) for name in ("eval_cut", "eval_distinct")},
    }


def _reached(config: Config, curves: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return when each agent first reached the return of the setting `until`, None for one that never did."""
    if config.until is None:
        return {}
    reached = np.asarray(curves["eval_return"] >= config.until)  # [lines, R]
    lines = [int(column.argmax()) if column.any() else None for column in reached.T]
    when = [
        None if line is None else {"steps": int(curves["steps"][line]), "seconds": float(curves["seconds"][line])}
        for line in lines
    ]
    return {"reached": when}


def _or_none(values: np.ndarray) -> list[float | None]:
    """Return the values as numbers, with None for those that are not finite."""
    return [float(x) if math.isfinite(x) else None for x in values]


def _mean_and_runs(values: np.ndarray) -> dict[str, Any]:
    per_run = _or_none(values)
    known = [x for x in per_run if x is not None]
    return {"mean": sum(known) / len(known) if known else None, "per_run": per_run}


def _draw(path: Path, config: Config, arrays: dict[str, np.ndarray], found: dict[str, Any]) -> None:
    """Draw the learning curve, the comparison of settings, and the lineage of populations."""
    from qlax.reports import pictures, plot, style  # matplotlib is slow to import

    history, title = History(path, config, arrays, found), config.preset or config.env
    curve = plot.curve_figure([history], y=("eval_return", "episode_return"), title=title)
    style.save(curve, path / "curve.png")
    if fields := config.compared:
        rows = results.rows(config, found)
        results.write(path, rows)
        style.save(pictures.comparison(config, rows, fields, title), path / "sweep.png")
    if "parent" in arrays:
        seeds = list(range(config.seed, config.seed + config.seeds))
        style.save(pictures.lineage(arrays, config.swept, seeds, title), path / "population.png")
