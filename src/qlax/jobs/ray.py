"""Places where jobs run: this machine, or a Ray cluster, which chooses a machine with enough free resources."""

import contextlib
import dataclasses
import math
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

from qlax.errors import UserError
from qlax.jobs.runner import POLL_SECONDS, Ending, Job, Process, Runner, here, say, share_of_gpu

PASSED_ON = ("JAX_", "QLAX_", "XLA_")  # prefixes of environment variables that are passed on to jobs
LOCK_SECONDS = 60.0  # for an earlier attempt, whose Ray worker died, to save and release the job
LATEST = Path("/tmp/ray/ray_current_cluster")  # Ray's file with the address of the last started cluster


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Place where jobs run.

    Attributes:
      on: "ray" for a Ray cluster; None for this machine.
      jobs: Maximum number of jobs at a time; None for one on this machine, or as many as the Ray cluster has room for.
      cpus: CPUs per job on Ray; None for one if the job has a GPU, else an equal share of all CPUs.
      gpus: GPUs per job on Ray, possibly a fraction; None for one if the cluster has GPUs, else none.

    Raises:
      UserError: A number is out of range, or `cpus` or `gpus` is given without Ray.
    """

    on: str | None = None
    jobs: int | None = None
    cpus: float | None = None
    gpus: float | None = None

    def __post_init__(self) -> None:
        if self.jobs is not None and self.jobs < 1:
            raise UserError(f"jobs={self.jobs}: expected a whole number from 1")
        for name, least in (("cpus", "more than 0"), ("gpus", "0 or more")):
            value = getattr(self, name)
            if value is not None and self.on != "ray":
                raise UserError(f"{name}_per_job={value:g} is for jobs on Ray; add --on ray")
            if value is not None and not (0 < value < math.inf or (value == 0 and name == "gpus")):
                raise UserError(f"{name}_per_job={value:g}: expected {least}")

    def runner(self, num_jobs: int) -> Runner:
        """Return a runner for a number of jobs.

        Raises:
          UserError: Ray is not installed or does not answer, or no machine of its cluster has room for a job.
        """
        if self.on is None:
            return here(self.jobs or 1)
        return on_ray(num_jobs, at_once=self.jobs, cpus=self.cpus, gpus=self.gpus)


def on_ray(num_jobs: int, *, at_once: int | None, cpus: float | None, gpus: float | None) -> Runner:
    """Return a runner of jobs on a Ray cluster.

    The cluster is that of RAY_ADDRESS, else one that runs on this machine, else a new one on this machine.

    Args:
      num_jobs: Number of jobs.
      at_once: Maximum number of jobs at a time; None for as many as the cluster has room for.
      cpus: CPUs per job; None for one if the job has a GPU, else an equal share of all CPUs.
      gpus: GPUs per job, possibly a fraction; None for one if the cluster has GPUs, else none.

    Raises:
      UserError: Ray is not installed or does not answer, or no machine of the cluster has room for a job.
    """
    ray = _connected()
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    totals = {kind: sum(machine.get(kind, 0) for machine in machines) for kind in ("CPU", "GPU")}
    largest = {kind: max(machine.get(kind, 0) for machine in machines) for kind in ("CPU", "GPU")}
    gpus = gpus if gpus is not None else float(totals["GPU"] > 0)
    share = totals["CPU"] // min(at_once or num_jobs, num_jobs)
    cpus = cpus or (1.0 if gpus else max(1.0, min(largest["CPU"], share)))
    occupied = {"CPU": cpus, "GPU": gpus}
    for kind, asked in occupied.items():
        if asked > largest[kind]:
            name = f"{kind.lower()}s_per_job={asked:g}"
            raise UserError(f"{name}: no machine of the cluster has more {kind}s than {largest[kind]:g}; ask for fewer")
    rooms = (min(machine.get(kind, 0) / asked for kind, asked in occupied.items() if asked) for machine in machines)
    room = sum(int(jobs + 1e-6) for jobs in rooms)  # 1e-6: ten jobs of 0.1 GPUs must fit despite rounding
    found = f"machines {len(machines)}, CPUs {totals['CPU']:g}, GPUs {totals['GPU']:g}"
    say(f"Ray: {found}; per job: CPUs {cpus:g}, GPUs {gpus:g}")
    # No retries by Ray, because `run_jobs` retries jobs that fail.
    train = ray.remote(_train).options(num_cpus=cpus, num_gpus=gpus, max_retries=0)
    variables = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    variables |= share_of_gpu(gpus) if gpus else {"CUDA_VISIBLE_DEVICES": ""}

    def start(job: Job) -> _Task:
        there = dataclasses.replace(job, directory=job.directory.resolve())
        return _Task(ray, train.remote(there, variables, Path.cwd()))

    return Runner(min(at_once or room, room), start)


def _connected() -> Any:
    """Import Ray, connect it to a cluster or start one, and return the module."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # send no usage statistics
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UserError("Ray is not installed (no module 'ray'): pip install 'qlax[ray]'") from error
    quiet = {"log_to_driver": False, "logging_level": "error"}
    address = os.environ.get("RAY_ADDRESS")
    if address and not _answers(address):
        raise UserError(f"RAY_ADDRESS={address}: no Ray cluster answers at this address; expected host:port")
    if not address and LATEST.exists() and _answers(latest := LATEST.read_text().strip()):
        address = latest
    if address:
        ray.init(address=address, **quiet)
    else:
        ray.init(address="local", include_dashboard=False, **quiet)
    return ray


def _answers(address: str) -> bool:
    """Tell whether a server listens at an address, because Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError):
        return False
    return True


class _Task:
    """Attempt at a job, as a Ray task."""

    def __init__(self, ray: Any, reference: Any):
        self._ray, self._reference = ray, reference

    def ending(self) -> Ending | None:
        """Return how the attempt ended; None while it is running."""
        done, _ = self._ray.wait([self._reference], timeout=0)
        if not done:
            return None
        try:
            return Ending(*self._ray.get(self._reference))
        except self._ray.exceptions.RayError as error:  # the worker or its machine died, or the task was cancelled
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            return Ending(1, f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}")

    def stop(self, number: int) -> None:
        """Interrupt the task; Ray does not distinguish signals."""
        self._ray.cancel(self._reference)


def _train(job: Job, variables: dict[str, str], folder: Path) -> tuple[int, str]:
    """Attempt a job on the machine that Ray chose.

    Args:
      job: Job, whose directory must have the same path on all machines, as on a shared file system.
      variables: Environment variables, in addition to those that Ray sets, such as the GPUs to use.
      folder: Working directory of the job.

    Returns:
      Fields of an `Ending`.
    """
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            job.directory.parent.mkdir(parents=True, exist_ok=True)
            process = Process(job, dict(os.environ) | variables, cwd=folder)
            break
        except UserError as error:
            if time.monotonic() > deadline:
                return 2, str(error)
            time.sleep(POLL_SECONDS)
    while True:
        with contextlib.suppress(KeyboardInterrupt):  # Ray interrupts a task by this exception
            while (ending := process.ending()) is None:
                time.sleep(POLL_SECONDS)
            return ending.code, ending.how
        process.stop(signal.SIGINT)
