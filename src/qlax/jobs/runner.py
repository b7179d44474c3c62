"""Jobs: training in processes of their own, several at a time; what fails is tried again, and in the end given up."""

import ctypes
import json
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from os import environ
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from qlax.config.command_line import as_words
from qlax.config.settings import Config, fields_where
from qlax.errors import RunError, Stopped, UserError
from qlax.storage.formats import config_of_file
from qlax.storage.paths import is_free
from qlax.util.text import four_digits

ATTEMPTS = 3  # at a job, before it is given up
POLL_SECONDS = 0.1
PR_SET_PDEATHSIG = 1  # of Linux: the signal that a process gets when the thread that started it is gone
GPU_SHARE = 0.75  # of its memory, which JAX takes for one process unless told otherwise


class JobsFailedError(RunError):
    """Some jobs failed in every attempt; the message names them."""


@dataclass(frozen=True)
class Job:
    """A training in a process of its own.

    Attributes:
      name: among the others.
      config: the settings asked for.
      directory: of the run; beside it, `log` is what its processes print.
      compilation_cache: whether to keep compiled programs for the next time.
    """

    name: str
    config: Config
    directory: Path
    compilation_cache: bool = True

    @property
    def log(self) -> Path:
        """What the processes of this job have printed, one after the other."""
        return self.directory.with_name(f"{self.name}.log")

    @property
    def begun(self) -> bool:
        """Whether there is something to go on with."""
        return (self.directory / "config.json").exists()

    @property
    def complete(self) -> bool:
        """Whether it was trained to its end: the summary is written last."""
        return (self.directory / "summary.json").exists()

    def summary(self) -> dict[str, Any]:
        """What its end left.

        Raises:
          UserError: it is damaged.
        """
        path = self.directory / "summary.json"
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path} is not JSON: {error}") from error

    def command(self) -> list[str]:
        """What begins it, or goes on with it."""
        # -P: like the command `qlax`, a process finds no modules in the working directory unless settings name them.
        python = [sys.executable, "-P", "-m", "qlax"]
        alone = ["--num-processes", "1"]  # whatever a launcher says: it started what started this
        cache = [] if self.compilation_cache else ["--no-compilation-cache"]
        if self.begun:
            return [*python, "resume", str(self.directory), *cache, *alone]
        return [*python, "train", *as_words(self.config), *cache, *alone, "--out", str(self.directory)]

    def check(self) -> None:
        """Whether its directory is free, or holds this very run and nobody is at work there.

        Raises:
          UserError: neither.
        """
        if not self.begun:
            if self.directory.exists() and not is_free(self.directory):
                raise UserError(f"{self.directory} is neither empty nor a run; name another directory with --out")
            return
        with suppress(OSError), self.log.open("rb") as log:  # one that cannot be opened is the job's failure
            self.lock(log)
        found = config_of_file(self.directory / "config.json")
        names = fields_where(origin=False)
        there, here = ({name: getattr(config, name) for name in names} for config in (found, self.config))
        if self.config.init is not None:
            here["init"] = str(Path(self.config.init).resolve())  # as a run writes it down
        # What follows from others would be None, if the run began now.
        there |= {name: None for name in found.derived if here.get(name) is None}
        check_same(self.directory, there, here)
        if self.complete:
            self.summary()

    def lock(self, log: IO[bytes]) -> None:
        """Keep others off the job while its log is open, here or in a process that inherits it.

        So two commands do not train the same job at once, nor does one what a killed one left running.

        Raises:
          UserError: another process has it.
        """
        import fcntl  # here, as Windows has none, and the other commands can do without

        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{self.directory} is being trained by another process; wait for it, or stop it") from None


