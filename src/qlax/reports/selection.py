"""Selection of the agents that a figure draws, and their grouping by settings."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qlax.config.settings import FIELDS, fields_where
from qlax.errors import UserError, nearest
from qlax.reports.results import compared_fields
from qlax.reports.style import MOST_LABELS
from qlax.storage import measurements
from qlax.storage.history import History, derive
from qlax.util.statistics import interquartile_mean
from qlax.util.text import setting_in_words

MOST_FIELDS = 3  # fields in the name of a group; if more differ, groups are named by directory
DIRECTORY = "directory"


class Curve(NamedTuple):
    """Known values of one agent's metric."""

    x: np.ndarray  # `[points]` steps or seconds
    y: np.ndarray  # `[points]` values of the metric


class AgentCurves(NamedTuple):
    """Curves of an agent, and its settings."""

    env: str
    settings: dict[str, Any]
    curves: dict[str, Curve]  # by metric; the first metric gives the final value
    end: float  # largest x, in steps or seconds
    steps: int
    seconds: float
    has_diverged: bool
    identity: tuple[Any, ...]  # equal for agents that repeat the same training
    score: float | None  # the environment's score for the final return
    normalised: float = math.nan  # final value on a scale that several environments share

    @property
    def final(self) -> float:
        """Last value of the first metric."""
        return float(next(iter(self.curves.values())).y[-1])


class Group(NamedTuple):
    """Agents that a figure shows as one line."""

    label: str
    tasks: dict[str, list[AgentCurves]]  # agents by environment

    @property
    def agents(self) -> list[AgentCurves]:
        """Agents of all environments."""
        return [agent for agents in self.tasks.values() for agent in agents]

    def standing(self) -> float:
        """Return the number by which groups are ranked: the IQM of the final values, averaged over environments."""
        tasks = (np.array([agent.normalised for agent in agents]) for agents in self.tasks.values())
        return float(np.mean([interquartile_mean([scores]) for scores in tasks]))


class Selection(NamedTuple):
    """Groups, environments and metrics to draw."""

    shown: list[Group]  # drawn in colour: all groups, or the best if there are many
    others: list[Group]  # drawn in grey
    envs: list[str]
    x: str  # "steps" or "seconds"
    metrics: list[str]
    has_scores: bool  # final values are compared by the environments' scores; else rescaled to [0, 1] per environment

    @property
    def groups(self) -> list[Group]:
        """All groups."""
        return [*self.shown, *self.others]

    @property
    def metric(self) -> str:
        """First of the metrics; its final values are the ones that are shown and that rank the groups."""
        return self.metrics[0]

    @property
    def epsilons(self) -> list[float]:
        """Values of `eval_epsilon`, with which the agents were evaluated."""
        agents = (agent for group in self.groups for of_env in group.tasks.values() for agent in of_env)
        return sorted({agent.settings["eval_epsilon"] for agent in agents})

    def name_of(self, metric: str) -> str:
        """Return a metric's name for people; evaluations with random actions are not called greedy."""
        name = measurements.shown(metric)
        return name.replace("greedy", "evaluated") if any(self.epsilons) else name


def checked_metrics(histories: Sequence[History], y: str | Sequence[str]) -> list[str]:
    """Return the names of the requested metrics, from comma-separated text or a list.

    Raises:
      UserError: No metric is named, or no run has one of this name.
    """
    metrics = _listed(y)
    known = {name for history in histories for name, values in history.curves.items() if values.ndim == 2}
    known.discard("parent")  # an index of a population's members, not a quantity
    for name in metrics:
        if known and name not in known:
            raise UserError(
                f"unknown metric {name!r}{nearest(name, known)}; metrics of runs: {', '.join(sorted(known))}"
            )
    if not metrics:
        raise UserError("no metric to draw is given; name one, such as eval_return")
    return metrics


def is_measured(history: History, metric: str) -> bool:
    """Tell whether a run can be drawn: it has a value of the metric, or all its agents diverged."""
    values = history.curves.get(metric)
    return values is not None and values.ndim == 2 and bool(np.isfinite(values).any() or _diverged(history).all())


def _diverged(history: History) -> np.ndarray:
    """Tell which agents have diverged, `[R]` bool; every update of the others has a loss."""
    loss = history.curves.get("loss", np.zeros((1, history.config.num_members)))
    return ~np.isfinite(loss[-1])


