"""Wrappers around an `Env`: pure functions of its steps. Everything else is the environment's own.

In Python a class, `TimeLimit(env, 500)`; by name `qlax.wrap(env, ["time_limit=500"])` or `--wrappers time_limit=500`.
A factor of rewards is none of them but the hyper-parameter `reward_scale`, which can be swept.

Shapes are those of one environment: M team members first, if it is a team; then those of a member's array.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qlax.envs.check.common import ACCOUNTS, team_of
from qlax.errors import UserError, nearest
from qlax.networks.names import is_image, is_screen
from qlax.types import Env, PyTree, Step


class Wrapper:
    """Environment around another one, which provides all that is not defined here, optional attributes included."""

    def __init__(self, env: Env):
        self._env = env

    def __getattr__(self, name: str) -> Any:
        if name == "_env":  # not there yet, as while it is copied
            raise AttributeError(name)
        return getattr(self._env, name)


class _OfSteps(Wrapper):
    """Wrapper that changes every step by `_changed`, and keeps nothing."""

    def reset(self, key: jax.Array) -> tuple[PyTree, Step]:
        """See `qlax.Env`."""
        state, step = self._env.reset(key)
        return state, self._changed(step, None)

    def step(self, key: jax.Array, state: PyTree, action: jax.Array, *shared: PyTree) -> tuple[PyTree, Step]:
        """See `qlax.Env`."""
        state, step = self._env.step(key, state, action, *shared)
        return state, self._changed(step, action)

    def _changed(self, step: Step, action: jax.Array | None) -> Step:
        """Change a step; of a reset the action is None."""
        raise NotImplementedError


class _WithState(Wrapper):
    """Wrapper whose state holds that of the environment, as `env`."""

    def __init__(self, env: Env):
        super().__init__(env)
        if hasattr(env, "render"):
            self.render: Callable[[Any], np.ndarray] = lambda state: env.render(state.env)


class Limited(NamedTuple):
    """State of `TimeLimit`."""

    env: PyTree
    steps: jax.Array  # int32, taken in this episode


class TimeLimit(_WithState):
    """Time limit: episodes are cut after so many steps, unless they end before.

    Args:
      env: the environment; a limit of its own stays, where that comes first.
      steps: of an episode.

    Raises:
      UserError: not a whole number from 1, or the environment keeps accounts of its episodes itself.
    """

    def __init__(self, env: Env, steps: int):
        super().__init__(env)
        self._steps = _whole("TimeLimit", "steps", steps)
        self.time_limit = min(steps, getattr(env, "time_limit", None) or steps)
        for metric in ACCOUNTS:
            if metric in _first(env).metrics:
                raise UserError(f"TimeLimit: the environment reports {metric} itself, but not where this limit falls")

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
    """State of `FrameStack`."""

    env: PyTree
    obs: PyTree  # as last shown


class FrameStack(_WithState):
    """Stack of the last observations, oldest first; the first one of an episode is repeated.

    Those of a vector `[k]` are one vector `[frames * k]`, those of a grid with channels `[H, W, C]` one grid
    `[H, W, frames * C]`. A number becomes a vector and a grid without channels `[H, W]` gets them: `[H, W, frames]`.
    Of a tree each array is stacked.

    Args:
      env: the environment.
      frames: how many.

    Raises:
      UserError: not a whole number from 1.
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


class TransformReward(_OfSteps):
    """Function of the environment's reward; episode returns stay those of the raw rewards.

    Args:
      env: the environment.
      function: of a float32 scalar, traced by JAX; not asked where nothing was done yet, after a reset.
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
      env: the environment.
      bound: above 0.

    Raises:
      UserError: it is not.
    """

    def __init__(self, env: Env, bound: float):
        if isinstance(bound, bool) or not isinstance(bound, int | float) or not 0 < bound < math.inf:
            raise UserError(f"ClipReward: bound={bound!r}; expected a number above 0")
        super().__init__(env, lambda reward: jnp.clip(reward, -bound, bound))


class SymlogReward(TransformReward):
    """Rewards squashed so that large ones count less: `sign(r) log(1 + |r|)`.

    Source: Hafner et al., "Mastering diverse domains through world models", 2023, arXiv:2301.04104.

    Args:
      env: the environment.
    """

    def __init__(self, env: Env):
        super().__init__(env, lambda reward: jnp.sign(reward) * jnp.log1p(jnp.abs(reward)))


class _ObservationWrapper(_OfSteps):
    """Wrapper that changes every observation by `_shown`."""

    def _changed(self, step: Step, action: jax.Array | None) -> Step:
        return step._replace(obs=self._shown(step.obs))

    def _shown(self, obs: PyTree) -> PyTree:
        raise NotImplementedError


