"""Figures of one run or sweep: results of the compared settings, and the lineage of a population."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, NullLocator

from qlax.config.kinds import distribution
from qlax.config.settings import SWEEPABLE, Config
from qlax.reports.results import Row, ranking
from qlax.reports.style import MOST_LABELS, STYLE, in_steps, legend_below, short
from qlax.util.text import setting_in_words

PANELS_A_ROW = 4


@rc_context(STYLE)
def comparison(config: Config, rows: Sequence[Row], fields: Sequence[str], title: str) -> Figure:
    """Draw the final greedy return of every agent against each compared field, one panel per field.

    Agents of the best setting are circled; agents that diverged are crosses at the bottom. A line joins the means over
    the values of a list; values drawn from a distribution have no line.

    Args:
      config: Settings of one of the runs.
      rows: Results of all agents, see `results.rows`.
      fields: Names of the compared settings.
      title: Text above the figure.
    """
    columns = {name: _numbers([row[name] for row in rows]) for name in fields}
    asked = {name: getattr(config, name) for name in fields}
    drawn = [name for name in fields if name in SWEEPABLE and isinstance(asked[name], str)]
    found = np.array([math.nan if row["eval_return"] is None else row["eval_return"] for row in rows])
    best = ranking(rows, fields)[0].row
    is_of_best = np.array([all(row[name] == best[name] for name in fields) for row in rows])
    across = min(len(columns), PANELS_A_ROW)
    down = -(-len(columns) // across)
    figure = Figure(figsize=(0.7 + 2.2 * across, 0.6 + 2.0 * down), layout="constrained")
    panels: list[Axes] = list(figure.subplots(down, across, sharey=True, squeeze=False).flat)
    for name, axes in zip(columns, panels, strict=False):
        values = columns[name]
        x = _places(axes, values, name in drawn, _is_log(asked[name] if name in drawn else values))
        if name not in drawn and not isinstance(values[0], str):
            places = np.unique(x)
            means = [found[x == place][np.isfinite(found[x == place])] for place in places]
            axes.plot(places, [m.mean() if len(m) else math.nan for m in means], "-", color="0.4", lw=1.2, label="mean")
        axes.update_datalim(np.stack([x, x], axis=1), updatey=False)  # agents that diverged have no y
        axes.scatter(x, found, s=14, color="C0", alpha=0.6, lw=0, zorder=2, label="agent")
        of_best = x[is_of_best], found[is_of_best]
        axes.scatter(*of_best, s=52, color="none", edgecolor="C3", zorder=3, label="best setting")
        if (bad := ~np.isfinite(found)).any():
            below = axes.get_xaxis_transform()
            low = np.full(bad.sum(), 0.02)  # share of the panel's height
            axes.scatter(x[bad], low, s=16, marker="x", color="C3", lw=0.8, transform=below, label="diverged")
        axes.set_xlabel(name)
    for axes in panels[len(columns) :]:
        axes.remove()
    for axes in panels[::across]:
        axes.set_ylabel("greedy return")
    figure.suptitle(title)
    handles: dict[str, Any] = {}
    for axes in panels[: len(columns)]:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    legend_below(figure, list(handles.values()))
    return figure


def _places(axes: Axes, values: Sequence[Any], is_drawn: bool, is_log: bool) -> np.ndarray:
    """Set up the horizontal axis for the values of a setting, and return their positions on it."""
    if isinstance(values[0], str):
        names = list(dict.fromkeys(values))
        axes.set_xticks(range(len(names)), [short(x, 1.2) for x in names], rotation=30, ha="right", parse_math=False)
        axes.set_xlim(-0.5, len(names) - 0.5)
        return np.array([names.index(value) for value in values], np.float64)
    x = np.asarray(values, np.float64)
    if is_log:
        axes.set_xscale("log")
    if not is_drawn and len(places := np.unique(x)) <= MOST_LABELS:
        labels = [f"{x:,.0f}" if x.is_integer() and abs(x) < 1e6 else f"{x:g}" for x in places.tolist()]
        if not is_log and np.diff(places).min(initial=math.inf) < 0.05 * np.ptp(places):
            x = np.searchsorted(places, x).astype(np.float64)  # evenly spaced, so that labels do not overlap
            places = np.unique(x)
        axes.set_xticks(places, labels, rotation=90 if len("".join(labels)) > 20 else 0)
        axes.xaxis.set_minor_locator(NullLocator())
    return x


def _numbers(values: list[Any]) -> list[Any]:
    """Return the values unchanged if all are numbers, else their formatted text."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return values
    return [setting_in_words(value) for value in values]


