"""Where runs are computed: on which devices, and how many of them at once.

Runs share nothing. So they are dealt to the devices in equal parts first, and each device computes its part side
by side or in turns. Where devices are left, several share each run: they split its environments, and sum what they
learn. A CPU is counted as one device a core and its runs take turns: one run fits its caches, and a core of its own
is more to a run than a share of every operation. Other devices compute all their runs at once, or as many as their
memory holds.
"""

import contextlib
import copy
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qlax.errors import UserError
from qlax.types import PyTree, is_key

RUNS, DATA = "runs", "data"  # the axes of the mesh
DETERMINISTIC_OPTIONS: dict[str, Any] = {  # of a GPU; a CPU's operations are deterministic
    "xla_gpu_deterministic_ops": True,
    "xla_gpu_autotune_level": 0,  # measures on the spot which algorithm is fastest, so another day another one
}
CPU_OPTIONS: dict[str, Any] = {
    "xla_cpu_experimental_ynn_fusion_type": "",  # XLA's fusions around matrix products are slower than Eigen's products
    "xla_backend_optimization_level": 1,  # compiles in four fifths of the time, and runs as fast
}


def use_cores() -> None:
    """Have JAX count a CPU's cores as devices, unless it was told what to count or has counted already."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = jax.config.values["jax_num_cpu_devices"] != -1 or "device_count" in os.environ.get("XLA_FLAGS", "")
    if not told:
        with contextlib.suppress(RuntimeError):  # it has counted
            jax.config.update("jax_num_cpu_devices", cores)


def device() -> jax.Device:
    """The first that this process may use."""
    return next(each for each in _devices() if each.process_index == jax.process_index())


class Placement:
    """The devices that share `num_runs` runs: as many as divide them, and their environments, equally.

    Args:
      num_runs: R.
      splits: whether the environments of a run can be split into so many parts.
      devices: of each process, at most; None: all. Cores of a CPU split the environments of a run only if this is
        said, or there are several processes.
      deterministic: the same bits every time, which a GPU has to be asked for.

    Attributes:
      num_devices: used, of all processes.
      groups: devices, or groups that share their runs, among which the runs are dealt.
      parts: into which the environments of a run are split, a device each.
      axis_name: of the mapped axis of the devices that share a run; None where a run has one device.
      at_once: agents a device computes side by side; fewer where memory is short, see `taking_turns`.
      runs: sharding of arrays with the axis R first.
      split: of arrays with the axes R and N first.
      each: of arrays with an axis of devices first.
      whole: of arrays that every device has.

    Raises:
      UserError: there are processes that would have nothing to do.
    """

    def __init__(
        self,
        num_runs: int,
        splits: Callable[[int], bool] = lambda parts: parts == 1,
        devices: int | None = None,
        deterministic: bool = False,
    ):
        there, several = _devices(), jax.process_count()
        self._available = min(len(there) // several, devices or len(there)) * several
        is_cpu = there[0].platform == "cpu"
        # Cores split a run only where it is asked for, or a process would have no work without.
        is_reluctant = is_cpu and devices is None
        most_parts = several if is_reluctant else self._available
        self.groups, self.parts = _shares(num_runs, self._available, several, most_parts, splits, is_reluctant)
        self._most_parts = most_parts
        self.axis_name = DATA if self.parts > 1 else None
        self.num_devices = self.groups * self.parts
        self._num_runs, self._on_each = num_runs, num_runs // self.groups
        self.at_once = 1 if is_cpu else self._on_each
        self._deterministic = deterministic
        self._device = device()
        mesh = Mesh(_evenly(there, self.num_devices, several).reshape(self.groups, self.parts), (RUNS, DATA))
        self.runs, self.split, self.each, self.whole = (
            NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((RUNS,), (RUNS, DATA), ((RUNS, DATA),), ())
        )
        self._together = jax.jit(lambda tree: tree, out_shardings=self.whole)

    def __str__(self) -> str:
        """What a user may want to know; nothing if all runs are computed at once on one device."""
        devices = "cores" if self._device.platform == "cpu" else "devices"
        parts = []
        if self.num_devices > 1:
            parts.append(f"spread over {self.num_devices} {devices}")
        if self.parts > 1:
            parts.append(f"{self.parts} of which share the environments of a run")
        if self.at_once < self._on_each:
            parts.append("in turns" if self.at_once == 1 else f"in turns, {self.at_once} at a time on each device")
        if self.num_devices < min(self._available, self._num_runs * self._most_parts):
            parts.append(f"as it does not come out even on {self._available} {devices}")
        return ", ".join(parts)

    def spread(
        self,
        function: Callable[..., PyTree],
        arguments: tuple[PyTree, ...],
        result: PyTree,
        shared: int = 0,
    ) -> Callable[..., PyTree]:
        """The function of all runs, whose parts the devices compute.

        Args:
          function: of as many runs as are side by side, of their part of the environments, and of what is shared.
          arguments: of each argument of runs where it is: `runs`, `split`, or a tree of them.
          result: the same of what it returns.
          shared: so many arguments follow that are the same for all.
        """
        specs = jax.tree.map(lambda sharding: sharding.spec, (arguments, result))
        turns = self._in_turns(function, len(arguments))
        in_specs = (*specs[0], *(PartitionSpec() for _ in range(shared)))
        return jax.shard_map(turns, mesh=self.runs.mesh, in_specs=in_specs, out_specs=specs[1], check_vma=False)

    def lower(
        self,
        function: Callable[..., PyTree],
        *shapes: PyTree,
        arguments: tuple[PyTree, ...] | None = None,
        result: PyTree | None = None,
        shared: tuple[Any, ...] = (),
        donate: bool = False,
    ) -> Any:
        """Trace `function(*shapes, *shared)` for all runs; `compile` does the rest.

        Args:
          function: as in `spread`.
          shapes: of its arguments, `[R, ...]`.
          arguments: as in `spread`; None: `runs` for all.
          result: as in `spread`; None: `runs`.
          shared: arguments that are the same for all.
          donate: whether the result may take the memory of the first argument.
        """
        arguments = arguments or tuple(self.runs for _ in shapes)
        result = result or self.runs
        spread = self.spread(function, arguments, result, len(shared))
        # Said of the results too, as XLA keeps nothing of arrays without elements, which some environments have.
        jitted = jax.jit(spread, donate_argnums=(0,) if donate else (), out_shardings=result)
        return jitted.lower(*self.placed(shapes, arguments), *shared)

    def placed(self, shapes: PyTree, where: PyTree) -> PyTree:
        """The shapes, each with its sharding as in `put`."""
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            shapes,
            everywhere(where, shapes),
        )

    def compile(self, lowered: Any) -> Any:
        """XLA's part, which any thread may do."""
        return lowered.compile(compiler_options=compiler_options(self._device.platform, self._deterministic))

    def put(self, tree: PyTree, where: PyTree) -> PyTree:
        """Arrays of all runs on the devices; every process has to have the same.

        Args:
          tree: of arrays, whole.
          where: `runs`, `split`, or a tree of them.
        """

        def placed(x, sharding):
            data = np.asarray(jax.random.key_data(x) if is_key(x) else x)
            array = jax.make_array_from_callback(data.shape, sharding, lambda index: data[index])
            return jax.random.wrap_key_data(array) if is_key(x) else array

        return jax.tree.map(placed, tree, everywhere(where, tree))

    def gathered(self, tree: PyTree) -> PyTree:
        """The same of all runs where this process can read it, asked for before a chunk takes its memory."""
        return self._together(tree) if jax.process_count() > 1 else tree

    def votes(self, *values: int) -> Callable[[], np.ndarray]:
        """What every process says at this point of the run, `[processes, values]`, once it is waited for."""
        processes, here = jax.process_count(), np.array([values], np.int32)
        if processes == 1:
            return lambda: here
        each = jax.make_array_from_callback((self.num_devices, len(values)), self.each, lambda _: here)
        dispatched = self._together(each)
        return lambda: np.asarray(dispatched)[:: self.num_devices // processes]

    def taking_turns(self, at_once: int) -> "Placement":
        """The same with at most so many agents side by side on a device, as many as divide those that it has."""
        placement = copy.copy(self)
        sizes = range(min(self._on_each, at_once), 0, -1)
        placement.at_once = next(size for size in sizes if self._on_each % size == 0)
        return placement

    def _in_turns(self, function: Callable[..., PyTree], num_of_runs: int) -> Callable[..., PyTree]:
        """The function of as many runs as a device has, computed so many at once.

        Args:
          function: as in `spread`.
          num_of_runs: of its arguments so many are of runs, the others are shared.
        """
        if self.at_once == self._on_each:
            return function

        @functools.wraps(function)
        def in_turns(*arguments):
            runs, shared = arguments[:num_of_runs], arguments[num_of_runs:]
            # Sizes are said, as those of arrays without elements do not follow.
            turns = self._on_each // self.at_once
            groups = jax.tree.map(lambda x: x.reshape(turns, self.at_once, *x.shape[1:]), runs)
            done = jax.lax.map(lambda group: function(*group, *shared), groups)
            return jax.tree.map(lambda x: x.reshape(self._on_each, *x.shape[2:]), done)

        return in_turns


def everywhere(where: PyTree, tree: PyTree) -> PyTree:
    """A sharding for every leaf of the tree; one that stands for several is repeated."""
    return jax.tree.broadcast(where, tree, is_leaf=lambda x: isinstance(x, NamedSharding))


def _devices() -> list[jax.Device]:
    """The one that JAX was told to use, or all of all processes."""
    chosen = jax.config.values["jax_default_device"]
    is_one = isinstance(chosen, jax.Device)
    return [chosen] if is_one and jax.process_count() == 1 else jax.devices(None if is_one else chosen)


def _shares(
    num_runs: int,
    available: int,
    num_processes: int,
    most_parts: int,
    splits: Callable[[int], bool],
    is_reluctant: bool,
) -> tuple[int, int]:
    """Among how many devices, or groups of them, runs are dealt, and how many devices are in a group.

    Runs are dealt as widely as can be first; but no process may be without work, as all have to take part.
    """
    for groups in (number for number in range(min(num_runs, available), 0, -1) if num_runs % number == 0):
        fitting = range(1, min(most_parts, available // groups) + 1)
        for parts in fitting if is_reluctant else reversed(fitting):
            if groups * parts % num_processes == 0 and (parts == 1 or splits(parts)):
                return groups, parts
    raise UserError(
        f"{num_processes} processes cannot share the work: they divide neither the {num_runs} runs, nor num_envs, "
        "num_minibatches and reset_ratio of a run together; take fewer processes, or a number of seeds they divide"
    )


def _evenly(devices: list[jax.Device], number: int, num_processes: int) -> np.ndarray:
    """So many of the devices, as many of each process, in the order of the processes."""
    by_process: dict[int, list[jax.Device]] = {}
    for each in devices:
        by_process.setdefault(each.process_index, []).append(each)
    return np.array([each for index in sorted(by_process) for each in by_process[index][: number // num_processes]])


@functools.cache
def compiler_options(platform: str, deterministic: bool = False) -> dict[str, Any]:
    """XLA's options for a kind of device; those this XLA knows.

    Args:
      platform: the kind of device.
      deterministic: the same bits every time, which a GPU has to be asked for.

    Raises:
      UserError: this XLA does not know how.
    """

    def known(name, value):
        try:
            jax.jit(lambda: 0).lower().compile(compiler_options={name: value})
        except jax.errors.JaxRuntimeError:
            return False
        return True

    options = CPU_OPTIONS if platform == "cpu" else {}
    if jax.config.values["jax_disable_most_optimizations"]:  # JAX's own option then sets the level
        options = {name: value for name, value in options.items() if name != "xla_backend_optimization_level"}
    wanted = DETERMINISTIC_OPTIONS if deterministic and platform == "gpu" else {}
    for name, value in wanted.items():
        if not known(name, value):
            raise UserError(f"deterministic: this version of XLA has no {name}")
    return {name: value for name, value in options.items() if known(name, value)} | wanted
