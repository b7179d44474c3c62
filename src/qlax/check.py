"""What is wrong with an environment: its shapes and dtypes, or what it does."""

import pickle
import random
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qlax.errors import UserError, described
from qlax.types import PyTree, Step, strong

Expect = Callable[[Any, str], None]

KEEP_IT = "keep it in the state that reset and step return"
ACCOUNTS = ("episode_return", "episode_length")
WHOLE_NUMBERS = {
    "num_actions": "a whole number of discrete actions, at least 1",
    "num_envs": "a whole number of environments, at least 1",
    "num_agents": "a whole number of members, at least 1; leave it out for a single agent",
    "reset_ratio": "a whole number of copies that share a fresh episode",
    "time_limit": "a whole number of steps, at least 1; leave it out if there is no limit",
}
# What the log calls its own measurements.
TAKEN_NAMES = (
    *("loss", "td_error", "grad_norm", "value", "epsilon", "cut"),
    *("updates", "steps", "seconds", "steps_per_second", "episodes"),
)


def check_contract(env: Any) -> None:
    """Whether shapes and dtypes of an `Env` are those its contract promises; nothing is compiled.

    Raises:
      UserError: what is wrong, what was expected, and how to mend it.
    """
    _traced(env)


class _Shapes(NamedTuple):
    """What reset and step return, as `jax.ShapeDtypeStruct`, weak types included."""

    reset: tuple[PyTree, Step]
    step: tuple[PyTree, Step]


def _traced(env: Any) -> _Shapes:
    expect = _expecting(env)
    _check_attributes(env, ("reset", "step"), ("num_actions",), "Env", expect)
    actions, team, shared = env.num_actions, _team(env), _shared(env)

    def run(what: str, function: Any, *arguments: Any) -> Any:
        result = _shapes_of(what, function, arguments, env, expect)
        pair = isinstance(result, tuple) and len(result) == 2
        expect(pair, f"{what} returns {type(result).__name__}; expected (state, Step)")
        found = type(result[1]).__name__
        expect(isinstance(result[1], Step), f"{what} returns {found} second; expected a qlax.Step, the state first")
        return result

    if hasattr(env, "shared_at"):
        expect(bool(shared), "it has shared_at but nothing shared; declare what all copies share at first")
        progress = (jax.ShapeDtypeStruct((), jnp.float32),)
        later = _shapes_of("shared_at(progress)", env.shared_at, progress, env, expect)
        given, wanted = (
            str(jax.tree.map(lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}", x)) for x in (later, env.shared)
        )
        expect(given == wanted, f"shared_at gives {given}, but shared is {wanted}")
    state, first = run("reset(key)", env.reset, jax.random.key(0))
    action = jax.ShapeDtypeStruct(team, jnp.int32)
    given = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)  # `Vec` strips weak types
    next_state, step = run("step(key, state, action)", env.step, jax.random.key(0), given, action, *shared)
    for what, shown in (("reset", first), ("step", step)):
        _check_step(shown, what, team, actions, expect)
    expect(*_same("state", state, next_state))
    for part in ("obs", "legal", "metrics"):
        expect(*_same(part, getattr(first, part), getattr(step, part)))
    return _Shapes((state, first), (next_state, step))


def _check_attributes(
    env: Any, methods: tuple[str, ...], needed: tuple[str, ...], contract: str, expect: Expect
) -> None:
    for method in methods:
        expect(callable(getattr(env, method, None)), f"it has no method {method!r}; see qlax.{contract}")
    for name, wanted in WHOLE_NUMBERS.items():
        value: Any = getattr(env, name, None)
        valid = isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 1
        absent = not hasattr(env, name) or (name == "time_limit" and value is None)
        expect(valid or (absent and name not in needed), f"{name} is {value!r}; expected {wanted}")
    expect(callable(getattr(env, "score", len)), "score is no function; expected score(return), a number")


