"""Suites: train every game in a process of its own, try again what failed, and make one table of all."""

import json
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from os import environ
from pathlib import Path
from typing import IO, Any, NamedTuple

from qlax.config import FIELDS, Config, configure, from_file, presets
from qlax.directory import is_free
from qlax.errors import RunError, UserError, nearest
from qlax.scores import aggregates, four_digits, table
from qlax.session import Stopped

ATTEMPTS = 3  # to train a game, before it is given up
POLL_SECONDS = 0.1
GPU_SHARE = 0.75  # of its memory, which JAX takes for one process unless told otherwise
# Of a game's summary; the score is there where the environment has one.
REPORTED = (
    *("env", "seeds", "eval_return", "eval_score", "eval_episodes", "eval_cut"),
    *("total_steps", "steps_per_second", "device"),
)
SAYS_OF_WHERE = ("preset", "derived")  # fields that say where settings came from, and are none


class JobsFailedError(RunError):
    """Some games could not be trained; the message names them."""


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
    from qlax.envs.atari import SCORES  # not before it is asked for: the environments import JAX

    return list(SCORES)


def _minatar() -> list[str]:
    return [name.removeprefix("minatar/") for name in presets() if name.startswith("minatar/")]


SUITES = {"atari57": Suite("atari", _atari57, "% of human"), "minatar": Suite("minatar", _minatar, "score")}


@dataclass(frozen=True)
class Job:
    """One game of a suite.

    Attributes:
      game: its name.
      config: the settings asked for.
      flags: the same as words of a command line, where they are not the preset's.
      directory: of the run; beside it, `log` is what its processes print.
      compilation_cache: whether to keep compiled programs for the next time.
    """

    game: str
    config: Config
    flags: tuple[str, ...]
    directory: Path
    compilation_cache: bool = True

    @property
    def log(self) -> Path:
        """What the processes of this job have printed, one after the other."""
        return self.directory.with_name(f"{self.game}.log")

    @property
    def begun(self) -> bool:
        """Whether there is something to go on with."""
        return (self.directory / "config.json").exists()

    @property
    def complete(self) -> bool:
        """Whether it was trained to its end: the summary is written last."""
        return (self.directory / "summary.json").exists()

    def command(self) -> list[str]:
        """What begins it, or goes on with it."""
        # -P: like the command `qlax`, a process finds no modules in the working directory unless settings name them.
        python = [sys.executable, "-P", "-m", "qlax.cli"]
        cache = [] if self.compilation_cache else ["--no-compilation-cache"]
        if self.begun:
            return [*python, "resume", str(self.directory), *cache]
        return [*python, "train", str(self.config.preset), *self.flags, *cache, "--out", str(self.directory)]


class Outcome(NamedTuple):
    """How the jobs went.

    Attributes:
      failed: games given up, and why.
      signal_number: what asked to stop; None if nothing did.
    """

    failed: dict[str, str]
    signal_number: int | None


def run(
    name: str,
    *,
    games: str | None = None,
    jobs: int = 1,
    out: Path | str | None = None,
    overrides: dict[str, Any],
    flags: Sequence[str],
    compilation_cache: bool = True,
) -> None:
    """Train the games of a suite, or go on with them; print the table, and write it to the directory.

    Args:
      name: of the suite.
      games: some of its games, as "Pong,Breakout"; None: all.
      jobs: processes at a time.
      out: the directory; None: `runs/name`. It gets a directory and a log a game, `table.md` and `results.json`.
      overrides: fields of `Config`, for every game.
      flags: the same as words of a command line.
      compilation_cache: keep compiled programs in the user's cache directory, for the next time.

    Raises:
      UserError: something asked for cannot be; nothing was written.
      Stopped: interrupted by Ctrl-C or SIGTERM, after the jobs saved their checkpoints.
      JobsFailedError: some games could not be trained; the others are done.
    """
    if jobs < 1:
        raise UserError(f"jobs={jobs}: expected a whole number from 1")
    directory = Path(out) if out is not None else Path("runs") / name
    planned = plan(name, games, overrides, flags, directory, compilation_cache)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the directory {error.filename}: {error.strerror}") from error
    complete, begun = sum(job.complete for job in planned), sum(job.begun for job in planned)
    _say(f"{name} in {directory}: games {len(planned)}, complete {complete}, to go on with {begun - complete}")
    outcome = run_jobs(planned, jobs)
    results = collect(name, planned, outcome.failed)
    if results["games"]:
        as_table = table(results, SUITES[name].score)
        _write(directory / "results.json", json.dumps(results, indent=2) + "\n")
        _write(directory / "table.md", as_table)
        print(as_table, end="", flush=True)
    missing = results["incomplete"]
    if outcome.signal_number is not None and missing:
        message = f"stopped with {len(results['games'])} of {len(planned)} games complete"
        raise Stopped(f"{message}; the same command goes on", outcome.signal_number)
    if outcome.failed:
        message = f"{len(outcome.failed)} of {len(planned)} games failed: {', '.join(outcome.failed)}"
        raise JobsFailedError(f"{message}; the same command tries them again")


