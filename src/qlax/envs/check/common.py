"""Checks shared by environments in JAX and on the host."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qlax.config.kinds import LARGEST_COUNT
from qlax.errors import UserError, in_one_line, place_in_words, remedy
from qlax.networks.qnetwork import is_understood
from qlax.storage import measurements
from qlax.types import PyTree, Step, is_key
from qlax.util.text import shown

Expect = Callable[[Any, str], None]
ACCOUNTS = ("episode_return", "episode_length")
WHOLE_NUMBERS = {  # attributes that fit in int32, and what each counts
    "num_actions": "a whole number of discrete actions, at least 1",
    "num_envs": "a whole number of environments, at least 1",
    "num_agents": "a whole number of members, at least 1; leave it out for a single agent",
    "action_dimensions": "a whole number of dimensions, at least 1; leave it out if an action is one number",
    "reset_ratio": "a whole number of copies that share a fresh episode",
    "time_limit": "a whole number of steps, at least 1; leave it out if there is no limit",
}
FACTORS = ("num_envs", "num_agents", "action_dimensions", "num_actions")
MOST_CHOICES = 2**26  # largest product of the `FACTORS`, as arrays of this size are made
MOST_BY_CHANCE = 3  # episodes that have to agree before check_env warns of a clock
LONGEST_SHOWN = 200  # characters of a value or exception of the user's in a message


def check_attributes(
    env: Any, methods: tuple[str, ...], needed: tuple[str, ...], contract: str, expect: Expect
) -> None:
    """Check the methods and attributes of an environment.

    Args:
      env: The environment.
      methods: Names of the methods that it must have.
      needed: Names of the numbers in `WHOLE_NUMBERS` that it must have; the others may be left out.
      contract: Name of the class in `qlax` that defines the contract, for messages.
      expect: See `expecting`.

    Raises:
      UserError: A method is missing, or a number is missing or out of its range.
    """
    for method in methods:
        expect(callable(_attribute(env, method, expect)), f"it has no method {method!r}; see qlax.{contract}")
    bounds, choices = _checked_bounds(env, expect), 1
    if bounds:
        needed = tuple(name for name in needed if name != "num_actions")
    for name, wanted in WHOLE_NUMBERS.items():
        value = _attribute(env, name, expect)
        valid = isinstance(value, int | np.integer) and not isinstance(value, bool) and 1 <= value <= LARGEST_COUNT
        may_be_none = name == "time_limit" or (name == "num_actions" and bounds)
        absent = value is None and (may_be_none or not hasattr(env, name))
        expect(valid or (absent and name not in needed), f"{name} is {shown(repr(value))}; expected {wanted}")
        choices *= int(value) if valid and name in FACTORS else 1
    found = f"{' x '.join(FACTORS)} is {choices:,}"
    expect(choices <= MOST_CHOICES, f"{found}; expected at most {MOST_CHOICES:,}, as arrays of this size are made")
    for name in ("shared", "shared_at", "shared_after", "with_network", "evaluated", "action_names", "fps"):
        _attribute(env, name, expect)
    score = _attribute(env, "score", expect)
    if hasattr(env, "score"):
        expect(callable(score), "score is not a function; expected score(return), a number")
        try:
            float(score(0.0))
        except Exception as error:
            expect(False, f"score(0.0) is not a number: {raised(error)}; expected score(return), a number")


def _checked_bounds(env: Any, expect: Expect) -> bool:
    """Return True if an environment has continuous actions, whose bounds are checked."""
    bounds = _attribute(env, "action_bounds", expect)
    if bounds is None:
        return False
    right = "expected the lowest and the highest action, finite float32 [D] each, the first lower in every dimension"
    try:
        low, high = (np.asarray(bound) for bound in bounds)
        valid = low.ndim == 1 and low.size and low.shape == high.shape and low.dtype == high.dtype == np.float32
        valid = valid and bool((np.isfinite(low) & np.isfinite(high) & (low < high)).all())
    except (TypeError, ValueError):
        valid = False
    expect(valid, f"action_bounds is {shown(repr(bounds))}; {right}")
    has_both = _attribute(env, "num_actions", expect) is not None
    expect(not has_both, "it has num_actions and action_bounds; expected one, for discrete or for continuous actions")
    return True


def _attribute(env: Any, name: str, expect: Expect) -> Any:
    """Return an attribute, or None if there is none; a property that raises an exception is refused."""
    try:
        return getattr(env, name, None)
    except Exception as error:
        expect(False, f"{name} cannot be read: {raised(error)}; expected an attribute")


def raised(error: Exception) -> str:
    """Return an exception of the user's code as one short line, with the place in that code and what to install."""
    return f"{shown(in_one_line(error), LONGEST_SHOWN)}{place_in_words(error)}{remedy(error)}"