def _check_step(step: Step, what: str, team: tuple[int, ...], actions: int, expect: Expect) -> None:
    for field in ("reward", "terminated", "truncated"):
        shape = getattr(getattr(step, field), "shape", None)
        found = f"{field} of {what} has shape {shape}"
        expect(shape == (), f"{found}; expected a scalar (one reward and one end for the whole team)")
    for field in ("terminated", "truncated"):
        dtype = getattr(step, field).dtype
        expect(dtype == jnp.bool_, f"{field} of {what} is {dtype}; expected bool: a comparison, or .astype(bool)")
    is_real = any(jnp.issubdtype(step.reward.dtype, kind) for kind in (jnp.floating, jnp.integer))
    expect(is_real, f"reward of {what} is {step.reward.dtype}; expected float32: .astype(jnp.float32)")
    if step.legal is not None:
        found = f"{step.legal.dtype}{list(step.legal.shape)}" if hasattr(step.legal, "dtype") else "a tree"
        expect(
            found == f"bool{[*team, actions]}",
            f"legal of {what} is {found}; expected bool{[*team, actions]}, True where an action may be taken",
        )
    expect(jax.tree.leaves(step.obs), f"obs of {what} holds no array: {step.obs}; expected an array or a tree of them")
    for leaf in jax.tree.leaves(step.obs):
        expect(
            leaf.shape[: len(team)] == team,
            f"obs of {what} has shape {leaf.shape}; expected the team of {team} first: a row for each member",
        )
    shapes = _metric_shapes(step.metrics)
    scalars = isinstance(shapes, dict) and not any(shapes.values())
    expect(scalars, f"metrics of {what} are {shapes}; expected a dict of scalars")
    for name in step.metrics:
        taken = name in TAKEN_NAMES or name.startswith("eval_")
        expect(not taken, f"metrics of {what} have {name!r}, a name the log uses itself; expected another name")


def _metric_shapes(metrics: Any) -> Any:
    return {name: leaf.shape for name, leaf in metrics.items()} if isinstance(metrics, dict) else metrics


def _same(part: str, before: PyTree, after: PyTree) -> tuple[bool, str]:
    """Whether both have the same structure, shapes and dtypes; and what to say if not, of the first that differs."""
    mend = "show the same names after both" if part == "metrics" else "show the same arrays after both"
    structure: Any = jax.tree.structure(before)
    if structure == jax.tree.structure(after):
        pairs = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
        differing = [(path, x, y) for (path, x), y in pairs if _specified(x) != _specified(y)]
        if not differing:
            return True, ""
        path, before, after = differing[0]
        part += jax.tree_util.keystr(path)
        mend = "make both alike, as with .astype(...)"
    found = f"{part} differs between reset and step: {_specified(before)} against {_specified(after)}"
    return False, f"{found}; {mend}"


def _specified(tree: Any) -> str:
    return str(jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree))


def _shapes_of(what: str, function: Any, arguments: tuple, env: Any, expect: Expect) -> Any:
    """Shapes of what a function of an environment returns, if JAX can trace it and it leaves nothing behind."""
    before = _surroundings(env)
    try:
        traced, result = jax.make_jaxpr(lambda *a: function(*a), return_shape=True)(*arguments)
    except Exception as error:
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        mends = [mend for kind, mend in MENDS if isinstance(error, kind)]
        first_line = f"{first_line.rstrip('.')}; {mends[0]}" if mends else first_line
        raise UserError(f"environment {type(env).__name__}: {what} cannot be traced by JAX: {first_line}") from error
    left = f"{what} uses what another call left behind, as in a global variable; expected a pure function: {KEEP_IT}"
    expect(not _holds_tracer(tuple(traced.consts)), left)
    after = _surroundings(env)
    for name, value in after.items():
        if name.endswith("random numbers"):
            found = f"{what} draws {name}; expected a pure function: draw with jax.random from the key"
            expect(value == before.get(name, value), f"{found}, as JAX runs Python only once, while it traces")
        else:
            # What was nothing yet is a cache, and may be filled.
            changed = before.get(name) not in (None, (), b"") and (value,) != (before[name],)
            found = f"{what} changes {name}, but JAX runs Python only once, while it traces"
            expect(not changed and not _holds_tracer(value), f"{found}: {KEEP_IT}")
    return result