def plan(
    name: str,
    games: str | None,
    overrides: dict[str, Any],
    flags: Sequence[str],
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
    planned = [Job(game, config, tuple(flags), directory / game, compilation_cache) for game, config in configs.items()]
    for job in planned:
        if swept := job.config.swept:
            raise UserError(f"{swept[0]} has several values, but a suite trains one setting a game")
        _check_directory(job)
    return planned


def _check_directory(job: Job) -> None:
    """Whether it is free, or holds this very run and nobody is at work there."""
    directory = job.directory
    if not job.begun:
        if directory.exists() and not is_free(directory):
            raise UserError(f"{directory} is neither empty nor a run; name another directory with --out")
        return
    if job.log.exists():
        with job.log.open("rb") as log:
            _lock(log, job)
    found = from_file(directory / "config.json")
    differing = [name for name in FIELDS if name not in SAYS_OF_WHERE and _differs(name, found, job.config)]
    if differing:
        there, here = (", ".join(f"{x}={getattr(config, x)!r}" for x in differing) for config in (found, job.config))
        raise UserError(
            f"{directory} was begun with {there}, but now {here} is asked for; name another directory with --out"
        )
    if job.complete:
        _summary(job)


def _differs(name: str, found: Config, wanted: Config) -> bool:
    """Whether a field is not what it would be if the run began now; what follows from others is None there."""
    there, here = getattr(found, name), getattr(wanted, name)
    return there != here and not (here is None and name in found.derived)


def _lock(log: IO[bytes], job: Job) -> None:
    """Keep others off the job while this file is open, here or in a process that inherits it.

    So two suites do not train the same game at once, nor does one what a killed one left running.
    """
    import fcntl  # here, as Windows has none, and the other commands can do without

    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{job.directory} is being trained by another process; wait for it, or stop it") from None


class _Attempt:
    """A process that trains a game."""

    def __init__(self, job: Job, number: int, environment: dict[str, str]):
        self.job, self.number = job, number
        command = job.command()
        self._begun = time.monotonic()
        with job.log.open("ab") as log:
            _lock(log, job)
            log.write(f"$ {shlex.join(command)}\n".encode())
            log.flush()
            self._log_start = log.tell()
            # In a session of its own, for else Ctrl-C would reach it from the terminal, and once more from here.
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
            )

    def duration(self) -> str:
        """Since it began, as h:mm:ss."""
        return str(timedelta(seconds=round(time.monotonic() - self._begun)))

    def failure(self) -> str:
        """How it ended, and the last line it printed."""
        code = self.process.returncode
        how = f"exit code {code}" if code >= 0 else f"signal {-code} ({signal.strsignal(-code)})"
        with self.job.log.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"{how}: {last.removeprefix('qlax: ')}" if last else how