class OneHot(_ObservationWrapper):
    """One-hot bool in place of whole numbers from 0: one that is none of the categories is False in all of them.

    A number becomes a vector `[categories]`, a vector `[k]` one vector `[k * categories]`, and a grid gets them as
    channels: `[H, W]` becomes `[H, W, categories]` and `[H, W, C]` becomes `[H, W, C * categories]`. Of a tree each
    array of whole numbers does, and the others stay; so do screens, uint8 with three axes and at least 36 x 36.

    Args:
      env: the environment.
      categories: how many.

    Raises:
      UserError: not a whole number from 1, or no array of whole numbers is there.
    """

    def __init__(self, env: Env, categories: int):
        super().__init__(env)
        self._categories = _whole("OneHot", "categories", categories)
        self._team = team_of(env)
        obs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[len(self._team) :], x.dtype), _first(env).obs)
        if not any(_is_whole(leaf) for leaf in jax.tree.leaves(obs)):
            raise UserError(
                f"OneHot is for observations of whole numbers, screens aside; this one is {_described(obs)}"
            )

    def _shown(self, obs: PyTree) -> PyTree:
        def one_hot(x):
            if not _is_whole(jax.ShapeDtypeStruct(x.shape[len(self._team) :], x.dtype)):
                return x
            x = _with_channels(x, self._team)
            # As int32, for there may be more categories than the observation's own dtype can count.
            categories = jnp.arange(self._categories).reshape(*(1,) * x.ndim, -1)
            return (x.astype(jnp.int32)[..., None] == categories).reshape(*x.shape[:-1], -1)

        return jax.tree.map(one_hot, obs)


class Flatten(_ObservationWrapper):
    """One float32 vector a member in place of every observation, an array or a tree of them.

    The numbers are those that a network is given: images, uint8 with three axes, are divided by 255.

    Args:
      env: the environment.
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


class _Appended(_OfSteps):
    """Something of the last step with each member's observation: behind it, if it is a vector; else in a dict."""

    _name: str  # in the dict

    def __init__(self, env: Env):
        super().__init__(env)
        self._team = team_of(env)

    def _of_last_step(self, step: Step, action: jax.Array) -> jax.Array:
        """`[M, k]` (`[k]` for a single agent) float32; zeros take its place after a reset."""
        raise NotImplementedError

    def _changed(self, step: Step, action: jax.Array | None) -> Step:
        if action is None:
            last = jnp.zeros_like(self._of_last_step(step, jnp.zeros(self._team, jnp.int32)))
        else:
            last = self._of_last_step(step, action)
        obs = step.obs
        if _is_vector(obs, self._team):
            obs = jnp.concatenate([obs, last.astype(obs.dtype)], axis=-1)
        elif isinstance(obs, dict) and {"obs"} <= obs.keys() <= {"obs", "last_action", "last_reward"} - {self._name}:
            obs = {**obs, self._name: last}  # of the other wrapper
        else:
            obs = {"obs": obs, self._name: last}
        return step._replace(obs=obs)


class LastAction(_Appended):
    """Last action, one-hot behind the observation that it led to; zeros after a reset.

    An observation that is no vector becomes a dict, `{"obs": observation, "last_action": float32 [A]}`. For networks
    with memory, which otherwise cannot know what was explored.

    Args:
      env: the environment.
    """

    _name = "last_action"

    def _of_last_step(self, step: Step, action: jax.Array) -> jax.Array:
        return jax.nn.one_hot(action, self._env.num_actions)


class LastReward(_Appended):
    """Last reward, behind the observation that it came with; 0 after a reset.

    An observation that is no vector becomes a dict, `{"obs": observation, "last_reward": float32 [1]}`; with
    `LastAction` around it or within, one dict of three.

    Args:
      env: the environment.

    Raises:
      UserError: its observations are vectors, but not of floats.
    """

    _name = "last_reward"

    def __init__(self, env: Env):
        super().__init__(env)
        obs = _first(env).obs
        if _is_vector(obs, self._team) and not jnp.issubdtype(obs.dtype, jnp.floating):
            raise UserError(
                f"LastReward appends a number to an observation of floats; this one is {obs.dtype}: put Flatten within"
            )

    def _of_last_step(self, step: Step, action: jax.Array) -> jax.Array:
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
    """Put one of `WRAPPERS` around an environment, as "last_action" or, with its number, "frame_stack=4".

    Raises:
      UserError: unknown, without the number it needs or with one it has no use for, or not for this environment.
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


def is_named(name: str) -> bool:
    """Tell whether `by_name` knows this wrapper, with or without its number."""
    return name.partition("=")[0] in WRAPPERS


def _usage(name: str) -> str:
    """Return how a wrapper is written, as "flatten" or "frame_stack=<frames>"."""
    return "=".join([name, *(f"<{number}>" for number in list(inspect.signature(WRAPPERS[name]).parameters)[1:])])


def _whole(wrapper: str, name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
        raise UserError(f"{wrapper}: {name}={value!r}; expected a whole number from 1")
    return value


def _first(env: Env) -> Step:
    """Shapes and dtypes of the step that `reset` shows."""
    return jax.eval_shape(lambda: env.reset(jax.random.key(0)))[1]


def _described(obs: PyTree) -> str:
    leaves = jax.tree_util.tree_leaves_with_path(obs)
    return ", ".join(f"{jax.tree_util.keystr(path)} {x.dtype}{list(x.shape)}".lstrip() for path, x in leaves)


def _is_whole(leaf: Any) -> bool:
    """Whether a member's array holds whole numbers, and not an image for a network."""
    return jnp.issubdtype(leaf.dtype, jnp.integer) and not is_screen(leaf.dtype, leaf.shape)


def _is_vector(obs: PyTree, team: tuple[int, ...]) -> bool:
    return hasattr(obs, "dtype") and obs.ndim == len(team) + 1


def _with_channels(x: jax.Array, team: tuple[int, ...]) -> jax.Array:
    """An array whose last axis holds features: a number and a grid of two axes get one for it."""
    return x[..., None] if x.ndim - len(team) in (0, 2) else x
