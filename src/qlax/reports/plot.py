"""Figures of runs for a paper: learning curves, performance profiles and probabilities of improvement.

`plot` reads runs and writes a figure; `curve_figure` draws learning curves of runs that are already read.
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qlax.errors import UserError, nearest
from qlax.reports.selection import AgentCurves, Group, Selection, checked_metrics, is_measured, select
from qlax.reports.style import MOST_LABELS, STYLE, as_file, few_ticks, in_steps, legend_below, ncols, short
from qlax.storage.history import History, Paths, derive, read_all
from qlax.storage.measurements import MEASUREMENTS
from qlax.util.files import given_path, new_file, write_result
from qlax.util.statistics import (
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
    stratified_interval,
)
from qlax.util.text import ends_in_words, four_digits, markdown

KINDS = ("curve", "profile", "improvement")
AXES = ("steps", "seconds")
SUFFIXES = (".png", ".svg", ".pdf")
ONE_COLUMN, TWO_COLUMNS = 3.4, 6.8  # widths in inches on the page of a paper
LINES = ("-", ":", "--", "-.")  # line styles, one per metric
MOST_POINTS = 200  # points of a curve
MOST_PAIRS = 15  # pairs of groups in a figure
ENOUGH = 10  # agents over which a bootstrap covers about as much as it should
COVERED = "those over five cover the true value in 85 to 89 % of cases"
RESAMPLES = 2_000  # gives the ends of 95 % intervals a standard error of 0.3 percentage points


class PlotResult(NamedTuple):
    """Figure that was written to a file."""

    path: Path  # file of the figure
    text: str  # table of the drawn values, and a caption


def plot(
    runs: Paths,
    out: Path | str | None = None,
    *,
    kind: str = "curve",
    x: str = "steps",
    y: str | Sequence[str] = "eval_return",
    by: str | Sequence[str] | None = None,
    title: str | None = None,
) -> PlotResult:
    """Draw runs, finished or in progress, as a figure for a paper.

    Agents are grouped by their settings. A group is summarised by the interquartile mean (IQM; the mean of fewer than
    four agents) with a 95 % percentile interval of a bootstrap over the agents; a single agent has no interval.
    Values between lines of `metrics.jsonl` are interpolated, and a curve ends where the first agent of its group ends.
    An agent that diverged keeps its last value, because it keeps the weights that had this value; one without any
    value counts as the lowest value of its environment. Of more than ten groups only the best ten by final value are
    in colour.

    Args:
      runs: Directory of a run or a sweep, or several directories.
      out: File to write, a .png, .svg or .pdf; None for `figure.png`, with a number appended if it exists.
      kind: "curve": a metric against steps or time, one panel per environment. "profile": share of agents above each
        final score, over the environments that all groups have; the score is the suite's if it has one, else the
        final value rescaled from 0 (lowest agent of the environment) to 1 (highest). "improvement": probability that
        an agent of one group has a higher final score than an agent of another.
      x: Horizontal axis of curves: "steps" (environment steps of one agent) or "seconds" (training time of all agents
        that trained side by side).
      y: Metric with one value per agent, a key of `metrics.jsonl`. Curves may show up to four, such as
        "eval_return,episode_return" or a list: each in its own line style, the first solid and shaded.
      by: Fields of `Config` whose values make a group, such as "lam,norm" or a list, or "directory". None for all
        fields in which the agents of an environment differ, or the directory if these are more than three. The
        members of a population are one group.
      title: Text above the figure.

    Returns:
      Path of the figure, and a text that describes it.

    Raises:
      UserError: An argument is not valid, there is nothing to draw, or the file exists.

    Example:
      ```python
      print(qlax.plot(["runs/a"], "curves.pdf").text)
      ```
    """
    for name, value, choices in (("kind", kind, KINDS), ("x", x, AXES)):
        if value not in choices:
            raise UserError(f"{name}={value}: expected one of {', '.join(choices)}{nearest(value, choices)}")
    path = new_file(out, Path("figure.png"), SUFFIXES)
    histories = read_all(runs)
    metrics = checked_metrics(histories, y)
    if len(metrics) > (len(LINES) if kind == "curve" else 1):
        raise UserError(f"y has {len(metrics)} metrics; expected one, or up to {len(LINES)} for learning curves")
    named = [given_path(run) for run in ([runs] if isinstance(runs, Path | str) else runs)]
    for history in histories:
        if history.directory in named and not derive(history, is_measured, metrics[0]):
            raise UserError(
                f"{history.directory} has no value of {metrics[0]} yet; leave it out, or wait for the first"
            )
    selection = select(histories, x, y, by)
    with rc_context(STYLE):
        figure = {"curve": _curves, "profile": _profile, "improvement": _improvement}[kind](selection, title)
    path = write_result(path, as_file(figure, path.suffix), is_named=out is not None)
    return PlotResult(path, f"{_table(selection, kind)}\n{_caption(selection, kind)}")


def curve_figure(
    histories: Sequence[History],
    *,
    x: str = "steps",
    y: str | Sequence[str] = "eval_return",
    by: str | Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw learning curves; see `plot` for the arguments. `style.save` writes the figure to a file.

    Raises:
      UserError: A field or metric is unknown, or no run has a value of the metric yet.
    """
    with rc_context(STYLE):
        return _curves(select(histories, x, y, by), title)


