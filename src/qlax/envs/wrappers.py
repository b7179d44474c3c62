"""Wrappers of an `Env`: pure functions of its steps. All other attributes are those of the wrapped environment.

Use a wrapper as a class, `TimeLimit(env, 500)`, or by name, `qlax.wrap(env, ["time_limit=500"])` or
`--wrappers time_limit=500`. Scaling rewards needs no wrapper: it is the hyper-parameter `reward_scale`.

Shapes are those of one environment: an axis M of members if it is a team, then the axes of one member's array.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qlax.config.kinds import json_or_text
from qlax.envs.check.common import ACCOUNTS, action_axes, team_of
from qlax.errors import UserError, nearest
from qlax.networks.names import is_image, is_screen
from qlax.types import Env, PyTree, Step
from qlax.util.imports import import_object


class Wrapper:
    """Wrapper around an environment; attributes that the wrapper does not define are those of the environment.

    Args:
      env: The wrapped environment.
    """

    def __init__(self, env: Env):
        self._env = env

    def __getattr__(self, name: str) -> Any:
        if name == "_env":  # not set yet, as while an instance is copied
            raise AttributeError(name)
        return getattr(self._env, name)


class _StepWrapper(Wrapper):
    """Wrapper that changes every step by `_changed` and has no state of its own."""

    def reset(self, key: jax.Array) -> tuple[PyTree, Step]:
        """See `qlax.Env`."""
        state, step = self._env.reset(key)
        return state, self._changed(step, None)

    def step(self, key: jax.Array, state: PyTree, action: jax.Array, *shared: PyTree) -> tuple[PyTree, Step]:
        """See `qlax.Env`."""
        state, step = self._env.step(key, state, action, *shared)
        return state, self._changed(step, action)

    def _changed(self, step: Step, action: jax.Array | None) -> Step:
        """Return the changed step; `action` is None for the first step of an episode."""
        raise NotImplementedError


class _WithState(Wrapper):
    """Wrapper with a state of its own, whose field `env` holds the environment's state."""

    def __init__(self, env: Env):
        super().__init__(env)
        if hasattr(env, "render"):
            self.render: Callable[[Any], np.ndarray] = lambda state: env.render(state.env)


class Limited(NamedTuple):
    """State of `TimeLimit`: that of the environment, and a step counter."""

    env: PyTree
    steps: jax.Array  # int32, number of steps taken in this episode


class TimeLimit(_WithState):
    """Time limit, after which episodes are truncated.

    Args:
      env: The environment; a shorter time limit of its own stays in force.
      steps: Largest number of steps in an episode.

    Raises:
      UserError: `steps` is not a positive whole number, or the environment reports its episodes' returns or lengths
        itself, which it would not do at this limit.
    """

    def __init__(self, env: Env, steps: int):
        super().__init__(env)
        self._steps = _whole("TimeLimit", "steps", steps)
        self.time_limit = min(steps, getattr(env, "time_limit", None) or steps)  # in steps
        for metric in ACCOUNTS:
            if metric in _first(env).metrics:
                raise UserError(f"TimeLimit: the environment reports {metric} itself, but would not at this limit")

    def reset(self, key: jax.Array) -> tuple[Limited, Step]:
        """See `qlax.Env`."""
        state, step = self._env.reset(key)
        return Limited(state, jnp.int32(0)), step

    def step(self, key: jax.Array, state: Limited, action: jax.Array, *shared: PyTree) -> tuple[Limited, Step]:
        """See `qlax.Env`."""
        inner, step = self._env.step(key, state.env, action, *shared)
        steps = state.steps + 1
        return Limited(inner, steps), step._replace(truncated=step.truncated | (steps >= self._steps))


class Stacked(NamedTuple):
    """State of `FrameStack`: that of the environment, and the last observations."""

    env: PyTree
    obs: PyTree  # the stacked observation shown last


