"""Results of runs, finished or in progress, per agent and per setting, with commands that reproduce them."""

import csv
import dataclasses
import io
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qlax.config.command_line import as_words, written
from qlax.config.settings import FIELDS, SWEEPABLE, Config, fields_where
from qlax.storage.history import History
from qlax.storage.measurements import MEASUREMENTS
from qlax.util.files import write_whole
from qlax.util.statistics import interquartile_mean, stratified_interval
from qlax.util.text import setting_in_words

BEST = 5  # number of settings to print
Row = dict[str, Any]


class Ranked(NamedTuple):
    """One setting with the results of its agents."""

    rows: list[Row]  # one per agent of the setting
    mean: float | None  # mean greedy return over the agents; None if one of them diverged

    @property
    def row(self) -> Row:
        """Row of the setting's first agent."""
        return self.rows[0]

    def shown(self, fields: Sequence[str]) -> str:
        """Format the setting's values of these fields and its result as one line."""
        result = "diverged" if self.mean is None else f"{self.mean:.2f}"
        setting = described({name: self.row[name] for name in fields})
        return f"{setting}: {result}{f', mean of {len(self.rows)} seeds' if len(self.rows) > 1 else ''}"


def described(settings: Mapping[str, Any]) -> str:
    """Format settings as one line."""
    return ", ".join(f"{name} {setting_in_words(value)}" for name, value in settings.items())


def rows(config: Config, summary: Mapping[str, Any]) -> list[Row]:
    """Return one row per agent: index, seed, compared settings, results, and after how many steps it diverged.

    `diverged` is None for an agent that did not diverge; results that the summary lacks are left out.
    """
    results = [key for key, measurement in MEASUREMENTS.items() if measurement.is_result]
    return [
        {
            "agent": index,
            "seed": run["seed"],
            **{name: run[name] for name in config.compared},
            **{name: summary[name]["per_run"][index] for name in results if name in summary},
            "diverged": diverged["steps"] if diverged else None,
        }
        for index, (run, diverged) in enumerate(zip(config.members, summary["diverged"], strict=True))
    ]


def ranking(of: Sequence[Row], fields: Sequence[str]) -> list[Ranked]:
    """Group rows by setting, and sort settings by mean greedy return, the best first.

    Settings of which an agent diverged come last. Ties are broken by the exploring return at the end of training.

    Args:
      of: Rows of all agents.
      fields: Names of the settings that distinguish one setting from another.
    """
    settings: dict[tuple, list[Row]] = {}
    for row in of:
        settings.setdefault(tuple(row[name] for name in fields), []).append(row)

    def rank(same: list[Row]) -> list[float]:
        means = (_mean(same, name) for name in ("eval_return", "train_return"))
        return [-math.inf if found is None else found for found in means]

    return [Ranked(same, _mean(same, "eval_return")) for same in sorted(settings.values(), key=rank, reverse=True)]


def _mean(same: Sequence[Row], name: str) -> float | None:
    """Return the mean of a result over rows; None if a row has no value."""
    values: list[Any] = [row.get(name) for row in same]
    return None if None in values else sum(values) / len(values)


def again(config: Config, row: Row, fields: Sequence[str]) -> str:
    """Return the command that trains the setting of a row again, with the same seeds.

    The command names the values of `fields` even if they are those of the preset.
    """
    setting: dict[str, Any] = {name: row[name] for name in config.compared}
    if setting:
        setting["draws"] = None
    return shlex.join(["qlax", "train", *as_words(dataclasses.replace(config, **setting), fields)])


def write(path: Path, of: Sequence[Row]) -> None:
    """Write the rows of all agents to `sweep.csv` in a directory."""
    text = io.StringIO()
    writer = csv.DictWriter(text, of[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else written(value) for name, value in row.items()} for row in of)
    write_whole(path / "sweep.csv", text.getvalue().encode())


def best_setting_in_words(config: Config, ranked: Sequence[Ranked], fields: Sequence[str]) -> str:
    """Return the message that a sweep prints: the best setting, and the command that trains it again."""
    best = f"best of {len(ranked)} settings: {ranked[0].shown(fields)}"
    return f"{best}\ntrain it again: {again(config, ranked[0].row, fields)}"


def compared_fields(configs: Sequence[Config]) -> list[str]:
    """Return the fields by which settings are compared, without fields that are derived from others in all runs."""
    return [name for name in fields_where(compared=True) if not all(name in each.derived for each in configs)]


class Best(NamedTuple):
    """Best evaluation of all agents of a run."""

    agent: int  # index of the agent
    setting: dict[str, Any]  # the agent's seed and compared settings
    steps: int  # environment steps of the agent before the evaluation
    episode_return: float


