"""What can be put around an `Env`: pure functions of its steps. Everything else is the environment's own."""

from typing import Any

import jax
import jax.numpy as jnp

from qlax.errors import UserError
from qlax.types import Env, PyTree, Step


class Wrapper:
    """An environment like the one inside; what it does not define is the other's, optional attributes included."""

    def __init__(self, env: Env):
        self._env = env

    def __getattr__(self, name: str) -> Any:
        if name == "_env":  # not there yet, as while it is copied
            raise AttributeError(name)
        return getattr(self._env, name)


class _Appended(Wrapper):
    """Each member's observation, a vector, with something of the last step behind it."""

    def __init__(self, env: Env):
        super().__init__(env)
        self._team = (env.num_agents,) if hasattr(env, "num_agents") else ()
        _, step = jax.eval_shape(env.reset, jax.random.key(0))
        shape = getattr(step.obs, "shape", None)
        if shape is None or len(shape) != len(self._team) + 1:
            what = "a tree of arrays" if shape is None else f"an array of shape {list(shape)}"
            name = type(self).__name__
            raise UserError(f"{name} appends to an observation that is a vector a member; this one is {what}")

    def reset(self, key: jax.Array) -> tuple[PyTree, Step]:
        """See `qlax.Env`."""
        state, step = self._env.reset(key)
        return state, self._append(step, jnp.zeros_like(self._of_last_step(step, jnp.zeros(self._team, jnp.int32))))

    def step(self, key: jax.Array, state: PyTree, action: jax.Array, *shared: PyTree) -> tuple[PyTree, Step]:
        """See `qlax.Env`."""
        state, step = self._env.step(key, state, action, *shared)
        return state, self._append(step, self._of_last_step(step, action))

    def _of_last_step(self, step: Step, action: jax.Array) -> jax.Array:
        """`[M, k]` (`[k]` for a single agent); zeros take its place after a reset."""
        raise NotImplementedError

    def _append(self, step: Step, last: jax.Array) -> Step:
        return step._replace(obs=jnp.concatenate([step.obs, last.astype(step.obs.dtype)], axis=-1))


class LastAction(_Appended):
    """The action that led to an observation is one-hot behind it; zeros after a reset.

    For networks with memory, which otherwise cannot know what was explored.

    Args:
      env: whose observations are vectors.

    Raises:
      UserError: they are not.
    """

    def _of_last_step(self, step: Step, action: jax.Array) -> jax.Array:
        return jax.nn.one_hot(action, self._env.num_actions)


class LastReward(_Appended):
    """The reward that came with an observation is behind it; 0 after a reset.

    Args:
      env: whose observations are vectors of floats.

    Raises:
      UserError: they are not.
    """

    def __init__(self, env: Env):
        super().__init__(env)
        dtype = jax.eval_shape(env.reset, jax.random.key(0))[1].obs.dtype
        if not jnp.issubdtype(dtype, jnp.floating):
            raise UserError(f"LastReward appends a number to an observation of floats; this one is {dtype}")

    def _of_last_step(self, step: Step, action: jax.Array) -> jax.Array:
        return jnp.broadcast_to(step.reward, (*self._team, 1))


WRAPPERS = {"last_action": LastAction, "last_reward": LastReward}
