"""Checks of an environment in JAX: its shapes and dtypes, and its behaviour."""

import pickle
import random
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qlax.envs.check.common import (
    ACCOUNTS,
    LONGEST_SHOWN,
    Clock,
    Ends,
    Expect,
    action_form,
    check_attributes,
    check_step,
    data,
    expecting,
    is_real,
    observation_advice,
    raised,
    random_action,
    same,
    shared_of,
    team_of,
    vector,
)
from qlax.envs.check.host import host_advice
from qlax.errors import UserError, place_in_words
from qlax.switches import usual_switches
from qlax.types import PyTree, Step, strong
from qlax.util.text import shown

KEEP_IT = "keep it in the state that reset and step return"


# Remedies for what Python cannot do with values that are unknown while JAX traces.
FIXES: tuple[tuple[type[Exception], str], ...] = (
    (jax.errors.TracerBoolConversionError, "use jnp.where or jax.lax.cond instead of if, and, or, not"),
    (jax.errors.TracerArrayConversionError, "use jax.numpy instead of NumPy"),
    (jax.errors.TracerIntegerConversionError, "make the array that is indexed a JAX array: jnp.asarray(...)"),
    (jax.errors.ConcretizationTypeError, "use .astype(...) instead of int(...), float(...)"),
)


def check_contract(env: Any) -> None:
    """Check that the shapes and dtypes of an `Env` are those of its contract; nothing is compiled.

    Raises:
      UserError: The environment breaks its contract; the message says what was expected and how to fix it.
    """
    _traced(env)


def _traced(env: Any) -> list[tuple[PyTree, Step]]:
    """Check the contract of an `Env`; return shapes and dtypes of its state and step, after reset and after step.

    Returns:
      The results of reset and step, with a `jax.ShapeDtypeStruct` for each array, weak types included.
    """
    expect = expecting(env)
    check_attributes(env, ("reset", "step"), ("num_actions",), "Env", expect)
    shared = shared_of(env)

    def run(what: str, function: Any, *arguments: Any) -> Any:
        result = _shapes_of(what, function, arguments, env, expect)
        is_pair = isinstance(result, tuple) and len(result) == 2
        expect(is_pair, f"{what} returns {type(result).__name__}; expected (state, Step)")
        found = type(result[1]).__name__
        wanted = "expected a qlax.Step, after the state"
        expect(isinstance(result[1], Step), f"{what} returns {found} as its second result; {wanted}")
        return result

    if hasattr(env, "shared_at"):
        expect(bool(shared), "it has shared_at but no shared; give it an attribute shared with the initial value")
        progress = (jax.ShapeDtypeStruct((), jnp.float32),)
        later = _shapes_of("shared_at(progress)", env.shared_at, progress, env, expect)
        given, wanted = (
            str(jax.tree.map(lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}", x)) for x in (later, env.shared)
        )
        expect(given == wanted, f"shared_at returns {given}, but shared is {wanted}; expected both to agree")
    state, first = run("reset(key)", env.reset, jax.random.key(0))
    action = jax.ShapeDtypeStruct(*action_form(env))
    given = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)  # without weak types, as in `Vec`
    next_state, step = run("step(key, state, action)", env.step, jax.random.key(0), given, action, *shared)
    for what, result in (("reset", first), ("step", step)):
        check_step(result, what, (), env, expect)
        dtype = result.reward.dtype
        expect(is_real(dtype), f"reward of {what} is {dtype}; expected float32: .astype(jnp.float32)")
    expect(*same("state", state, next_state))
    for part in ("obs", "legal", "metrics"):
        expect(*same(part, getattr(first, part), getattr(step, part)))
    return [(state, first), (next_state, step)]


