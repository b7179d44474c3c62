"""Report of runs as one self-contained HTML page.

Each section on a run consists of a function that gathers its content, or returns None to omit the section, and a
template that shows the content. To add a section, write its function here, add it to `SECTIONS`, and add a template
of the same name to `templates/sections`. Templates know `content`; `run`, a `results.Run`; and `h`, the heading tag.
"""

import base64
import contextlib
import math
import os
import re
import shlex
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
from matplotlib.figure import Figure

from qlax._version import __version__
from qlax.config.command_line import as_words
from qlax.config.configure import configure
from qlax.config.settings import FIELDS, Config
from qlax.errors import RunError, UserError
from qlax.reports import pictures
from qlax.reports.plot import curve_figure
from qlax.reports.results import Row, Run, by_setting, last, of_run, rows
from qlax.reports.style import as_file
from qlax.storage import checkpoint
from qlax.storage.history import History, Paths, derive, read_all
from qlax.storage.measurements import MEASUREMENTS, in_group, is_own
from qlax.util.files import new_file, write_result
from qlax.util.text import four_digits, repetition_in_words, setting_in_words

NAME = "report.html"  # template, and default name of the page
SUFFIXES = (".html", ".htm")
MOST_NAMES = 6  # names of runs in the heading
MOST_ROWS = 200  # rows of a table
MOST_LINES = 100  # lines of a figure that stay vector graphics
SCALE = 1.6  # pixels per point; figures are drawn for paper, where type is smaller
FILES = {  # files of a run's directory, and their contents
    "config.json": "all settings",
    "metrics.jsonl": "measurements, one line per logging interval",
    "summary.json": "results",
    "sweep.csv": "results, one row per agent",
    "agents": "final weights, one file per agent",
    "best": "weights of the best evaluation, one file per agent",
    "checkpoints": "complete training states",
}


def report(runs: Paths, out: Path | str | None = None, *, video: bool = True) -> Path:
    """Write a report of runs, finished or in progress, as one HTML page.

    The page contains its pictures and its video, so that it can be sent, printed, and read offline. It shows learning
    curves, the results of every agent and setting, all settings and the command that reproduces them, the network,
    diagnostics of learning, and the machine.

    Args:
      runs: Directories of runs or sweeps.
      out: HTML file to write, which must not exist; None for `report.html`, with a number appended if it exists.
      video: Render an episode of the best agent of every environment; if that fails, the page says why.

    Returns:
      Path of the page.

    Raises:
      UserError: A directory holds no run or a damaged run, or is given twice; or the file exists, cannot be written,
        or has another extension than .html.
    """
    path = new_file(out, Path(NAME), SUFFIXES)
    found = [derive(history, of_run) for history in read_all(runs)]
    return write_result(path, _rendered(found, path.parent, video).encode(), is_named=out is not None)


def _rendered(runs: Sequence[Run], folder: Path, video: bool) -> str:
    """Render the page; links to files are relative to `folder`."""
    names = list(dict.fromkeys(run.name for run in runs))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("qlax.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "digits": four_digits,
        "setting": setting_in_words,
        "repetition": repetition_in_words,
        "link": lambda path: _link(path, folder),
    }
    environment.globals |= {"measurements": MEASUREMENTS, "most": MOST_ROWS}
    return environment.get_template(NAME).render(
        title=", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else ""),
        runs=runs,
        films=_films(runs) if video else {},
        sections=[derive(run.history, lambda _, run: _sections(run), run) for run in runs],
        overview=_overview(runs) if len(runs) > 1 else None,
        version=__version__,
        date=time.strftime("%Y-%m-%d %H:%M"),
    )


def _films(runs: Sequence[Run]) -> dict[int, dict[str, str]]:
    """Render videos of the best agent of every environment, by the index of its run in `runs`."""
    found: dict[str, tuple[float, int]] = {}
    for place, run in enumerate(runs):
        if run.best and run.best.episode_return > found.get(run.config.env, (-math.inf,))[0]:
            found[run.config.env] = (run.best.episode_return, place)
    return {place: _film(runs[place]) for _, place in found.values()}


