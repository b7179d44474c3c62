"""Reports: all about runs on one page of HTML, which needs nothing else to be read."""

import base64
import contextlib
import json
import math
import os
import re
import shlex
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import jinja2
import numpy as np
from matplotlib.figure import Figure

from qlax._version import __version__
from qlax.config.settings import FIELDS, SWEEPABLE, Config, as_words, configure
from qlax.errors import RunError, UserError
from qlax.reports import pictures, ranking
from qlax.reports.plot import curve_figure
from qlax.reports.selection import NOT_COMPARED
from qlax.reports.style import as_file
from qlax.storage import checkpoint
from qlax.storage.history import History, Paths, read_all, undamaged
from qlax.storage.measurements import MEASUREMENTS, in_group, is_own
from qlax.util.files import check_is_new, free_name, write_result
from qlax.util.statistics import interquartile_mean, stratified_interval
from qlax.util.text import four_digits

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
    "sweep.csv": "results, a row a run",
    "agents": "weights at the end, a file a run",
    "best": "weights of the best evaluation, a file a run",
    "checkpoints": "whole state of the training",
}


class Picture(NamedTuple):
    """An image that a page holds, with its size in pixels."""

    source: str
    width: int
    height: int


class Setting(NamedTuple):
    """What the runs of one setting of one environment came to.

    Attributes:
      env: the environment.
      values: of the fields that tell it from other settings of the environment.
      places: of the histories that have runs of it.
      seeds: how many runs.
      diverged: how many of them did.
      mean: greedy return over the seeds; None where one diverged, or none was evaluated yet.
      iqm: the same of the middle half.
      interval: of the IQM, 95 %; None where a single seed does not tell.
      score: mean of the environment's scores; None where it has none.
      command: what trains it again; None of all but the best of several settings of its environment.
    """

    env: str
    values: list[Any]
    places: list[int]
    seeds: int
    diverged: int
    mean: float | None
    iqm: float | None
    interval: tuple[Any, Any] | None
    score: float | None
    command: str | None


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
    path = free_name(Path(NAME)) if out is None else check_is_new(out)
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: a report is a page of HTML; name a file that ends in .html")
    write_result(path, _rendered(read_all(runs), path.parent, video).encode())
    return path


