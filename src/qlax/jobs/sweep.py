"""Sweeps: every combination of targets and settings, a job each."""

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
from qlax.util.files import write_whole

SWEEP = "sweep.json"  # says which sweep a directory holds
MOST_JOBS = 4096


class _Planned(NamedTuple):
    """A job, and what tells it from the others."""

    target: str
    combination: dict[str, Any]
    job: Job


def lists() -> dict[str, list[str]]:
    """Return the names that stand for several targets."""
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
) -> None:
    """Train every combination of targets and settings in a job of its own, or go on with them; report the results.

    Args:
      title: of the table, and of a new directory.
      targets: for every target, what makes the configuration of a job from the fields that are the job's own.
      several: fields that a program is compiled for, with the values each is to have.
      place: where the jobs run.
      out: the directory; None: a new one under `runs/`. It gets a directory and a log a job, and `sweep.json`, by which
        the same sweep is known again; where settings are compared `sweep.csv`, and pictures; of several targets
        `table.md` and `results.json`.
      compilation_cache: keep compiled programs in the user's cache directory, for the next time.

    Raises:
      UserError: something asked for cannot be; nothing was written.
      Stopped: interrupted by Ctrl-C or SIGTERM, after the jobs saved their checkpoints.
      JobsFailedError: some jobs failed; the others are done.
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
    path = Path(out) if out is not None else None
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
    say(f"sweep in {path}: jobs {len(jobs)}, complete {complete}, to go on with {begun - complete}")
    outcome = run_jobs(jobs, runner)
    if any(job.complete for job in jobs):
        if len(targets) > 1:
            _report_targets(path, title, planned, fields, outcome.failed)
        if fields:
            _report_settings(path, planned, fields)
    conclude(outcome, jobs, f"the same command with --out {shlex.quote(str(path))}")


def _combinations(several: Mapping[str, Sequence[Any]], num_targets: int) -> list[dict[str, Any]]:
    """Of the values that are compiled in."""
    if refused := [name for name in several if name in fields_where(varies=False)]:
        raise UserError(f"{refused[0]} has several values, but holds for all jobs of a sweep; give it one")
    for name, values in several.items():
        if twice := [value for value in values if list(values).count(value) > 1]:
            raise UserError(f"{name}: {written(twice[0])} is given twice")
    number = num_targets * math.prod(map(len, several.values()))
    if number > MOST_JOBS:
        what = " x ".join([*[f"{num_targets} targets"] * (num_targets > 1), *several])
        raise UserError(f"{what} would be {number:,} jobs; expected at most {MOST_JOBS:,}")
    return [dict(zip(several, chosen, strict=True)) for chosen in itertools.product(*several.values())]


def _asked(configs: Sequence[Config], several: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Return the settings of a sweep as `sweep.json` holds them; a field in which targets differ lists its values."""
    values = {name: [getattr(config, name) for config in configs] for name in fields_where(origin=False)}
    asked = {name: of[0] if all(value == of[0] for value in of) else of for name, of in values.items()}
    return json.loads(json.dumps(asked | {name: list(of) for name, of in several.items()}))


def _check_directory(path: Path, asked: dict[str, Any]) -> None:
    """Whether it is empty, or holds this very sweep."""
    try:
        there = json.loads((path / SWEEP).read_text())
    except FileNotFoundError:
        if any(path.iterdir()):
            raise UserError(f"{path} is neither empty nor a sweep; name another directory with --out") from None
        return
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path / SWEEP} cannot be read: {error}") from error
    if not isinstance(there, dict):
        raise UserError(f"{path / SWEEP} holds no settings of a sweep")
    check_same(path, upgraded(there, str(path / SWEEP)), asked)


def _report_targets(
    path: Path, title: str, planned: Sequence[_Planned], fields: Sequence[str], failed: Mapping[str, str]
) -> None:
    """Print and write a table of the targets for every setting."""
    settings: dict[tuple, dict[str, tuple[Job, list[int]]]] = {}  # the job of every target, and its agents
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
    """Print the best settings of every target, and write what every agent came to."""
    from qlax.reports import pictures, style  # matplotlib takes its time to import

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
    """Of a job's directory: it tells one from another, and to people what it is."""
    said = [str(number), *[target] * bool(target), *(f"{name}={written(value)}" for name, value in combination.items())]
    return _as_name("-".join(said))


def _as_name(text: str) -> str:
    """Text as the name of a file."""
    return "".join(letter if letter.isalnum() or letter in "=,._-" else "-" for letter in text)[:100].rstrip("-.")
