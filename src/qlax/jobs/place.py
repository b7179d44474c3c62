"""Places: this machine, or a Ray cluster."""

import math
from dataclasses import dataclass

from qlax.errors import UserError
from qlax.jobs.ray import on_ray
from qlax.jobs.runner import Runner, here


@dataclass(frozen=True, kw_only=True)
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