def _rendered(histories: list[History], folder: Path, video: bool) -> str:
    """The page, with links from this folder."""
    known = [undamaged(history, _known) for history in histories]
    films = _films(histories) if video else {}
    sections = [
        undamaged(history, _section, summary, films.get(place), folder)
        for place, (history, summary) in enumerate(zip(histories, known, strict=True))
    ]
    names = list(dict.fromkeys(section["name"] for section in sections))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("qlax.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"digits": four_digits, "setting": _setting}
    return environment.get_template(NAME).render(
        title=", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else ""),
        sections=sections,
        overview=_overview(histories, known) if len(histories) > 1 else None,
        measurements=MEASUREMENTS,
        most=MOST_ROWS,
        version=__version__,
        date=time.strftime("%Y-%m-%d %H:%M"),
    )


def _known(history: History) -> dict[str, Any]:
    """The summary of finished runs; of others what of it is known by now."""
    if history.summary is not None:
        return history.summary
    curves, nothing = history.curves, np.full((1, history.config.num_runs), math.nan)
    exploring, greedy = (curves.get(name, nothing) for name in ("episode_return", "eval_return"))
    returns = {
        "train_return": _last(exploring),
        "eval_return": _last(greedy),
        "best_eval_return": np.fmax.reduce(greedy, axis=0),
    }
    diverged: list[dict[str, Any] | None] = [None] * history.config.num_runs
    if "loss" in curves:  # a run that is frozen measures nothing
        has_loss = np.isfinite(curves["loss"])
        for run in np.flatnonzero(~has_loss[-1]):
            lines = np.flatnonzero(has_loss[:, run])
            diverged[run] = {"steps": int(curves["steps"][lines[-1]]) if lines.size else 0}
            returns["train_return"][run] = returns["eval_return"][run] = math.nan
    per_run = {name: [float(x) if math.isfinite(x) else None for x in values] for name, values in returns.items()}
    return {name: {"per_run": values} for name, values in per_run.items()} | {"diverged": diverged}


def _last(values: np.ndarray) -> np.ndarray:
    """Of `[lines, R]` the last value of every run; nan where there is none."""
    found = np.full(values.shape[1], math.nan)
    for row in values:
        found = np.where(np.isfinite(row), row, found)
    return found


def _section(history: History, summary: dict[str, Any], film: dict[str, Any] | None, folder: Path) -> dict[str, Any]:
    """What the template is told of the runs of one directory."""
    config = history.config
    final = summary.get("final_settings", {})  # of a population
    rows = [
        row | {f"{name} in the end": values[row["run"]] for name, values in final.items()}
        for row in ranking.rows(config, summary)
    ]
    best = _best(history)
    info, layers = _agent(history, best)
    fields, settings, of_runs = _settings([history], [summary])
    return {
        "name": config.preset or config.env,
        "env": config.env,
        "directory": str(history.directory),
        "config": config,
        "summary": summary,
        "status": _status(history, summary),
        "curves": [
            (each.name, drawn) for each in in_group("return") if (drawn := _curve([history], each.key, each.name))
        ],
        "rows": rows,
        "best": best,
        "film": film,
        "swept": config.compared,
        "compared": fields,
        "settings": settings,
        "comparison": _comparison(config, of_runs, fields),
        "lineage": _lineage(history),
        "command": shlex.join(["qlax", "train", *as_words(config)]),
        "fields": _fields(config),
        "network": summary.get("network", info.get("network", {})),
        "layers": layers,
        "health": _health(history),
        "own": _own(history),
        "machine": _machine(history, summary),
        "files": _files(history, folder),
    }


def _status(history: History, summary: dict[str, Any]) -> dict[str, Any]:
    """How far the runs are, and which of them diverged."""
    config = history.config
    runs, diverged = config.all_runs(), summary["diverged"]
    wanted = config.num_updates * config.steps_per_update
    done = int(history.curves["steps"][-1]) if "steps" in history.curves else 0
    which = [
        {
            "run": run,
            "setting": {name: runs[run][name] for name in ("seed", *config.swept)},
            "steps": each["steps"],
            "what": each.get("what"),
            "cause": MEASUREMENTS[what].cause if (what := each.get("what")) in MEASUREMENTS else None,
        }
        for run, each in enumerate(diverged)
        if each
    ]
    finished = history.summary is not None
    metrics = history.directory / "metrics.jsonl"
    return {
        "word": "diverged" if all(diverged) else "finished" if finished else "not finished",
        "finished": finished,
        "diverged": which,
        "done": summary["total_steps"] if finished else done,
        "wanted": wanted,
        "inexact": summary.get("inexact", []),
        "last": time.strftime("%Y-%m-%d %H:%M", time.localtime(metrics.stat().st_mtime)) if metrics.exists() else None,
    }


def _best(history: History) -> dict[str, Any] | None:
    """The best evaluation of all runs."""
    returns = history.curves.get("eval_return")
    if returns is None or not np.isfinite(returns).any():
        return None
    line, run = np.unravel_index(np.nanargmax(returns), returns.shape)
    own = history.config.all_runs()[run]
    return {
        "run": int(run),
        "setting": {name: own[name] for name in ("seed", *history.config.compared)},
        "steps": int(history.curves["steps"][line]),
        "return": float(returns[line, run]),
    }


def _agent(history: History, best: dict[str, Any] | None) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """What is said of the best agent in its file, and its arrays by their names; nothing where there is none yet."""
    try:
        info, arrays = checkpoint.read(history.directory / "best" / f"{best['run'] if best else 0}{checkpoint.SUFFIX}")
    except UserError:
        return {}, []
    return info, sorted(arrays.items())


def _films(histories: list[History]) -> dict[int, dict[str, Any]]:
    """One of the best agent of every environment, by the place of its history."""
    found: dict[str, tuple[float, int, dict[str, Any]]] = {}
    for place, history in enumerate(histories):
        best = undamaged(history, _best)
        if best and best["return"] > found.get(history.config.env, (-math.inf,))[0]:
            found[history.config.env] = (best["return"], place, best)
    return {place: _film(histories[place].directory, best["run"]) for _, place, best in found.values()}


def _film(directory: Path, run: int) -> dict[str, str]:
    """The video of an episode, or why there is none."""
    from qlax.play.film import render  # JAX takes its time to import

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "video.mp4"
        try:
            render(directory, file, index=run, best=True, values=True)
        except (UserError, RunError) as error:
            return {"missing": str(error).removeprefix(f"{file}: ")}
        return {"source": _data(file.read_bytes(), "video/mp4")}


def _settings(
    histories: list[History], known: list[dict[str, Any]]
) -> tuple[list[str], list[Setting], list[ranking.Row]]:
    """The fields in which settings of the same environment differ; the settings, the best of each first; the runs."""
    rows: list[ranking.Row] = []
    for place, (history, summary) in enumerate(zip(histories, known, strict=True)):
        for run, row in zip(history.config.all_runs(), ranking.rows(history.config, summary), strict=True):
            rows.append({"place": place, **row, "env": history.config.env, **_values(history.config, run)})
    of_env: dict[str, list[ranking.Row]] = {}
    for row in rows:
        of_env.setdefault(row["env"], []).append(row)
    asked = [name for name in FIELDS if any(name not in (*NOT_COMPARED, *of.config.derived) for of in histories)]
    fields = [name for name in asked if any(len({row[name] for row in same}) > 1 for same in of_env.values())]
    settings = []
    for env, same in of_env.items():
        members: dict[tuple, list[ranking.Row]] = {}
        for row in same:
            members.setdefault(tuple(row[name] for name in fields), []).append(row)
        for rank, each in enumerate(ranking.ranking(same, fields)):
            values = [each.row[name] for name in fields]
            is_best = rank == 0 and len(members) > 1
            command = ranking.again(histories[each.row["place"]].config, each.row, fields) if is_best else None
            settings.append(_setting_of(env, values, members[tuple(values)], command))
    return fields, settings, rows


def _setting_of(env: str, values: list[Any], runs: list[ranking.Row], command: str | None) -> Setting:
    returns = [run["eval_return"] for run in runs]
    known = [x for x in returns if x is not None]
    measured = [score for run in runs if (score := run.get("eval_score")) is not None]
    is_whole = len(known) == len(returns)
    samples = [np.array(known)]
    return Setting(
        env=env,
        values=values,
        places=sorted({run["place"] for run in runs}),
        seeds=len(runs),
        diverged=sum(run["diverged"] is not None for run in runs),
        mean=sum(known) / len(known) if is_whole else None,
        iqm=float(interquartile_mean(samples)) if is_whole else None,
        interval=stratified_interval(interquartile_mean, samples) if is_whole else None,
        score=sum(measured) / len(measured) if len(measured) == len(runs) else None,
        command=command,
    )


def _values(config: Config, run: dict[str, Any]) -> dict[str, Any]:
    """Of every field what a run was trained with, as what can be compared."""
    values = {}
    for name in FIELDS:
        value = getattr(config, name)
        if name in SWEEPABLE:
            value = "explored" if name in config.swept and config.population != "none" else run[name]
        elif isinstance(value, dict):
            value = json.dumps(value, sort_keys=True)
        values[name] = value
    return values


def _overview(histories: list[History], known: list[dict[str, Any]]) -> dict[str, Any]:
    """What the template is told of several directories together."""
    fields, settings, runs = _settings(histories, known)
    envs = len({setting.env for setting in settings})
    return {
        "fields": fields,
        "settings": settings,
        "envs": envs,
        "curve": _curve(histories),
        "comparison": _comparison(histories[0].config, runs, fields) if envs == 1 else None,
    }


def _fields(config: Config) -> list[dict[str, Any]]:
    """Every setting, and what it is without having been asked for: the preset's, or the default."""
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


def _setting(value: Any) -> str:
    """A value of a field, for people."""
    if value is None or value in ((), {}):
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{name}={_setting(each)}" for name, each in value.items())
    if isinstance(value, tuple | list):
        return ", ".join(map(_setting, value))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _machine(history: History, summary: dict[str, Any]) -> dict[str, Any]:
    """Where and how fast the runs are trained, by the summary and the newest checkpoint."""
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
        "versions": versions or {name: summary[f"{name}_version"] for name in ("qlax", "jax") if history.summary},
        "seconds": {
            text: seconds
            for name, text in (("compile", "compilation"), ("train", "training"), ("eval", "evaluation"))
            if (seconds := summary.get(f"{name}_seconds", info.get(f"{name}_seconds"))) is not None
        },
        "steps_per_second": summary.get("steps_per_second", speed),
    }


