"""Whether the memory of the devices holds a run: decided by what XLA says of the compiled programs.

XLA knows what a program needs once it is compiled, so a run that does not fit is refused after compilation and before
its directory is made. Beside the programs lie a snapshot of the state, the weights that are evaluated and, where the
environments live on the host, a rollout. The cores of a CPU share the memory of the machine.

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

REMEDIES = sorted(  # what to make smaller, the cheapest first
    (name for name, field in FIELDS.items() if field.metadata["remedy"]),
    key=lambda name: FIELDS[name].metadata["remedy"],
)
MOST_HALVINGS = 40
# Of control groups by their controllers, version 2 and 1: the folder; files of the limit and of what is used; and which
# number counts what is read from files.
CONTROL_GROUPS = {
    "": ("", "memory.max", "memory.current", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


class Part(NamedTuple):
    """Some of the memory that a run needs.

    Attributes:
      what: the part is for.
      bytes: of the part.
      settings: whose halves halve the part.
    """

    what: str
    bytes: int
    settings: tuple[str, ...]


class Needs(NamedTuple):
    """The memory that the devices of this process need which share it.

    Attributes:
      always: the parts held from the beginning to the end.
      in_turn: the parts of training, of evaluation and of an exchange, of which one group at a time is held beside.
      largest: the largest array: name, dtype, shape on one device and size, in words.
    """

    always: tuple[Part, ...]
    in_turn: tuple[tuple[Part, ...], ...]
    largest: str

    @property
    def bytes(self) -> int:
        """Bytes held when most is."""
        return self.halved("", 0)

    def halved(self, setting: str, times: int) -> int:
        """Bytes held if a setting is halved so often."""

        def left(parts: tuple[Part, ...]) -> int:
            return sum(part.bytes >> times if setting in part.settings else part.bytes for part in parts)

        return left(self.always) + max(map(left, self.in_turn))


def fit(config: Config, needed: Callable[[], Needs], compile_fewer: Callable[[int], bool]) -> None:
    """Make sure that the memory holds compiled programs; compile once more for fewer agents at once where that helps.

    Args:
      config: of the run.
      needed: the memory that its compiled programs need; see `of_device` and `of_host`.
      compile_fewer: compiles for so few agents at once that this memory may hold them; False where there cannot be
        fewer.

    Raises:
      UserError: it does not; says by how much, and what to make smaller.
    """
    found = available()
    there = processes.least(-1 if found is None else found // 1024) * 1024
    if there < 0:
        return
    needs = needed()
    if needs.bytes > there and compile_fewer(there):
        needs = needed()
    if needs.bytes > there:
        much = f"and there are {_written(there)}: {_written(needs.bytes - there)} too much"
        raise UserError(f"{_described(needs)}, {much}; {_remedy(config, needs, there)}")


@contextlib.contextmanager
def out_of_memory(config: Config, needed: Callable[[], Needs]) -> Iterator[None]:
    """Say what the memory is needed for where it runs out within.

    Raises:
      RunError: it did.
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
    """What agents need whose environments are in JAX, on one device; on a CPU on all cores of this process.

    Args:
      plan: of the run.
      placement: of its agents, as many of them at once as the programs compute.
      programs: compiled, by name: `chunk` and `evaluate`.
    """
    state = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(sharding.shard_shape(x.shape), x.dtype),
        plan.shapes,
        everywhere(plan.where, plan.shapes),
    )
    on_each, num_steps = len(state.updates), plan.config.num_steps
    copies = 2  # a snapshot beside the state
    if jax.process_count() > 1:  # every device has the snapshot of all agents for a moment
        copies += len(plan.seeds) // on_each * placement.parts
    rollouts = num_steps * nbytes(state.step) * placement.at_once // on_each
    learning = _beside(programs["chunk"]) - rollouts
    # The exchange of a population takes the weights of all agents to every device.
    everyone = 0 if plan.config.population == "none" else len(plan.seeds) // on_each
    exchanged = everyone * nbytes((state.params, state.stats, state.opt_state))
    needs = _needs(
        plan,
        state,
        copies,
        Part("rollouts", rollouts + min(0, learning), ("num_envs", "num_steps")),
        Part("learning", max(0, learning), ("num_envs", "num_steps")),
        Part("evaluation", _beside(programs["evaluate"]), ("eval_episodes",)),
        Part("the exchange of a population", exchanged, ("seeds", "hidden")),
    )
    cores = placement.num_devices // jax.process_count() if device().platform == "cpu" else 1
    return needs._replace(
        always=tuple(part._replace(bytes=cores * part.bytes) for part in needs.always),
        in_turn=tuple(tuple(part._replace(bytes=cores * part.bytes) for part in parts) for parts in needs.in_turn),
    )


def of_host(plan: Plan, programs: dict[str, Any]) -> Needs:
    """What agents need whose environments live on the host.

    Args:
      plan: of the run.
      programs: compiled, by name: `learn` and `act_in_evaluation`.
    """
    learn, act = (programs[name].memory_analysis() for name in ("learn", "act_in_evaluation"))
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), plan.shapes)
    # Arrays of a rollout are arguments of learning; where both overlap, the next rollout is collected meanwhile.
    rollouts = (learn.argument_size_in_bytes - nbytes(one)) * (1 + plan.config.overlap)
    return _needs(
        plan,
        plan.shapes,
        3,  # nothing is donated: the states before a chunk, those of the agents that are done, and all of them together
        Part("rollouts", rollouts, ("num_envs", "num_steps")),
        Part("learning", _beside(programs["learn"]), ("num_envs", "num_steps")),
        Part("evaluation", act.argument_size_in_bytes + _beside(programs["act_in_evaluation"]), ("eval_episodes",)),
    )