def check_step(step: Step, what: str, rows: tuple[int, ...], env: Any, expect: Expect) -> None:
    """Check the shapes and dtypes of a step.

    Args:
      step: The step, or its shapes and dtypes.
      what: Name of the function that returned it, for messages.
      rows: `(N,)` for environments on the host, `()` for one in JAX.
      env: The environment.
      expect: See `expecting`.
    """
    for field in ("reward", "terminated", "truncated"):
        shape = getattr(getattr(step, field), "shape", None)
        found = f"{field} of {what} has shape {shape}"
        expect(shape == () or rows, f"{found}; expected a scalar (one reward and one end for the whole team)")
        expect(shape == rows, f"{found}; expected {rows}, one per environment")
    for field in ("terminated", "truncated"):
        dtype = getattr(step, field).dtype
        expect(dtype == np.bool_, f"{field} of {what} is {dtype}; expected bool: a comparison, or .astype(bool)")
    members = (*rows, *team_of(env))
    if step.legal is not None:
        bounds = getattr(env, "action_bounds", None)
        expect(bounds is None, f"legal of {what} is an array; expected None, as actions are continuous")
        shape = [*rows, *action_axes(env), int(env.num_actions)]
        found = f"{step.legal.dtype}{list(step.legal.shape)}" if hasattr(step.legal, "dtype") else "a tree"
        right = f"expected bool{shape}, True where an action may be taken"
        expect(found == f"bool{shape}", f"legal of {what} is {found}; {right}")
    _check_observation(step.obs, what, members, expect)
    check_metrics(step.metrics, what, rows, expect)


def _check_observation(obs: PyTree, what: str, members: tuple[int, ...], expect: Expect) -> None:
    """Check that an observation is not empty and has a row for each member."""
    leaves = jax.tree.leaves(obs)
    wanted = "expected an array or a tree of them"
    expect(leaves, f"obs of {what} holds no array: {shown(repr(obs))}; {wanted}")
    sizes = ", ".join(str(leaf.shape) for leaf in leaves[:3])
    expect(any(math.prod(leaf.shape) for leaf in leaves), f"obs of {what} has shape {sizes}, so it is empty; {wanted}")
    wanted = f"expected {members} first: a row for each member"
    for leaf in leaves:
        expect(leaf.shape[: len(members)] == members, f"obs of {what} has shape {leaf.shape}; {wanted}")


def check_metrics(metrics: Any, what: str, shape: tuple[int, ...], expect: Expect) -> None:
    """Check that metrics are arrays of numbers of this shape, with names that qlax's own measurements do not use."""
    wanted = f"a dict of arrays of shape {shape}" if shape else "a dict of scalars"
    expect(isinstance(metrics, dict), f"metrics of {what} are {shown(repr(metrics))}; expected {wanted}")
    for name, value in metrics.items():
        expect(isinstance(name, str), f"metrics of {what} have the name {shown(repr(name))}; expected text")
        found = f"metrics of {what} have {shown(repr(name))}"
        is_free = measurements.is_own(name) and name not in measurements.evaluated() and not name.startswith("eval_")
        expect(is_free or name in ACCOUNTS, f"{found}, which is one of qlax's own names; expected another name")
        is_array = hasattr(value, "dtype") and hasattr(value, "shape")
        expect(
            is_array and value.shape == shape, f"{found} of shape {getattr(value, 'shape', None)}; expected {wanted}"
        )
        expect(is_real(value.dtype) or value.dtype == bool, f"{found} of type {value.dtype}; expected numbers")


def is_real(dtype: Any) -> bool:
    """Return True if arrays of this dtype hold real numbers."""
    return bool(jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer))


