"""Where runs are computed: on which devices, and how many of them at once.

Runs share nothing. So they are dealt to the devices in equal parts, and each device computes its part side
by side or in turns. A CPU is counted as one device a core and its runs take turns: one run fits its caches,
and a core of its own is more to a run than a share of every operation. Other devices compute all their
runs at once, or as many as their memory holds.
"""

import contextlib
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qlax.errors import UserError
from qlax.types import PyTree

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


class Placement:
    """The devices that share `num_runs` runs: as many as divide them equally.

    Attributes:
      num_devices: used.
      at_once: runs a device computes side by side; `fit` lowers it where memory is short.
      sharding: of arrays with the axis R first.
    """

    def __init__(self, num_runs: int, deterministic: bool = False):
        chosen = jax.config.values["jax_default_device"]
        devices = [chosen] if isinstance(chosen, jax.Device) else jax.local_devices(backend=chosen)
        self.num_devices = _largest_divisor(num_runs, len(devices))
        self.at_once = 1 if devices[0].platform == "cpu" else num_runs // self.num_devices
        self._num_runs = num_runs
        self._deterministic = deterministic
        self._available = len(devices)
        self._device = devices[0]
        self._mesh = Mesh(np.array(devices[: self.num_devices]), ("runs",))
        self.sharding = NamedSharding(self._mesh, PartitionSpec("runs"))

    def __str__(self) -> str:
        """What a user may want to know; nothing if all runs are computed at once on one device."""
        devices = "cores" if self._device.platform == "cpu" else "devices"
        parts = []
        if self.num_devices > 1:
            parts.append(f"spread over {self.num_devices} {devices}")
        if self.at_once < self._on_each:
            parts.append("in turns" if self.at_once == 1 else f"in turns, {self.at_once} at a time on each device")
        if self.num_devices < min(self._num_runs, self._available):
            parts.append(f"as {self._available} {devices} do not divide them")
        return ", ".join(parts)

    @property
    def _on_each(self) -> int:
        return self._num_runs // self.num_devices

    def lower(
        self, function: Callable[..., PyTree], *runs: PyTree, shared: tuple[Any, ...] = (), donate: bool = False
    ) -> Any:
        """Trace `function(*runs, *shared)` for all runs; `compile` does the rest.

        Args:
          function: of any number of runs `[r, ...]` side by side, and of what they share; returns `[r, ...]`.
          runs: shapes `[R, ...]`; the compiled function wants them sharded as `sharding` says.
          shared: arguments that are the same for all.
          donate: whether the result may take the memory of the first argument.
        """
        split = PartitionSpec("runs")
        in_specs = (*(split for _ in runs), *(PartitionSpec() for _ in shared))
        turns = self._in_turns(function, len(runs))
        spread = jax.shard_map(turns, mesh=self._mesh, in_specs=in_specs, out_specs=split, check_vma=False)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.sharding), runs)
        # Said of the results too, as XLA keeps nothing of arrays without elements, which some environments have.
        jitted = jax.jit(spread, donate_argnums=(0,) if donate else (), out_shardings=self.sharding)
        return jitted.lower(*shapes, *shared)

    def compile(self, lowered: Any) -> Any:
        """XLA's part, which any thread may do."""
        return lowered.compile(compiler_options=compiler_options(self._device.platform, self._deterministic))

    def fit(self, chunk: Any) -> bool:
        """Whether the device's memory holds the compiled chunk and a snapshot of its state; else lowers `at_once`."""
        limit = (self._device.memory_stats() or {}).get("bytes_limit")
        needed = chunk.memory_analysis()
        if self.at_once == 1 or limit is None or needed is None:
            return True
        state = needed.argument_size_in_bytes
        used = 2 * state + needed.output_size_in_bytes - needed.alias_size_in_bytes + needed.temp_size_in_bytes
        if used <= limit:
            return True
        self.at_once = _largest_divisor(self._on_each, max(1, min(self.at_once - 1, self.at_once * limit // used)))
        return False

    def _in_turns(self, function: Callable[..., PyTree], num_of_runs: int) -> Callable[..., PyTree]:
        """The function of as many runs as a device has, computed so many at once.

        Args:
          function: as in `lower`.
          num_of_runs: of its arguments so many are of runs, the others are shared.
        """
        if self.at_once == self._on_each:
            return function

        @functools.wraps(function)
        def in_turns(*arguments):
            runs, shared = arguments[:num_of_runs], arguments[num_of_runs:]
            groups = jax.tree.map(lambda x: x.reshape(-1, self.at_once, *x.shape[1:]), runs)
            done = jax.lax.map(lambda group: function(*group, *shared), groups)
            return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), done)

        return in_turns


def _largest_divisor(number: int, limit: int) -> int:
    return next(divisor for divisor in range(min(number, limit), 0, -1) if number % divisor == 0)


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
    wanted = DETERMINISTIC_OPTIONS if deterministic and platform == "gpu" else {}
    for name, value in wanted.items():
        if not known(name, value):
            raise UserError(f"deterministic: this version of XLA has no {name}")
    return {name: value for name, value in options.items() if known(name, value)} | wanted