def fewer_at_once(placement: Placement, needs: Needs, there: int) -> int:
    """How many agents a device should compute at once for this memory to hold them: fewer than now, at least 1.

    Args:
      placement: of the agents.
      needs: as they are computed now.
      there: bytes.
    """
    always = sum(part.bytes for part in needs.always)
    room = there - 2 * always  # in turns, what comes of all agents is gathered beside what they began with
    at_once = placement.at_once * max(0, room) // max(1, needs.bytes - always)
    return max(1, min(placement.at_once - 1, at_once))


def _needs(plan: Plan, state: TrainState, copies: int, rollouts: Part, learning: Part, *others: Part) -> Needs:
    weights = nbytes((state.params, state.stats, state.opt_state))
    evaluated = nbytes((state.params, state.stats))
    worlds = nbytes((state.env, state.step, state.memory))
    hidden = ("hidden",) if plan.config.network is None else ()
    return Needs(
        always=(
            Part("weights and the optimiser's state", copies * weights + evaluated, ("seeds", *hidden)),
            Part("environments", copies * worlds, ("seeds", "num_envs")),
        ),
        in_turn=((rollouts, learning), *((other,) for other in others)),
        largest=_largest(state, plan.config.num_steps),
    )


def _beside(program: Any) -> int:
    """Bytes that a compiled program needs beside its arguments."""
    found = program.memory_analysis()
    return found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes


def _largest(state: TrainState, num_steps: int) -> str:
    """The largest array that has a name: one of the state, or what a rollout holds of each step."""
    of_rollouts = jax.tree.map(lambda x: jax.ShapeDtypeStruct((num_steps, *x.shape), x.dtype), state.step)
    arrays = {
        f"{jax.tree_util.keystr(path, simple=True, separator='/')}{of}": x
        for tree, of in ((state, ""), (of_rollouts, " of the rollouts"))
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }
    name, x = max(arrays.items(), key=lambda array: nbytes(array[1]))
    return f"{name}, {x.dtype}{list(x.shape)}, {_written(nbytes(x))}"


def nbytes(tree: PyTree) -> int:
    """Bytes of all arrays of a tree, or of their shapes; random keys included."""

    def of_one(x: Any) -> int:
        if is_key(x):
            x = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(x.shape, x.dtype))
        return math.prod(x.shape) * x.dtype.itemsize

    return sum(map(of_one, jax.tree.leaves(tree)))


def available() -> int | None:
    """Bytes that a device has left; on a CPU those of the machine, which all its devices share. None: unknown."""
    if device().platform == "cpu":
        return machine_memory()
    stats = device().memory_stats() or {}
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0) if "bytes_limit" in stats else None


def machine_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take: what the machine has, and what its group may have. None: unknown.

    Args:
      root: of the file system.
    """
    kibibytes = _numbers(root / "proc/meminfo").get("MemAvailable:")
    left = [None if kibibytes is None else kibibytes * 1024]
    if kibibytes is None:
        with contextlib.suppress(AttributeError, OSError, ValueError):  # no such name where there is no POSIX
            left.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers in CONTROL_GROUPS:
            folder, *files = CONTROL_GROUPS[controllers]
            groups = root / "sys/fs/cgroup" / folder
            # A group may have no more than those it is part of; within a container, the path may be that outside.
            own = groups / path.lstrip("/")
            left += [_left(group, *files) for group in (own, *own.parents) if group.is_relative_to(groups)]
    known = [number for number in left if number is not None]
    return min(known) if known else None


def _described(needs: Needs) -> str:
    return f"this needs about {_written(needs.bytes)}; the largest array is {needs.largest}"


def _remedy(config: Config, needs: Needs, there: int) -> str:
    """Name what to reduce for so much memory: the setting that has to be halved least, of those the first."""
    for times in range(1, MOST_HALVINGS):
        for setting in REMEDIES:
            if needs.halved(setting, times) <= there and (value := _halved(config, setting, times)):
                how = "halve" if times == 1 else f"divide by {2**times:,}:"
                return f"{how} {setting}, to {value}"
    best = min(REMEDIES, key=lambda setting: needs.halved(setting, 1))
    return f"no setting suffices alone; halving {best} saves most"


def _halved(config: Config, setting: str, times: int) -> str | None:
    """Halve a setting so often, as one types it; None where it cannot be."""
    value, minibatches = getattr(config, setting), config.num_minibatches
    if setting == "hidden":
        candidates: list[Any] = [tuple(width >> times for width in value)]
    else:  # the latter is divided by the minibatches for certain
        candidates = [value >> times, (value >> times) // minibatches * minibatches]
    for new in candidates:
        with contextlib.suppress(UserError):
            configure(config, **{setting: new})
            return written(new)
    return None


def _written(number: int) -> str:
    """Bytes as a user reads them."""
    power = next((power for power in (4, 3, 2) if number >= 1024**power), 1)
    count, unit = number / 1024**power, ("KiB", "MiB", "GiB", "TiB")[power - 1]
    return f"{count:,.0f} {unit}" if count >= 100 else f"{count:.3g} {unit}"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _numbers(path: Path) -> dict[str, int]:
    """By name, of a file with a name and a number a line."""
    words = (line.split() for line in _lines(path))
    return {word[0]: int(word[1]) for word in words if len(word) > 1 and word[1].isdecimal()}


def _left(group: Path, limit: str, used: str, cache: str) -> int | None:
    """What a control group may still take; what it reads from files counts as used, and is given back if need be."""
    limits, uses = _lines(group / limit), _lines(group / used)
    if not limits or not uses or not limits[0].isdecimal():  # "max"
        return None
    return int(limits[0]) - int(uses[0]) + _numbers(group / "memory.stat").get(cache, 0)
