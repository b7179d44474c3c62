"""Sections of the report on a run: of each a function that gathers its content, and a template that shows it.

To add a section, write a function here, name it in `SECTIONS`, and put its template into `templates/sections`.
Templates know `told`, the content; `run`, a `results.Run`; and `h`, the level of headings.
"""

import base64
import contextlib
import math
import re
import shlex
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from qlax.config.command_line import as_words
from qlax.config.configure import configure
from qlax.config.settings import FIELDS, Config
from qlax.errors import UserError
from qlax.reports import pictures, ranking
from qlax.reports.plot import curve_figure
from qlax.reports.results import Run, by_setting, last
from qlax.reports.style import as_file
from qlax.storage import checkpoint
from qlax.storage.history import History
from qlax.storage.measurements import MEASUREMENTS, in_group, is_own

MOST_LINES = 100  # of a picture that are not drawn point by point
SCALE = 1.6  # pixels a point: figures are drawn as for paper, whose type is smaller
FILES = {  # of a run's directory, and what they hold
    "config.json": "every setting",
    "metrics.jsonl": "measurements, a line an interval",
    "summary.json": "results",
    "sweep.csv": "results, a row an agent",
    "agents": "weights at the end, a file an agent",
    "best": "weights of the best evaluation, a file an agent",
    "checkpoints": "whole state of the training",
}


class Section(NamedTuple):
    """A part of the report on a run.

    Attributes:
      template: name of a file in `templates/sections`.
      heading: empty for what stands above all headings.
      content: what the template shows.
    """

    template: str
    heading: str
    content: dict[str, Any]


class Picture(NamedTuple):
    """An image that a page holds, with its size in pixels."""

    source: str
    width: int
    height: int


def status(run: Run) -> Section:
    """How far the run is, which agents diverged, and the numbers to see first."""
    config, summary = run.config, run.summary
    done = int(run.history.curves["steps"][-1]) if "steps" in run.history.curves else 0
    diverged = [
        {
            "agent": agent,
            "setting": {name: own[name] for name in ("seed", *config.swept)},
            "steps": each["steps"],
            "what": (what := each.get("what")),
            "cause": MEASUREMENTS[what].cause if what in MEASUREMENTS else None,
        }
        for agent, (own, each) in enumerate(zip(config.members, summary["diverged"], strict=True))
        if each
    ]
    metrics = run.directory / "metrics.jsonl"
    content = {
        "diverged": diverged,
        "done": summary["total_steps"] if run.is_finished else done,
        "wanted": config.num_updates * config.steps_per_update,
        "inexact": summary.get("inexact", []),
        "last": time.strftime("%Y-%m-%d %H:%M", time.localtime(metrics.stat().st_mtime)) if metrics.exists() else None,
        "machine": _machine(run),
    }
    return Section("status.html", "", content)


def learning_curve(run: Run) -> Section:
    """Returns during the training."""
    returns = [each.key for each in in_group("return")]
    return Section("learning_curve.html", "Learning curve", {"curve": curve([run.history], returns)})


def results(run: Run) -> Section:
    """Results of every setting and every agent."""
    config, final = run.config, run.summary.get("final_settings", {})  # of a population
    rows = [
        row | {f"{name} in the end": values[row["agent"]] for name, values in final.items()}
        for row in ranking.rows(config, run.summary)
    ]
    fields, settings, agents = by_setting([run])
    content = {
        "rows": rows,
        "fields": fields,
        "settings": settings,
        "comparison": comparison(config, agents, fields),
        "lineage": _lineage(run.history),
    }
    return Section("results.html", "Results", content)


def best_agent(run: Run) -> Section | None:
    """The agent with the best evaluation, and its film."""
    return Section("best_agent.html", "Best agent", {}) if run.best else None


def settings(run: Run) -> Section:
    """Every setting, and the command that trains the run again."""
    command = shlex.join(["qlax", "train", *as_words(run.config)])
    return Section("settings.html", "Settings", {"command": command, "fields": _fields(run.config)})


def network(run: Run) -> Section | None:
    """The network, and its arrays by their names."""
    try:
        agent = run.best.agent if run.best else 0
        info, arrays = checkpoint.read(run.directory / "best" / f"{agent}{checkpoint.SUFFIX}")
    except UserError:  # there is none yet
        info, arrays = {}, {}
    content = {"network": run.summary.get("network", info.get("network", {})), "arrays": sorted(arrays.items())}
    return Section("network.html", "Network", content) if any(content.values()) else None


def learning(run: Run) -> Section | None:
    """Measurements of the learning, and those of the environment."""
    content = {"health": _health(run.history), "own": _own(run.history)}
    return Section("learning.html", "How the learning went", content) if any(content.values()) else None


def machine(run: Run) -> Section:
    """Where and how fast the run was trained."""
    return Section("machine.html", "Machine", {"machine": _machine(run)})


def files(run: Run) -> Section:
    """What is in the directory."""
    found = [(run.directory / name, what) for name, what in FILES.items() if (run.directory / name).exists()]
    return Section("files.html", "Files", {"files": found})


SECTIONS = (status, learning_curve, results, best_agent, settings, network, learning, machine, files)


def sections_of(run: Run) -> list[Section]:
    """Gather the sections that have something to say of a run, in the order of the page."""
    return [section for gather in SECTIONS if (section := gather(run))]


