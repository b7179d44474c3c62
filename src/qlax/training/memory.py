"""Memory of a run: refuse a run that does not fit, by what XLA reports of the compiled programs.

XLA knows the memory of a program once it is compiled, so a run that does not fit is refused after compilation and
before its directory is made. Besides the programs, memory holds a snapshot of the state, the weights in evaluation
and, for environments on the host, a rollout. The cores of a CPU share the memory of the machine.

Axes as in `qlax.pqn`; R agents.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from qlax.config.command_line import written
from qlax.config.configure import configure
from qlax.config.settings import FIELDS, Config
from qlax.errors import RunError, UserError
from qlax.pqn import TrainState
from qlax.training import processes
from qlax.training.placement import Placement, device, everywhere
from qlax.training.plan import Plan
from qlax.types import PyTree, is_key

REMEDIES = sorted(  # settings to reduce if memory is short, the least harmful first
    (name for name, field in FIELDS.items() if field.metadata["remedy"]),
    key=lambda name: FIELDS[name].metadata["remedy"],
)
MOST_HALVINGS = 40
# For each name of the memory controller in /proc/self/cgroup (version 2, version 1): the folder, the files of the limit
# and of the usage, and the entry of memory.stat that counts file caches, which the kernel can reclaim.
CONTROL_GROUPS = {
    "": ("", "memory.max", "memory.current", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


class Part(NamedTuple):
    """Part of the memory that a run needs.

    Attributes:
      what: Purpose of the part.
      bytes: Size in bytes.
      settings: Settings to which the size is proportional.
    """

    what: str
    bytes: int
    settings: tuple[str, ...]


class Needs(NamedTuple):
    """Memory that a run needs on one device, or on all cores of a CPU, which share it.

    Attributes:
      always: Parts that are held during the whole run.
      in_turn: Groups of parts for training, for evaluation and for an exchange of a population; only one group is held
        at a time.
      largest: Description of the largest array: name, dtype, shape on one device, and size.
    """

    always: tuple[Part, ...]
    in_turn: tuple[tuple[Part, ...], ...]
    largest: str

    @property
    def bytes(self) -> int:
        """Peak memory in bytes."""
        return self.halved("", 0)

    def halved(self, setting: str, times: int) -> int:
        """Return the peak memory in bytes after halving a setting a number of times."""

        def left(parts: tuple[Part, ...]) -> int:
            return sum(part.bytes >> times if setting in part.settings else part.bytes for part in parts)

        return left(self.always) + max(map(left, self.in_turn))


def fit(config: Config, needed: Callable[[], Needs], compile_fewer: Callable[[int], bool]) -> None:
    """Check that the compiled programs fit into memory; if they do not, compile them for fewer agents at a time.

    Args:
      config: Configuration of the run.
      needed: Function that returns the memory that the compiled programs need, see `of_device` and `of_host`.
      compile_fewer: Function of the available bytes that compiles for fewer agents at a time; it returns False if that
        is not possible.

    Raises:
      UserError: The programs do not fit; the message says how much is missing and which setting to reduce.
    """
    found = available()
    free = processes.least(-1 if found is None else found // 1024) * 1024
    if free < 0:
        return
    needs = needed()
    if needs.bytes > free and compile_fewer(free):
        needs = needed()
    if needs.bytes > free:
        missing = f"{_written(free)} are available, {_written(needs.bytes - free)} too few"
        raise UserError(f"{_described(needs)}; {missing}; {_remedy(config, needs, free)}")


@contextlib.contextmanager
def out_of_memory(config: Config, needed: Callable[[], Needs]) -> Iterator[None]:
    """Explain errors within the context that are caused by a lack of memory.

    Raises:
      RunError: Memory ran out; the message says how much is needed and which setting to reduce.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needs = needed()
        message = f"the device is out of memory; {_described(needs)}; {_remedy(config, needs, needs.bytes - 1)}"
        raise RunError(message) from error