def check_same(directory: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Whether settings are those that a directory was begun with.

    Raises:
      UserError: some are not; names them all.
    """
    differing = [name for name in here if there.get(name) != here[name]]
    if differing:
        was, now = (", ".join(f"{name}={settings.get(name)!r}" for name in differing) for settings in (there, here))
        raise UserError(
            f"{directory} was begun with {was}, but now {now} is asked for; name another directory with --out"
        )


class Ending(NamedTuple):
    """How an attempt at a job ended.

    Attributes:
      code: 2 for what the user can fix and time cannot.
      how: the reason, and the last line that was printed.
    """

    code: int
    how: str


class Attempt(Protocol):
    """A process that trains a job, here or elsewhere."""

    def ending(self) -> Ending | None:
        """How it ended; None while it has not."""

    def stop(self, number: int) -> None:
        """Pass a signal on that asks it to stop."""


class Process:
    """A process of this machine that trains a job.

    Args:
      job: which.
      environment: variables of the process.
      options: of `subprocess.Popen`.

    Raises:
      UserError: another process trains the job, or the log cannot be written.
    """

    def __init__(self, job: Job, environment: dict[str, str], **options: Any):
        self._job = job
        command = job.command()
        try:
            with job.log.open("ab") as log:
                job.lock(log)
                log.write(f"$ {shlex.join(command)}\n".encode())
                log.flush()
                self._log_start = log.tell()
                # In a session of its own, for else Ctrl-C would reach it from the terminal, and once more from here.
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=_begin,
                    env=environment,
                    **options,
                )
        except OSError as error:
            raise UserError(f"{error.filename or job.log}: {error.strerror or error}") from error

    def ending(self) -> Ending | None:
        """How it ended; None while it has not."""
        code = self._process.poll()
        if code is None:
            return None
        how = f"exit code {code}" if code >= 0 else f"signal {-code} ({signal.strsignal(-code)})"
        lines: list[str] = []
        with suppress(OSError), self._job.log.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return Ending(code, f"{how}: {last.removeprefix('qlax: ')}" if last else how)

    def stop(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)


def _begin() -> None:
    """Have a new process hear every signal, and on Linux save and end (SIGTERM) when its parent is gone.

    Linux counts the thread that started the process as the parent: start jobs from a thread that lives as long as they.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # a worker of Ray blocks Ctrl-C
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Runner(NamedTuple):
    """What jobs are run by.

    Attributes:
      at_once: jobs at a time.
      start: begins a job, or raises a UserError.
    """

    at_once: int
    start: Callable[[Job], Attempt]


def here(at_once: int) -> Runner:
    """Processes of this machine, so many at a time."""
    environment = dict(environ) | share_of_gpu(1 / at_once)
    return Runner(at_once, lambda job: Process(job, environment))


def share_of_gpu(share: float) -> dict[str, str]:
    """Variables by which a process takes no more than its share of a GPU's memory: together, what one would take."""
    if share >= 1 or any(name.endswith("CLIENT_MEM_FRACTION") for name in environ):
        return {}
    return {"XLA_CLIENT_MEM_FRACTION": f"{GPU_SHARE * share:.3f}"}


class Outcome(NamedTuple):
    """How the jobs went.

    Attributes:
      failed: names of those given up, and why.
      signal_number: what asked to stop; None if nothing did.
    """

    failed: dict[str, str]
    signal_number: int | None


class _Running(NamedTuple):
    job: Job
    number: int  # of the attempt
    attempt: Attempt
    begun: float

    def duration(self) -> str:
        """Since it began, as h:mm:ss."""
        return str(timedelta(seconds=round(time.monotonic() - self.begun)))


def run_jobs(jobs: Sequence[Job], runner: Runner) -> Outcome:
    """Run what is not complete, so many at a time; a job that fails is tried again, and given up in the end.

    Ctrl-C and SIGTERM are passed on to the jobs, and none begins after.

    Args:
      jobs: in the order they begin in.
      runner: of them.
    """
    waiting = deque((job, 1) for job in jobs if not job.complete)
    running: list[_Running] = []
    failed: dict[str, str] = {}

    def begin(job: Job, number: int) -> None:
        if job.complete:  # by now: another command works in the same directory
            return
        try:
            say(f"{job.name}: {'goes on' if job.begun else 'begins'}, see {job.log}")
            running.append(_Running(job, number, runner.start(job), time.monotonic()))
        except UserError as error:
            give_up(job, str(error))

    def give_up(job: Job, reason: str) -> None:
        failed[job.name] = reason
        say(f"{job.name}: failed: {reason}")

    def end(ended: _Running, ending: Ending) -> None:
        job = ended.job
        if job.complete:
            summary, done = job.summary(), sum(job.complete for job in jobs)
            names = [name for name in ("eval_return", "eval_score") if name in summary]
            values = ", ".join(f"{name.removeprefix('eval_')} {four_digits(summary[name]['mean'])}" for name in names)
            agents = len(summary["eval_return"]["per_run"])
            values += f", mean of {agents} agents" if agents > 1 else ""
            say(f"{job.name}: done after {ended.duration()}: {values}; {done} of {len(jobs)} complete")
        elif requests:
            say(f"{job.name}: stopped after {ended.duration()}")
        elif ended.number == ATTEMPTS or ending.code == 2:
            give_up(job, ending.how)
        else:
            waiting.appendleft((job, ended.number + 1))
            say(f"{job.name}: failed after {ended.duration()}, is tried again: {ending.how}")

    passed_on = 0
    with _stop_requests() as requests:
        try:
            while running or (waiting and not requests):
                while waiting and len(running) < runner.at_once and not requests:
                    begin(*waiting.popleft())
                time.sleep(POLL_SECONDS)
                if requests and not passed_on:
                    say("stopping after the work in progress; Ctrl-C again stops at once, without checkpoints")
                for number in requests[passed_on:]:
                    for each in running:
                        each.attempt.stop(number)
                    passed_on += 1
                for each in list(running):
                    if (ending := each.attempt.ending()) is not None:
                        running.remove(each)
                        end(each, ending)
        finally:  # whatever goes wrong here leaves no process behind
            for each in running:
                each.attempt.stop(signal.SIGTERM)
            while any(each.attempt.ending() is None for each in running):
                time.sleep(POLL_SECONDS)
    failed = {job.name: failed[job.name] for job in jobs if job.name in failed}
    return Outcome(failed, requests[0] if requests else None)


def conclude(outcome: Outcome, jobs: Sequence[Job], again: str) -> None:
    """Say what is missing.

    Args:
      outcome: how the jobs went.
      jobs: all that were to be run.
      again: what goes on with them.

    Raises:
      Stopped: a signal asked to stop, and some jobs are not complete.
      JobsFailedError: some were given up.
    """
    complete, wanted = sum(job.complete for job in jobs), len(jobs)
    if outcome.signal_number is not None and complete + len(outcome.failed) < wanted:
        raise Stopped(f"stopped with {complete} of {wanted} jobs complete; {again} goes on", outcome.signal_number)
    if outcome.failed:
        message = f"{len(outcome.failed)} of {wanted} jobs failed: {', '.join(outcome.failed)}"
        raise JobsFailedError(f"{message}; {again} tries them again")


def make_directory(path: Path) -> None:
    """Make the directory that holds those of the jobs.

    Raises:
      UserError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the directory {error.filename}: {error.strerror}") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system will not write to the directory ends the command with a message that says so."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise RunError(f"{where} cannot be written: {error.strerror or error}; the same command goes on") from error


def say(text: str) -> None:
    """A line about the jobs, with the time; standard output is the results'."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


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
