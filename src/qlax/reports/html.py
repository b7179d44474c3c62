"""The report: all about runs on one page of HTML, which needs nothing else to be read."""

import math
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from qlax._version import __version__
from qlax.errors import RunError, UserError
from qlax.reports.results import Run, by_setting, of_run
from qlax.reports.sections import comparison, curve, data_url, sections_of
from qlax.storage.history import Paths, read_all, undamaged
from qlax.storage.measurements import MEASUREMENTS
from qlax.util.files import check_is_new, free_name, write_result
from qlax.util.text import four_digits

NAME = "report.html"  # of the template, and of the page unless another is asked for
SUFFIXES = (".html", ".htm")
MOST_NAMES = 6  # in the heading
MOST_ROWS = 200  # of a table


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
    found = [undamaged(history, of_run) for history in read_all(runs)]
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
    environment.filters |= {"digits": four_digits, "setting": _setting, "link": lambda path: _link(path, folder)}
    environment.globals |= {"measurements": MEASUREMENTS, "most": MOST_ROWS}
    return environment.get_template(NAME).render(
        title=", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else ""),
        runs=runs,
        films=_films(runs) if video else {},
        sections=[undamaged(run.history, lambda _, run: sections_of(run), run) for run in runs],
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


def _link(path: Path, folder: Path) -> str:
    """Return a link that holds as long as the page stays where it is."""
    try:
        return quote(Path(os.path.relpath(path, folder)).as_posix())
    except ValueError:  # on another drive of Windows
        return quote(path.resolve().as_posix())