class FrameStack(_WithState):
    """Stack of the last observations, oldest first; an episode begins with copies of its first observation.

    Vectors `[k]` become one vector `[frames * k]`, grids with channels `[H, W, C]` one grid `[H, W, frames * C]`,
    grids without channels `[H, W]` one grid `[H, W, frames]`, and numbers a vector `[frames]`. In a tree, each array
    is stacked.

    Args:
      env: The environment.
      frames: Number of observations in a stack.

    Raises:
      UserError: `frames` is not a positive whole number.

    Example:
      ```python
      env = qlax.FrameStack(qlax.make("gymnax/CartPole-v1"), 4)
      ```
    """

    def __init__(self, env: Env, frames: int):
        super().__init__(env)
        self._frames = _whole("FrameStack", "frames", frames)
        self._team = team_of(env)

    def reset(self, key: jax.Array) -> tuple[Stacked, Step]:
        """See `qlax.Env`."""
        state, step = self._env.reset(key)
        obs = jax.tree.map(lambda x: jnp.tile(x, self._frames), self._with_channels(step.obs))
        return Stacked(state, obs), step._replace(obs=obs)

    def step(self, key: jax.Array, state: Stacked, action: jax.Array, *shared: PyTree) -> tuple[Stacked, Step]:
        """See `qlax.Env`."""
        inner, step = self._env.step(key, state.env, action, *shared)
        obs = jax.tree.map(
            lambda old, new: jnp.concatenate([old[..., new.shape[-1] :], new], axis=-1),
            state.obs,
            self._with_channels(step.obs),
        )
        return Stacked(inner, obs), step._replace(obs=obs)

    def _with_channels(self, obs: PyTree) -> PyTree:
        return jax.tree.map(lambda x: _with_channels(x, self._team), obs)


class TransformReward(_StepWrapper):
    """Function applied to the rewards; reported episode returns stay those of the raw rewards.

    Args:
      env: The environment.
      function: Function from a float32 scalar to the new reward, traced by JAX; the reward 0 of a reset is unchanged.
    """

    def __init__(self, env: Env, function: Callable[[jax.Array], jax.Array]):
        super().__init__(env)
        self._function = function

    def _changed(self, step: Step, action: jax.Array | None) -> Step:
        raw = jnp.asarray(step.reward, jnp.float32)
        reward = raw if action is None else self._function(raw)
        return step._replace(reward=reward, metrics={"raw_reward": raw, **step.metrics})


class ClipReward(TransformReward):
    """Rewards clipped to `[-bound, bound]`.

    Args:
      env: The environment.
      bound: Largest absolute value of a reward, above 0.

    Raises:
      UserError: `bound` is not a finite number above 0.
    """

    def __init__(self, env: Env, bound: float):
        if isinstance(bound, bool) or not isinstance(bound, int | float) or not 0 < bound < math.inf:
            raise UserError(f"ClipReward: bound={bound!r}; expected a number above 0")
        super().__init__(env, lambda reward: jnp.clip(reward, -bound, bound))


class SymlogReward(TransformReward):
    """Rewards squashed so that large ones count less: `sign(r) log(1 + |r|)`.

    Source: Hafner et al., "Mastering diverse domains through world models", 2023, arXiv:2301.04104.

    Args:
      env: The environment.
    """

    def __init__(self, env: Env):
        super().__init__(env, lambda reward: jnp.sign(reward) * jnp.log1p(jnp.abs(reward)))


class _ObservationWrapper(_StepWrapper):
    """Wrapper that changes every observation by `_shown` and has no state of its own."""

    def _changed(self, step: Step, action: jax.Array | None) -> Step:
        return step._replace(obs=self._shown(step.obs))

    def _shown(self, obs: PyTree) -> PyTree:
        raise NotImplementedError


