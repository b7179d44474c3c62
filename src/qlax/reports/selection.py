"""Selection: which agents of which runs a figure draws, and in which groups."""

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
from qlax.storage.history import History, derive
from qlax.util.statistics import interquartile_mean
from qlax.util.text import setting_in_words

MOST_FIELDS = 3  # in the name of a group; where more differ, it is named by its directory
DIRECTORY = "directory"


class Curve(NamedTuple):
    """Values of a metric, where there are any."""

    x: np.ndarray  # `[points]` steps or seconds
    y: np.ndarray  # `[points]`


class AgentCurves(NamedTuple):
    """Curves of an agent, and what tells it from others."""

    env: str
    settings: dict[str, Any]
    curves: dict[str, Curve]  # by metric; the first one is that of final values
    end: float  # of x: how far it came
    steps: int
    seconds: float
    has_diverged: bool
    identity: tuple[Any, ...]  # what another agent has as well if it is the same training, done again
    score: float | None  # of the environment, for its final return
    normalised: float = math.nan  # its final value, to be compared with those of other environments

    @property
    def final(self) -> float:
        """Last value of the first metric."""
        return float(next(iter(self.curves.values())).y[-1])


class Group(NamedTuple):
    """Runs that are one line."""

    label: str
    tasks: dict[str, list[AgentCurves]]  # by environment

    @property
    def agents(self) -> list[AgentCurves]:
        """Of all environments."""
        return [agent for agents in self.tasks.values() for agent in agents]

    def standing(self) -> float:
        """What ranks it: its final values, a mean over environments."""
        tasks = (np.array([agent.normalised for agent in agents]) for agents in self.tasks.values())
        return float(np.mean([interquartile_mean([scores]) for scores in tasks]))


class Selection(NamedTuple):
    """What to draw."""

    shown: list[Group]  # in colour: all, or of many the best
    others: list[Group]
    envs: list[str]
    x: str
    metrics: list[str]
    has_scores: bool  # of the environments; else from 0, the lowest agent of an environment, to 1, the highest

    @property
    def groups(self) -> list[Group]:
        """All."""
        return [*self.shown, *self.others]

    @property
    def metric(self) -> str:
        """The one that final values are of, and by which groups are ranked."""
        return self.metrics[0]


def checked_metrics(histories: Sequence[History], y: str | Sequence[str]) -> list[str]:
    """Return the metrics asked for, from text or a list.

    Raises:
      UserError: there is none, or no run knows one.
    """
    metrics = _listed(y)
    known = {name for history in histories for name, values in history.curves.items() if values.ndim == 2}
    known.discard("parent")  # of a population: no measurement
    for name in metrics:
        if known and name not in known:
            raise UserError(
                f"unknown metric {name!r}{nearest(name, known)}; metrics of runs: {', '.join(sorted(known))}"
            )
    if not metrics:
        raise UserError("there is no metric to draw; name one, as eval_return")
    return metrics


def is_measured(history: History, metric: str) -> bool:
    """Tell whether a run has something to draw: a value of the metric, or agents that all diverged."""
    values = history.curves.get(metric)
    return values is not None and values.ndim == 2 and bool(np.isfinite(values).any() or _diverged(history).all())


def _diverged(history: History) -> np.ndarray:
    """Tell which agents are frozen: every update of another has a loss."""
    loss = history.curves.get("loss", np.zeros((1, history.config.num_members)))
    return ~np.isfinite(loss[-1])


def select(histories: Sequence[History], x: str, y: str | Sequence[str], by: str | Sequence[str] | None) -> Selection:
    """Select the runs that have a value of the first metric that has any, and group them; see `plot` for the arguments.

    Raises:
      UserError: unknown fields or metrics, or no run has a value of one yet.
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
    fields = [name for name in fields if name != "env"]  # which is the panel
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
    """Give agents that diverged before they had a value the lowest one of their environment, from its first on."""
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
    """Those of a directory."""
    config, curves = history.config, history.curves
    own = config.members
    if config.population != "none":  # settings change while it is trained
        own = [{"seed": agent["seed"]} for agent in own]
    shared = {field: getattr(config, field) for field in FIELDS} | {DIRECTORY: name}
    scores = (history.summary or {}).get("eval_score", {}).get("per_run", [None] * len(own))
    told = fields_where(compared=True)
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
                identity=(config.env, member, settings["seed"], *(setting_in_words(settings[field]) for field in told)),
                score=scores[index],
            )
        )
    return agents


def _directory_names(histories: Sequence[History]) -> list[str]:
    """What the directory of each is called, or that of all games of a suite: by its last part, if that is enough."""
    beside: dict[Path, list[str]] = {}
    paths = [history.directory.resolve() for history in histories]
    for path, history in zip(paths, histories, strict=True):
        beside.setdefault(path.parent, []).append(history.config.env)
    suites = {parent for parent, envs in beside.items() if len(set(envs)) == len(envs) > 1}
    paths = [path.parent if path.parent in suites else path for path in paths]
    are_enough = len({path.name for path in paths}) == len(set(paths))
    return [path.name if are_enough else str(path) for path in paths]


def _differing(histories: Sequence[History], agents: Sequence[AgentCurves]) -> list[str]:
    """Return the fields in which agents in an environment differ, or of many those that were asked for."""
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
    """Fields, from text or a list."""
    fields = _listed(by)
    known = [*FIELDS, DIRECTORY]
    for name in fields:
        if name not in known:
            raise UserError(f"by={name}: unknown setting{nearest(name.replace('-', '_'), known)}")
    return fields


def _listed(names: str | Sequence[str]) -> list[str]:
    """Names, each once, from text with commas or a list."""
    listed = (name.strip() for name in names.split(",")) if isinstance(names, str) else names
    return list(dict.fromkeys(name for name in listed if name))


def _label(settings: dict[str, Any], fields: Sequence[str]) -> str:
    """What a group is called."""
    texts = {name: setting_in_words(settings[name]) for name in fields}
    return ", ".join(text if name in (DIRECTORY, "preset") else f"{name} {text}" for name, text in texts.items())


def _order(agents: Sequence[AgentCurves], fields: Sequence[str]) -> Any:
    """Groups by their numbers; what is no number, as it was given."""
    places: dict[str, dict[str, int]] = {name: {} for name in fields}
    for name, agent in itertools.product(fields, agents):
        places[name].setdefault(setting_in_words(agent.settings[name]), len(places[name]))
    are_numbers = {name: all(type(agent.settings[name]) in (int, float) for agent in agents) for name in fields}

    def key(agent: AgentCurves) -> list[float]:
        values = ((name, agent.settings[name]) for name in fields)
        return [value if are_numbers[name] else places[name][setting_in_words(value)] for name, value in values]

    return key