def _is_log(values: Any) -> bool:
    """Tell whether a distribution is logarithmic, or a list of positive values spans a factor of ten or more."""
    if isinstance(values, str):
        return distribution(values).is_log
    return not isinstance(values[0], str) and min(values) > 0 and max(values) >= 10 * min(values)


@rc_context(STYLE)
def lineage(curves: dict[str, np.ndarray], fields: list[str], seeds: list[int], title: str) -> Figure:
    """Draw the greedy return and the settings of every member of populations, and where members copied others.

    The lineage of the best final member of each population is highlighted.

    Args:
      curves: `steps` `[lines]`; `parent`, `eval_return` and each of the fields `[lines, R]`, nan where a line has no
        value.
      fields: Names of the explored settings.
      seeds: Seed of each population; members are ordered by setting, then by seed.
      title: Text above the figure.
    """
    known = np.isfinite(curves["parent"]).all(axis=1)
    steps, parent = curves["steps"][known], curves["parent"][known].astype(int)
    last = np.nan_to_num(curves["eval_return"][known][-1], nan=-np.inf)
    members = [int(np.argmax(last[index :: len(seeds)])) * len(seeds) + index for index in range(len(seeds))]
    descents = np.empty((len(steps), len(seeds)), int)
    for index in reversed(range(len(steps))):
        members = descents[index] = parent[index, members]
    panels = ["eval_return", *fields]
    figure = Figure(figsize=(5.0, 2.0 + 1.5 * len(fields)), layout="constrained")
    for axes, name in zip(figure.subplots(len(panels), sharex=True), panels, strict=True):
        values = curves[name][known]
        came_from = np.take_along_axis(values[:-1], parent[:-1], axis=1)  # start of each member's next line segment
        pieces = np.stack([np.broadcast_to(steps[:-1, None], came_from.shape), came_from], axis=-1)
        ends = np.stack([np.broadcast_to(steps[1:, None], came_from.shape), values[1:]], axis=-1)
        is_new = parent[:-1] != np.arange(parent.shape[1])
        for which, style in ((~is_new, "-"), (is_new, ":")):
            lines = np.stack([pieces[which], ends[which]], axis=1)
            axes.add_collection(LineCollection(list(lines), colors="0.7", linewidths=0.8, linestyles=style))
        axes.autoscale_view()
        for index, seed in enumerate(seeds):
            label = "lineage of the best" + (f", seed {seed}" if len(seeds) > 1 else "")
            best = values[np.arange(len(steps)), descents[:, index]]
            axes.plot(steps, best, color=f"C{index}", lw=1.8, label=label)
        if name != "eval_return" and np.nanmin(values) > 0 and np.nanmax(values) > 10 * np.nanmin(values):
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylabel(name.replace("eval_return", "greedy return"))
    figure.axes[0].set_title(title)
    figure.axes[-1].set_xlabel("environment steps")
    in_steps(figure.axes[-1])
    ways = [("-", "member"), (":", "copies another member")]
    handles: list[Any] = [Line2D([], [], color="0.7", lw=0.8, ls=style, label=label) for style, label in ways]
    legend_below(figure, handles + figure.axes[0].get_legend_handles_labels()[0])
    return figure
