"""Sweeps: every combination of settings, a job each."""

import dataclasses
import itertools
import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qlax.config.settings import Config, written
from qlax.errors import UserError
from qlax.jobs.runner import (
    SAYS_OF_WHERE,
    SWEEP,
    Job,
    Place,
    check_same,
    conclude,
    make_directory,
    run_jobs,
    say,
    writing,
)
from qlax.reports import ranking
from qlax.storage import directory
from qlax.util.files import write_whole

MOST_JOBS = 4096
SINGLE = ("seed", "seeds", "runs", "env_options", "population")  # hold for all jobs


def run(
    configured: Callable[..., Config],
    several: Mapping[str, Sequence[Any]],
    *,
    place: Place,
    out: Path | str | None = None,
    trials: int | None = None,
    compilation_cache: bool = True,
) -> None:
    """Train every combination of settings in a job of its own, or go on with them; say which setting was best.

    Args:
      configured: gives the configuration of a job by what is its own.
      several: fields that a program is compiled for, with the values each is to have.
      place: where the jobs run.
      out: the directory; None: a new one under `runs/`. It gets a directory and a log a job, `sweep.csv`, `sweep.png`
        and `sweep.json`, by which the same sweep is known again.
      trials: so many combinations, which Optuna chooses; None: all.
      compilation_cache: keep compiled programs in the user's cache directory, for the next time.

    Raises:
      UserError: something asked for cannot be; nothing was written.
      Stopped: interrupted by Ctrl-C or SIGTERM, after the jobs saved their checkpoints.
      JobsFailedError: some jobs failed; the others are done.
    """
    combinations = _combinations(several, trials)
    configs = [configured(**combination) for combination in combinations]
    fields = [*several, *configs[0].compared]
    if not fields:
        raise UserError("nothing has several values to compare; give some, as in --num-envs 16 32, or use qlax train")
    asked = {name: value for name, value in dataclasses.asdict(configs[0]).items() if name not in SAYS_OF_WHERE}
    asked = json.loads(json.dumps(asked | {name: list(values) for name, values in several.items()}))
    path = Path(out) if out is not None else None
    if path is not None and path.exists():
        _check_directory(path, asked)
    study = None
    if trials is not None:
        from qlax.jobs.trials import new_study, run_trials  # not before it is asked for

        study = new_study(configs[0].seed)
    runner = place.runner(trials or len(configs))
    if path is None:
        path = directory.fresh(f"{configs[0].preset or configs[0].env}-sweep")
    jobs = [
        Job(_name(index, combination), config, path / _name(index, combination), compilation_cache)
        for index, (combination, config) in enumerate(zip(combinations, configs, strict=True))
    ]
    for job in jobs:
        job.check()
    make_directory(path)
    with writing(path):
        write_whole(path / SWEEP, (json.dumps(asked, indent=2) + "\n").encode())
    complete, begun = sum(job.complete for job in jobs), sum(job.begun for job in jobs)
    say(f"sweep in {path}: jobs {len(jobs)}, complete {complete}, to go on with {begun - complete}")
    if trials is None:
        outcome, left = run_jobs(jobs, runner), 0
    else:
        jobs, outcome, left = run_trials(study, jobs, several, trials, runner, _value)
    _end(path, jobs, fields, several)
    done = sum(job.complete for job in jobs)
    conclude(outcome, done, len(jobs) + left, "jobs", f"the same command with --out {shlex.quote(str(path))}")


def _combinations(several: Mapping[str, Sequence[Any]], trials: int | None) -> list[dict[str, Any]]:
    """Of the values that are compiled in."""
    if refused := [name for name in several if name in SINGLE]:
        raise UserError(f"{refused[0]} has several values, but holds for all jobs of a sweep; give it one")
    for name, values in several.items():
        if twice := [value for value in values if list(values).count(value) > 1]:
            raise UserError(f"{name}: {written(twice[0])} is given twice")
    if trials is not None and trials < 1:
        raise UserError(f"trials={trials}: expected a whole number from 1")
    if trials is not None and not several:
        raise UserError(f"trials={trials}: there is nothing to choose; give several values, as in --num-envs 16 32 64")
    number = math.prod(map(len, several.values()))
    if number > MOST_JOBS:
        raise UserError(f"{' x '.join(several)} would be {number:,} jobs; expected at most {MOST_JOBS:,}")
    return [dict(zip(several, chosen, strict=True)) for chosen in itertools.product(*several.values())]


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
    check_same(path, there, asked)


def _end(path: Path, jobs: Sequence[Job], fields: Sequence[str], several: Mapping[str, Sequence[Any]]) -> None:
    """Table, picture and best setting of the jobs that are complete."""
    complete = {job.name: job for job in jobs if job.complete}
    of = [row for job in complete.values() for row in _rows(job, several)]
    if not of:
        return
    ranked = ranking.ranking(of, fields)
    with writing(path):
        ranking.write(path, jobs[0].config, of, fields)
    print("greedy return of the best settings:")
    for each in ranked[: ranking.BEST]:
        print(f"  {each.shown(fields)}")
    print(ranking.report(path, complete[ranked[0].row["job"]].config, ranked, fields), flush=True)


def _rows(job: Job, several: Mapping[str, Sequence[Any]]) -> list[ranking.Row]:
    own = {name: getattr(job.config, name) for name in several}
    return [{"job": job.name, **own, **row} for row in ranking.rows(job.config, job.summary())]


def _value(job: Job) -> float | None:
    """The best that a job's settings came to, nothing being worse than to diverge; None if it failed."""
    if not job.complete:
        return None
    best = ranking.ranking(ranking.rows(job.config, job.summary()), job.config.compared)[0].mean
    return -math.inf if best is None else best


def _name(index: int, combination: Mapping[str, Any]) -> str:
    """Of a job's directory: it tells one from another, and to people what it is."""
    said = "-".join(f"{name}={written(value)}" for name, value in combination.items())
    kept = "".join(letter if letter.isalnum() or letter in "=,._-" else "-" for letter in said)
    return f"{index}-{kept}"[:100].rstrip("-.")