def _shapes_of(what: str, function: Any, arguments: tuple, env: Any, expect: Expect) -> Any:
    """Return the shapes and dtypes of a function's results; refuse it if JAX cannot trace it or it has side effects."""
    before = _surroundings(env)
    try:
        traced, result = jax.make_jaxpr(lambda *a: function(*a), return_shape=True)(*arguments)
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        first_line, place = shown(lines[0], LONGEST_SHOWN), place_in_words(error)
        fixes = [fix for kind, fix in FIXES if isinstance(error, kind)]
        first_line = f"{first_line.rstrip('.')}{place}; {fixes[0]}" if fixes else f"{first_line}{place}"
        raise UserError(f"environment {type(env).__name__}: {what} cannot be traced by JAX: {first_line}") from error
    left = f"{what} uses a value that another call stored, as in a global variable; expected a pure function: {KEEP_IT}"
    expect(not _holds_tracer(tuple(traced.consts)), left)
    after = _surroundings(env)
    for name, value in after.items():
        if name.endswith("random numbers"):
            found = f"{what} draws {name}; expected a pure function: draw with jax.random from the key"
            expect(value == before.get(name, value), f"{found}, as JAX runs Python only once, while it traces")
        else:
            # An attribute that was empty may be filled, as it may be a cache.
            changed = before.get(name) not in (None, (), b"") and (value,) != (before[name],)
            found = f"{what} changes {name}, but JAX runs Python only once, while it traces"
            expect(not changed and not _holds_tracer(value), f"{found}: {KEEP_IT}")
    return result


def _surroundings(env: Any) -> dict[str, Any]:
    """Record what a pure function leaves unchanged: the environment's attributes, and generators of random numbers."""
    generators = {"NumPy's random numbers": np.random.get_state(), "Python's random numbers": random.getstate()}
    attributes = {f"self.{name}": value for name, value in getattr(env, "__dict__", {}).items()}
    for name, value in attributes.items():
        if type(value) in (np.random.Generator, np.random.RandomState, random.Random):
            generators[f"{name}'s random numbers"] = value
    held = {name: _comparable(value) for name, value in attributes.items()}
    return held | {name: pickle.dumps(value) for name, value in generators.items()}


def _comparable(value: Any, depth: int = 20) -> Any:
    """Return a value that stays equal if and only if `value` was not changed or replaced meanwhile.

    Containers are compared down to `depth` levels.
    """
    if isinstance(value, dict) and depth:
        return tuple((key, _comparable(item, depth - 1)) for key, item in value.items())
    if isinstance(value, list | tuple) and depth:
        return tuple(_comparable(item, depth - 1) for item in value)
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    return id(value), value  # a reference to the value keeps its id from being reused


def _holds_tracer(value: Any) -> bool:
    return any(_holds_tracer(x) for x in value) if isinstance(value, tuple) else isinstance(value, jax.core.Tracer)


@usual_switches()
def check_env(env: Any, num_steps: int = 100, seed: int = 0) -> None:
    """Check the contract of an `Env` or a `HostEnv` while taking random legal actions.

    Anything that is not an error but may be a mistake, or makes training slow, is reported as a warning. Time limits
    are checked only if episodes reach them: choose `num_steps` several times as large as `time_limit`.

    Args:
      env: One environment in JAX, or a `HostEnv`.
      num_steps: Number of random actions to take; a new episode begins where one ends.
      seed: Seed of the actions and of the environment.

    Raises:
      UserError: The environment breaks its contract; the message says what was expected and how to fix it.

    Example:
      ```python
      qlax.check_env(qlax.make("gymnax/CartPole-v1"), num_steps=20)
      ```
    """
    advice = host_advice(env, num_steps, seed) if hasattr(env, "num_envs") else _advice(env, num_steps, seed)
    for line in advice:
        warnings.warn(f"environment {type(env).__name__}: {line}", stacklevel=3)


