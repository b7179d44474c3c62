"""Places of jobs: this machine, or a Ray cluster: Ray says where there is room, and a process there trains as here."""

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

PASSED_ON = ("JAX_", "XLA_")  # variables that hold for jobs elsewhere too, by how they begin
LOCK_SECONDS = 60.0  # that an earlier attempt, whose worker died, may take to save
LATEST = Path("/tmp/ray/ray_current_cluster")  # where Ray says which cluster was started last; it may be gone


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where jobs are run.

    Attributes:
      on: "ray", or None: this machine.
      jobs: at a time; None: one here, and on Ray as many as there is room for.
      cpus: that a job occupies on Ray; None: a GPU's job one, others an equal share of what there is.
      gpus: that a job occupies on Ray, may be a fraction; None: one, if there is any.

    Raises:
      UserError: a number is out of range, or for Ray alone.
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
        """What runs so many jobs there.

        Raises:
          UserError: there is no Ray, or no room in its cluster.
        """
        if self.on is None:
            return here(self.jobs or 1)
        return on_ray(num_jobs, at_once=self.jobs, cpus=self.cpus, gpus=self.gpus)


def on_ray(num_jobs: int, *, at_once: int | None, cpus: float | None, gpus: float | None) -> Runner:
    """Return what runs jobs on a Ray cluster: that of RAY_ADDRESS, one running on this machine, or a new one here.

    Args:
      num_jobs: how many there are.
      at_once: jobs at a time; None: as many as there is room for.
      cpus: that a job occupies; None: a GPU's job one, others an equal share of what there is.
      gpus: that a job occupies, may be a fraction; None: one, if there is any.

    Raises:
      UserError: there is no Ray, or no machine of the cluster has room for a job.
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
            raise UserError(f"{name}: no machine of the cluster has more than {largest[kind]:g}")
    rooms = (min(machine.get(kind, 0) / asked for kind, asked in occupied.items() if asked) for machine in machines)
    room = sum(int(jobs + 1e-6) for jobs in rooms)  # a tenth of a GPU has room for ten
    found = f"machines {len(machines)}, CPUs {totals['CPU']:g}, GPUs {totals['GPU']:g}"
    say(f"Ray: {found}; of a job: CPUs {cpus:g}, GPUs {gpus:g}")
    # A job that fails is tried again by `run_jobs`.
    train = ray.remote(_train).options(num_cpus=cpus, num_gpus=gpus, max_retries=0)
    variables = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    variables |= share_of_gpu(gpus) if gpus else {"CUDA_VISIBLE_DEVICES": ""}

    def start(job: Job) -> _Task:
        there = dataclasses.replace(job, directory=job.directory.resolve())
        return _Task(ray, train.remote(there, variables, Path.cwd()))

    return Runner(min(at_once or room, room), start)


def _connected() -> Any:
    """Ray, at work."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to its makers
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UserError("Ray is not installed (no module 'ray'): pip install 'qlax[ray]'") from error
    quiet = {"log_to_driver": False, "logging_level": "error"}
    address = os.environ.get("RAY_ADDRESS")
    if address and not _answers(address):
        raise UserError(f"RAY_ADDRESS={address}: no Ray cluster answers there; expected host:port")
    if not address and LATEST.exists() and _answers(latest := LATEST.read_text().strip()):
        address = latest
    if address:
        ray.init(address=address, **quiet)
    else:
        ray.init(address="local", include_dashboard=False, **quiet)
    return ray


def _answers(address: str) -> bool:
    """Whether somebody listens there: Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError):
        return False
    return True


class _Task:
    """An attempt at a job, as a task of Ray."""

    def __init__(self, ray: Any, reference: Any):
        self._ray, self._reference = ray, reference

    def ending(self) -> Ending | None:
        """How it ended; None while it has not."""
        done, _ = self._ray.wait([self._reference], timeout=0)
        if not done:
            return None
        try:
            return Ending(*self._ray.get(self._reference))
        except self._ray.exceptions.RayError as error:  # the worker or its machine died, or the task was stopped
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            return Ending(1, f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}")

    def stop(self, number: int) -> None:
        """Interrupt it; all signals are the same to Ray."""
        self._ray.cancel(self._reference)


def _train(job: Job, variables: dict[str, str], folder: Path) -> tuple[int, str]:
    """An attempt at a job, where Ray put it.

    Args:
      job: its directory has to be the same there as where the command was given.
      variables: of the environment, beside those that Ray sets, as the GPUs to use.
      folder: the working directory.
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
        with contextlib.suppress(KeyboardInterrupt):  # which is how Ray interrupts a task
            while (ending := process.ending()) is None:
                time.sleep(POLL_SECONDS)
            return ending.code, ending.how
        process.stop(signal.SIGINT)
