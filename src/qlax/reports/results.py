"""Results of runs, finished or in progress: of each run, and of each setting over all its agents."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qlax.config.settings import FIELDS, SWEEPABLE, Config
from qlax.reports import ranking
from qlax.reports.selection import compared_fields
from qlax.storage.history import History
from qlax.util.statistics import interquartile_mean, stratified_interval


class Best(NamedTuple):
    """The best evaluation of all agents of a run."""

    agent: int
    setting: dict[str, Any]  # its seed, and the fields that are compared
    steps: int
    episode_return: float


class Run(NamedTuple):
    """A run as the report tells of it.

    Attributes:
      history: what its directory holds.
      summary: that of a finished run; of another what is known of it by now.
      best: None while no agent was evaluated.
    """

    history: History
    summary: dict[str, Any]
    best: Best | None

    @property
    def config(self) -> Config:
        """Settings."""
        return self.history.config

    @property
    def directory(self) -> Path:
        """Where it is."""
        return self.history.directory

    @property
    def name(self) -> str:
        """Preset, or else the environment."""
        return self.config.preset or self.config.env

    @property
    def is_finished(self) -> bool:
        """Whether nothing will be added."""
        return self.history.summary is not None

    @property
    def status(self) -> str:
        """How far it is, in a word or two."""
        return "diverged" if all(self.summary["diverged"]) else "finished" if self.is_finished else "not finished"


class Setting(NamedTuple):
    """Results of the agents of one setting in one environment.

    Attributes:
      env: the environment.
      values: of the fields that tell it from other settings of the environment.
      places: of the runs that have agents of it.
      agents: number of agents.
      diverged: number of agents that diverged.
      mean: greedy return over the agents; None where one diverged, or none was evaluated yet.
      iqm: the same of the middle half.
      interval: of the IQM, 95 %; None where a single agent does not tell.
      score: mean of the environment's scores; None where it has none.
      command: what trains it again; None of all but the best of several settings of its environment.
    """

    env: str
    values: list[Any]
    places: list[int]
    agents: int
    diverged: int
    mean: float | None
    iqm: float | None
    interval: tuple[Any, Any] | None
    score: float | None
    command: str | None


def of_run(history: History) -> Run:
    """Gather what is known of a run by now."""
    return Run(history, _summary(history), _best(history))


def _summary(history: History) -> dict[str, Any]:
    """Return the summary of a finished run; of another what of it is known by now."""
    if history.summary is not None:
        return history.summary
    curves, nothing = history.curves, np.full((1, history.config.num_members), math.nan)
    exploring, greedy = (curves.get(name, nothing) for name in ("episode_return", "eval_return"))
    returns = {
        "train_return": last(exploring),
        "eval_return": last(greedy),
        "best_eval_return": np.fmax.reduce(greedy, axis=0),
    }
    diverged: list[dict[str, Any] | None] = [None] * history.config.num_members
    if "loss" in curves:  # an agent that is frozen measures nothing
        has_loss = np.isfinite(curves["loss"])
        for agent in np.flatnonzero(~has_loss[-1]):
            lines = np.flatnonzero(has_loss[:, agent])
            diverged[agent] = {"steps": int(curves["steps"][lines[-1]]) if lines.size else 0}
            returns["train_return"][agent] = returns["eval_return"][agent] = math.nan
    per_run = {name: [float(x) if math.isfinite(x) else None for x in values] for name, values in returns.items()}
    return {name: {"per_run": values} for name, values in per_run.items()} | {"diverged": diverged}


def last(values: np.ndarray) -> np.ndarray:
    """Return the last value of every agent, of `[lines, R]`; nan where there is none."""
    found = np.full(values.shape[1], math.nan)
    for row in values:
        found = np.where(np.isfinite(row), row, found)
    return found


def _best(history: History) -> Best | None:
    returns = history.curves.get("eval_return")
    if returns is None or not np.isfinite(returns).any():
        return None
    line, agent = np.unravel_index(np.nanargmax(returns), returns.shape)
    own = history.config.members[agent]
    setting = {name: own[name] for name in ("seed", *history.config.compared)}
    return Best(int(agent), setting, int(history.curves["steps"][line]), float(returns[line, agent]))


def by_setting(runs: Sequence[Run]) -> tuple[list[str], list[Setting], list[ranking.Row]]:
    """Compare the settings of runs.

    Returns:
      The fields in which settings of the same environment differ; the settings, the best of each environment first; a
      row an agent.
    """
    rows: list[ranking.Row] = []
    for place, run in enumerate(runs):
        for agent, row in zip(run.config.members, ranking.rows(run.config, run.summary), strict=True):
            rows.append({"place": place, **row, "env": run.config.env, **_values(run.config, agent)})
    of_env: dict[str, list[ranking.Row]] = {}
    for row in rows:
        of_env.setdefault(row["env"], []).append(row)
    asked = compared_fields([run.config for run in runs])
    fields = [name for name in asked if any(len({row[name] for row in same}) > 1 for same in of_env.values())]
    settings = []
    for env, same in of_env.items():
        members: dict[tuple, list[ranking.Row]] = {}
        for row in same:
            members.setdefault(tuple(row[name] for name in fields), []).append(row)
        for rank, each in enumerate(ranking.ranking(same, fields)):
            values = [each.row[name] for name in fields]
            is_best = rank == 0 and len(members) > 1
            command = ranking.again(runs[each.row["place"]].config, each.row, fields) if is_best else None
            settings.append(_setting_of(env, values, members[tuple(values)], command))
    return fields, settings, rows


def _setting_of(env: str, values: list[Any], agents: list[ranking.Row], command: str | None) -> Setting:
    returns = [agent["eval_return"] for agent in agents]
    known = [x for x in returns if x is not None]
    measured = [score for agent in agents if (score := agent.get("eval_score")) is not None]
    is_whole = len(known) == len(returns)
    samples = [np.array(known)]
    return Setting(
        env=env,
        values=values,
        places=sorted({agent["place"] for agent in agents}),
        agents=len(agents),
        diverged=sum(agent["diverged"] is not None for agent in agents),
        mean=sum(known) / len(known) if is_whole else None,
        iqm=float(interquartile_mean(samples)) if is_whole else None,
        interval=stratified_interval(interquartile_mean, samples) if is_whole else None,
        score=sum(measured) / len(measured) if len(measured) == len(agents) else None,
        command=command,
    )


def _values(config: Config, agent: dict[str, Any]) -> dict[str, Any]:
    """Return what an agent was trained with, of every field, as what can be compared."""
    values = {}
    for name in FIELDS:
        value = getattr(config, name)
        if name in SWEEPABLE:
            value = "explored" if name in config.swept and config.population != "none" else agent[name]
        elif isinstance(value, dict):
            value = json.dumps(value, sort_keys=True)
        values[name] = value
    return values
