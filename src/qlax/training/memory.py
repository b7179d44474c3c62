"""Whether the memory of a device holds a configuration: estimated before anything is compiled.

What an update computes is traced, which takes a moment whatever its size, and what lies in memory at the same time is
counted as XLA would lay it out, roughly: numbers that are used at once where they are made take no memory, a loop
works in the memory of what it begins with. `benchmarks/memory.py` compares the estimate with XLA's own numbers.

Axes as in `qlax.pqn`; R runs, E environments of an evaluation.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.extend.core import Jaxpr, Literal

from qlax.config.configure import configure
from qlax.config.settings import FIELDS, Config
from qlax.errors import RunError, UserError
from qlax.pqn import Rollout, TrainState
from qlax.training.placement import DATA, device, everywhere
from qlax.training.plan import Plan
from qlax.types import PyTree, is_key

DOUBT = 1.25  # estimates may be too high by so much: only what is beyond is refused
# Settings to reduce, first what costs the results least: more seeds can be trained afterwards.
_REMEDY_OF = {field.metadata["remedy"]: name for name, field in FIELDS.items()}
REMEDIES = [_REMEDY_OF[place] for place in sorted(_REMEDY_OF) if place]
MOST_HALVINGS = 40


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Operations that XLA computes where their result is used, which then needs no memory.
FUSED = _words(
    """
    abs add and atan2 bitcast_convert_type broadcast_in_dim cbrt ceil clamp complex conj convert_element_type copy
    cos cosh div dynamic_slice eq erf erf_inv exp exp2 expand_dims expm1 floor ge gt imag integer_pow iota is_finite
    le log log1p logistic lt max min mul ne neg nextafter not or pad pow random_bits random_fold_in random_split
    random_unwrap random_wrap real reduce_precision rem reshape rev round rsqrt select_n shift_left
    shift_right_arithmetic shift_right_logical sign sin sinh slice split sqrt square squeeze stop_gradient sub tan
    tanh threefry2x32 transpose xor
    """
)
# Of those, what is kept instead of computed again where several operations use it.
DEAR = _words(
    """
    atan2 cos div erf erf_inv exp expm1 log log1p logistic pow random_bits rsqrt sin sqrt tan tanh threefry2x32
    """
)
VIEWS = _words("copy expand_dims reshape squeeze stop_gradient transpose")
REDUCTIONS = _words("argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum")
IN_PLACE = FUSED | {"dynamic_update_slice", "scan", "scatter", "scatter-add", "while"}


class Part(NamedTuple):
    """Some of the memory.

    Attributes:
      what: it is for.
      bytes: of it.
      settings: whose halves halve it; of `num_minibatches` it is the double.
    """

    what: str
    bytes: int
    settings: tuple[str, ...]


class Needs(NamedTuple):
    """The memory that one device needs.

    Attributes:
      always: the parts held from the beginning to the end.
      in_turn: those of acting, of learning and of evaluating, of which one at a time is held beside.
    """

    always: tuple[Part, ...]
    in_turn: tuple[tuple[Part, ...], ...]

    @property
    def parts(self) -> tuple[Part, ...]:
        """Those held when most is."""
        return (*self.always, *max(self.in_turn, key=_sum))

    @property
    def bytes(self) -> int:
        """Held when most is."""
        return _sum(self.parts)

    def times(self, factor: int) -> "Needs":
        """Those of so many devices together."""
        return self._each(lambda part: part._replace(bytes=part.bytes * factor))

    def halved(self, setting: str, times: int) -> "Needs":
        """Those left if a setting is halved so often, or doubled where that is what helps."""
        return self._each(lambda part: part._replace(bytes=part.bytes >> times) if setting in part.settings else part)

    def _each(self, function: Callable[[Part], Part]) -> "Needs":
        always, *in_turn = (tuple(map(function, parts)) for parts in (self.always, *self.in_turn))
        return Needs(always, tuple(in_turn))


def estimate(plan: Plan, at_once: int = 1, num_devices: int = 1) -> Needs:
    """What a device needs, one of so many that the runs are dealt to, if it computes so many runs at once."""
    config, algorithm, parts = plan.config, plan.algorithm, plan.placement.parts
    platform = device().platform
    state, axis = part_of(plan), [(DATA, parts)]
    on_host = plan.make_envs is not None
    acting, (_, decision) = jax.make_jaxpr(algorithm.act, axis_env=axis, return_shape=True)(state)
    seen = jax.eval_shape(lambda s, decision: algorithm.observe(s, decision, (), s.step)[1], state, decision)
    seen = jax.tree.map(lambda x: jax.ShapeDtypeStruct((config.num_steps, *x.shape), x.dtype), seen)
    record = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), plan.new_record())
    learning = jax.make_jaxpr(plan.learn, axis_env=axis)(state, record, Rollout(state.memory, seen))

    weights = nbytes((state.params, state.stats, state.opt_state))
    worlds = nbytes((state.env, state.step, state.memory))
    on_each = len(plan.seeds) // num_devices
    # Beside the state a snapshot of it. In turns, what comes of all runs is gathered beside what they began with; on
    # the host nothing is donated, so the next state stands beside the last and both beside the run in hand.
    in_turns = on_each + at_once if at_once < on_each else 0
    held = 3 * on_each + at_once if on_host else 2 * on_each + in_turns
    # On the host what was seen is stacked into a copy, and with overlap the next rollout is collected meanwhile.
    rollouts = at_once * nbytes(seen) * (1 + on_host + config.overlap)
    beside, within = _by_loop(peak(learning.jaxpr, platform, len(jax.tree.leaves(state))))
    before, gradients = min(beside, weights), min(within, nbytes(state.params))
    forward = sum(peak(acting.jaxpr, platform))
    episodes = (forward + 2 * worlds) * config.eval_episodes // config.num_envs
    # Where there are several processes, every device has all of a snapshot for a moment.
    whole = len(plan.seeds) * parts if jax.process_count() > 1 else 0
    steps = Part("rollouts", rollouts, ("num_envs", "num_steps"))
    hidden = ("hidden",) if config.network is None else ()
    # An exchange takes the weights of all runs to every device.
    exchanged = 0 if config.population == "none" else len(plan.seeds) * weights
    return Needs(
        always=(
            Part("weights and the optimiser's state", held * weights + whole * weights // parts, ("seeds", *hidden)),
            Part("environments", (held + whole) * worlds, ("seeds", "num_envs")),
        ),
        in_turn=(
            # New episodes are made beside those that go on.
            (steps, Part("acting", at_once * (forward + nbytes(state.env)), ("num_envs",))),
            (
                steps,
                Part("targets and measures", at_once * (beside - before), ("num_envs", "num_steps")),
                Part("gradients and the weights before", at_once * (gradients + before), hidden),
                Part("activations", at_once * (within - gradients), ("num_minibatches", "num_envs", "num_steps")),
            ),
            (
                Part("evaluation", at_once * episodes, ("eval_episodes",)),
                Part("weights while evaluating", at_once * nbytes((state.params, state.stats)), hidden),
            ),
            (Part("weights exchanged by the population", exchanged, ("seeds", *hidden)),),
        ),
    )


def part_of(plan: Plan) -> TrainState:
    """Shapes of the state of one agent as one device has it, with its part of the environments."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(sharding.shard_shape(x.shape)[1:], x.dtype),
        plan.shapes,
        everywhere(plan.where, plan.shapes),
    )