def _files(history: History, folder: Path) -> list[dict[str, str]]:
    """What is in the directory, with links that hold as long as the page stays where it is."""
    found = []
    for name, what in FILES.items():
        path = history.directory / name
        if path.exists():
            try:
                link = Path(os.path.relpath(path, folder)).as_posix()
            except ValueError:  # on another drive of Windows
                link = path.resolve().as_posix()
            found.append({"path": str(path), "link": quote(link), "what": what})
    return found


def _curve(histories: Sequence[History], name: str = "eval_return", title: str | None = None) -> Picture | None:
    """Picture of a measurement during the training; None while there is no value."""
    try:
        figure = curve_figure(histories, y=name, title=title)
    except UserError:
        return None
    values = np.concatenate([x[np.isfinite(x)] for of in histories if (x := of.curves.get(name)) is not None])
    is_wide = len(values) > 0 and values.min() > 0 and values.max() > 1000 * values.min()
    for axes in figure.axes:
        if is_wide:
            axes.set_yscale("log")
        for line in axes.lines if len(axes.lines) > MOST_LINES else ():
            line.set_rasterized(True)  # or else they would be megabytes
    return _embedded(figure)


def _comparison(config: Config, rows: Sequence[ranking.Row], fields: Sequence[str]) -> Picture | None:
    """Picture of what the settings that were compared came to."""
    if not fields or all(row["eval_return"] is None for row in rows):
        return None
    return _embedded(ranking.compared(config, rows, fields, ""))