def _advice(env: Any, num_steps: int, seed: int) -> list[str]:
    """Check an `Env` while taking random legal actions, and return the warnings."""
    shapes, expect = _traced(env), expecting(env)
    team, shared = team_of(env), shared_of(env)

    def run_twice(what: str, functions: tuple, *arguments: Any) -> Any:
        try:
            outcome, again = jax.block_until_ready([function(*arguments) for function in functions])
        except Exception as error:  # raised by a callback to Python
            raise UserError(f"environment {type(env).__name__}: {what} failed: {raised(error)}") from error
        same = jax.tree.map(lambda a, b: np.array_equal(data(a), data(b), equal_nan=True), outcome, again)
        pure = "expected a pure function, in which everything random comes from the key"
        expect(all(jax.tree.leaves(same)), f"{what} gave two outcomes for the same input; {pure}")
        return outcome

    draws, key = np.random.default_rng(seed), jax.random.key(seed)
    resets = _compiled_twice(env.reset, key)
    begun = _SelfResets(lambda key: vector(resets[0](key)[0]), key)
    steps = _compiled_twice(env.step, key, resets[0](key)[0], np.zeros(*action_form(env)), *shared)
    state: Any = None
    step: Any = None
    ends, clock, index, length = Ends(env, expect), Clock(), 0, 0
    while index < num_steps + ends.steps_to_be_sure():
        key, key_reset, key_step = jax.random.split(key, 3)
        if step is None or step.terminated or step.truncated:
            length = 0
            state, step = run_twice("reset", resets, key_reset)
            quiet = not (step.terminated or step.truncated or step.reward != 0)
            expect(quiet, "reset returns a reward or an end of the episode; expected reward 0 and no end")
            _check_numbers(step._replace(metrics={}), index, expect)
            begun.add(vector(state))
            clock.see(length, vector(step.obs), is_cut=False)
        action = random_action(env, step.legal, draws)
        before = state
        state, step = run_twice("step", steps, key_step, state, action, *shared)
        index, length = index + 1, length + 1
        _check_numbers(step, index, expect)
        ended = bool(step.terminated | step.truncated)
        for metric in ACCOUNTS:
            if metric in step.metrics:
                right = bool(np.isnan(step.metrics[metric])) != ended
                expect(right, f"{metric} has to be nan exactly where no episode ended; leave it out: qlax adds it")
        ends.see(length, bool(step.terminated), bool(step.truncated))
        clock.see(length, vector(step.obs), is_cut=bool(step.truncated & ~step.terminated))
        if ended:
            begun.end(vector(before), vector(state), key_step)
        else:
            begun.go_on(length, vector(state))
    begun.check(expect)
    seen = observation_advice(shapes[0][1].obs, team)
    return [*ends.check(), *begun.advice(), *clock.advice(), *seen, *_weak_advice(env, shapes)]


def _compiled_twice(function: Any, *arguments: Any) -> tuple[Any, Any]:
    """Trace and compile a function twice, to find out if its results depend on more than its arguments.

    A function that reads the time, for example, gives two different programs. Equal programs are compiled once, as
    compiling is slow. Weak types of the results are removed.
    """
    traced = [jax.jit(lambda *a: strong(function(*a))).trace(*arguments) for _ in range(2)]
    programs = [each.lower() for each in traced]
    alike = programs[0].as_text() == programs[1].as_text()
    constants = zip(*(each.jaxpr.consts for each in traced), strict=True) if alike else ()
    first = programs[0].compile()
    alike = alike and all(np.array_equal(data(x), data(y), equal_nan=True) for x, y in constants)
    return first, first if alike else programs[1].compile()


def _check_numbers(step: Step, count: int, expect: Expect) -> None:
    """Check that a step of an `Env` is finite and has a legal action."""
    shown = {"reward": step.reward, "obs": step.obs}
    shown |= {name: value for name, value in step.metrics.items() if name == "raw_reward"}
    for field, tree in shown.items():
        finite = all(np.isfinite(data(leaf)).all() for leaf in jax.tree.leaves(tree))
        expect(finite, f"{field} is not finite after {count} steps; expected numbers, in final observations too")
    if step.legal is not None and not step.terminated:  # no action follows a termination
        where = ", also where an episode is cut" if step.truncated else ""
        found = f"no legal action after {count} steps; expected at least one per member{where}"
        some = np.asarray(step.legal).any(-1).all()
        expect(some, f"{found}: add an action that waits, or end the episode before")


