"""Jobs: training runs in processes of their own, several at a time, with a limited number of retries."""

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

from qlax.agents.zoo import located
from qlax.config.command_line import as_words
from qlax.config.settings import Config, fields_where
from qlax.errors import RunError, Stopped, UserError
from qlax.storage.formats import config_of_file
from qlax.storage.paths import is_free
from qlax.util.text import four_digits

ATTEMPTS = 3  # attempts at a job before it counts as failed
POLL_SECONDS = 0.1
PR_SET_PDEATHSIG = 1  # Linux's prctl option for the signal that a process gets when its parent thread ends
GPU_SHARE = 0.75  # share of a GPU's memory that JAX reserves by default


class JobsFailedError(RunError):
    """Some jobs failed in every attempt; the message names them."""


@dataclass(frozen=True)
class Job:
    """One run of a sweep, which is trained in a process of its own.

    Attributes:
      name: Name of the job, unique in its sweep.
      config: Settings of the run.
      directory: Directory of the run.
      compilation_cache: Keep compiled programs for later runs.
    """

    name: str
    config: Config
    directory: Path
    compilation_cache: bool = True

    @property
    def log(self) -> Path:
        """File beside the run's directory with the output of all the job's processes."""
        return self.directory.with_name(f"{self.name}.log")

    @property
    def begun(self) -> bool:
        """True if a run has begun in the directory, so that the job resumes it."""
        return (self.directory / "config.json").exists()

    @property
    def complete(self) -> bool:
        """True if training has ended; the summary is written last."""
        return (self.directory / "summary.json").exists()

    def summary(self) -> dict[str, Any]:
        """Read the run's summary.

        Raises:
          UserError: The summary is damaged.
        """
        path = self.directory / "summary.json"
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path} is not JSON: {error}") from error

    def command(self) -> list[str]:
        """Return the command that begins or resumes the run."""
        # -P: like the command `qlax`, find modules in the working directory only if settings name them.
        python = [sys.executable, "-P", "-m", "qlax"]
        alone = ["--num-processes", "1"]  # a launcher's variables are meant for the sweep's own process, not for jobs
        cache = [] if self.compilation_cache else ["--no-compilation-cache"]
        if self.begun:
            return [*python, "resume", str(self.directory), *cache, *alone]
        return [*python, "train", *as_words(self.config), *cache, *alone, "--out", str(self.directory)]

    def check(self) -> None:
        """Check that the directory is free, or holds this run and no other process trains in it.

        Raises:
          UserError: The directory holds other files, a run with other settings, or a damaged summary; or another
            process trains in it.
        """
        if not self.begun:
            if self.directory.exists() and not is_free(self.directory):
                raise UserError(f"{self.directory} is neither empty nor a run; name another directory with --out")
            return
        with suppress(OSError), self.log.open("rb") as log:  # a log that cannot be opened fails the job later
            self.lock(log)
        found = config_of_file(self.directory / "config.json")
        names = fields_where(origin=False)
        there, here = ({name: getattr(config, name) for name in names} for config in (found, self.config))
        if self.config.init is not None:
            here["init"] = str(located(self.config.init).resolve())  # as config.json stores the path
        # Derived settings are still None in the configuration of a new run.
        there |= {name: None for name in found.derived if here.get(name) is None}
        check_same(self.directory, there, here)
        if self.complete:
            self.summary()

    def lock(self, log: IO[bytes]) -> None:
        """Lock the job while its log is open, in this process or in one that inherits the open file.

        The lock keeps two commands from training the same job at once, and a command from training a job that a
        killed command left running. Windows has no such lock: there, a second process finds the run's directory in
        use when it begins to train, and fails.

        Raises:
          UserError: Another process has locked the job.
        """
        if sys.platform == "win32":
            return
        import fcntl  # imported here, because Windows lacks this module and only jobs need it

        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{self.directory} is being trained by another process; wait for it, or stop it") from None


def check_same(directory: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Check that the requested settings are those that a directory was begun with.

    Args:
      directory: Directory, for the error message.
      there: Settings of the directory.
      here: Requested settings.

    Raises:
      UserError: Some settings differ; the message names all of them.
    """
    differing = [name for name in here if there.get(name) != here[name]]
    if differing:
        was, now = (", ".join(f"{name}={settings.get(name)!r}" for name in differing) for settings in (there, here))
        raise UserError(
            f"{directory} was begun with {was}, but the command asks for {now}; name another directory with --out"
        )


class Ending(NamedTuple):
    """End of an attempt at a job.

    Attributes:
      code: Exit code; 2 means that only the user can fix the cause, so that the job is not tried again.
      how: Reason, and the last line that the process printed.
    """

    code: int
    how: str


class Attempt(Protocol):
    """Running attempt at a job, on this machine or on another."""

    def ending(self) -> Ending | None:
        """Return how the attempt ended; None while it is running."""

    def stop(self, number: int) -> None:
        """Ask the attempt to stop, by the signal of this number where possible."""


class Process:
    """Attempt at a job in a process on this machine.

    Args:
      job: Job to train.
      environment: Environment variables of the process.
      options: Further arguments of `subprocess.Popen`.

    Raises:
      UserError: Another process trains the job, or the log cannot be written.
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
                # In a session of its own, because otherwise the job would get Ctrl-C twice: from the terminal and here.
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=None if sys.platform == "win32" else _set_up_signals,
                    env=environment,
                    **options,
                )
        except OSError as error:
            raise UserError(f"{error.filename or job.log}: {error.strerror or error}") from error

    def ending(self) -> Ending | None:
        """Return how the attempt ended; None while it is running."""
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
        """Send the process a signal.

        On Windows, the console sends Ctrl-C to all of its processes itself, and SIGTERM ends a process at once.
        """
        if sys.platform != "win32" or number == signal.SIGTERM:
            self._process.send_signal(number)