def check(plan: Plan, num_devices: int = 1) -> None:
    """Whether what is needed at the least, with one run at a time on each device, is there.

    Raises:
      UserError: it is not; says by how much, and what to make smaller.
    """
    there = available()
    if there is None:
        return
    needs = _where_memory_is(plan, estimate(plan, 1, num_devices), num_devices)
    if needs.bytes > DOUBT * there:
        much = f"and there are {_written(there)}: {_written(needs.bytes - there)} too much"
        raise UserError(f"{_described(needs)}, {much}; {_remedy(plan.config, needs, there)}")


@contextlib.contextmanager
def out_of_memory(plan: Plan, at_once: int = 1, num_devices: int = 1) -> Iterator[None]:
    """Where memory runs out, say what for.

    Raises:
      RunError: it did.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needs = _where_memory_is(plan, estimate(plan, at_once, num_devices), num_devices)
        remedy = _first_remedy(plan.config, needs)
        raise RunError(f"the device is out of memory; {_described(needs)}; {remedy}") from error


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
    left: list[int | None] = []
    with contextlib.suppress(OSError, KeyError, ValueError):
        left.append(_numbers(root / "proc/meminfo")["MemAvailable:"] * 1024)
    if not left:
        with contextlib.suppress(AttributeError, OSError, ValueError):  # no such name where there is no POSIX
            left.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    groups = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        number, _, path = line.partition(":")
        controllers, _, path = path.partition(":")
        own = path.lstrip("/")
        if number == "0" and not controllers:
            # A group may have no more than those it is part of; within a container, the path may be that outside.
            for group in (groups / own, *(groups / own).parents):
                if group.is_relative_to(groups):
                    left.append(_left(group, "memory.max", "memory.current", "inactive_file"))
        elif controllers == "memory":
            for group in (groups / "memory" / own, groups / "memory"):
                left.append(_left(group, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"))
    known = [number for number in left if number is not None]
    return min(known) if known else None


def nbytes(tree: PyTree) -> int:
    """Of all arrays of a tree, or of their shapes."""
    return sum(_size(leaf) for leaf in jax.tree.leaves(tree))


def peak(jaxpr: Jaxpr, platform: str, carried: int = 0) -> list[int]:
    """Bytes that a traced program holds when it holds most: outside of loops, in those, in loops within them...

    Args:
      jaxpr: the program; its arguments are not counted.
      platform: of the device.
      carried: of its results so many may be written over arguments.
    """
    operations, results = _inlined(jaxpr, platform)
    operations = _needed(operations, results)
    end = len(operations)  # when the results are used
    users: dict[Any, set[int]] = {array: {end} for array in results}
    for index, operation in reversed(list(enumerate(operations))):
        after = set().union(*(users.get(array, ()) for array in operation.outputs))
        for array in operation.inputs:
            users.setdefault(array, set()).update(after if operation.name in VIEWS else {index})

    def has_memory(operation: _Operation, array: _Array) -> bool:
        if operation.name not in FUSED:
            return True
        if operation.name in VIEWS:
            return False
        used = users.get(array, set())
        at_last = any(index == end or operations[index].name not in FUSED | REDUCTIONS for index in used)
        return at_last or (operation.name in DEAR and len(used) > 1)

    stored: dict[Any, set[_Array]] = {}  # what has to be in memory for an array to be used, arguments apart
    times: list[float] = []
    made_at: dict[_Array, float] = {}
    last: dict[_Array, float] = {}
    for index, operation in enumerate(operations):
        origin: set[_Array] = set().union(*(stored.get(array, ()) for array in operation.inputs))
        # XLA reduces as soon as it can, so that what is reduced need not be kept.
        early = operation.name in REDUCTIONS
        times.append(min(index, max((made_at[array] + 0.5 for array in origin), default=index)) if early else index)
        own = {array for array in operation.outputs if has_memory(operation, array)}
        stored |= {array: {array} if array in own else origin for array in operation.outputs}
        made_at |= dict.fromkeys(own, times[-1])
        if own:
            last |= {array: max(times[-1], last.get(array, 0)) for array in origin | own}
    last |= dict.fromkeys(set().union(*(stored.get(array, ()) for array in results)), end)

    given: set[Any] = set()  # what lies in the memory of arguments

    def is_given(array: Any) -> bool:
        return stored.get(array, set()) <= given

    dying: dict[float, int] = {}
    most, held = [0], 0
    for index in sorted(range(end), key=times.__getitem__):
        operation, time = operations[index], times[index]
        made = [array for array in operation.outputs if array in stored[array]]
        if not made:
            continue
        given |= {after for after, start in operation.carries() if is_given(start) and max(users[start]) <= index}
        if operation.name in FUSED:
            given.update(array for array in made if array in results[:carried])
        sizes = {array: 0 if array in given else array.bytes for array in made}
        new, freed = sum(sizes.values()), dying.pop(time, 0)
        reused = min(new, freed) if operation.name in IN_PLACE else 0
        held += new - reused
        most = max(most, [held, *operation.inside(platform)], key=sum)
        held += reused - freed
        for array, size in sizes.items():
            if last[array] == time:
                held -= size
            else:
                dying[last[array]] = dying.get(last[array], 0) + size
    return most


class _Array:
    """An array that a program makes, or is given; known by itself, as what is called twice makes two."""

    def __init__(self, aval: Any):
        self.bytes = _size(aval)


class _Operation(NamedTuple):
    """One that is left when all calls are replaced by what they call."""

    name: str
    params: dict[str, Any]
    inputs: list[_Array | None]  # None: a constant
    outputs: list[_Array]
    carried: tuple[int, int]  # by a scan: where in the inputs what it changes begins, and how much that is

    def carries(self) -> list[tuple[_Array, _Array | None]]:
        """Of a loop: what every turn changes, at its end and at its beginning."""
        if self.name == "scan":
            start, number = self.carried
        elif self.name == "while":
            start, number = self.params["cond_nconsts"] + self.params["body_nconsts"], len(self.outputs)
        else:
            return []
        return list(zip(self.outputs[:number], self.inputs[start : start + number], strict=True))

    def inside(self, platform: str) -> list[int]:
        """What one turn of a loop holds, or the larger side of a condition."""
        if self.name == "scan":
            return peak(_open(self.params["jaxpr"]), platform, self.carried[1])
        if self.name == "while":
            return peak(_open(self.params["body_jaxpr"]), platform, len(self.outputs))
        if self.name == "cond":
            return max((peak(_open(branch), platform) for branch in self.params["branches"]), key=sum)
        return []


def _inlined(jaxpr: Jaxpr, platform: str) -> tuple[list[_Operation], list[_Array | None]]:
    """Its operations in order, with calls and what depends on the platform resolved, and its results."""
    operations: list[_Operation] = []

    def results_of(jaxpr: Jaxpr, arguments: list[Any]) -> list[Any]:
        known = dict(zip(jaxpr.invars, arguments, strict=True)) | dict.fromkeys(jaxpr.constvars)

        def value(atom):
            return None if isinstance(atom, Literal) else known[atom]

        for equation in jaxpr.eqns:
            name, params = equation.primitive.name, equation.params
            inputs = [value(atom) for atom in equation.invars]
            if name == "platform_index":
                outputs: list[Any] = [_branch(params["platforms"], platform)]
            elif isinstance(inputs[0] if inputs else None, int) and name != "cond":
                outputs = inputs[:1]  # the index, converted or clamped
            elif (called := _called(name, params, inputs)) is not None:
                outputs = results_of(called, inputs[1:] if name == "cond" else inputs)
            else:
                outputs = [_Array(variable.aval) for variable in equation.outvars]
                operations.append(_Operation(name, params, inputs, outputs, _carried(equation)))
            known |= dict(zip(equation.outvars, outputs, strict=True))
        return [value(atom) for atom in jaxpr.outvars]

    return operations, results_of(jaxpr, [_Array(variable.aval) for variable in jaxpr.invars])


def _carried(equation: Any) -> tuple[int, int]:
    """Of a scan how many inputs are constants, and how many are carried from turn to turn.

    Every version of JAX names these numbers otherwise; but what is scanned over, or stacked, is larger than in a turn.
    """
    if equation.primitive.name != "scan":
        return 0, 0
    turn = _open(equation.params["jaxpr"])

    def same(outside: Any, inside: Any) -> int:
        return sum(x.aval.shape == y.aval.shape for x, y in zip(outside, inside, strict=True))

    number = same(equation.outvars, turn.outvars)
    return same(equation.invars, turn.invars) - number, number


def _open(jaxpr: Any) -> Jaxpr:
    """Without its constants, if it has been given any."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def _called(name: str, params: dict[str, Any], inputs: list[Any]) -> Jaxpr | None:
    """What an operation does nothing but call."""
    if name == "cond":
        called = params["branches"][inputs[0]] if isinstance(inputs[0], int) else None
    elif name in ("scan", "while"):
        called = None
    else:
        called = next((params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params), None)
    return called and _open(called)