def of_device(plan: Plan, placement: Placement, programs: dict[str, Any]) -> Needs:
    """Return the memory that agents with environments in JAX need on one device, or on all cores of this process.

    Args:
      plan: Plan of the run.
      placement: Placement of the agents, with which the programs were compiled.
      programs: Compiled programs by name, among them `chunk` and `evaluate`.
    """
    state = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(sharding.shard_shape(x.shape), x.dtype),
        plan.shapes,
        everywhere(plan.where, plan.shapes),
    )
    on_each, num_steps = len(state.updates), plan.config.num_steps
    copies = 2  # the state and a snapshot
    if jax.process_count() > 1:  # a snapshot of all agents is gathered on every device
        copies += len(plan.seeds) // on_each * placement.parts
    rollouts = num_steps * nbytes(state.step) * placement.at_once // on_each
    learning = _extra_bytes(programs["chunk"]) - rollouts
    # The exchange of a population gathers the weights of all agents on every device.
    exchanged_copies = 0 if plan.config.population == "none" else len(plan.seeds) // on_each
    exchanged = exchanged_copies * nbytes((state.params, state.stats, state.opt_state))
    needs = _needs(
        plan,
        state,
        copies,
        Part("rollouts", rollouts + min(0, learning), ("num_envs", "num_steps")),
        Part("learning", max(0, learning), ("num_envs", "num_steps")),
        Part("evaluation", _extra_bytes(programs["evaluate"]), ("eval_episodes",)),
        Part("the exchange of a population", exchanged, ("seeds", "hidden")),
    )
    cores = placement.num_devices // jax.process_count() if device().platform == "cpu" else 1
    return needs._replace(
        always=tuple(part._replace(bytes=cores * part.bytes) for part in needs.always),
        in_turn=tuple(tuple(part._replace(bytes=cores * part.bytes) for part in parts) for parts in needs.in_turn),
    )


def of_host(plan: Plan, programs: dict[str, Any]) -> Needs:
    """Return the memory that agents with environments on the host need.

    Args:
      plan: Plan of the run.
      programs: Compiled programs by name, among them `learn` and `act_in_evaluation`.
    """
    learn, act = (programs[name].memory_analysis() for name in ("learn", "act_in_evaluation"))
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), plan.shapes)
    # The arrays of a rollout are arguments of learning; with `overlap`, the next rollout is collected at the same time.
    rollouts = (learn.argument_size_in_bytes - nbytes(one)) * (1 + plan.config.overlap)
    return _needs(
        plan,
        plan.shapes,
        3,  # copies, as no memory is reused: states before a chunk, states of finished agents, and the stacked result
        Part("rollouts", rollouts, ("num_envs", "num_steps")),
        Part("learning", _extra_bytes(programs["learn"]), ("num_envs", "num_steps")),
        Part(
            "evaluation", act.argument_size_in_bytes + _extra_bytes(programs["act_in_evaluation"]), ("eval_episodes",)
        ),
    )


def fewer_at_once(placement: Placement, needs: Needs, available: int) -> int:
    """Estimate how many agents at a time fit into memory: fewer than now, and at least 1.

    Args:
      placement: Current placement of the agents.
      needs: Memory that the current placement needs.
      available: Available memory in bytes.
    """
    always = sum(part.bytes for part in needs.always)
    room = available - 2 * always  # when agents take turns, new states of all are held beside their old states
    at_once = placement.at_once * max(0, room) // max(1, needs.bytes - always)
    return max(1, min(placement.at_once - 1, at_once))


def _needs(plan: Plan, state: TrainState, copies: int, rollouts: Part, learning: Part, *others: Part) -> Needs:
    weights = nbytes((state.params, state.stats, state.opt_state))
    evaluated = nbytes((state.params, state.stats))
    environments = nbytes((state.env, state.step, state.memory))
    hidden = ("hidden",) if plan.config.network is None else ()
    return Needs(
        always=(
            Part("weights and the optimiser's state", copies * weights + evaluated, ("seeds", *hidden)),
            Part("environments", copies * environments, ("seeds", "num_envs")),
        ),
        in_turn=((rollouts, learning), *((other,) for other in others)),
        largest=_largest(state, plan.config.num_steps),
    )


def _extra_bytes(program: Any) -> int:
    """Return the bytes that a compiled program needs beside its arguments: results and temporary arrays."""
    found = program.memory_analysis()
    return found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes


def _largest(state: TrainState, num_steps: int) -> str:
    """Describe the largest named array: one of the state, or one that a rollout stores for each step."""
    rollouts = jax.tree.map(lambda x: jax.ShapeDtypeStruct((num_steps, *x.shape), x.dtype), state.step)
    arrays = {
        f"{jax.tree_util.keystr(path, simple=True, separator='/')}{suffix}": x
        for tree, suffix in ((state, ""), (rollouts, " of the rollouts"))
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }
    name, x = max(arrays.items(), key=lambda array: nbytes(array[1]))
    return f"{name}, {x.dtype}{list(x.shape)}, {_written(nbytes(x))}"