def select(histories: Sequence[History], x: str, y: str | Sequence[str], by: str | Sequence[str] | None) -> Selection:
    """Select the runs that have values of the first metric in `y`, and group their agents.

    See `plot` for the arguments.

    Raises:
      UserError: A field or metric is unknown, or no run has a value of a metric yet.
    """
    asked = checked_metrics(histories, y)
    metrics = [name for name in asked if any(derive(history, is_measured, name) for history in histories)]
    if not metrics:
        raise UserError(f"no run has a value of {' or '.join(asked)} yet; wait for the first")
    measured = [history for history in histories if derive(history, is_measured, metrics[0])]
    names = _directory_names(measured)
    found: list[AgentCurves] = []
    for history, name in zip(measured, names, strict=True):
        found += derive(history, _agents, name, x, metrics)
    agents = _completed(found)
    envs = list(dict.fromkeys(agent.env for agent in agents))
    has_scores = metrics[0] == "eval_return" and all(agent.score is not None for agent in agents)
    agents = _normalised(agents, has_scores)
    fields = _differing(measured, agents) if by is None else _checked(by)
    fields = [name for name in fields if name != "env"]  # environments have panels of their own
    groups: dict[tuple[str, ...], Group] = {}
    for agent in sorted(agents, key=_order(agents, fields)):
        values = tuple(setting_in_words(agent.settings[name]) for name in fields)
        group = groups.setdefault(values, Group(_label(agent.settings, fields), {}))
        group.tasks.setdefault(agent.env, []).append(agent)
    ranked = sorted(groups.values(), key=Group.standing, reverse=True) if len(groups) > MOST_LABELS else []
    grey = {id(group) for group in ranked[MOST_LABELS:]}
    shown = [group for group in groups.values() if id(group) not in grey]
    metrics = [name for name in metrics if any(name in agent.curves for agent in agents)]
    return Selection(shown, ranked[MOST_LABELS:], envs, x, metrics, has_scores)


def _normalised(agents: Sequence[AgentCurves], has_scores: bool) -> list[AgentCurves]:
    if has_scores:
        return [agent._replace(normalised=float(agent.score)) for agent in agents if agent.score is not None]
    final: dict[str, list[float]] = {}
    for agent in agents:
        final.setdefault(agent.env, []).append(agent.final)
    ends = {env: (min(values), max(values)) for env, values in final.items()}

    def normalised(agent: AgentCurves) -> float:
        low, high = ends[agent.env]
        return (agent.final - low) / (high - low) if high > low else 0.5

    return [agent._replace(normalised=normalised(agent)) for agent in agents]


def _completed(agents: Sequence[AgentCurves]) -> list[AgentCurves]:
    """Give agents that diverged before their first value the lowest value of their environment."""
    known: dict[tuple[str, str], list[Curve]] = {}
    for agent in agents:
        for metric, curve in agent.curves.items():
            known.setdefault((agent.env, metric), []).extend([curve] if len(curve.y) else [])
    for (env, metric), curves in known.items():
        if metric == next(iter(agents[0].curves)) and not curves:
            raise UserError(f"all agents of {env} diverged before they had a value; there is nothing to draw")
    lowest = {
        key: Curve(np.array([min(x[0] for x, _ in curves)]), np.array([min(y.min() for _, y in curves)]))
        for key, curves in known.items()
        if curves
    }

    def completed(agent: AgentCurves) -> dict[str, Curve]:
        drawn = {metric: curve for metric, curve in agent.curves.items() if (agent.env, metric) in lowest}
        return {metric: curve if len(curve.y) else lowest[agent.env, metric] for metric, curve in drawn.items()}

    return [agent._replace(curves=completed(agent)) for agent in agents]