class OneHot(_ObservationWrapper):
    """One-hot bool vectors in place of whole numbers from 0 to `categories - 1`; other numbers are False everywhere.

    A number becomes a vector `[categories]`, a vector `[k]` one vector `[k * categories]`, a grid `[H, W]` one of
    `[H, W, categories]`, and a grid `[H, W, C]` one of `[H, W, C * categories]`. In a tree, this applies to each array
    of whole numbers; other arrays, and screens (uint8 with three axes, at least 36 x 36), are unchanged.

    Args:
      env: The environment.
      categories: Number of categories.

    Raises:
      UserError: `categories` is not a positive whole number, or no array holds whole numbers.
    """

    def __init__(self, env: Env, categories: int):
        super().__init__(env)
        self._categories = _whole("OneHot", "categories", categories)
        self._team = team_of(env)
        obs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[len(self._team) :], x.dtype), _first(env).obs)
        if not any(_is_whole(leaf) for leaf in jax.tree.leaves(obs)):
            raise UserError(
                f"OneHot is for observations of whole numbers other than screens; this one is {_described(obs)}"
            )

    def _shown(self, obs: PyTree) -> PyTree:
        def one_hot(x):
            if not _is_whole(jax.ShapeDtypeStruct(x.shape[len(self._team) :], x.dtype)):
                return x
            x = _with_channels(x, self._team)
            # Compare as int32, as the observation's own dtype may be too small for the number of categories.
            categories = jnp.arange(self._categories).reshape(*(1,) * x.ndim, -1)
            return (x.astype(jnp.int32)[..., None] == categories).reshape(*x.shape[:-1], -1)

        return jax.tree.map(one_hot, obs)


class Flatten(_ObservationWrapper):
    """One float32 vector per member in place of the observation, which may be an array or a tree of arrays.

    Images, uint8 with three axes, are divided by 255, as networks do.

    Args:
      env: The environment.
    """

    def __init__(self, env: Env):
        super().__init__(env)
        self._team = team_of(env)

    def _shown(self, obs: PyTree) -> PyTree:
        def vector(x):
            image = is_image(x.dtype, x.shape[len(self._team) :])
            x = x.astype(jnp.float32) / 255 if image else x.astype(jnp.float32)
            return x.reshape(*self._team, math.prod(x.shape[len(self._team) :]))

        return jnp.concatenate([vector(leaf) for leaf in jax.tree.leaves(obs)], axis=-1)


class _Appended(_StepWrapper):
    """Wrapper that adds a vector from the last step to each member's observation.

    If the observation is a vector, the numbers are appended to it; else the two become entries of a dict.
    """

    _name: str  # key in the dict

    def __init__(self, env: Env):
        super().__init__(env)
        self._team, self._action_axes = team_of(env), action_axes(env)

    def _addition(self, step: Step, action: jax.Array) -> jax.Array:
        """Return the vector to add, float32 `[M, k]` (`[k]` for a single agent); it is zeros after a reset."""
        raise NotImplementedError

    def _changed(self, step: Step, action: jax.Array | None) -> Step:
        if action is None:
            last = jnp.zeros_like(self._addition(step, jnp.zeros(self._action_axes, jnp.int32)))
        else:
            last = self._addition(step, action)
        obs = step.obs
        if _is_vector(obs, self._team):
            obs = jnp.concatenate([obs, last.astype(obs.dtype)], axis=-1)
        elif isinstance(obs, dict) and {"obs"} <= obs.keys() <= {"obs", "last_action", "last_reward"} - {self._name}:
            obs = {**obs, self._name: last}  # the dict was made by the other wrapper of this kind
        else:
            obs = {"obs": obs, self._name: last}
        return step._replace(obs=obs)


class LastAction(_Appended):
    """Last action, appended one-hot to the observation that followed it; zeros after a reset.

    An observation that is no vector becomes a dict, `{"obs": observation, "last_action": float32 [A]}`. An action of D
    dimensions has D A numbers. Useful for networks with memory, which cannot otherwise know which actions were
    exploratory.

    Args:
      env: The environment.
    """

    _name = "last_action"

    def _addition(self, step: Step, action: jax.Array) -> jax.Array:
        return jax.nn.one_hot(action, self._env.num_actions).reshape(*self._team, -1)


class LastReward(_Appended):
    """Last reward, appended to the observation that came with it; 0 after a reset.

    An observation that is no vector becomes a dict, `{"obs": observation, "last_reward": float32 [1]}`; together with
    `LastAction`, in either order, it becomes one dict of three entries.

    Args:
      env: The environment.

    Raises:
      UserError: The observations are vectors, but not of floats.
    """

    _name = "last_reward"

    def __init__(self, env: Env):
        super().__init__(env)
        obs = _first(env).obs
        if _is_vector(obs, self._team) and not jnp.issubdtype(obs.dtype, jnp.floating):
            raise UserError(
                f"LastReward appends a float to the observation, which is {obs.dtype}; expected floats: "
                "put Flatten before LastReward"
            )

    def _addition(self, step: Step, action: jax.Array) -> jax.Array:
        return jnp.broadcast_to(jnp.asarray(step.reward, jnp.float32), (*self._team, 1))


