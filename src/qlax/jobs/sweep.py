"""Sweeps: one job for every combination of targets and of settings that are fixed when a program is compiled."""

import itertools
import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qlax.config import presets
from qlax.config.atari57 import SCORES
from qlax.config.command_line import written
from qlax.config.settings import Config, fields_where
from qlax.errors import UserError
from qlax.jobs.ray import Place
from qlax.jobs.runner import Job, check_same, conclude, make_directory, run_jobs, say, writing
from qlax.reports import results, scores
from qlax.storage.formats import stamped, upgraded
from qlax.storage.paths import fresh
from qlax.util.files import given_path, write_whole

SWEEP = "sweep.json"  # file with the settings of the sweep that a directory holds
MOST_JOBS = 4096


class _Planned(NamedTuple):
    """Job, and the values in which it differs from the other jobs of its sweep."""

    target: str
    combination: dict[str, Any]  # value of every setting in which jobs may differ
    job: Job


def lists() -> dict[str, list[str]]:
    """Return the names that stand for several targets, with these targets."""
    minatar = [name for name in presets.names() if name.startswith("minatar/")]
    return {"atari57": [f"atari/{game}" for game in SCORES], "minatar": minatar}


def run(
    title: str,
    targets: Mapping[str, Callable[..., Config]],
    several: Mapping[str, Sequence[Any]],
    *,
    place: Place,
    out: Path | str | None = None,
    compilation_cache: bool = True,
) -> Path:
    """Train every combination of targets and settings in a job of its own, or resume these jobs; report the results.

    The directory of the sweep gets a run directory and a log for each job, and `sweep.json`, by which a resumed sweep
    is recognised. If settings are compared, `sweep.csv` and figures are added; if there are several targets, `table.md`
    and `results.json`.

    Args:
      title: Title of the table, and name of a new directory.
      targets: For every target, a preset or environment, a function from fields that differ between jobs to a `Config`.
      several: Names of the settings that differ between jobs, with the values of each.
      place: Where the jobs run: on this machine or on a Ray cluster.
      out: Directory of the sweep; None for a new one under `runs/`.
      compilation_cache: Keep compiled programs in the user's cache directory for later runs.

    Returns:
      Directory of the sweep.

    Raises:
      UserError: An argument is not valid; nothing was written.
      Stopped: Ctrl-C or SIGTERM interrupted the jobs, which have saved checkpoints.
      JobsFailedError: Some jobs failed; all others are complete.
    """
    combinations = _combinations(several, len(targets))
    configs = {
        (target, index): make(**own) for target, make in targets.items() for index, own in enumerate(combinations)
    }
    firsts = [configs[target, 0] for target in targets]
    fields = [*several, *firsts[0].compared]
    if not fields and len(targets) == 1:
        raise UserError(
            "there is nothing to compare: give several values, as in --num-envs 16 32, or several targets, as in "
            "atari/Pong atari/Breakout; or use qlax train"
        )
    asked = _asked(firsts, several)
    path = given_path(out) if out is not None else None
    if path is not None and path.exists():
        _check_directory(path, asked)
    runner = place.runner(len(configs))
    if path is None:
        path = fresh(f"{title[:80]}-sweep")
    planned = []
    for number, ((target, index), config) in enumerate(configs.items()):
        name = _name(number, target if len(targets) > 1 else "", combinations[index])
        planned.append(_Planned(target, combinations[index], Job(name, config, path / name, compilation_cache)))
    jobs = [each.job for each in planned]
    for job in jobs:
        job.check()
    make_directory(path)
    with writing(path):
        write_whole(path / SWEEP, (json.dumps(stamped(asked), indent=2) + "\n").encode())
    complete, begun = sum(job.complete for job in jobs), sum(job.begun for job in jobs)
    say(f"sweep in {path}: jobs {len(jobs)}, complete {complete}, to resume {begun - complete}")
    outcome = run_jobs(jobs, runner)
    if any(job.complete for job in jobs):
        if len(targets) > 1:
            _report_targets(path, title, planned, fields, outcome.failed)
        if fields:
            _report_settings(path, planned, fields)
    conclude(outcome, jobs, f"the same command with --out {shlex.quote(str(path))}")
    return path