def _film(run: Run) -> dict[str, str]:
    """Render an episode of the run's best agent; return the video as `source`, or why there is none as `missing`."""
    from qlax.playing.film import render  # imports JAX, which takes long

    assert run.best is not None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "video.mp4"
        try:
            render(run.directory, file, index=run.best.agent, best=True, values=True)
        except (UserError, RunError) as error:
            return {"missing": str(error).removeprefix(f"{file}: ")}
        return {"source": data_url(file.read_bytes(), "video/mp4")}


def _overview(runs: Sequence[Run]) -> dict[str, Any]:
    """Gather the content of the section that compares several runs."""
    fields, settings, agents = by_setting(runs)
    envs = len({setting.env for setting in settings})
    return {
        "fields": fields,
        "settings": settings,
        "envs": envs,
        "curve": curve([run.history for run in runs], ["eval_return"]),
        "comparison": comparison(runs[0].config, agents, fields) if envs == 1 else None,
    }


def _link(path: Path, folder: Path) -> str:
    """Return the relative URL of a file, valid while the page stays in `folder`."""
    try:
        return quote(Path(os.path.relpath(path, folder)).as_posix())
    except ValueError:  # Windows has no relative path to another drive
        return quote(path.resolve().as_posix())


def status(run: Run) -> dict[str, Any]:
    """Gather how far the run is or how it ended, which agents diverged, and on which machine it trained."""
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
    return {
        "diverged": diverged,
        "done": summary["total_steps"] if run.is_finished else done,
        "wanted": config.num_updates * config.steps_per_update,
        "stopped_by": summary.get("stopped_by", ""),
        "inexact": summary.get("inexact", []),
        "last": time.strftime("%Y-%m-%d %H:%M", time.localtime(metrics.stat().st_mtime)) if metrics.exists() else None,
        "machine": machine(run),
    }


def learning_curve(run: Run) -> dict[str, Any]:
    """Draw the returns during training."""
    return {"curve": curve([run.history], [each.key for each in in_group("return")])}


def results(run: Run) -> dict[str, Any]:
    """Gather the results of every setting and every agent."""
    config, final = run.config, run.summary.get("final_settings", {})  # final settings: only of populations
    fields, settings, agents = by_setting([run])
    return {
        "rows": [
            row | {f"final {name}": values[row["agent"]] for name, values in final.items()}
            for row in rows(config, run.summary)
        ],
        "fields": fields,
        "settings": settings,
        "comparison": comparison(config, agents, fields),
        "lineage": _lineage(run.history),
    }


def best_agent(run: Run) -> dict[str, Any] | None:
    """Show the section on the best agent if an agent was evaluated; its template reads `run.best` and `film`."""
    return {} if run.best else None


def settings(run: Run) -> dict[str, Any]:
    """Gather the command that reproduces the run, and all settings next to those of the preset, or the defaults."""
    config = run.config
    try:
        usual = configure(config.preset or config.env)
    except UserError:  # the preset belongs to another version of qlax
        usual = configure(config.env)
    fields = []
    for name, field in FIELDS.items():
        if name in ("preset", "derived"):
            continue
        value, before = getattr(config, name), getattr(usual, name)
        kind = "derived" if name in config.derived else "changed" if value != before else "usual"
        fields.append({"name": name, "value": value, "usual": before, "kind": kind, "help": field.metadata["help"]})
    return {"command": shlex.join(["qlax", "train", *as_words(config)]), "fields": fields}


def network(run: Run) -> dict[str, Any] | None:
    """Gather the settings of the network, and the names and shapes of its arrays."""
    try:
        agent = run.best.agent if run.best else 0
        info, arrays = checkpoint.read(run.directory / "best" / f"{agent}{checkpoint.SUFFIX}")
    except UserError:  # no weights of a best evaluation yet
        info, arrays = {}, {}
    content = {"network": run.summary.get("network", info.get("network", {})), "arrays": sorted(arrays.items())}
    return content if any(content.values()) else None


