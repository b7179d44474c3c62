"""Gymnax: classic control, bsuite, MinAtar and small tasks written in JAX.

Adapts gymnax 1.0, whose `step_env` neither resets nor knows the time limit.
"""

import dataclasses
import inspect

import jax
import jax.numpy as jnp

from qlax.envs.options import like_default
from qlax.errors import UserError, check_options, described, nearest
from qlax.imports import imported_when_used
from qlax.types import PyTree, Step

with imported_when_used("seaborn", "matplotlib.pyplot"):  # for drawings: nine tenths of the time it takes to import
    import gymnax
    from gymnax.environments import spaces

NEEDS_NETWORK = "MNISTBandit-bsuite"  # downloads its data when it is made


class Gymnax:
    """One Gymnax environment of discrete actions."""

    def __init__(self, env, params):
        self._env, self._params = env, params
        self._categories = getattr(env.observation_space(params), "n", None)
        self._is_binary = ".minatar." in type(env).__module__  # planes of 0 and 1, delivered as float32
        self.num_actions: int = env.num_actions
        self.time_limit = int(params.max_steps_in_episode)

    def reset(self, key: jax.Array) -> tuple[PyTree, Step]:
        """See `qlax.Env`."""
        obs, state = self._env.reset_env(key, self._params)
        return state, Step(self._observation(obs), None, jnp.float32(0), jnp.bool_(False), jnp.bool_(False), {})

    def step(self, key: jax.Array, state: PyTree, action: jax.Array) -> tuple[PyTree, Step]:
        """See `qlax.Env`."""
        obs, state, reward, terminated, _ = self._env.step_env(key, state, action, self._params)
        truncated = self._env.is_truncated(state, self._params)
        return state, Step(self._observation(obs), None, reward, terminated, truncated, {})

    def _observation(self, obs: jax.Array) -> jax.Array:
        """Categories as one-hot bool, counts as float32; the dtypes of Gymnax's spaces are not to be trusted."""
        if self._categories is not None:
            return jax.nn.one_hot(obs, self._categories, dtype=bool)
        return obs.astype(bool if self._is_binary else jnp.float32)


def names() -> list[str]:
    """The environments of discrete actions."""
    made = {name: gymnax.make(name) for name in gymnax.registered_envs if name != NEEDS_NETWORK}
    return [name for name, (env, params) in made.items() if isinstance(env.action_space(params), spaces.Discrete)]


def make(name: str, /, **options) -> Gymnax:
    """`options` are fields of the environment's parameters, such as `max_steps_in_episode`, or arguments of its class.

    Raises:
      UserError: unknown name or option, a continuous action space, or data that cannot be downloaded.
    """
    if name not in gymnax.registered_envs:
        raise UserError(
            f"gymnax has no environment {name!r}{nearest(name, gymnax.registered_envs)}; 'qlax envs gymnax' lists them"
        )
    try:
        env, params = gymnax.make(name)
    except OSError as error:
        raise UserError(f"gymnax/{name} downloads data, which failed: {error}") from error
    fields = {field.name for field in dataclasses.fields(params)}
    arguments = set(inspect.signature(type(env).__init__).parameters) - {"self", "args", "kwargs"}
    check_options(f"gymnax/{name}", options, fields | arguments)
    constructed = {option: value for option, value in options.items() if option in arguments}
    if constructed:
        try:
            env, params = gymnax.make(name, **constructed)
        except Exception as error:
            raise UserError(f"gymnax/{name} cannot be made with {constructed}: {described(error)}") from error
    changed = {option: value for option, value in options.items() if option in fields}
    params = params.replace(
        **{option: like_default(getattr(params, option), option, value) for option, value in changed.items()}
    )
    action_space = env.action_space(params)
    if not isinstance(action_space, spaces.Discrete):
        shape = action_space.shape
        raise UserError(f"gymnax/{name} has a continuous action space of shape {shape}; PQN needs discrete actions")
    return Gymnax(env, params)
