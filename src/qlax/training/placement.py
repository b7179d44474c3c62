"""Placement of agents: on which devices they are computed, and how many at a time.

Agents are independent. Therefore they are first divided equally among the devices, and each device computes its agents
side by side or in turns. If devices are left over, several devices share each agent: they split its environments and
sum their gradients. Each core of a CPU counts as a device whose agents take turns, because one agent fits into the
core's caches, and a core per agent is faster than all cores per operation. Other devices compute all their agents at
once, or as many as fit into memory.
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

RUNS, DATA = "runs", "data"  # axes of the device mesh: agents, and parts of an agent's environments
GPU_OPTIONS: dict[str, dict[str, Any]] = {  # by the setting that asks for them
    "deterministic": {  # a CPU's operations are deterministic anyway
        "xla_gpu_deterministic_ops": True,
        "xla_gpu_autotune_level": 0,  # autotuning may choose another algorithm each time
    },
    "cuda_graph": {
        # XLA's own list, and loops, conditions and convolutions.
        "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,DYNAMIC_SLICE_FUSION,"
        "WHILE,CONDITIONAL,CONVOLUTION",
        # They make copies whose place depends on the turn of a loop, which a graph cannot hold.
        "xla_disable_hlo_passes": "fusion-dynamic-memcpy-rewriter,dynamic-slice-fusion-rewriter-v2,"
        "dynamic-slice-fusion",
    },
}
CPU_OPTIONS: dict[str, Any] = {
    "xla_cpu_experimental_ynn_fusion_type": "",  # XLA's fusions around matrix products are slower than Eigen's products
    "xla_backend_optimization_level": 1,  # takes 80 % of the compilation time, and the program runs as fast
}


def use_cores() -> None:
    """Make JAX treat each CPU core as a device, unless the user set their number or JAX is already initialised."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    is_set = jax.config.values["jax_num_cpu_devices"] != -1 or "device_count" in os.environ.get("XLA_FLAGS", "")
    if not is_set:
        with contextlib.suppress(RuntimeError):  # JAX is already initialised
            jax.config.update("jax_num_cpu_devices", cores)


def device() -> jax.Device:
    """Return the first device that this process may use."""
    return next(each for each in _devices() if each.process_index == jax.process_index())