WRAPPERS: dict[str, Callable[..., Env]] = {
    "time_limit": TimeLimit,
    "frame_stack": FrameStack,
    "clip_reward": ClipReward,
    "symlog_reward": SymlogReward,
    "one_hot": OneHot,
    "flatten": Flatten,
    "last_action": LastAction,
    "last_reward": LastReward,
}


def by_name(name: str, env: Env) -> Env:
    """Put one of `WRAPPERS` around an environment, by a name such as "last_action" or, with a number, "frame_stack=4".

    Raises:
      UserError: The wrapper is unknown, lacks its number or takes none, or does not suit this environment.
    """
    name, equals, number = name.partition("=")
    if name not in WRAPPERS:
        known = ", ".join(_usage(known) for known in WRAPPERS)
        raise UserError(f"unknown wrapper {name!r}{nearest(name, WRAPPERS)}; wrappers: {known}, or module:Name")
    if bool(equals) != ("=" in _usage(name)):
        raise UserError(f"wrapper {name}{equals}{number}: expected {_usage(name)}")
    if not equals:
        return WRAPPERS[name](env)
    try:
        value = float(number)
    except ValueError:
        raise UserError(f"wrapper {name}={number}: expected a number") from None
    return WRAPPERS[name](env, int(value) if value.is_integer() else value)


def by_path(word: str) -> Callable[[Any], Any]:
    """Return a wrapper by its import path, as "module:Name", or as "module:Name=4" with an argument.

    The argument is JSON, or else text. An object holds arguments by name, and lists become tuples.

    Raises:
      UserError: The path is malformed, the module cannot be imported, or it has no such name.
    """
    path, equals, text = word.partition("=")
    wrapper, value = import_object(path), _with_tuples(json_or_text(text))
    if isinstance(value, dict):
        return lambda env: wrapper(env, **value)
    return lambda env: wrapper(env, *([value] if equals else []))


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_tuples(each) for name, each in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def is_named(name: str) -> bool:
    """Return True if `by_name` knows this wrapper, with or without a number."""
    return name.partition("=")[0] in WRAPPERS


def _usage(name: str) -> str:
    """Return how to write a wrapper, as "flatten" or "frame_stack=<frames>"."""
    return "=".join([name, *(f"<{number}>" for number in list(inspect.signature(WRAPPERS[name]).parameters)[1:])])


def _whole(wrapper: str, name: str, value: Any) -> int:
    """Check that a value is a positive whole number, and return it as an int.

    Raises:
      UserError: The value is not a positive whole number that fits in int32.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
        raise UserError(f"{wrapper}: {name}={value!r}; expected a whole number from 1")
    return value


def _first(env: Env) -> Step:
    """Return the shapes and dtypes of the step that `reset` returns."""
    return jax.eval_shape(lambda: env.reset(jax.random.key(0)))[1]


def _described(obs: PyTree) -> str:
    leaves = jax.tree_util.tree_leaves_with_path(obs)
    return ", ".join(f"{jax.tree_util.keystr(path)} {x.dtype}{list(x.shape)}".lstrip() for path, x in leaves)


def _is_whole(leaf: Any) -> bool:
    """Return True if one member's array holds whole numbers and is no screen."""
    return jnp.issubdtype(leaf.dtype, jnp.integer) and not is_screen(leaf.dtype, leaf.shape)


def _is_vector(obs: PyTree, team: tuple[int, ...]) -> bool:
    return hasattr(obs, "dtype") and obs.ndim == len(team) + 1


def _with_channels(x: jax.Array, team: tuple[int, ...]) -> jax.Array:
    """Add an axis of size 1 to a number or a grid without channels, so that the last axis holds features."""
    return x[..., None] if x.ndim - len(team) in (0, 2) else x