def _set_up_signals() -> None:
    """Unblock all signals in a new process; on Linux, make the kernel send it SIGTERM when its parent ends.

    SIGTERM makes a job save a checkpoint and end. To the kernel, the parent is the thread that started the process, so
    that thread must live as long as its jobs.
    """
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # Ray's workers block Ctrl-C
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Runner(NamedTuple):
    """Way to run jobs.

    Attributes:
      at_once: Maximum number of jobs at a time.
      start: Function that starts a job; it may raise a UserError.
    """

    at_once: int
    start: Callable[[Job], Attempt]


def here(at_once: int) -> Runner:
    """Return a runner that starts up to `at_once` processes at a time on this machine."""
    environment = dict(environ) | share_of_gpu(1 / at_once)
    return Runner(at_once, lambda job: Process(job, environment))


def share_of_gpu(share: float) -> dict[str, str]:
    """Return environment variables that limit a process to its share of the GPU memory that JAX reserves by default."""
    if share >= 1 or any(name.endswith("CLIENT_MEM_FRACTION") for name in environ):
        return {}
    return {"XLA_CLIENT_MEM_FRACTION": f"{GPU_SHARE * share:.3f}"}


class Outcome(NamedTuple):
    """Outcome of all jobs.

    Attributes:
      failed: Reason of failure by the name of each job that failed in all attempts.
      signal_number: Signal that asked to stop; None if there was none.
    """

    failed: dict[str, str]
    signal_number: int | None


class _Running(NamedTuple):
    job: Job
    number: int  # 1 for the first attempt
    attempt: Attempt
    begun: float  # start time in seconds of the monotonic clock

    def duration(self) -> str:
        """Return the time since the attempt began, as h:mm:ss."""
        return str(timedelta(seconds=round(time.monotonic() - self.begun)))


def run_jobs(jobs: Sequence[Job], runner: Runner) -> Outcome:
    """Run all incomplete jobs; try a job that fails again, up to `ATTEMPTS` times.

    Ctrl-C and SIGTERM are passed on to the running jobs, and no further job begins.

    Args:
      jobs: Jobs, in the order in which they begin.
      runner: Way to run the jobs.
    """
    waiting = deque((job, 1) for job in jobs if not job.complete)
    running: list[_Running] = []
    failed: dict[str, str] = {}

    def begin(job: Job, number: int) -> None:
        if job.complete:  # another command has completed the job in the meantime
            return
        try:
            say(f"{job.name}: {'resumes' if job.begun else 'begins'}, see {job.log}")
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
            say(f"{job.name}: failed after {ended.duration()}, trying again: {ending.how}")

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
        finally:  # leave no process behind, even after an error in this function
            for each in running:
                each.attempt.stop(signal.SIGTERM)
            while any(each.attempt.ending() is None for each in running):
                time.sleep(POLL_SECONDS)
    failed = {job.name: failed[job.name] for job in jobs if job.name in failed}
    return Outcome(failed, requests[0] if requests else None)


def conclude(outcome: Outcome, jobs: Sequence[Job], again: str) -> None:
    """Raise an error if jobs were stopped or have failed.

    Args:
      outcome: Outcome of the jobs.
      jobs: All jobs.
      again: Description of the command that continues the jobs.

    Raises:
      Stopped: A signal asked to stop, and some jobs are not complete.
      JobsFailedError: Some jobs failed in all attempts.
    """
    complete, wanted = sum(job.complete for job in jobs), len(jobs)
    if outcome.signal_number is not None and complete + len(outcome.failed) < wanted:
        message = f"stopped with {complete} of {wanted} jobs complete; continue with {again}"
        raise Stopped(message, outcome.signal_number)
    if outcome.failed:
        message = f"{len(outcome.failed)} of {wanted} jobs failed: {', '.join(outcome.failed)}"
        raise JobsFailedError(f"{message}; try them again with {again}")


def make_directory(path: Path) -> None:
    """Make the directory that holds the directories of the jobs.

    Raises:
      UserError: The directory cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the directory {error.filename}: {error.strerror}") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn system errors within the context into a one-line `RunError` that says how to continue."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise RunError(
            f"{where} cannot be written: {error.strerror or error}; fix that, then repeat the same command to continue"
        ) from error


def say(text: str) -> None:
    """Print a line with the time of day to standard error; standard output is reserved for results."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collect the signals that ask to stop, SIGINT (Ctrl-C) and SIGTERM, in a list while the context is active."""
    requests: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, _: requests.append(number)) for number in numbers}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