def _weak_advice(env: Any, shapes: list[tuple[PyTree, Step]]) -> list[str]:
    """Return warnings about weak types, which make a loop that calls `step` compile twice."""
    (state, first), (next_state, step) = shapes
    if any(map(_is_weak, jax.tree.leaves(state))):
        action = jax.ShapeDtypeStruct(*action_form(env))
        key = jax.random.key(0)
        next_state, step = jax.eval_shape(lambda *a: env.step(*a), key, state, action, *shared_of(env))
    advice = []
    for part, before, after in (("state", state, next_state), ("obs", first.obs, step.obs)):
        pairs = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
        names = [part + jax.tree_util.keystr(path) for (path, x), y in pairs if _is_weak(x) != _is_weak(y)]
        if names:
            found = f"the type of {', '.join(names)} is weak after reset or after step, but not after both"
            fix = "give numbers a dtype, as jnp.float32(0) or .astype(jnp.float32)"
            advice.append(f"{found}: qlax fixes it, but a loop of your own would compile twice; {fix}")
    return advice


def _is_weak(x: Any) -> bool:
    return bool(getattr(x, "weak_type", False))


class _SelfResets:
    """Search for signs that `step` resets the environment at the end of an episode, which it must not do.

    States are compared as vectors. A final state that equals an initial state is only a warning, because the two may be
    equal by chance. It is an error if the state has a step counter, a number that changes by the same amount at every
    step, and a final state has the counter's initial value.

    Args:
      reset: Function from a key to the state after a reset, as a vector.
      key: Random key of a few initial states, with which final states are compared.
    """

    def __init__(self, reset: Callable[[jax.Array], np.ndarray], key: jax.Array):
        self._reset = reset
        vectors = [reset(each) for each in jax.random.split(key, 4)]
        self._new = vectors[0]
        self._constant = np.all(np.stack(vectors) == self._new, axis=0)
        self._slope: np.ndarray | None = None
        self._counts = self._constant  # True for numbers that change by the same amount at every step
        self._longest = 0
        self._counted_anew = False
        self._known = {vector.tobytes() for vector in vectors}
        self._ends = self._ends_in_new = 0

    def add(self, vector: np.ndarray) -> None:
        """Record a state after a reset."""
        self._known.add(vector.tobytes())

    def go_on(self, length: int, vector: np.ndarray) -> None:
        """Record the state after `length` steps of an episode that has not ended."""
        if length == 1 and self._slope is None:
            self._slope = vector - self._new
            self._counts = self._counts & (self._slope != 0)
        if self._slope is not None:
            self._counts = self._counts & np.isclose(vector, self._new + length * self._slope)
            self._longest = max(self._longest, length)

    def end(self, before: np.ndarray, after: np.ndarray, key: jax.Array) -> None:
        """Record the last two states of an episode, and the key of the last step."""
        if self._counts.any() and self._is_new(after) and not self._is_new(before):
            self._counted_anew = True
        if self._ends < 5 and before.tobytes() not in self._known:
            self._ends += 1
            keys = [key, *jax.random.split(key), *jax.random.split(key, 3)]  # keys with which step may have reset
            self._ends_in_new += after.tobytes() in self._known | {self._reset(each).tobytes() for each in keys}

    def _is_new(self, vector: np.ndarray) -> bool:
        return bool((vector == self._new)[self._constant].all())

    def check(self, expect: Expect) -> None:
        """Refuse an environment that resets itself; call this once all steps are recorded."""
        resets_itself = self._counted_anew and self._counts.any() and self._longest >= 3
        wanted = "expected the final state and observation of the one that ended"
        fix = "never reset in step, as qlax does it"
        expect(not resets_itself, f"where an episode ended, step begins a new one; {wanted}: {fix}")

    def advice(self) -> list[str]:
        """Return a warning if the environment may reset itself."""
        if self._ends < 2 or self._ends_in_new < self._ends:
            return []
        return ["the state at the end of an episode equals an initial state: never reset in step, as qlax does it"]