def _curves(selection: Selection, title: str | None) -> Figure:
    """Draw learning curves: one panel per environment, one line per group."""
    envs, groups = selection.envs, selection.groups
    across = math.ceil(len(envs) / math.ceil(len(envs) / (4 if len(envs) <= 16 else 6)))
    down = math.ceil(len(envs) / across)
    width = ONE_COLUMN if across == 1 else TWO_COLUMNS
    height = down * max(1.3, (0.7 if across == 1 else 0.8) * width / across)
    figure = Figure(figsize=(width, height + _legend_height(selection, width)), layout="constrained")
    panels: list[Axes] = list(figure.subplots(down, across, squeeze=False).flat)
    latest = max(agent.end for group in groups for agent in group.agents)
    unit, seconds = next((u, s) for u, s in (("h", 3600), ("min", 60), ("s", 1)) if latest >= 3 * s or s == 1)
    scale = seconds if selection.x == "seconds" else 1
    for axes, env in zip(panels, envs, strict=False):
        for group in selection.others:
            if env in group.tasks:
                _curve(axes, *_on_grid(group.tasks[env], selection.metric), scale, color="0.8", lw=0.6, zorder=1)
        for index, group in enumerate(selection.shown):
            for metric, line in zip(selection.metrics, LINES, strict=False):
                agents = group.tasks.get(env, [])
                if agents and metric in agents[0].curves:
                    curve = _on_grid(agents, metric)
                    is_first = line == LINES[0]
                    _curve(axes, *curve, scale, color=f"C{index}", ls=line, lw=1.2 if is_first else 0.8)
                    if is_first:
                        _shade(axes, *curve, scale, f"C{index}")
        axes.set_title(title if title and len(envs) == 1 else _name_of(env, envs))
        axes.margins(x=0.02)
        axes.set_xlim(left=0)
        few_ticks(axes.yaxis)
        if selection.x == "steps":
            in_steps(axes)
    for axes in panels[len(envs) :]:
        axes.remove()
    summary = _summary(_most(groups))
    names = [selection.name_of(metric) for metric in selection.metrics]
    last = {name.rpartition(" ")[2] for name in names}  # last words: "return" of "greedy return, exploring return"
    what = ", ".join(names) if len(last) > 1 or len(names) == 1 else last.pop()
    units = {MEASUREMENTS[metric].unit if metric in MEASUREMENTS else "" for metric in selection.metrics}
    more = ", ".join(filter(None, (units.pop() if len(units) == 1 else "", summary)))
    what += f" ({more})" if more else ""
    steps = "environment steps" if across <= 4 else "steps"
    for axes in panels[max(len(envs) - across, 0) : len(envs)]:
        axes.set_xlabel(steps if selection.x == "steps" else f"training time ({unit})")
    if down > 1:
        figure.supylabel(what)
    else:
        panels[0].set_ylabel(what)
    if title and len(envs) > 1:
        figure.suptitle(title)
    _legend(figure, selection)
    return figure