def same(part: str, before: PyTree, after: PyTree) -> tuple[bool, str]:
    """Compare the structure, shapes and dtypes of a part of the step after reset and after step.

    Args:
      part: Name of the part, for the message.
      before: Tree of arrays after reset.
      after: Tree of arrays after step.

    Returns:
      True if both agree, and a message about the first difference.
    """
    fix = "show the same names after both" if part == "metrics" else "show the same arrays after both"
    structure: Any = jax.tree.structure(before)
    if structure == jax.tree.structure(after):
        pairs = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
        differing = [(path, x, y) for (path, x), y in pairs if _specified(x) != _specified(y)]
        if not differing:
            return True, ""
        path, before, after = differing[0]
        part += jax.tree_util.keystr(path)
        fix = "make both alike, as with .astype(...)"
    found = f"{part} differs between reset and step: {_specified(before)} against {_specified(after)}"
    return False, f"{found}; {fix}"


def _specified(tree: Any) -> str:
    return shown(str(jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree)), LONGEST_SHOWN)


def observation_advice(obs: PyTree, leading: tuple[int, ...]) -> list[str]:
    """Return a warning for each array of an observation that qlax's networks cannot take or can hardly see.

    Args:
      obs: Observation whose arrays begin with the axes `leading`.
      leading: Sizes of the axes before those of one member's array.
    """
    advice = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(obs):
        shape = leaf.shape[len(leading) :]
        if not is_understood(leaf.dtype, shape):
            found = f"obs{jax.tree_util.keystr(path)} is {leaf.dtype}{list(shape)}, which no network of qlax accepts"
            wanted = "expected bool, float, or uint8 with three axes (an image)"
            fix = "show categories one-hot and counts as float32, or train with --wrappers one_hot=<categories>"
            advice.append(f"{found}; {wanted}: {fix}")
    sizes = [math.prod(leaf.shape[len(leading) :]) for leaf in jax.tree.leaves(obs)]
    if sizes == [1] and not advice:
        fix = "add a constant feature, or show the number one-hot or in several ranges"
        advice.append(f"obs is a single number, which layer normalisation makes almost invisible: {fix}")
    return advice


class Ends:
    """Check of the ends of episodes: they are either terminated or truncated, and agree with `time_limit`."""

    def __init__(self, env: Any, expect: Expect):
        self._limit: int | None = getattr(env, "time_limit", None)
        self._expect = expect
        self._seen: list[tuple[int, bool, bool]] = []  # length, terminated, truncated

    def see(self, length: int, terminated: bool, truncated: bool) -> None:
        """Record the step taken `length` steps after a reset, and whether the episode ended there."""
        if self._limit is not None and not (terminated or truncated):
            goes_on = f"an episode goes on after {length} steps, but time_limit is {self._limit}"
            self._expect(length < self._limit, f"{goes_on}; expected truncated there, or the right time_limit")
        if terminated or truncated:
            self._seen.append((length, terminated, truncated))

    def steps_to_be_sure(self) -> int:
        """Return the number of further steps to take: more ends are needed if the only one is at the time limit."""
        return 4 * (self._limit or 0) if [terminated for terminated, _ in self._at_limit()] == [True] else 0

    def check(self) -> list[str]:
        """Return the warnings once all steps are recorded.

        Raises:
          UserError: Terminations and truncations are confused.
        """
        at_limit = self._at_limit()
        over = f"or leave time_limit out if the task itself is over after {self._limit} steps"
        alone = len(at_limit) > 1 and all(terminated and not truncated for terminated, truncated in at_limit)
        at = f"at the time limit of {self._limit} steps"
        self._expect(not alone, f"terminated is set {at}; expected truncated instead, {over}")
        both = len(self._seen) > 1 and all(terminated and truncated for _, terminated, truncated in self._seen)
        fix = "expected terminated where the task ended, truncated where only the time limit was reached"
        elsewhere = len(at_limit) < len(self._seen)
        self._expect(not (both and elsewhere), f"terminated and truncated are both set at every end; {fix}")
        advice = []
        if len(at_limit) > 1 and all(terminated for terminated, _ in at_limit):
            found = f"terminated and truncated are both set {at}, and count as terminated"
            advice.append(f"{found}: set only truncated there, {over}")
        cuts = [length for length, terminated, _ in self._seen if not terminated]
        if self._limit is not None and len(cuts) > 1 and {*cuts} == {cuts[0]} and cuts[0] < self._limit:
            advice.append(
                f"episodes are cut after {cuts[0]} steps, but time_limit is {self._limit}: make both the same"
            )
        return advice

    def _at_limit(self) -> list[tuple[bool, bool]]:
        """Return `terminated` and `truncated` at the last step of every recorded episode as long as the time limit."""
        return [(terminated, truncated) for length, terminated, truncated in self._seen if length == self._limit]