def _agents(history: History, name: str, x: str, metrics: Sequence[str]) -> list[AgentCurves]:
    """Return the curves of all agents of a run directory, which is shown under `name`."""
    config, curves = history.config, history.curves
    own = config.members
    if config.population != "none":  # settings of a population's members change during training
        own = [{"seed": agent["seed"]} for agent in own]
    shared = {field: getattr(config, field) for field in FIELDS} | {DIRECTORY: name}
    scores = (history.summary or {}).get("eval_score", {}).get("per_run", [None] * len(own))
    compared = fields_where(compared=True)
    agents = []
    for index, (settings, diverged) in enumerate(zip(own, _diverged(history), strict=True)):
        drawn = {}
        for metric in metrics:
            values = curves[metric][:, index] if metric in curves else np.full(len(curves[x]), math.nan)
            known = np.isfinite(values) & np.isfinite(curves[x])
            drawn[metric] = Curve(curves[x][known], values[known])
        settings = shared | settings
        member = index if config.population != "none" else None
        agents.append(
            AgentCurves(
                env=config.env,
                settings=settings,
                curves=drawn,
                end=float(np.nanmax(curves[x])),
                steps=int(np.nanmax(curves["steps"])),
                seconds=float(np.nanmax(curves["seconds"])),
                has_diverged=bool(diverged),
                identity=(
                    config.env,
                    member,
                    settings["seed"],
                    *(setting_in_words(settings[field]) for field in compared),
                ),
                score=scores[index],
            )
        )
    return agents


def _directory_names(histories: Sequence[History]) -> list[str]:
    """Name each run's directory by its last part, or by its whole path if two directories share the last part.

    Runs of different environments in one parent folder, as a sweep over a suite makes them, are named by the parent.
    """
    beside: dict[Path, list[str]] = {}
    paths = [history.directory.resolve() for history in histories]
    for path, history in zip(paths, histories, strict=True):
        beside.setdefault(path.parent, []).append(history.config.env)
    suites = {parent for parent, envs in beside.items() if len(set(envs)) == len(envs) > 1}
    paths = [path.parent if path.parent in suites else path for path in paths]
    are_enough = len({path.name for path in paths}) == len(set(paths))
    return [path.name if are_enough else str(path) for path in paths]


def _differing(histories: Sequence[History], agents: Sequence[AgentCurves]) -> list[str]:
    """Return the fields in which agents of an environment differ.

    If more than a few fields differ, return only those that a sweep compares, and `directory` for several runs.
    """
    configs = [history.config for history in histories]
    asked = compared_fields(configs)
    values: dict[tuple[str, str], set[str]] = {}
    for agent in agents:
        for name in asked:
            values.setdefault((agent.env, name), set()).add(setting_in_words(agent.settings[name]))
    differing = [name for name in asked if any(len(v) > 1 for (_, field), v in values.items() if field == name)]
    if len(differing) <= MOST_FIELDS:
        return differing
    several = [DIRECTORY] if len(histories) > 1 else []
    return [*several, *(name for name in differing if any(name in config.compared for config in configs))]


def _checked(by: str | Sequence[str]) -> list[str]:
    """Return field names from comma-separated text or a list.

    Raises:
      UserError: A field is unknown.
    """
    fields = _listed(by)
    known = [*FIELDS, DIRECTORY]
    for name in fields:
        if name not in known:
            raise UserError(f"by={name}: unknown setting{nearest(name.replace('-', '_'), known)}")
    return fields


def _listed(names: str | Sequence[str]) -> list[str]:
    """Return names without repetition, from comma-separated text or a list."""
    listed = (name.strip() for name in names.split(",")) if isinstance(names, str) else names
    return list(dict.fromkeys(name for name in listed if name))


def _label(settings: dict[str, Any], fields: Sequence[str]) -> str:
    """Return the label of a group, from its values of the fields."""
    texts = {name: setting_in_words(settings[name]) for name in fields}
    return ", ".join(text if name in (DIRECTORY, "preset") else f"{name} {text}" for name, text in texts.items())


def _order(agents: Sequence[AgentCurves], fields: Sequence[str]) -> Any:
    """Return a sort key for agents: numeric fields by value, other fields by their first appearance."""
    places: dict[str, dict[str, int]] = {name: {} for name in fields}
    for name, agent in itertools.product(fields, agents):
        places[name].setdefault(setting_in_words(agent.settings[name]), len(places[name]))
    are_numbers = {name: all(type(agent.settings[name]) in (int, float) for agent in agents) for name in fields}

    def key(agent: AgentCurves) -> list[float]:
        values = ((name, agent.settings[name]) for name in fields)
        return [value if are_numbers[name] else places[name][setting_in_words(value)] for name, value in values]

    return key