def _branch(platforms: tuple[tuple[str, ...] | None, ...], platform: str) -> int:
    """Which of the branches for so many groups of platforms is taken; None: all others."""
    names = {"gpu": {"gpu", "cuda", "rocm"}}.get(platform, {platform})
    return next(index for index, group in enumerate(platforms) if group is None or names & set(group))


def _needed(operations: list[_Operation], results: list[_Array | None]) -> list[_Operation]:
    """Without operations whose results nobody uses."""
    used = set(results)
    needed = []
    for operation in reversed(operations):
        if not used.isdisjoint(operation.outputs):
            used.update(operation.inputs)
            needed.append(operation)
    return needed[::-1]


def _size(x: Any) -> int:
    """Bytes of an array of this shape and dtype."""
    if is_key(x):
        x = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(x.shape, x.dtype))
    return math.prod(x.shape) * x.dtype.itemsize


def _sum(parts: tuple[Part, ...]) -> int:
    return sum(part.bytes for part in parts)


def _by_loop(held: list[int]) -> tuple[int, int]:
    """Of learning: what is held around the loop over minibatches, which is within that over epochs, and in it."""
    return sum(held[:2]), sum(held[2:])


def _where_memory_is(plan: Plan, needs: Needs, num_devices: int) -> Needs:
    """Of one device; on a CPU of all devices of this process, as they share the machine's memory."""
    here = max(1, num_devices * plan.placement.parts // jax.process_count())
    return needs.times(here) if device().platform == "cpu" else needs


def _described(needs: Needs) -> str:
    largest = max(needs.parts, key=lambda part: part.bytes)
    factors = " x ".join(setting for setting in largest.settings if setting != "num_minibatches")
    divided = " / num_minibatches" if "num_minibatches" in largest.settings else ""
    settings = f" ({factors}{divided})" if factors else ""
    return f"this needs about {_written(needs.bytes)}, of which {_written(largest.bytes)} are {largest.what}{settings}"


def _remedy(config: Config, needs: Needs, there: int) -> str:
    """What to halve for so much memory: the setting that has to be halved least, of those the first."""
    for times in range(1, MOST_HALVINGS):
        for setting in REMEDIES:
            if needs.halved(setting, times).bytes <= there and (value := _halved(config, setting, times)):
                return f"{_verb(setting, times)} {setting}, to {value}"
    return f"no setting suffices alone, but this saves most: {_first_remedy(config, needs)}"


def _first_remedy(config: Config, needs: Needs) -> str:
    """What to halve where nobody knows how much is enough: the setting whose half saves most."""
    for setting in sorted(REMEDIES, key=lambda setting: needs.halved(setting, 1).bytes):
        if needs.halved(setting, 1).bytes < needs.bytes and (value := _halved(config, setting, 1)):
            return f"{_verb(setting, 1)} {setting}, to {value}"
    return "nothing of it can be halved"


def _verb(setting: str, times: int) -> str:
    once, often = ("double", "multiply") if setting == "num_minibatches" else ("halve", "divide")
    return once if times == 1 else f"{often} by {2**times:,}:"


def _halved(config: Config, setting: str, times: int) -> str | None:
    """A setting halved, or doubled where that is what helps, as one types it; None where it cannot be."""
    value, minibatches = getattr(config, setting), config.num_minibatches
    if setting == "hidden":
        candidates: list[Any] = [tuple(width >> times for width in value)]
    elif setting == "num_minibatches":
        candidates = [value << times]
    else:
        halved = value >> times
        candidates = [halved, halved - halved % minibatches]  # the latter is divided by the minibatches for certain
    for new in candidates:
        with contextlib.suppress(UserError):
            configure(config, **{setting: new})
            return ",".join(map(str, new)) if setting == "hidden" else str(new)
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