# What Python cannot do with values that are not known while JAX traces.
MENDS: tuple[tuple[type[Exception], str], ...] = (
    (jax.errors.TracerBoolConversionError, "use jnp.where or jax.lax.cond instead of if, and, or, not"),
    (jax.errors.TracerArrayConversionError, "use jax.numpy instead of NumPy"),
    (jax.errors.TracerIntegerConversionError, "make what it is an index of a JAX array"),
    (jax.errors.ConcretizationTypeError, "use .astype(...) instead of int(...), float(...)"),
)


def _surroundings(env: Any) -> dict[str, Any]:
    """What a pure function leaves as it is: attributes of the environment, and random numbers that have no key."""
    generators = {"NumPy's random numbers": np.random.get_state(), "Python's random numbers": random.getstate()}
    attributes = {f"self.{name}": value for name, value in getattr(env, "__dict__", {}).items()}
    for name, value in attributes.items():
        if type(value) in (np.random.Generator, np.random.RandomState, random.Random):
            generators[f"{name}'s random numbers"] = value
    held = {name: _comparable(value) for name, value in attributes.items()}
    return held | {name: pickle.dumps(value) for name, value in generators.items()}


def _comparable(value: Any) -> Any:
    """What equals that of another time if and only if nothing was changed or put in its place."""
    if isinstance(value, dict):
        return tuple((key, _comparable(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(_comparable(item) for item in value)
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    return id(value), value  # the latter, so that nothing else gets its place in memory


def _holds_tracer(value: Any) -> bool:
    return any(_holds_tracer(x) for x in value) if isinstance(value, tuple) else isinstance(value, jax.core.Tracer)


def check_env(env: Any, num_steps: int = 100, seed: int = 0) -> None:
    """Run an `Env` or a `HostEnv` with random legal actions, and say what breaks its contract.

    What is no mistake but may be one, or makes things slow, is a warning. Time limits are seen where episodes are
    that long: take `num_steps` a few times as large as `time_limit`.

    Args:
      env: one environment, or several on the host.
      num_steps: random actions to take; an episode that ends is begun anew.
      seed: of the actions and of the environment.

    Raises:
      UserError: what is wrong, what was expected, and how to mend it.
    """
    advice = _host_advice(env, num_steps, seed) if hasattr(env, "num_envs") else _advice(env, num_steps, seed)
    for line in advice:
        warnings.warn(f"environment {type(env).__name__}: {line}", stacklevel=2)


def _advice(env: Any, num_steps: int, seed: int) -> list[str]:
    """Play an `Env`; what is no mistake."""
    shapes, expect = _traced(env), _expecting(env)
    team, shared = _team(env), _shared(env)

    def run_twice(what: str, functions: tuple, *arguments: Any) -> Any:
        outcome, again = (function(*arguments) for function in functions)
        same = jax.tree.map(lambda a, b: np.array_equal(_data(a), _data(b), equal_nan=True), outcome, again)
        pure = "expected a pure function, in which everything random comes from the key"
        expect(all(jax.tree.leaves(same)), f"{what} gave two outcomes for the same input; {pure}")
        return outcome

    draws, key = np.random.default_rng(seed), jax.random.key(seed)
    resets = _compiled_twice(env.reset, key)
    begun = _Beginnings(lambda key: _vector(resets[0](key)[0]), key)
    steps = _compiled_twice(env.step, key, resets[0](key)[0], np.zeros(team, np.int32), *shared)
    state: Any = None
    step: Any = None
    ends, index, length = _Ends(env, expect), 0, 0
    while index < num_steps + ends.steps_to_be_sure():
        key, key_reset, key_step = jax.random.split(key, 3)
        if step is None or step.terminated or step.truncated:
            length = 0
            state, step = run_twice("reset", resets, key_reset)
            quiet = not (step.terminated or step.truncated or step.reward != 0)
            expect(quiet, "reset shows an end or a reward; expected a first step without")
            _check_numbers(step._replace(metrics={}), index, expect)
            begun.add(_vector(state))
        legal = np.ones((*team, env.num_actions), bool) if step.legal is None else np.asarray(step.legal)
        action = np.where(legal, draws.random(legal.shape), -1.0).argmax(-1).astype(np.int32)
        before = state
        state, step = run_twice("step", steps, key_step, state, action, *shared)
        index, length = index + 1, length + 1
        _check_numbers(step, index, expect)
        ended = bool(step.terminated | step.truncated)
        for metric in ACCOUNTS:
            if metric in step.metrics:
                right = bool(np.isnan(step.metrics[metric])) != ended
                expect(right, f"{metric} is to be nan exactly where no episode ended; leave it out: qlax keeps it")
        ends.see(length, bool(step.terminated), bool(step.truncated))
        if not ended:
            begun.go_on(length, _vector(state))
        else:
            begun.end(_vector(before), _vector(state), key_step)
    begun.check(expect)
    advice = [*ends.check(), *begun.advice(), *_observation_advice(shapes.reset[1].obs, _team(env))]
    return advice + _weak_advice(env, shapes)


def _compiled_twice(function: Any, *arguments: Any) -> tuple[Any, Any]:
    """A function traced twice, so that what is not in its arguments, such as the time, would differ; with strong types.

    Both are one if they are the same program: compiling takes long.
    """
    traced = [jax.jit(lambda *a: strong(function(*a))).trace(*arguments) for _ in range(2)]
    programs = [each.lower() for each in traced]
    alike = programs[0].as_text() == programs[1].as_text()
    constants = zip(*(each.jaxpr.consts for each in traced), strict=True) if alike else ()
    first = programs[0].compile()
    alike = alike and all(np.array_equal(_data(x), _data(y), equal_nan=True) for x, y in constants)
    return first, first if alike else programs[1].compile()


def _check_numbers(step: Step, count: int, expect: Expect) -> None:
    """Whether a step of an `Env` is finite and leaves an action to choose."""
    shown = {"reward": step.reward, "obs": step.obs}
    shown |= {name: value for name, value in step.metrics.items() if name == "raw_reward"}
    for field, tree in shown.items():
        finite = all(np.isfinite(_data(leaf)).all() for leaf in jax.tree.leaves(tree))
        expect(finite, f"{field} is not finite after {count} steps; expected numbers, in last observations too")
    if step.legal is not None and not step.terminated:  # nothing is chosen after a termination
        where = ", also where an episode is cut" if step.truncated else ""
        found = f"no legal action after {count} steps; expected at least one per member{where}"
        some = np.asarray(step.legal).any(-1).all()
        expect(some, f"{found}: add an action that waits, or end the episode before")


def _observation_advice(obs: PyTree, leading: tuple[int, ...]) -> list[str]:
    """Which arrays of an observation none of qlax's networks takes."""
    advice = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(obs):
        shape = leaf.shape[len(leading) :]
        if leaf.dtype != bool and not jnp.issubdtype(leaf.dtype, jnp.floating):
            if leaf.dtype == jnp.uint8 and len(shape) == 3:
                continue
            found = f"obs{jax.tree_util.keystr(path)} is {leaf.dtype}{list(shape)}, which no network of qlax takes"
            wanted = "expected bool, float, or uint8 with three axes (an image)"
            mend = "show categories one-hot and counts as float32, or train with --wrappers one_hot=<categories>"
            advice.append(f"{found}; {wanted}: {mend}")
    return advice


def _weak_advice(env: Any, shapes: _Shapes) -> list[str]:
    """What would make a loop that calls `step` itself compile twice."""
    (state, first), (next_state, step) = shapes
    if any(map(_is_weak, jax.tree.leaves(state))):
        action = jax.ShapeDtypeStruct(_team(env), jnp.int32)
        key = jax.random.key(0)
        next_state, step = jax.eval_shape(lambda *a: env.step(*a), key, state, action, *_shared(env))
    advice = []
    for part, before, after in (("state", state, next_state), ("obs", first.obs, step.obs)):
        pairs = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
        names = [part + jax.tree_util.keystr(path) for (path, x), y in pairs if _is_weak(x) != _is_weak(y)]
        if names:
            found = f"the type of {', '.join(names)} is weak after reset or after step, but not after both"
            mend = "give numbers a dtype, as jnp.float32(0) or .astype(jnp.float32)"
            advice.append(f"{found}: qlax mends it, but a loop of your own would compile twice; {mend}")
    return advice


def _is_weak(x: Any) -> bool:
    return bool(getattr(x, "weak_type", False))


class _Ends:
    """Ends of episodes: whether terminations and cuts are told apart, and fall where `time_limit` says."""

    def __init__(self, env: Any, expect: Expect):
        self._limit: int | None = getattr(env, "time_limit", None)
        self._expect = expect
        self._seen: list[tuple[int, bool, bool]] = []  # length, terminated, truncated

    def see(self, length: int, terminated: bool, truncated: bool) -> None:
        """A step, so many after a reset."""
        if self._limit is not None and not (terminated or truncated):
            goes_on = f"an episode goes on after {length} steps, but time_limit is {self._limit}"
            self._expect(length < self._limit, f"{goes_on}; expected truncated there, or the right time_limit")
        if terminated or truncated:
            self._seen.append((length, terminated, truncated))

    def steps_to_be_sure(self) -> int:
        """An end may fall on the time limit by chance, so one of them is not enough."""
        return 4 * (self._limit or 0) if [terminated for terminated, _ in self._at_limit()] == [True] else 0

    def check(self) -> list[str]:
        """At last; what is no mistake.

        Raises:
          UserError: what is.
        """
        at_limit = self._at_limit()
        over = f"or leave time_limit out if the task itself is over after {self._limit} steps"
        alone = len(at_limit) > 1 and all(terminated and not truncated for terminated, truncated in at_limit)
        at = f"where the time limit of {self._limit} falls"
        self._expect(not alone, f"terminated is set {at}; expected truncated: set only that there, {over}")
        both = len(self._seen) > 1 and all(terminated and truncated for _, terminated, truncated in self._seen)
        mend = "expected terminated where the task ended, truncated where only time did"
        elsewhere = len(at_limit) < len(self._seen)
        self._expect(not (both and elsewhere), f"terminated and truncated are both set at every end; {mend}")
        advice = []
        if len(at_limit) > 1 and all(terminated for terminated, _ in at_limit):
            advice.append(f"terminated is set beside truncated {at}, and counts: set only truncated there, {over}")
        cuts = [length for length, terminated, _ in self._seen if not terminated]
        if self._limit is not None and len(cuts) > 1 and {*cuts} == {cuts[0]} and cuts[0] < self._limit:
            advice.append(
                f"episodes are cut after {cuts[0]} steps, but time_limit is {self._limit}: make both the same"
            )
        return advice

    def _at_limit(self) -> list[tuple[bool, bool]]:
        """Of the episodes that reached the limit, whether they were terminated, and truncated."""
        return [(terminated, truncated) for length, terminated, truncated in self._seen if length == self._limit]


class _Beginnings:
    """Whether what is shown at the end of an episode is the beginning of another one.

    States are vectors. That a terminated one equals a new one may be by chance; that one which counted every step
    begins to count anew is not.

    Args:
      reset: the state after a reset with a key, as a vector.
      key: of some to begin with.
    """

    def __init__(self, reset: Callable[[jax.Array], np.ndarray], key: jax.Array):
        self._reset = reset
        vectors = [reset(each) for each in jax.random.split(key, 4)]
        self._new = vectors[0]
        self._constant = np.all(np.stack(vectors) == self._new, axis=0)
        self._slope: np.ndarray | None = None
        self._counts = self._constant  # where a number grows or falls by the same at every step
        self._longest = 0
        self._counted_anew = False
        self._known = {vector.tobytes() for vector in vectors}
        self._ends = self._ends_in_new = 0

    def add(self, vector: np.ndarray) -> None:
        """Another state after a reset."""
        self._known.add(vector.tobytes())

    def go_on(self, length: int, vector: np.ndarray) -> None:
        """A state after so many steps, not an episode's last."""
        if length == 1 and self._slope is None:
            self._slope = vector - self._new
            self._counts = self._counts & (self._slope != 0)
        if self._slope is not None:
            self._counts = self._counts & np.isclose(vector, self._new + length * self._slope)
            self._longest = max(self._longest, length)

    def end(self, before: np.ndarray, after: np.ndarray, key: jax.Array) -> None:
        """The last two states of an episode, and the key that led from one to the other."""
        if self._counts.any() and self._is_new(after) and not self._is_new(before):
            self._counted_anew = True
        if self._ends < 5 and before.tobytes() not in self._known:
            self._ends += 1
            keys = [key, *jax.random.split(key), *jax.random.split(key, 3)]  # that step may have reset with
            self._ends_in_new += after.tobytes() in self._known | {self._reset(each).tobytes() for each in keys}

    def _is_new(self, vector: np.ndarray) -> bool:
        return bool((vector == self._new)[self._constant].all())

    def check(self, expect: Expect) -> None:
        """At last."""
        resets_itself = self._counted_anew and self._counts.any() and self._longest >= 3
        wanted = "expected the last state and observation of the one that ended"
        mend = "never reset in step, qlax does it"
        expect(not resets_itself, f"where an episode ended, step shows a new one; {wanted}: {mend}")

    def advice(self) -> list[str]:
        """What may be a mistake."""
        if self._ends < 2 or self._ends_in_new < self._ends:
            return []
        return ["the state at the end of an episode is one that episodes begin with: never reset in step, qlax does it"]


def _vector(tree: PyTree) -> np.ndarray:
    return np.concatenate([np.zeros(0), *(_data(leaf).ravel().astype(np.float64) for leaf in jax.tree.leaves(tree))])


def _data(x: Any) -> np.ndarray:
    is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x)


def check_host_env(env: Any, num_steps: int = 1, seed: int = 0) -> Step:
    """Reset a `HostEnv`, take random legal actions, and say what breaks its contract.

    Args:
      env: N environments.
      num_steps: to take, after a reset.
      seed: of the actions and of the environments.

    Returns:
      The first steps, of the reset.

    Raises:
      UserError: what is wrong, what was expected, and how to mend it.
    """
    return _play_on_host(env, num_steps, seed)[0]


def _host_advice(env: Any, num_steps: int, seed: int) -> list[str]:
    first, ends = _play_on_host(env, num_steps, seed)
    return [*ends.check(), *_observation_advice(first.obs, (env.num_envs, *_team(env)))]


def _play_on_host(env: Any, num_steps: int, seed: int) -> tuple[Step, _Ends]:
    expect, draws = _expecting(env), np.random.default_rng(seed)
    _check_attributes(env, ("reset", "step", "close"), ("num_actions", "num_envs"), "HostEnv", expect)
    team, ends = _team(env), _Ends(env, expect)
    legal = np.ones((env.num_envs, *team, env.num_actions), bool)
    first: Any = None
    accounts: Any = None
    for index in range(num_steps + 1):
        what = "step" if index else "reset"
        action = np.where(legal, draws.random(legal.shape), -1.0).argmax(-1).astype(np.int32)
        try:
            step = env.step(action) if index else env.reset(seed)
        except Exception as error:
            raise UserError(f"environment {type(env).__name__}: {what} failed: {described(error)}") from error
        _check_host_step(step, what, legal.shape, expect)
        legal = legal if step.legal is None else step.legal
        first = step if first is None else first
        for part in ("obs", "legal", "metrics"):
            expect(*_same(part, getattr(first, part), getattr(step, part)))
        if index:
            accounts.see(step)
        else:
            quiet = not (step.terminated | step.truncated).any() and not step.reward.any()
            expect(quiet, "reset shows an end or a reward; expected first steps without")
            nothing = all(np.isnan(step.metrics[metric]).all() for metric in ACCOUNTS)
            expect(nothing, "episode_return and episode_length of reset are not nan; they are numbers but at an end")
            accounts = _Accounts(step, ends, expect)
    accounts.check()
    return first, ends


def _check_host_step(step: Any, what: str, shape: tuple[int, ...], expect: Expect) -> None:
    """Whether one step has the shapes, dtypes and finite numbers that a `HostEnv` promises; `shape` is `[N, M, A]`."""
    rows, members = shape[:1], shape[:-1]
    expect(isinstance(step, Step), f"{what} returns {type(step).__name__}; expected a qlax.Step")
    arrays = {"reward": step.reward, "terminated": step.terminated, "truncated": step.truncated, "obs": step.obs}
    arrays |= {"metrics": step.metrics, "legal": step.legal}
    for field, tree in arrays.items():
        odd = [type(leaf).__name__ for leaf in jax.tree.leaves(tree) if not hasattr(leaf, "dtype")]
        expect(not odd, f"{field} of {what} holds {', '.join(odd[:3])}; expected NumPy arrays")
    for field in ("reward", "terminated", "truncated"):
        found = getattr(step, field)
        expect(found.shape == rows, f"{field} of {what} has shape {found.shape}; expected {rows}, one an environment")
        right = field == "reward" or found.dtype == np.bool_
        expect(right, f"{field} of {what} is {found.dtype}; expected bool")
    for leaf in jax.tree.leaves(step.obs):
        fits = leaf.shape[: len(members)] == members
        expect(fits, f"obs of {what} has shape {leaf.shape}; expected {members} first")
    if step.legal is not None:
        found, wanted = f"{step.legal.dtype}{list(step.legal.shape)}", f"bool{list(shape)}"
        expect(found == wanted, f"legal of {what} is {found}; expected {wanted}")
        expect(step.legal.any(-1).all(), f"no legal action after a {what}; expected at least one per member")
    metrics = step.metrics if isinstance(step.metrics, dict) else {}
    for metric in ACCOUNTS:
        expect(metric in metrics, f"{what} has no metrics[{metric!r}], nan but where an episode ended")
    shapes = {metric: value.shape for metric, value in metrics.items()}
    expect(set(shapes.values()) == {rows}, f"metrics of {what} have shapes {shapes}; expected {rows} each")
    for field, tree in (("reward", step.reward), ("obs", step.obs), ("raw_reward", metrics.get("raw_reward", 0.0))):
        finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))
        expect(finite, f"{field} of {what} is not finite")