def nbytes(tree: PyTree) -> int:
    """Return the bytes of all arrays of a tree of arrays, or of their shapes; random keys count as their data."""

    def leaf_bytes(x: Any) -> int:
        if is_key(x):
            x = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(x.shape, x.dtype))
        return math.prod(x.shape) * x.dtype.itemsize

    return sum(map(leaf_bytes, jax.tree.leaves(tree)))


def available() -> int | None:
    """Return the free bytes of this process's first device, or of the machine if that is a CPU; None if unknown."""
    if device().platform == "cpu":
        return machine_memory()
    stats = device().memory_stats() or {}
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0) if "bytes_limit" in stats else None


def machine_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process can still allocate, by the machine's memory and the limits of control groups.

    Args:
      root: Root folder of the file system.

    Returns:
      Bytes; None if they are unknown.
    """
    kibibytes = _numbers(root / "proc/meminfo").get("MemAvailable:")
    left = [None if kibibytes is None else kibibytes * 1024]
    if kibibytes is None and hasattr(os, "sysconf"):  # systems without POSIX lack it
        with contextlib.suppress(OSError, ValueError):  # the system does not know these names
            left.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers in CONTROL_GROUPS:
            folder, *files = CONTROL_GROUPS[controllers]
            groups = root / "sys/fs/cgroup" / folder
            # Limits of parent groups hold too. Within a container, the path may be one outside and not exist.
            own = groups / path.lstrip("/")
            left += [_left(group, *files) for group in (own, *own.parents) if group.is_relative_to(groups)]
    known = [number for number in left if number is not None]
    return min(known) if known else None


def _described(needs: Needs) -> str:
    return f"the run needs about {_written(needs.bytes)} of memory; its largest array is {needs.largest}"


def _remedy(config: Config, needs: Needs, available: int) -> str:
    """Advise which setting to reduce: the one that needs the fewest halvings to fit into `available` bytes."""
    for times in range(1, MOST_HALVINGS):
        for setting in REMEDIES:
            if needs.halved(setting, times) <= available and (value := _halved(config, setting, times)):
                how = f"halve {setting}" if times == 1 else f"divide {setting} by {2**times:,}"
                return f"{how}, to {value}"
    best = min(REMEDIES, key=lambda setting: needs.halved(setting, 1))
    return f"reducing one setting is not enough; halving {best} saves most"


def _halved(config: Config, setting: str, times: int) -> str | None:
    """Return a setting after a number of halvings, as typed on the command line; None if the value is not valid."""
    value, minibatches = getattr(config, setting), config.num_minibatches
    if setting == "hidden":
        candidates: list[Any] = [tuple(width >> times for width in value)]
    else:  # the second candidate is a multiple of the number of minibatches, which may be required
        candidates = [value >> times, (value >> times) // minibatches * minibatches]
    for new in candidates:
        with contextlib.suppress(UserError):
            configure(config, **{setting: new})
            return written(new)
    return None


def _written(number: int) -> str:
    """Format a number of bytes in KiB, MiB, GiB or TiB."""
    power = next((power for power in (4, 3, 2) if number >= 1024**power), 1)
    count, unit = number / 1024**power, ("KiB", "MiB", "GiB", "TiB")[power - 1]
    return f"{count:,.0f} {unit}" if count >= 100 else f"{count:.3g} {unit}"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _numbers(path: Path) -> dict[str, int]:
    """Read a file whose lines hold a name and a number."""
    words = (line.split() for line in _lines(path))
    return {word[0]: int(word[1]) for word in words if len(word) > 1 and word[1].isdecimal()}


def _left(group: Path, limit: str, used: str, cache: str) -> int | None:
    """Return the free bytes of a control group, counting its file cache as free; None if it has no limit."""
    limits, uses = _lines(group / limit), _lines(group / used)
    if not limits or not uses or not limits[0].isdecimal():  # "max" stands for no limit
        return None
    return int(limits[0]) - int(uses[0]) + _numbers(group / "memory.stat").get(cache, 0)