def learning(run: Run) -> dict[str, Any] | None:
    """Gather the diagnostics of learning, and the environment's own measurements."""
    content = {"health": _health(run.history), "own": _own(run.history)}
    return content if any(content.values()) else None


def machine(run: Run) -> dict[str, Any]:
    """Gather the device, versions and times of training from the summary and the newest checkpoint."""
    history, summary = run.history, run.summary
    info: dict[str, Any] = {}
    if files := sorted((history.directory / "checkpoints").glob(f"*{checkpoint.SUFFIX}")):
        with contextlib.suppress(UserError):  # the page can do without the checkpoint's description
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


def files(run: Run) -> dict[str, Any]:
    """List the files of the run's directory that exist, with their contents."""
    return {"files": [(path, what) for name, what in FILES.items() if (path := run.directory / name).exists()]}


SECTIONS = (status, learning_curve, results, best_agent, settings, network, learning, machine, files)


def _sections(run: Run) -> dict[str, dict[str, Any]]:
    """Gather the content of a run's sections, by name and in the order of the page; omit those without content."""
    return {gather.__name__: content for gather in SECTIONS if (content := gather(run)) is not None}


def curve(histories: Sequence[History], metrics: Sequence[str], title: str | None = None) -> dict[str, Any] | None:
    """Draw measurements during training; return None if there is no value yet."""
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
            line.set_rasterized(True)  # as vector graphics they would take megabytes
    return embedded(figure)


def comparison(config: Config, rows: Sequence[Row], fields: Sequence[str]) -> dict[str, Any] | None:
    """Draw the results of the compared settings; return None if there is nothing to compare."""
    if not fields or all(row["eval_return"] is None for row in rows):
        return None
    return embedded(pictures.comparison(config, rows, fields, ""))


def _lineage(history: History) -> dict[str, Any] | None:
    """Draw the lineage of a population's members; return None if there is no population."""
    config, parent = history.config, history.curves.get("parent")
    if parent is None or not np.isfinite(parent).all(axis=1).any():
        return None
    seeds = list(range(config.seed, config.seed + config.seeds))
    return embedded(pictures.lineage(history.curves, config.swept, seeds, ""))


def _health(history: History) -> list[dict[str, Any]]:
    """Draw the diagnostics of learning, and the environment's own measurements without a `/` in their key."""
    own = [name for name in history.curves if is_own(name) and name not in history.config.swept and "/" not in name]
    meanings = {each.key: each.meaning for each in in_group("learning")}
    meanings |= dict.fromkeys(own, "measured by the environment")
    usual = {"eval_cut": 0, "eval_distinct": history.config.eval_episodes}  # values that tell nothing
    return [
        {"name": name, "meaning": meaning, "picture": picture}
        for name, meaning in meanings.items()
        if name in history.curves and (finite := history.curves[name][np.isfinite(history.curves[name])]).size
        if not (name in usual and (finite == usual[name]).all())
        if (picture := curve([history], [name], name))
    ]


def _own(history: History) -> list[dict[str, Any]]:
    """List the environment's grouped measurements, such as `achievement/wood`: last values, averaged over agents."""
    names = dict.fromkeys(name.removeprefix("eval_") for name in history.curves if "/" in name)
    found = []
    for name in names:
        row: dict[str, Any] = {"name": name}
        for kind, curve in (("exploring", name), ("greedy", f"eval_{name}")):
            values = last(history.curves[curve]) if curve in history.curves else np.array([math.nan])
            row[kind] = float(np.nanmean(values)) if np.isfinite(values).any() else None
        found.append(row)
    return found


def embedded(figure: Figure) -> dict[str, Any]:
    """Convert a figure to an embedded SVG image: its data URL as `source`, width and height in pixels."""
    content = as_file(figure, ".svg")
    size = re.search(rb'<svg[^>]* width="([0-9.]+)pt" height="([0-9.]+)pt"', content)
    assert size is not None
    width, height = (round(float(points) * SCALE) for points in size.groups())
    return {"source": data_url(content, "image/svg+xml"), "width": width, "height": height}


def data_url(content: bytes, kind: str) -> str:
    """Return a data URL of the content, whose media type is `kind`, such as "video/mp4"."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