class Placement:
    """Division of `num_agents` agents, and of their environments, among devices in equal parts.

    Args:
      num_agents: Number of agents, R.
      splits: Function that tells whether an agent's environments can be split into a number of equal parts.
      devices: Maximum number of devices per process; None for all. CPU cores split the environments of an agent only
        if this is given, or if there are several processes.
      asked: Names of settings that are on and change how programs are compiled for GPUs, see `GPU_OPTIONS`.

    Attributes:
      platform: Platform of the devices, such as "cpu" or "gpu".
      num_devices: Number of devices in use, over all processes.
      groups: Number of groups of devices; each group computes an equal share of the agents.
      parts: Number of devices in a group, which is the number of parts of each agent's environments.
      axis_name: Name of the mapped axis of the devices in a group; None for groups of one device.
      at_once: Number of agents that a device computes side by side, see `taking_turns`.
      runs: Sharding of arrays whose first axis is R.
      split: Sharding of arrays whose first axes are R and N.
      each: Sharding of arrays whose first axis is that of all devices.
      whole: Sharding of arrays that every device holds completely.

    Raises:
      UserError: A process would have nothing to compute.
    """

    def __init__(
        self,
        num_agents: int,
        splits: Callable[[int], bool] = lambda parts: parts == 1,
        devices: int | None = None,
        asked: tuple[str, ...] = (),
    ):
        found, num_processes = _devices(), jax.process_count()
        self._available = min(len(found) // num_processes, devices or len(found)) * num_processes
        self.platform = found[0].platform
        is_cpu = self.platform == "cpu"
        # CPU cores split an agent only if the user asks for it, or if a process would otherwise have no work.
        prefers_whole = is_cpu and devices is None
        most_parts = num_processes if prefers_whole else self._available
        self.groups, self.parts = _groups_and_parts(
            num_agents, self._available, num_processes, most_parts, splits, prefers_whole
        )
        self._most_parts = most_parts
        self.axis_name = DATA if self.parts > 1 else None
        self.num_devices = self.groups * self.parts
        self._num_agents, self._on_each = num_agents, num_agents // self.groups
        self.at_once = 1 if is_cpu else self._on_each
        self._asked = asked
        chosen = _chosen(found, self.num_devices, num_processes)
        mesh = Mesh(chosen.reshape(self.groups, self.parts), (RUNS, DATA))
        self.runs, self.split, self.each, self.whole = (
            NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((RUNS,), (RUNS, DATA), ((RUNS, DATA),), ())
        )
        self._replicated = jax.jit(lambda tree: tree, out_shardings=self.whole)

    def __str__(self) -> str:
        """Describe the placement for the user; empty if all agents are computed at once on one device."""
        devices = "cores" if self.platform == "cpu" else "devices"
        parts = []
        if self.num_devices > 1:
            parts.append(f"spread over {self.num_devices} {devices}")
        if self.parts > 1:
            parts.append(f"{self.parts} of which share the environments of an agent")
        if self.at_once < self._on_each:
            parts.append("in turns" if self.at_once == 1 else f"in turns, {self.at_once} at a time on each device")
        if self.num_devices < min(self._available, self._num_agents * self._most_parts):
            parts.append(f"because the work cannot be divided equally among {self._available} {devices}")
        return ", ".join(parts)

    def spread(
        self,
        function: Callable[..., PyTree],
        arguments: tuple[PyTree, ...],
        result: PyTree,
        shared: int = 0,
    ) -> Callable[..., PyTree]:
        """Distribute a function over the devices, so that it takes the arrays of all agents.

        Args:
          function: Function of the agents that a device computes side by side, of its part of their environments, and
            of shared arguments.
          arguments: Sharding of each argument with the axis R: `runs`, `split`, or a tree of these.
          result: Sharding of the result: `runs`, `split`, or a tree of these.
          shared: Number of further arguments that are the same for all agents.
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
        """Trace `function(*shapes, *shared)` for all agents; the result is for `compile`.

        Args:
          function: Function as in `spread`.
          shapes: Trees of the shapes of its arguments, `[R, ...]`.
          arguments: Shardings as in `spread`; None for `runs` for all arguments.
          result: Sharding as in `spread`; None for `runs`.
          shared: Arguments that are the same for all agents.
          donate: The result may reuse the memory of the first argument.
        """
        arguments = arguments or tuple(self.runs for _ in shapes)
        result = result or self.runs
        spread = self.spread(function, arguments, result, len(shared))
        # Shardings of results are given explicitly, because XLA loses those of arrays without elements.
        jitted = jax.jit(spread, donate_argnums=(0,) if donate else (), out_shardings=result)
        return jitted.lower(*self.placed(shapes, arguments), *shared)

    def placed(self, shapes: PyTree, where: PyTree) -> PyTree:
        """Return the shapes with their shardings, which are given as in `put`."""
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            shapes,
            everywhere(where, shapes),
        )

    def compile(self, lowered: Any) -> Any:
        """Compile a traced program; may be called from any thread."""
        return lowered.compile(compiler_options=compiler_options(self.platform, self._asked))

    def put(self, tree: PyTree, where: PyTree) -> PyTree:
        """Put the arrays of all agents on the devices; every process must have the same arrays.

        Args:
          tree: Tree of complete arrays.
          where: Sharding of the arrays: `runs`, `split`, or a tree of these.
        """

        def placed(x, sharding):
            data = np.asarray(jax.random.key_data(x) if is_key(x) else x)
            array = jax.make_array_from_callback(data.shape, sharding, lambda index: data[index])
            return jax.random.wrap_key_data(array) if is_key(x) else array

        return jax.tree.map(placed, tree, everywhere(where, tree))

    def gathered(self, tree: PyTree) -> PyTree:
        """Gather the arrays of all agents where this process can read them; call this before a chunk reuses them."""
        return self._replicated(tree) if jax.process_count() > 1 else tree

    def votes(self, *values: int) -> Callable[[], np.ndarray]:
        """Gather integers from every process at this point of the run.

        Args:
          values: Integers of this process; every process must give the same number of them.

        Returns:
          Function that waits for all processes and returns an int32 array `[processes, values]`.
        """
        processes, own = jax.process_count(), np.array([values], np.int32)
        if processes == 1:
            return lambda: own
        each = jax.make_array_from_callback((self.num_devices, len(values)), self.each, lambda _: own)
        dispatched = self._replicated(each)
        return lambda: np.asarray(dispatched)[:: self.num_devices // processes]

    def taking_turns(self, at_once: int) -> "Placement":
        """Return a placement with at most `at_once` agents side by side, a divisor of the agents on a device."""
        placement = copy.copy(self)
        sizes = range(min(self._on_each, at_once), 0, -1)
        placement.at_once = next(size for size in sizes if self._on_each % size == 0)
        return placement

    def _in_turns(self, function: Callable[..., PyTree], num_arguments: int) -> Callable[..., PyTree]:
        """Make a function of all agents of a device that computes `at_once` of them at a time.

        Args:
          function: Function as in `spread`.
          num_arguments: Number of arguments with the axis R; the others are shared.
        """
        if self.at_once == self._on_each:
            return function

        @functools.wraps(function)
        def in_turns(*arguments):
            own, shared = arguments[:num_arguments], arguments[num_arguments:]
            # Sizes are explicit, because those of arrays without elements cannot be inferred.
            turns = self._on_each // self.at_once
            groups = jax.tree.map(lambda x: x.reshape(turns, self.at_once, *x.shape[1:]), own)
            done = jax.lax.map(lambda group: function(*group, *shared), groups)
            return jax.tree.map(lambda x: x.reshape(self._on_each, *x.shape[2:]), done)

        return in_turns


def everywhere(where: PyTree, tree: PyTree) -> PyTree:
    """Return a sharding for every leaf of the tree; a sharding in place of a subtree holds for all its leaves."""
    return jax.tree.broadcast(where, tree, is_leaf=lambda x: isinstance(x, NamedSharding))


def _devices() -> list[jax.Device]:
    """Return the single device that JAX is configured to use, or all devices of all processes."""
    chosen = jax.config.values["jax_default_device"]
    is_one = isinstance(chosen, jax.Device)
    return [chosen] if is_one and jax.process_count() == 1 else jax.devices(None if is_one else chosen)


def _groups_and_parts(
    num_agents: int,
    available: int,
    num_processes: int,
    most_parts: int,
    splits: Callable[[int], bool],
    prefers_whole: bool,
) -> tuple[int, int]:
    """Choose the number of groups of devices, and the number of devices in a group.

    The number of groups is the largest that divides the agents and leaves no process without work.

    Args:
      num_agents: Number of agents, R.
      available: Number of devices.
      num_processes: Number of processes.
      most_parts: Maximum number of devices in a group.
      splits: Function that tells whether an agent's environments can be split into a number of equal parts.
      prefers_whole: Whether groups are as small as possible; else they are as large as possible.

    Raises:
      UserError: A process would have nothing to compute.
    """
    for groups in (number for number in range(min(num_agents, available), 0, -1) if num_agents % number == 0):
        fitting = range(1, min(most_parts, available // groups) + 1)
        for parts in fitting if prefers_whole else reversed(fitting):
            if groups * parts % num_processes == 0 and (parts == 1 or splits(parts)):
                return groups, parts
    raise UserError(
        f"{num_processes} processes cannot share the work: their number divides neither the {num_agents} agents, nor "
        "all of num_envs, num_minibatches and reset_ratio; use fewer processes, or seeds in multiples of "
        f"{num_processes}"
    )


def _chosen(devices: list[jax.Device], number: int, num_processes: int) -> np.ndarray:
    """Choose a number of devices, equally many of each process, in the order of the processes."""
    by_process: dict[int, list[jax.Device]] = {}
    for each in devices:
        by_process.setdefault(each.process_index, []).append(each)
    return np.array([each for index in sorted(by_process) for each in by_process[index][: number // num_processes]])


@functools.cache
def compiler_options(platform: str, asked: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return XLA's compiler options for a platform, without those that the installed XLA does not know.

    Args:
      platform: Platform of the device, such as "cpu" or "gpu".
      asked: Names of settings that are on, see `GPU_OPTIONS`.

    Raises:
      UserError: The installed XLA does not know an option that a setting needs.
    """

    def known(name, value):
        try:
            jax.jit(lambda: 0).lower().compile(compiler_options={name: value})
        except jax.errors.JaxRuntimeError:
            return False
        return True

    options = CPU_OPTIONS if platform == "cpu" else {}
    if jax.config.values["jax_disable_most_optimizations"]:  # this option of JAX sets the level itself
        options = {name: value for name, value in options.items() if name != "xla_backend_optimization_level"}
    options = {name: value for name, value in options.items() if known(name, value)}
    for setting in asked if platform == "gpu" else ():
        for name, value in GPU_OPTIONS[setting].items():
            if not known(name, value):
                raise UserError(
                    f"{setting}: the installed version of XLA has no option {name}, or does not understand its value "
                    f"{value!r}; use a newer jaxlib"
                )
            options[name] = value
    return options
