"""Suites: train every game in a process of its own, try again what failed, and make one table of all."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qlax.config.settings import configure, presets
from qlax.errors import UserError, nearest
from qlax.jobs.runner import SWEEP, Job, Place, conclude, make_directory, run_jobs, say, writing
from qlax.reports.scores import aggregates, table
from qlax.util.files import write_whole


class Suite(NamedTuple):
    """The presets of one folder.

    Attributes:
      folder: of the presets, which are called `folder/game`.
      games: lists the games.
      score: what `eval_score` is called in the table.
    """

    folder: str
    games: Callable[[], list[str]]
    score: str


def _atari57() -> list[str]:
    from qlax.envs.suites.atari import SCORES  # not before it is asked for: the environments import JAX

    return list(SCORES)


def _minatar() -> list[str]:
    return [name.removeprefix("minatar/") for name in presets() if name.startswith("minatar/")]


SUITES = {"atari57": Suite("atari", _atari57, "% of human"), "minatar": Suite("minatar", _minatar, "score")}


def run(
    name: str,
    *,
    games: str | None = None,
    place: Place,
    out: Path | str | None = None,
    overrides: dict[str, Any],
    compilation_cache: bool = True,
) -> None:
    """Train the games of a suite, or go on with them; print the table, and write it to the directory.

    Args:
      name: of the suite.
      games: some of its games, as "Pong,Breakout"; None: all.
      place: where the jobs run.
      out: the directory; None: `runs/name`. It gets a directory and a log a game, `table.md` and `results.json`.
      overrides: fields of `Config`, for every game.
      compilation_cache: keep compiled programs in the user's cache directory, for the next time.

    Raises:
      UserError: something asked for cannot be; nothing was written.
      Stopped: interrupted by Ctrl-C or SIGTERM, after the jobs saved their checkpoints.
      JobsFailedError: some games could not be trained; the others are done.
    """
    directory = Path(out) if out is not None else Path("runs") / name
    planned = plan(name, games, overrides, directory, compilation_cache)
    if (directory / SWEEP).exists():
        raise UserError(f"{directory} holds a sweep; name another directory with --out")
    runner = place.runner(len(planned))
    make_directory(directory)
    complete, begun = sum(job.complete for job in planned), sum(job.begun for job in planned)
    say(f"{name} in {directory}: games {len(planned)}, complete {complete}, to go on with {begun - complete}")
    outcome = run_jobs(planned, runner)
    results = collect(name, planned, outcome.failed)
    if results["games"]:
        as_table = table(results, SUITES[name].score)
        with writing(directory):
            write_whole(directory / "results.json", (json.dumps(results, indent=2) + "\n").encode())
            write_whole(directory / "table.md", as_table.encode())
        print(as_table, end="", flush=True)
    conclude(outcome, len(results["games"]), len(planned), "games", "the same command")


def plan(
    name: str,
    games: str | None,
    overrides: dict[str, Any],
    directory: Path,
    compilation_cache: bool = True,
) -> list[Job]:
    """The jobs of a suite, in the order they begin in; reads what is there, writes nothing.

    Raises:
      UserError: no such suite, game or setting, or a game's directory holds something else.
    """
    if name not in SUITES:
        raise UserError(f"unknown suite {name!r}{nearest(name, SUITES)}; suites: {', '.join(SUITES)}")
    suite = SUITES[name]
    known = suite.games()
    chosen = list(dict.fromkeys(games.split(","))) if games is not None else known
    for game in chosen:
        if game not in known:
            hint = f"; games of {name}: {', '.join(known)}"
            raise UserError(f"unknown game {game!r}{nearest(game, known) or hint}")
    configs = {game: configure(f"{suite.folder}/{game}", **overrides) for game in chosen}
    planned = [Job(game, config, directory / game, compilation_cache) for game, config in configs.items()]
    for job in planned:
        if swept := job.config.swept:
            raise UserError(f"{swept[0]} has several values, but a suite trains one setting a game")
        job.check()
    return planned


def collect(name: str, jobs: Sequence[Job], failed: dict[str, str]) -> dict[str, Any]:
    """What `results.json` holds: summaries of complete games, who is missing, and aggregates of the scores."""
    games = {job.name: job.summary() for job in jobs if job.complete}
    scores = {game: row["eval_score"]["per_run"] for game, row in games.items() if "eval_score" in row}
    scores = {game: values for game, values in scores.items() if None not in values}
    return {
        "suite": name,
        "games": games,
        "failed": {game: reason for game, reason in failed.items() if game not in games},
        "incomplete": [job.name for job in jobs if job.name not in games and job.name not in failed],
        "aggregates": {"games": list(scores), **aggregates(list(scores.values()))} if scores else None,
    }