def _fields(config: Config) -> list[dict[str, Any]]:
    """List every setting, with its value without having been asked for: the preset's, or the default."""
    try:
        usual = configure(config.preset or config.env)
    except UserError:  # it was a preset of another version
        usual = configure(config.env)
    found = []
    for name, field in FIELDS.items():
        if name in ("preset", "derived"):
            continue
        value, before = getattr(config, name), getattr(usual, name)
        kind = "derived" if name in config.derived else "changed" if value != before else "usual"
        found.append({"name": name, "value": value, "usual": before, "kind": kind, "help": field.metadata["help"]})
    return found


def _machine(run: Run) -> dict[str, Any]:
    """Return where and how fast a run is trained, by its summary and the newest checkpoint."""
    history, summary = run.history, run.summary
    info: dict[str, Any] = {}
    if files := sorted((history.directory / "checkpoints").glob(f"*{checkpoint.SUFFIX}")):
        with contextlib.suppress(UserError):  # it holds nothing that the page could not do without
            info = checkpoint.about(files[-1])
    made_with = info.get("made_with", {})
    versions = {name: version for name, version in made_with.items() if name not in ("device", "num_devices")}
    if "seconds" in history.curves:
        info.setdefault("train_seconds", float(history.curves["seconds"][-1]))
    speeds = history.curves.get("steps_per_second", np.array([math.nan]))
    speed = float(np.nanmedian(speeds)) if np.isfinite(speeds).any() else None
    return {
        "devices": [name for name in (summary.get("device"), made_with.get("device")) if name],
        "num_devices": summary.get("num_devices", made_with.get("num_devices", 1)),
        "versions": versions or {name: summary[f"{name}_version"] for name in ("qlax", "jax") if run.is_finished},
        "seconds": {
            text: seconds
            for name, text in (("compile", "compilation"), ("train", "training"), ("eval", "evaluation"))
            if (seconds := summary.get(f"{name}_seconds", info.get(f"{name}_seconds"))) is not None
        },
        "steps_per_second": summary.get("steps_per_second", speed),
    }


def curve(histories: Sequence[History], metrics: Sequence[str], title: str | None = None) -> Picture | None:
    """Draw measurements during the training; None while there is no value."""
    try:
        figure = curve_figure(histories, y=metrics, title=title)
    except UserError:
        return None
    found = [of.curves[name] for of in histories for name in metrics if name in of.curves]
    values = np.concatenate([x[np.isfinite(x)] for x in found])
    is_wide = len(values) > 0 and values.min() > 0 and values.max() > 1000 * values.min()
    for axes in figure.axes:
        if is_wide:
            axes.set_yscale("log")
        for line in axes.lines if len(axes.lines) > MOST_LINES else ():
            line.set_rasterized(True)  # or else they would be megabytes
    return embedded(figure)


def comparison(config: Config, rows: Sequence[ranking.Row], fields: Sequence[str]) -> Picture | None:
    """Draw what the settings that were compared came to; None where there is nothing to compare."""
    if not fields or all(row["eval_return"] is None for row in rows):
        return None
    return embedded(pictures.comparison(config, rows, fields, ""))


def _lineage(history: History) -> Picture | None:
    """Draw the members of a population; None where there is none."""
    config, parent = history.config, history.curves.get("parent")
    if parent is None or not np.isfinite(parent).all(axis=1).any():
        return None
    seeds = list(range(config.seed, config.seed + config.seeds))
    return embedded(pictures.lineage(history.curves, config.swept, seeds, ""))


def _health(history: History) -> list[dict[str, Any]]:
    """Draw the measurements of the learning, and those of the environment that are no whole group."""
    own = [name for name in history.curves if is_own(name) and name not in history.config.swept and "/" not in name]
    meanings = {each.key: each.meaning for each in in_group("learning")}
    meanings |= dict.fromkeys(own, "measured by the environment")
    return [
        {"name": name, "meaning": meaning, "picture": picture}
        for name, meaning in meanings.items()
        if name in history.curves and np.isfinite(history.curves[name]).any()
        if (name != "eval_cut" or np.nansum(history.curves[name])) and (picture := curve([history], [name], name))
    ]


def _own(history: History) -> list[dict[str, Any]]:
    """List measurements of the environment that come in groups, as `achievement/wood`: last values, means of agents."""
    names = dict.fromkeys(name.removeprefix("eval_") for name in history.curves if "/" in name)
    found = []
    for name in names:
        row: dict[str, Any] = {"name": name}
        for kind, curve in (("exploring", name), ("greedy", f"eval_{name}")):
            values = last(history.curves[curve]) if curve in history.curves else np.array([math.nan])
            row[kind] = float(np.nanmean(values)) if np.isfinite(values).any() else None
        found.append(row)
    return found


def embedded(figure: Figure) -> Picture:
    """Turn a figure into an image that a page holds."""
    content = as_file(figure, ".svg")
    size = re.search(rb'<svg[^>]* width="([0-9.]+)pt" height="([0-9.]+)pt"', content)
    assert size is not None
    width, height = (round(float(points) * SCALE) for points in size.groups())
    return Picture(data_url(content, "image/svg+xml"), width, height)


def data_url(content: bytes, kind: str) -> str:
    """Return a URL that holds the content itself, of a type as "video/mp4"."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
