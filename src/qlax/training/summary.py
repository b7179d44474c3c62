"""Measurements as they are written: a line of metrics, and the summary of a run."""

import math
from typing import Any

import jax
import numpy as np

from qlax._version import __version__
from qlax.pqn import Mean
from qlax.storage import measurements
from qlax.training import population
from qlax.training.plan import Plan


def means(sums: dict[str, Mean]) -> dict[str, np.ndarray]:
    """The metrics of some updates `[R]`; nan where nothing was counted."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found = {name: np.asarray(total) / weight for name, (total, weight) in sums.items()}
    return {"episodes": np.asarray(sums["episode_return"].weight)} | found


def evaluated(evaluation: dict[str, np.ndarray] | None, frozen: np.ndarray) -> dict[str, np.ndarray]:
    """Means over the episodes of an evaluation `[R]`; nan without one, and for agents that are frozen."""
    keys = measurements.evaluated()
    if evaluation is None:
        return {key: np.full(len(frozen), np.nan) for key in keys.values()}
    with np.errstate(invalid="ignore"):  # an environment's own metric may have no value in any episode
        found = {name: np.nansum(x, axis=1) / (~np.isnan(x)).sum(axis=1) for name, x in evaluation.items()}
    return {keys.get(name, f"eval_{name}"): np.where(frozen, np.nan, mean) for name, mean in found.items()}


def summarise(
    plan: Plan,
    curves: dict[str, np.ndarray],
    seconds: dict[str, float],
    diverged: list[dict[str, Any] | None],
    inexact: list[str],
    updates: int,
) -> dict[str, Any]:
    """What `summary.json` holds.

    Args:
      plan: of what was trained.
      curves: the lines of the metrics, `[lines]` or `[lines, R]`.
      seconds: spent and waited.
      diverged: of every agent when and where, if it did.
      inexact: in what the run is not what an undisturbed one would have been.
      updates: that were done: all, unless every agent diverged before.
    """
    config, runs = plan.config, plan.config.members
    if not curves:  # they diverged before the first line
        nothing = np.full((1, len(runs)), np.nan)
        keys = ("episodes", "episode_return", *measurements.evaluated().values())
        curves = {"updates": np.zeros(1)} | dict.fromkeys(keys, nothing)
    late = curves["updates"] > 0.9 * config.num_updates
    episodes = curves["episodes"][late]
    with np.errstate(invalid="ignore"):
        train_return = np.nansum(curves["episode_return"][late] * episodes, axis=0) / episodes.sum(axis=0)
    returns = {"train_return": train_return, "eval_return": curves["eval_return"][-1]}
    if score := getattr(plan.env, "score", None):
        returns["eval_score"] = np.array([score(x) for x in returns["eval_return"]])
    own = [name for name in curves if name.startswith("eval_") and measurements.is_own(name)]
    returns |= {name: curves[name][-1] for name in own}
    returns["best_eval_return"] = np.fmax.reduce(curves["eval_return"], axis=0)
    device = jax.devices()[0]
    steps = updates * config.steps_per_update
    return {
        "env": config.env,
        "preset": config.preset,
        "seeds": [run["seed"] for run in runs],
        "settings": {name: [run[name] for run in runs] for name in config.swept},
        **population.outcome(config, curves),
        "network": plan.description,
        "total_steps": steps,
        "updates": updates,
        "device": f"{device.platform}: {device.device_kind}",
        "num_devices": plan.placement.num_devices,
        "jax_version": jax.__version__,
        "qlax_version": __version__,
        "inexact": inexact,
        "diverged": diverged,
        **{name: round(value, 3) for name, value in seconds.items()},
        "steps_per_second": round(steps * len(runs) / max(seconds["train_seconds"], 1e-3), 1),
        **{name: _mean_and_runs(values) for name, values in returns.items()},
        "eval_episodes": config.eval_episodes,
        "eval_cut": [cut if math.isfinite(cut) else None for cut in curves["eval_cut"][-1].tolist()],
    }


def _mean_and_runs(values: np.ndarray) -> dict[str, Any]:
    per_run = [float(x) if math.isfinite(x) else None for x in values]
    known = [x for x in per_run if x is not None]
    return {"mean": sum(known) / len(known) if known else None, "per_run": per_run}