def _combinations(several: Mapping[str, Sequence[Any]], num_targets: int) -> list[dict[str, Any]]:
    """Return all combinations of the values of settings that differ between jobs.

    Raises:
      UserError: A setting cannot vary, a value is given twice, or there are too many combinations.
    """
    if refused := [name for name in several if name in fields_where(varies=False)]:
        raise UserError(f"{refused[0]} has several values, but is the same in all jobs of a sweep; give it one value")
    for name, values in several.items():
        if twice := [value for value in values if list(values).count(value) > 1]:
            raise UserError(f"{name}: {written(twice[0])} is given twice")
    number = num_targets * math.prod(map(len, several.values()))
    if number > MOST_JOBS:
        what = " x ".join([*[f"{num_targets} targets"] * (num_targets > 1), *several])
        raise UserError(f"{what} would be {number:,} jobs; expected at most {MOST_JOBS:,}")
    return [dict(zip(several, chosen, strict=True)) for chosen in itertools.product(*several.values())]


def _asked(configs: Sequence[Config], several: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Return the settings of a sweep as `sweep.json` stores them; fields in which jobs differ list all values."""
    values = {name: [getattr(config, name) for config in configs] for name in fields_where(origin=False)}
    asked = {name: of[0] if all(value == of[0] for value in of) else of for name, of in values.items()}
    return json.loads(json.dumps(asked | {name: list(of) for name, of in several.items()}))


def _check_directory(path: Path, asked: dict[str, Any]) -> None:
    """Check that a directory is empty or holds this sweep.

    Raises:
      UserError: The directory holds other files, or a sweep with other settings.
    """
    try:
        there = json.loads((path / SWEEP).read_text())
    except FileNotFoundError:
        if any(path.iterdir()):
            raise UserError(f"{path} is neither empty nor a sweep; name another directory with --out") from None
        return
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path / SWEEP} cannot be read: {error}") from error
    if not isinstance(there, dict):
        raise UserError(f"{path / SWEEP} does not hold the settings of a sweep")
    check_same(path, upgraded(there, str(path / SWEEP)), asked)


def _report_targets(
    path: Path, title: str, planned: Sequence[_Planned], fields: Sequence[str], failed: Mapping[str, str]
) -> None:
    """Print and write a table of the targets for every setting."""
    settings: dict[tuple, dict[str, tuple[Job, list[int]]]] = {}  # by setting and target: job and indices of agents
    for target, combination, job in planned:
        for agent, own in enumerate(job.config.members):
            setting = tuple((own | combination)[field] for field in fields)
            settings.setdefault(setting, {}).setdefault(target, (job, []))[1].append(agent)
    collected = []
    for setting, jobs in settings.items():
        complete = {of: scores.result(job.summary(), agents) for of, (job, agents) in jobs.items() if job.complete}
        given_up = {of: failed[job.name] for of, (job, _) in jobs.items() if job.name in failed and of not in complete}
        missing = [of for of in jobs if of not in complete and of not in given_up]
        of_setting = results.described(dict(zip(fields, setting, strict=True)))
        collected.append(scores.collect(", ".join(filter(None, (title, of_setting))), complete, given_up, missing))
    tables = "\n".join(scores.table(each) for each in collected if each["targets"])
    with writing(path):
        write_whole(path / "results.json", (json.dumps(collected, indent=2) + "\n").encode())
        write_whole(path / "table.md", tables.encode())
    print(tables, end="", flush=True)


def _report_settings(path: Path, planned: Sequence[_Planned], fields: Sequence[str]) -> None:
    """Print the best settings of every target, and write the results of every agent with a figure."""
    from qlax.reports import pictures, style  # imports matplotlib, which takes long

    rows: dict[str, list[results.Row]] = {}
    configs = {job.name: job.config for _, _, job in planned}
    for target, combination, job in planned:
        if job.complete:
            own = {"job": job.name, "target": target, **combination}
            rows.setdefault(target, []).extend(own | row for row in results.rows(job.config, job.summary()))
    with writing(path):
        results.write(path, list(itertools.chain(*rows.values())))
    for target, of in rows.items():
        ranked = results.ranking(of, fields)
        best = configs[ranked[0].row["job"]]
        picture = path / ("sweep.png" if len(rows) == 1 else f"sweep-{_as_name(target)}.png")
        with writing(path):
            style.save(pictures.comparison(best, of, fields, target), picture)
        print(f"{target}: greedy return of the best settings:")
        for each in ranked[: results.BEST]:
            print(f"  {each.shown(fields)}")
        print(results.best_setting_in_words(best, ranked, fields))
        print(f"all agents: {path / 'sweep.csv'}, {picture}", flush=True)


def _name(number: int, target: str, combination: Mapping[str, Any]) -> str:
    """Return the name of a job, which is unique by its number and shows the target and settings."""
    said = [str(number), *[target] * bool(target), *(f"{name}={written(value)}" for name, value in combination.items())]
    return _as_name("-".join(said))


def _as_name(text: str) -> str:
    """Convert text to a valid file name."""
    return "".join(letter if letter.isalnum() or letter in "=,._-" else "-" for letter in text)[:100].rstrip("-.")