def run_jobs(jobs: Sequence[Job], at_once: int) -> Outcome:
    """Run what is not complete, so many at a time; a job that fails is tried again, and given up in the end.

    Ctrl-C and SIGTERM are passed on to the processes, and none begins after.

    Args:
      jobs: in the order they begin in.
      at_once: processes at a time.
    """
    environment = dict(environ)
    # Together they may take of a GPU's memory what one would.
    if at_once > 1 and not any(name.endswith("CLIENT_MEM_FRACTION") for name in environ):
        environment["XLA_CLIENT_MEM_FRACTION"] = f"{GPU_SHARE / at_once:.3f}"
    waiting = deque((job, 1) for job in jobs if not job.complete)
    running: list[_Attempt] = []
    failed: dict[str, str] = {}

    def start(job: Job, number: int) -> None:
        if job.complete:  # by now: another suite works in the same directory
            return
        try:
            _say(f"{job.game}: {'goes on' if job.begun else 'begins'}, see {job.log}")
            running.append(_Attempt(job, number, environment))
        except UserError as error:
            give_up(job, str(error))

    def give_up(job: Job, reason: str) -> None:
        failed[job.game] = reason
        _say(f"{job.game}: failed: {reason}")

    def end(attempt: _Attempt) -> None:
        job = attempt.job
        if job.complete:
            summary, done = _summary(job), sum(job.complete for job in jobs)
            names = [name for name in ("eval_return", "eval_score") if name in summary]
            values = ", ".join(f"{name.removeprefix('eval_')} {four_digits(summary[name]['mean'])}" for name in names)
            _say(f"{job.game}: done after {attempt.duration()}: {values}; {done} of {len(jobs)} complete")
        elif requests:
            _say(f"{job.game}: stopped after {attempt.duration()}")
        elif attempt.number == ATTEMPTS or attempt.process.returncode == 2:  # 2: what the user can mend, time cannot
            give_up(job, attempt.failure())
        else:
            waiting.appendleft((job, attempt.number + 1))
            _say(f"{job.game}: failed after {attempt.duration()}, is tried again: {attempt.failure()}")

    passed_on = 0
    with _stop_requests() as requests:
        try:
            while running or (waiting and not requests):
                while waiting and len(running) < at_once and not requests:
                    start(*waiting.popleft())
                time.sleep(POLL_SECONDS)
                if requests and not passed_on:
                    _say("stopping after the work in hand; Ctrl-C again stops at once, without checkpoints")
                for number in requests[passed_on:]:
                    for attempt in running:
                        attempt.process.send_signal(number)
                    passed_on += 1
                for attempt in [attempt for attempt in running if attempt.process.poll() is not None]:
                    running.remove(attempt)
                    end(attempt)
        finally:  # whatever goes wrong here leaves no process behind
            for attempt in running:
                attempt.process.terminate()
            for attempt in running:
                attempt.process.wait()
    return Outcome(failed, requests[0] if requests else None)


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """A list of the signals that ask to stop, Ctrl-C and SIGTERM, as they come."""
    requests: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, _: requests.append(number)) for number in numbers}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def collect(name: str, jobs: Sequence[Job], failed: dict[str, str]) -> dict[str, Any]:
    """What `results.json` holds: a row a complete game, who is missing, and the aggregates of the scores."""
    games = {job.game: _row(job) for job in jobs if job.complete}
    scores = {game: row["eval_score"]["per_run"] for game, row in games.items() if "eval_score" in row}
    scores = {game: values for game, values in scores.items() if None not in values}
    return {
        "suite": name,
        "games": games,
        "failed": {game: reason for game, reason in failed.items() if game not in games},
        "incomplete": [job.game for job in jobs if job.game not in games and job.game not in failed],
        "aggregates": {"games": list(scores), **aggregates(list(scores.values()))} if scores else None,
    }


def _row(job: Job) -> dict[str, Any]:
    """What a table says of a game."""
    summary = _summary(job)
    return {"preset": job.config.preset} | {name: summary[name] for name in REPORTED if name in summary}


def _summary(job: Job) -> dict[str, Any]:
    path = job.directory / "summary.json"
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error


def _say(text: str) -> None:
    """A line about the jobs, with the time; standard output is the table's."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def _write(path: Path, text: str) -> None:
    """Aside first: a reader finds the whole file."""
    aside = path.with_suffix(".partial")
    aside.write_text(text)
    aside.replace(path)