class Clock:
    """Search for a clock in the observation: numbers that depend only on the time since the episode began.

    If they are unique at a fixed time limit, final observations are bootstrapped from but never trained.
    """

    def __init__(self) -> None:
        self._seen: dict[int, np.ndarray] = {}  # first observation at each time
        self._is_alike: Any = True  # True for numbers that were the same in all episodes at each time
        self._cuts: Counter[int] = Counter()

    def see(self, time: int, obs: np.ndarray, is_cut: bool) -> None:
        """Record an observation as a vector, and whether the time limit ended the episode there."""
        self._is_alike = self._is_alike & (self._seen.setdefault(time, obs) == obs)
        self._cuts[time] += is_cut

    def advice(self) -> list[str]:
        """Return a warning if the observation has a clock that is unique at the time limit."""
        limit = max(self._seen, default=0)
        if self._cuts[limit] < MOST_BY_CHANCE or self._cuts[limit] < self._cuts.total():
            return []
        before = [obs for time, obs in self._seen.items() if time < limit]
        if not all((obs != self._seen[limit])[self._is_alike].any() for obs in before):
            return []
        return [
            f"obs tells the time since the episode began, and episodes are cut after {limit} steps: values there are "
            "bootstrapped from observations that are never trained, and may grow too large; train with "
            "--time-limit-is-terminal, or leave the time out of obs"
        ]


def vector(tree: PyTree, rows: tuple[int, ...] = ()) -> np.ndarray:
    """Return all numbers of a tree of arrays `[*rows, ...]` as float64 vectors `[*rows, numbers]`."""
    leaves = [data(leaf).reshape(*rows, -1).astype(np.float64) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([np.zeros((*rows, 0)), *leaves], axis=-1)


def data(x: Any) -> np.ndarray:
    """Return an array in NumPy; random keys become their whole numbers."""
    return np.asarray(jax.random.key_data(x) if is_key(x) else x)


def expecting(env: Any) -> Expect:
    """Return the function `expect(condition, problem)`, which refuses the environment if the condition is false.

    The function raises `UserError` with the name of the environment's class and the problem.
    """

    def expect(condition: Any, problem: str) -> None:
        if not condition:
            raise UserError(f"environment {type(env).__name__}: {problem}")

    return expect


def team_of(env: Any) -> tuple[int, ...]:
    """Return the shape of the members' axis: `(M,)`, or `()` for a single agent."""
    return (int(env.num_agents),) if hasattr(env, "num_agents") else ()


def dimensions_of(env: Any) -> int:
    """Return the number of dimensions of an action, D; 1 if it is a single number."""
    bounds = getattr(env, "action_bounds", None)
    return int(getattr(env, "action_dimensions", 1)) if bounds is None else len(bounds[0])


def action_axes(env: Any) -> tuple[int, ...]:
    """Return the shape of the action that `step` takes: `()`, `(M,)`, `(D,)` or `(M, D)`."""
    has_dimensions = hasattr(env, "action_dimensions") or getattr(env, "action_bounds", None) is not None
    return (*team_of(env), *((dimensions_of(env),) if has_dimensions else ()))


def action_form(env: Any) -> tuple[tuple[int, ...], Any]:
    """Return shape and dtype of the action that `step` takes."""
    return action_axes(env), np.float32 if getattr(env, "action_bounds", None) is not None else np.int32


def random_action(env: Any, legal: Any, draws: np.random.Generator, rows: tuple[int, ...] = ()) -> np.ndarray:
    """Draw a random legal action.

    Args:
      env: The environment.
      legal: Legal actions, bool with the axes of an action and A; None if all actions are legal.
      draws: Source of the random numbers.
      rows: `(N,)` for environments on the host, `()` for one in JAX.
    """
    axes = (*rows, *action_axes(env))
    if getattr(env, "action_bounds", None) is not None:
        low, high = env.action_bounds
        return (low + draws.random(axes, np.float32) * (high - low)).astype(np.float32)
    preference = draws.random((*axes, env.num_actions))
    if legal is not None:
        preference = np.where(legal, preference, -1.0)
    return preference.argmax(-1).astype(np.int32)


def shared_of(env: Any) -> tuple[PyTree, ...]:
    """Return the last arguments of `step`: `(env.shared,)`, or `()` for an environment without `shared`."""
    return (env.shared,) if hasattr(env, "shared") else ()