class Run(NamedTuple):
    """A run in the report.

    Attributes:
      history: Content of the run's directory.
      summary: Content of `summary.json`; for a run in progress, the part that is known so far.
      best: Best evaluation; None if no agent has been evaluated yet.
    """

    history: History
    summary: dict[str, Any]
    best: Best | None

    @property
    def config(self) -> Config:
        """Settings of the run."""
        return self.history.config

    @property
    def directory(self) -> Path:
        """Directory of the run."""
        return self.history.directory

    @property
    def name(self) -> str:
        """Preset of the run, or its environment if it has no preset."""
        return self.config.preset or self.config.env

    @property
    def is_finished(self) -> bool:
        """True if training has ended."""
        return self.history.summary is not None

    @property
    def status(self) -> str:
        """Status in a word or two: "diverged", "finished" or "not finished"."""
        return "diverged" if all(self.summary["diverged"]) else "finished" if self.is_finished else "not finished"


class Setting(NamedTuple):
    """A setting, with the results of its agents in one environment.

    Attributes:
      env: Name of the environment.
      values: Values of the compared fields.
      places: Indices, in the list of runs, of the runs that have agents of this setting.
      agents: Number of agents.
      diverged: Number of agents that diverged.
      mean: Mean greedy return; None if an agent diverged or was not evaluated yet.
      iqm: Interquartile mean of the greedy return; None if `mean` is None.
      interval: 95 % interval of the IQM; None if `mean` is None, or if there is only one agent.
      score: Mean of the environment's scores; None if the environment has no score.
      command: Command that trains the setting again; None unless it is the best of several in this environment.
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
    """Summarise a run, which may be in progress, for tables and rankings."""
    return Run(history, _summary(history), _best(history))


def _summary(history: History) -> dict[str, Any]:
    """Return the summary of a finished run, or the part of it that is known so far."""
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
    if "loss" in curves:  # agents that diverged are frozen and have no loss
        has_loss = np.isfinite(curves["loss"])
        for agent in np.flatnonzero(~has_loss[-1]):
            lines = np.flatnonzero(has_loss[:, agent])
            diverged[agent] = {"steps": int(curves["steps"][lines[-1]]) if lines.size else 0}
            returns["train_return"][agent] = returns["eval_return"][agent] = math.nan
    per_run = {name: [float(x) if math.isfinite(x) else None for x in values] for name, values in returns.items()}
    return {name: {"per_run": values} for name, values in per_run.items()} | {"diverged": diverged}


def last(values: np.ndarray) -> np.ndarray:
    """Return the last finite value of every agent in curves `[lines, R]`; nan for an agent that has none."""
    found = np.full(values.shape[1], math.nan)
    for row in values:
        found = np.where(np.isfinite(row), row, found)
    return found


def _best(history: History) -> Best | None:
    returns = history.curves.get("eval_return")
    if returns is None or not np.isfinite(returns).any():
        return None
    line, agent = np.unravel_index(np.nanargmax(returns), returns.shape)
    setting = {name: history.config.members[agent][name] for name in ("seed", *history.config.compared)}
    return Best(int(agent), setting, int(history.curves["steps"][line]), float(returns[line, agent]))


def by_setting(runs: Sequence[Run]) -> tuple[list[str], list[Setting], list[Row]]:
    """Compare the settings of runs.

    Returns:
      Names of the fields in which settings of the same environment differ; settings, grouped by environment and the
      best first; one row per agent.
    """
    every = [
        {"place": place, **row, "env": run.config.env, **_values(run.config, agent)}
        for place, run in enumerate(runs)
        for agent, row in zip(run.config.members, rows(run.config, run.summary), strict=True)
    ]
    of_env: dict[str, list[Row]] = {}
    for row in every:
        of_env.setdefault(row["env"], []).append(row)
    asked = compared_fields([run.config for run in runs])
    fields = [name for name in asked if any(len({row[name] for row in same}) > 1 for same in of_env.values())]
    settings = []
    for env, same in of_env.items():
        ranked = ranking(same, fields)
        for rank, each in enumerate(ranked):
            is_best = rank == 0 and len(ranked) > 1
            command = again(runs[each.row["place"]].config, each.row, fields) if is_best else None
            settings.append(_setting_of(env, each, fields, command))
    return fields, settings, every


def _setting_of(env: str, ranked: Ranked, fields: Sequence[str], command: str | None) -> Setting:
    agents = ranked.rows
    samples = [np.array([agent["eval_return"] for agent in agents])]
    return Setting(
        env=env,
        values=[ranked.row[name] for name in fields],
        places=sorted({agent["place"] for agent in agents}),
        agents=len(agents),
        diverged=sum(agent["diverged"] is not None for agent in agents),
        mean=ranked.mean,
        iqm=None if ranked.mean is None else float(interquartile_mean(samples)),
        interval=None if ranked.mean is None else stratified_interval(interquartile_mean, samples),
        score=_mean(agents, "eval_score"),
        command=command,
    )


def _values(config: Config, agent: dict[str, Any]) -> dict[str, Any]:
    """Return an agent's value of every field, as values that can be compared and hashed."""
    values = {}
    for name in FIELDS:
        value = getattr(config, name)
        if name in SWEEPABLE:
            value = "explored" if name in config.swept and config.population != "none" else agent[name]
        elif isinstance(value, dict):
            value = json.dumps(value, sort_keys=True)
        values[name] = value
    return values