def _lineage(history: History) -> Picture | None:
    """Picture of a population."""
    config, parent = history.config, history.curves.get("parent")
    if parent is None or not np.isfinite(parent).all(axis=1).any():
        return None
    seeds = list(range(config.seed, config.seed + config.seeds))
    return _embedded(pictures.lineage(history.curves, config.swept, seeds, ""))


def _health(history: History) -> list[dict[str, Any]]:
    """Pictures of the measurements of the learning, and of those of the environment that are no whole group."""
    own = [name for name in history.curves if is_own(name) and name not in history.config.swept and "/" not in name]
    meanings = {each.key: each.meaning for each in in_group("learning")}
    meanings |= dict.fromkeys(own, "measured by the environment")
    return [
        {"name": name, "meaning": meaning, "picture": picture}
        for name, meaning in meanings.items()
        if name in history.curves and np.isfinite(history.curves[name]).any()
        if (name != "eval_cut" or np.nansum(history.curves[name])) and (picture := _curve([history], name, name))
    ]


def _own(history: History) -> list[dict[str, Any]]:
    """Measurements of the environment that come in groups, as `achievement/wood`: the last values, means over runs."""
    names = dict.fromkeys(name.removeprefix("eval_") for name in history.curves if "/" in name)
    found = []
    for name in names:
        row: dict[str, Any] = {"name": name}
        for kind, curve in (("exploring", name), ("greedy", f"eval_{name}")):
            values = _last(history.curves[curve]) if curve in history.curves else np.array([math.nan])
            row[kind] = float(np.nanmean(values)) if np.isfinite(values).any() else None
        found.append(row)
    return found


def _embedded(figure: Figure) -> Picture:
    content = as_file(figure, ".svg")
    size = re.search(rb'<svg[^>]* width="([0-9.]+)pt" height="([0-9.]+)pt"', content)
    assert size is not None
    width, height = (round(float(points) * SCALE) for points in size.groups())
    return Picture(_data(content, "image/svg+xml"), width, height)


def _data(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
