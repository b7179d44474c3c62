"""The report: all about runs on one page of HTML, which needs nothing else to be read.

Each section on a run is a function that gathers its content, None where there is nothing to say, and a template that
shows it. To add one, write a function here, name it in `SECTIONS`, and put its template under its name into
`templates/sections`. Templates know `told`, the content; `run`, a `results.Run`; and `h`, the level of headings.
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
from qlax.util.text import four_digits, setting_in_words

NAME = "report.html"  # of the template, and of the page unless another is asked for
SUFFIXES = (".html", ".htm")
MOST_NAMES = 6  # in the heading
MOST_ROWS = 200  # of a table
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


def report(runs: Paths, out: Path | str | None = None, *, video: bool = True) -> Path:
    """Write all about runs, finished or still trained, to one page of HTML; returns its path.

    The page holds its pictures and its video: it can be sent, printed, and opened without a network. It has learning
    curves, the results of every run and setting, the settings and the command that trains them again, the network, how
    the learning went, and the machine.

    Args:
      runs: directories of runs, sweeps or suites.
      out: the file, which is not there yet; None: `report.html`, or with a number where there is one.
      video: film the best agent of every environment; where that cannot be done, the page says why.

    Raises:
      UserError: one of the directories holds no run or a damaged one, or is given twice; the file is there, cannot be
        written, or is no .html.
    """
    path = new_file(out, Path(NAME), SUFFIXES)
    found = [derive(history, of_run) for history in read_all(runs)]
    return write_result(path, _rendered(found, path.parent, video).encode(), is_named=out is not None)


def _rendered(runs: Sequence[Run], folder: Path, video: bool) -> str:
    """Return the page, with links from this folder."""
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
    """Film the best agent of every environment; returns films by the place of its run."""
    found: dict[str, tuple[float, int]] = {}
    for place, run in enumerate(runs):
        if run.best and run.best.episode_return > found.get(run.config.env, (-math.inf,))[0]:
            found[run.config.env] = (run.best.episode_return, place)
    return {place: _film(runs[place]) for _, place in found.values()}


def _film(run: Run) -> dict[str, str]:
    """Film an episode, or say why there is no video."""
    from qlax.play.film import render  # JAX takes its time to import

    assert run.best is not None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "video.mp4"
        try:
            render(run.directory, file, index=run.best.agent, best=True, values=True)
        except (UserError, RunError) as error:
            return {"missing": str(error).removeprefix(f"{file}: ")}
        return {"source": data_url(file.read_bytes(), "video/mp4")}


def _overview(runs: Sequence[Run]) -> dict[str, Any]:
    """Gather what is said of several runs together."""
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
    """Return a link that holds as long as the page stays where it is."""
    try:
        return quote(Path(os.path.relpath(path, folder)).as_posix())
    except ValueError:  # on another drive of Windows
        return quote(path.resolve().as_posix())


def status(run: Run) -> dict[str, Any]:
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
    """Returns during the training."""
    return {"curve": curve([run.history], [each.key for each in in_group("return")])}


def results(run: Run) -> dict[str, Any]:
    """Results of every setting and every agent."""
    config, final = run.config, run.summary.get("final_settings", {})  # of a population
    fields, settings, agents = by_setting([run])
    return {
        "rows": [
            row | {f"{name} in the end": values[row["agent"]] for name, values in final.items()}
            for row in rows(config, run.summary)
        ],
        "fields": fields,
        "settings": settings,
        "comparison": comparison(config, agents, fields),
        "lineage": _lineage(run.history),
    }


def best_agent(run: Run) -> dict[str, Any] | None:
    """The agent with the best evaluation, and its film."""
    return {} if run.best else None


def settings(run: Run) -> dict[str, Any]:
    """The command that trains the run again, and every setting beside its usual value: the preset's, or the default."""
    config = run.config
    try:
        usual = configure(config.preset or config.env)
    except UserError:  # it was a preset of another version
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
    """The network, and its arrays by their names."""
    try:
        agent = run.best.agent if run.best else 0
        info, arrays = checkpoint.read(run.directory / "best" / f"{agent}{checkpoint.SUFFIX}")
    except UserError:  # there is none yet
        info, arrays = {}, {}
    content = {"network": run.summary.get("network", info.get("network", {})), "arrays": sorted(arrays.items())}
    return content if any(content.values()) else None


def learning(run: Run) -> dict[str, Any] | None:
    """Measurements of the learning, and those of the environment."""
    content = {"health": _health(run.history), "own": _own(run.history)}
    return content if any(content.values()) else None


def machine(run: Run) -> dict[str, Any]:
    """Where and how fast the run was trained, by its summary and the newest checkpoint."""
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


def files(run: Run) -> dict[str, Any]:
    """What is in the directory."""
    return {"files": [(path, what) for name, what in FILES.items() if (path := run.directory / name).exists()]}


SECTIONS = (status, learning_curve, results, best_agent, settings, network, learning, machine, files)


def _sections(run: Run) -> dict[str, dict[str, Any]]:
    """Gather the sections that have something to say of a run, by name, in the order of the page."""
    return {gather.__name__: told for gather in SECTIONS if (told := gather(run)) is not None}


def curve(histories: Sequence[History], metrics: Sequence[str], title: str | None = None) -> dict[str, Any] | None:
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


def comparison(config: Config, rows: Sequence[Row], fields: Sequence[str]) -> dict[str, Any] | None:
    """Draw what the settings that were compared came to; None where there is nothing to compare."""
    if not fields or all(row["eval_return"] is None for row in rows):
        return None
    return embedded(pictures.comparison(config, rows, fields, ""))


def _lineage(history: History) -> dict[str, Any] | None:
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


def embedded(figure: Figure) -> dict[str, Any]:
    """Turn a figure into an image that a page holds, with its size in pixels."""
    content = as_file(figure, ".svg")
    size = re.search(rb'<svg[^>]* width="([0-9.]+)pt" height="([0-9.]+)pt"', content)
    assert size is not None
    width, height = (round(float(points) * SCALE) for points in size.groups())
    return {"source": data_url(content, "image/svg+xml"), "width": width, "height": height}


def data_url(content: bytes, kind: str) -> str:
    """Return a URL that holds the content itself, of a type as "video/mp4"."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