def _curve(axes: Axes, grid: np.ndarray, values: np.ndarray, scale: float, **how: Any) -> None:
    """Draw a curve as a line, or as a dot if it has only one point."""
    marker = "o" if len(grid) == 1 else None
    axes.plot(grid / scale, interquartile_mean([values]), marker=marker, ms=3, **how)


def _shade(axes: Axes, grid: np.ndarray, values: np.ndarray, scale: float, color: str) -> None:
    """Shade the interval of a curve; a single agent has none."""
    if interval := stratified_interval(interquartile_mean, [values], RESAMPLES):
        if len(grid) == 1:
            middle = interquartile_mean([values])
            axes.errorbar(grid / scale, middle, np.abs(np.stack(interval) - middle), color=color, lw=1)
        else:
            axes.fill_between(grid / scale, *interval, color=color, alpha=0.2, lw=0)


def _on_grid(agents: Sequence[AgentCurves], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Interpolate a metric of a group's agents where all of them have values.

    Returns:
      Positions on the horizontal axis, `[points]`, and values `[points, agents]`.
    """
    curves = [agent.curves[metric] for agent in agents]
    end = min(agent.end for agent in agents)
    begin = min(max(curve.x[0] for curve in curves), end)
    grid = np.unique(np.concatenate([[begin, end], *(curve.x for curve in curves)]))
    grid = grid[(begin <= grid) & (grid <= end)]
    if len(grid) > MOST_POINTS:
        grid = np.linspace(begin, end, MOST_POINTS)
    return grid, np.stack([np.interp(grid, curve.x, curve.y) for curve in curves], axis=1)


def _profile(selection: Selection, title: str | None) -> Figure:
    """Draw the share of agents above each final score."""
    envs, groups = _in_common(selection)
    if len(envs) == 1:
        label = f"final {selection.name_of(selection.metric)}"
        final = [[np.array([agent.final for agent in group.tasks[envs[0]]])] for group in groups]
    else:
        ends = "" if selection.has_scores else "\n(0: lowest agent of the environment, 1: highest)"
        label = _score(selection) + ends
        final = [[np.array([agent.normalised for agent in group.tasks[env]]) for env in envs] for group in groups]
    every = np.unique(np.concatenate([scores for tasks in final for scores in tasks]))
    low, high = every[0], every[-1]
    inside = every if len(every) <= MOST_POINTS else np.linspace(low, high, MOST_POINTS)
    thresholds = np.array([low - 0.03 * (high - low or 1), *inside, high + 0.03 * (high - low or 1)])
    height = 0.7 * ONE_COLUMN + _legend_height(selection, ONE_COLUMN)
    figure = Figure(figsize=(ONE_COLUMN, height), layout="constrained")
    axes = figure.subplots()

    def profile(tasks: Sequence[np.ndarray]) -> np.ndarray:
        return performance_profile(tasks, thresholds)

    for index, tasks in enumerate(final):
        if index >= len(selection.shown):
            axes.step(thresholds, profile(tasks), where="post", color="0.8", lw=0.6, zorder=1)
            continue
        axes.step(thresholds, profile(tasks), where="post", color=f"C{index}")
        if interval := stratified_interval(profile, tasks, RESAMPLES):
            axes.fill_between(thresholds, *interval, step="post", color=f"C{index}", alpha=0.2, lw=0)
    axes.set(xlabel=label, ylabel="share of agents above it", title=title or _title_of(envs))
    axes.set(xlim=(thresholds[0], thresholds[-1]), ylim=(-0.02, 1.02))
    few_ticks(axes.xaxis)
    _legend(figure, selection)
    return figure


def _title_of(envs: Sequence[str]) -> str:
    return _name_of(envs[0], envs) if len(envs) == 1 else f"{len(envs)} environments"


def _improvement(selection: Selection, title: str | None) -> Figure:
    """Draw the probability of improvement, one row per pair of groups."""
    envs, groups = _in_common(selection)
    if len(groups) < 2:
        raise UserError("an improvement compares two groups, and all agents are in one; choose groups with --by")
    pairs = list(itertools.combinations(groups, 2))
    if len(pairs) > MOST_PAIRS:
        best, *others = sorted(selection.shown, key=Group.standing, reverse=True)
        pairs = [(best, other) for other in others]
    are_long = max(len(first.label) + len(second.label) for first, second in pairs) > 30
    width = TWO_COLUMNS if are_long else ONE_COLUMN
    figure = Figure(figsize=(width, 0.7 + 0.24 * len(pairs)), layout="constrained")
    axes = figure.subplots()
    for row, pair in enumerate(pairs):
        tasks = [np.array([agent.final for agent in group.tasks[env]]) for group in pair for env in envs]

        def probability(samples: Sequence[np.ndarray]) -> np.ndarray:
            return probability_of_improvement(samples[: len(envs)], samples[len(envs) :])

        found = float(probability(tasks))
        if interval := stratified_interval(probability, tasks, RESAMPLES):
            axes.barh(row, interval[1] - interval[0], left=interval[0], height=0.55, color="C0", alpha=0.35)
        axes.plot([found, found], [row - 0.28, row + 0.28], color="C0", lw=1.6)
    axes.axvline(0.5, color="0.4", lw=0.8, ls=":")
    axes.set_yticks(range(len(pairs)), [short(first.label, 0.3 * width) for first, _ in pairs], parse_math=False)
    axes.set(xlim=(-0.02, 1.02), ylim=(len(pairs) - 0.5, -0.5))
    axes.set_xlabel(f"probability that an agent of X has a higher\n{selection.name_of(selection.metric)} than one of Y")
    axes.set_ylabel("X", rotation=0, ha="right", va="center")
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    right = axes.secondary_yaxis("right")
    right.set_yticks(range(len(pairs)), [short(second.label, 0.3 * width) for _, second in pairs], parse_math=False)
    right.set_ylabel("Y", rotation=0, ha="left", va="center")
    right.tick_params(length=0)
    right.spines["right"].set_visible(False)
    axes.spines["left"].set_visible(False)
    axes.set_title(title or _title_of(envs))
    return figure


def _in_common(selection: Selection) -> tuple[list[str], list[Group]]:
    """Return the environments that all groups have, and all groups.

    Raises:
      UserError: The groups have no environment in common.
    """
    envs = [env for env in selection.envs if all(env in group.tasks for group in selection.groups)]
    if not envs:
        first, other = selection.groups[0], selection.groups[1]
        raise UserError(
            f"no environment has agents of all {len(selection.groups)} groups, such as '{first.label}' and "
            f"'{other.label}'; name directories of the same environments, or other fields with --by"
        )
    return envs, selection.groups


def _legend_height(selection: Selection, width: float) -> float:
    labels = [*map(selection.name_of, selection.metrics), *(group.label for group in selection.shown), "others"]
    is_needed = max(len(selection.groups), len(selection.metrics)) > 1
    return 0.16 * math.ceil(len(labels) / ncols(labels, width)) if is_needed else 0.0


def _legend(figure: Figure, selection: Selection) -> None:
    """Put a legend below the figure if it has several line styles or colours."""
    handles = []
    if len(selection.metrics) > 1:
        lines = zip(selection.metrics, LINES, strict=False)
        handles += [Line2D([], [], color="0.4", ls=line, label=selection.name_of(metric)) for metric, line in lines]
    if len(selection.groups) > 1:
        groups = enumerate(selection.shown)
        handles += [Line2D([], [], color=f"C{index}", label=group.label) for index, group in groups]
    if selection.others:
        handles.append(Line2D([], [], color="0.8", lw=0.6, label=f"{len(selection.others):,} others"))
    if handles:
        legend_below(figure, handles)


def _name_of(env: str, envs: Sequence[str]) -> str:
    """Return an environment's name without its suite, unless two environments share that name."""
    names = {each: each.replace(":", "/").rpartition("/")[2] for each in envs}
    return names[env] if [*names.values()].count(names[env]) == 1 else env


def _most(groups: Sequence[Group]) -> int:
    """Return the largest number of agents of a group in one environment."""
    return max(len(agents) for group in groups for agents in group.tasks.values())


def _summary(agents: int) -> str:
    """Return the name of the statistic that summarises this number of agents; empty for a single agent."""
    return "IQM" if agents > 3 else "mean" if agents > 1 else ""


def _table(selection: Selection, kind: str) -> str:
    """Format the final values as a table: one row per group and environment, or per group if `kind` is no curve."""
    envs, over = selection.envs, 1  # number of environments that one row summarises
    if kind != "curve":
        envs = _in_common(selection)[0]
        over = len(envs)
    rows = []
    for place in range(0, len(envs), over):
        of = envs[place : place + over]
        for group in selection.shown:
            if of[0] in group.tasks:
                agents = [agent for env in of for agent in group.tasks[env]]
                which = [_name_of(of[0], envs)] if len(envs) > over else []
                ends = [_least_to_most([getattr(agent, axis) for agent in agents]) for axis in AXES]
                rows.append([*which, group.label or "all", *_estimate([group.tasks[env] for env in of]), *ends])
    what = f"final {selection.name_of(selection.metric)}" if over == 1 else _score(selection)
    summary = _summary(_most(selection.groups) * over)
    header = ["group", "agents", what + (f", {summary}" if summary else ""), "95 % interval", "steps", "seconds"]
    return markdown([*(["environment"] if len(envs) > over else []), *header], rows)


def _estimate(tasks: Sequence[Sequence[AgentCurves]]) -> list[str]:
    """Return cells with the number of agents, their summarised final value, and its interval."""
    scores = [np.array([agent.final if len(tasks) == 1 else agent.normalised for agent in agents]) for agents in tasks]
    interval = stratified_interval(interquartile_mean, scores)
    return [str(sum(map(len, tasks))), four_digits(float(interquartile_mean(scores))), ends_in_words(interval)]


def _score(selection: Selection) -> str:
    """Name the score in which final values of several environments are compared."""
    return "final score" if selection.has_scores else f"final {selection.name_of(selection.metric)} from 0 to 1"


def _least_to_most(values: Sequence[float]) -> str:
    least, most = (f"{value:,.0f}" for value in (min(values), max(values)))
    return least if least == most else f"{least} to {most}"


def _caption(selection: Selection, kind: str) -> str:
    """Return the caption of the figure."""
    groups, what = selection.groups, _summary(_most(selection.groups))
    counts = [len(agents) for group in groups for agents in group.tasks.values()]
    agents = f"{_least_to_most(counts)} agent{'s' if max(counts) > 1 else ''} each"
    intervals = "95 % percentile intervals of a stratified bootstrap over the agents"
    name = ", ".join(map(selection.name_of, selection.metrics))
    parts = {
        "curve": [f"{name[0].upper()}{name[1:]}" + (f", {what} of {agents}; shaded: {intervals}" if what else "")],
        "profile": [f"Share of agents with a higher final value, {agents}; shaded: {intervals}"],
        "improvement": [
            "Probability that an agent has a higher final value than an agent of another group, "
            f"{agents}; bars: {intervals}"
        ],
    }[kind]
    if (kind != "curve" or what) and min(counts) < ENOUGH:
        parts.append(f"Over so few agents these intervals are narrow: {COVERED}")
    if kind != "curve" and len(selection.envs) > 1 and not selection.has_scores:
        parts.append("Values are rescaled from 0 (lowest agent of an environment) to 1 (highest)")
    if any(selection.epsilons):
        epsilons = ", ".join(f"{epsilon:g}" for epsilon in selection.epsilons)
        parts.append(f"Evaluations took random actions, with a probability (epsilon) of {epsilons}")
    if selection.others:
        parts.append(f"In colour, and in the table, the best {MOST_LABELS} of {len(groups):,} groups by final value")
    if kind != "curve" and (lacking := [env for env in selection.envs if env not in _in_common(selection)[0]]):
        parts.append(f"Left out, because not all groups have agents in them: {', '.join(lacking)}")
    if diverged := sum(agent.has_diverged for group in groups for agent in group.agents):
        parts.append(f"{diverged} of {sum(counts):,} agents diverged, and count with their last value")
    if again := sum(len(group.agents) - len({agent.identity for agent in group.agents}) for group in groups):
        parts.append(
            f"{again} of {sum(counts):,} agents have the settings and the seed of another and add no information"
        )
    return ". ".join(parts) + "."
