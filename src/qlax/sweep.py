"""Sweeps: what every run came to, which setting was best and what trains it again; over many jobs as well."""

import csv
import dataclasses
import io
import itertools
import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qlax import directory
from qlax.config import SWEEPABLE, Config, as_words, written
from qlax.errors import UserError
from qlax.fields import distribution
from qlax.files import write_whole
from qlax.jobs import SAYS_OF_WHERE, SWEEP, Job, Place, check_same, conclude, make_directory, run_jobs, say, writing

MEASURED = ("train_return", "eval_return", "best_eval_return", "eval_score")  # of a summary; the last not everywhere
MOST_JOBS = 4096
BEST = 5  # settings that are printed
SINGLE = ("seed", "seeds", "runs", "env_options", "population")  # hold for all jobs

Row = dict[str, Any]


class Ranked(NamedTuple):
    """A setting and what it came to."""

    row: Row  # of its first run
    mean: float | None  # greedy return over its seeds; None where one diverged
    seeds: int

    def shown(self, fields: Sequence[str]) -> str:
        """In a line."""
        which = ", ".join(f"{name} {_shown(self.row[name])}" for name in fields)
        result = "diverged" if self.mean is None else f"{self.mean:.2f}"
        return f"{which}: {result}{f', mean of {self.seeds} seeds' if self.seeds > 1 else ''}"


def rows(config: Config, summary: Mapping[str, Any]) -> list[Row]:
    """A row a run: its index and seed, what it was trained with, what it came to, and when it diverged."""
    return [
        {
            "run": index,
            "seed": run["seed"],
            **{name: run[name] for name in config.compared},
            **{name: summary[name]["per_run"][index] for name in MEASURED if name in summary},
            "diverged": diverged["steps"] if diverged else None,
        }
        for index, (run, diverged) in enumerate(zip(config.all_runs(), summary["diverged"], strict=True))
    ]


def ranking(of: Sequence[Row], fields: Sequence[str]) -> list[Ranked]:
    """The settings, the best one first: by the mean greedy return over their seeds, those that diverged last.

    Of equals the first is the one that returned more while exploring at the end.
    """
    settings: dict[tuple, list[Row]] = {}
    for row in of:
        settings.setdefault(tuple(row[name] for name in fields), []).append(row)

    def mean(same: list[Row], name: str) -> float | None:
        values = [row[name] for row in same]
        return None if None in values else sum(values) / len(values)

    def rank(same: list[Row]) -> list[float]:
        means = (mean(same, name) for name in ("eval_return", "train_return"))
        return [-math.inf if found is None else found for found in means]

    ranked = sorted(settings.values(), key=rank, reverse=True)
    return [Ranked(same[0], mean(same, "eval_return"), len(same)) for same in ranked]


def again(config: Config, row: Row, fields: Sequence[str]) -> str:
    """The command that trains the setting of a row, with the same seeds; it says what the fields compared were."""
    setting: dict[str, Any] = {name: row[name] for name in config.compared}
    if setting:
        setting["runs"] = None
    return shlex.join(["qlax", "train", *as_words(dataclasses.replace(config, **setting), fields)])


def write(path: Path, config: Config, of: Sequence[Row], fields: Sequence[str]) -> None:
    """Write `sweep.csv`, a row a run, and `sweep.png`, a panel a field, to a directory.

    Args:
      path: of the directory.
      config: settings of one of its runs.
      of: the rows.
      fields: that are compared.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, of[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else written(value) for name, value in row.items()} for row in of)
    write_whole(path / "sweep.csv", text.getvalue().encode())
    draw(path / "sweep.png", config, of, fields, config.preset or config.env)


def draw(path: Path, config: Config, of: Sequence[Row], fields: Sequence[str], title: str) -> None:
    """Draw what every run came to, a panel a field; see `write` for the arguments."""
    from qlax.pictures import comparison  # matplotlib takes its time to import

    columns = {name: _numbers([row[name] for row in of]) for name in fields}
    asked = {name: getattr(config, name) for name in fields}
    drawn = [name for name in fields if name in SWEEPABLE and isinstance(asked[name], str)]
    logarithmic = [name for name in fields if _is_log(asked[name] if name in drawn else columns[name])]
    returns = [math.nan if row["eval_return"] is None else row["eval_return"] for row in of]
    best = ranking(of, fields)[0].row
    is_best = [all(row[name] == best[name] for name in fields) for row in of]
    comparison(path, columns, returns, is_best, title, drawn=drawn, logarithmic=logarithmic)


def report(path: Path, config: Config, ranked: Sequence[Ranked], fields: Sequence[str]) -> str:
    """What the command says of a sweep: the best setting, what trains it again, and where the rest stands."""
    best = f"best of {len(ranked)} settings: {ranked[0].shown(fields)}"
    where = f"all runs: {path / 'sweep.csv'}, {path / 'sweep.png'}"
    return f"{best}\ntrain it again: {again(config, ranked[0].row, fields)}\n{where}"


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
        from qlax.trials import new_study, run_trials  # not before it is asked for

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
    ranked = ranking(of, fields)
    with writing(path):
        write(path, jobs[0].config, of, fields)
    print("greedy return of the best settings:")
    for each in ranked[:BEST]:
        print(f"  {each.shown(fields)}")
    print(report(path, complete[ranked[0].row["job"]].config, ranked, fields), flush=True)


def _rows(job: Job, several: Mapping[str, Sequence[Any]]) -> list[Row]:
    own = {name: getattr(job.config, name) for name in several}
    return [{"job": job.name, **own, **row} for row in rows(job.config, job.summary())]


def _value(job: Job) -> float | None:
    """The best that a job's settings came to, nothing being worse than to diverge; None if it failed."""
    if not job.complete:
        return None
    best = ranking(rows(job.config, job.summary()), job.config.compared)[0].mean
    return -math.inf if best is None else best


def _name(index: int, combination: Mapping[str, Any]) -> str:
    """Of a job's directory: it tells one from another, and to people what it is."""
    said = "-".join(f"{name}={written(value)}" for name, value in combination.items())
    kept = "".join(letter if letter.isalnum() or letter in "=,._-" else "-" for letter in said)
    return f"{index}-{kept}"[:100].rstrip("-.")


def _numbers(values: list[Any]) -> list[Any]:
    """Values as numbers where all are, or else in words."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return values
    return [written(value) for value in values]


def _is_log(values: Any) -> bool:
    """Whether a distribution, or a list, is spread logarithmically."""
    if isinstance(values, str):
        return distribution(values).is_log
    return not isinstance(values[0], str) and min(values) > 0 and max(values) >= 10 * min(values)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else written(value)