class _Accounts:
    """Whether the ends, returns and lengths that a `HostEnv` shows fit its rewards and each other."""

    def __init__(self, first: Step, ends: _Ends, expect: Expect):
        self._ends, self._expect = ends, expect
        self._start = jax.tree.map(lambda x: x[:1].copy(), first.obs)
        self._starts_alike = len(first.reward) > 1 and bool(self._at_start(first.obs).all())
        self._shows_start = np.ones(first.reward.shape, bool)
        self._taken = np.zeros(first.reward.shape, int)
        self._rewards, self._scale = np.zeros(first.reward.shape), np.ones(first.reward.shape)
        self._ended = self._was_cut = self._terminated = np.zeros(first.reward.shape, bool)
        self._reported = self._truncated = self._unexplained = False
        self._restarts = self._unpaid = 0
        self._all_paid, self._never_paid = True, True

    def see(self, step: Step) -> None:
        """What every environment shows after a step."""
        expect, truncated = self._expect, step.truncated
        reward = np.asarray(step.metrics.get("raw_reward", step.reward), np.float64)
        returns, lengths = (np.asarray(step.metrics[metric], np.float64) for metric in ACCOUNTS)
        ended = ~np.isnan(returns)
        where = "expected numbers where an episode ended, nan elsewhere"
        expect((ended == ~np.isnan(lengths)).all(), f"episode_return and episode_length do not agree; {where}")
        unmarked = "the step after an episode was cut begins a new one; expected truncated there"
        expect(not (self._was_cut & ~truncated).any(), f"{unmarked}{BY_EPISODES}")

        is_reset = truncated & ~step.terminated & ~ended  # the action was ignored
        unexplained = is_reset & ~self._ended & ~self._terminated
        self._unexplained |= bool(unexplained.any())
        self._forget(unexplained)
        self._taken = self._taken + ~is_reset
        self._rewards = self._rewards + np.where(is_reset, 0.0, reward)
        self._scale = self._scale + np.where(is_reset, 0.0, np.abs(reward))
        wrong = ended & (lengths != self._taken)
        i = wrong.argmax()
        found = f"episode_length is {lengths[i]:g} after {self._taken[i]} steps that were no reset"
        expect(not wrong[i], f"{found}{BY_EPISODES}")
        wrong = ended & ~(np.abs(returns - self._rewards) <= 1e-3 * self._scale)
        i = wrong.argmax()
        found = f"episode_return is {returns[i]:g} where rewards (raw_reward, if shown) add up to {self._rewards[i]:g}"
        expect(not wrong[i], f"{found}{BY_EPISODES}")
        self._look_for_resets(step, reward, is_reset)
        for length, terminated in zip(self._taken[ended], step.terminated[ended], strict=True):
            self._ends.see(int(length), bool(terminated), not terminated)
        if self._reported and not ended.all():
            self._ends.see(int(self._taken[~ended].max()) - 1, False, False)

        self._reported |= bool(ended.any())
        self._truncated |= bool(truncated.any())
        self._was_cut = ended & ~step.terminated & ~truncated
        self._ended, self._terminated = ended, step.terminated.copy()
        self._forget(ended)

    def _forget(self, where: np.ndarray) -> None:
        """Begin the accounts of new episodes."""
        self._taken = np.where(where, 0, self._taken)
        self._rewards, self._scale = np.where(where, 0.0, self._rewards), np.where(where, 1.0, self._scale)

    def check(self) -> None:
        """At last."""
        silent = self._truncated and not self._reported
        self._expect(not silent, "episodes ended, but metrics['episode_return'] was nan all the time")
        unexplained = "truncated is set where no episode ended, by metrics['episode_return'], nor in the step before"
        self._expect(not self._unexplained, f"{unexplained}{BY_EPISODES}")
        unpaid = self._unpaid > 1 and self._never_paid and self._all_paid
        first = "the step after an end ignores its action and begins a new episode; expected truncated there"
        self._expect(not (self._restarts > 1 or unpaid), f"{first}{BY_EPISODES}")

    def _look_for_resets(self, step: Step, reward: np.ndarray, is_reset: np.ndarray) -> None:
        """Signs of resets that take a step and are not shown as such: where episodes begin alike, or all steps pay."""
        shows_start = self._at_start(step.obs)
        after_end = self._ended & ~step.truncated
        self._restarts += int((after_end & shows_start & ~self._shows_start).sum()) if self._starts_alike else 0
        self._unpaid += int(after_end.sum())
        self._never_paid &= not reward[after_end].any()
        self._all_paid &= bool(reward[~after_end & ~is_reset].all())
        self._shows_start = shows_start

    def _at_start(self, obs: PyTree) -> np.ndarray:
        """`[N]`, whether an observation is the first one of the first environment."""
        rows = jax.tree.map(lambda x, y: (x == y).reshape(len(x), -1).all(-1), obs, self._start)
        return np.logical_and.reduce(jax.tree.leaves(rows))


BY_EPISODES = ": qlax.envs.episodes.Episodes keeps these accounts"


def _expecting(env: Any) -> Expect:
    """What says that something is wrong with the environment, unless a condition holds."""

    def expect(condition: Any, problem: str) -> None:
        if not condition:
            raise UserError(f"environment {type(env).__name__}: {problem}")

    return expect


def _team(env: Any) -> tuple[int, ...]:
    return (env.num_agents,) if hasattr(env, "num_agents") else ()


def _shared(env: Any) -> tuple[PyTree, ...]:
    return (env.shared,) if hasattr(env, "shared") else ()
