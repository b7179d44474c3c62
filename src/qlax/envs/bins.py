"""Continuous actions as a choice of one bin for each dimension, which makes them discrete."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qlax.envs.check.common import dimensions_of, team_of
from qlax.envs.wrappers import Wrapper
from qlax.errors import UserError
from qlax.networks.spaces import Space
from qlax.types import PyTree, Step

HINT = (
    "bins=3 divides each dimension into three values (--bins 3 on the command line); "
    "algorithm=pqn-continuous learns an actor (--algorithm pqn-continuous)"
)


class _Binned(Wrapper):
    """Environment whose continuous actions are discrete; see `Bins`."""

    action_bounds = None

    def __init__(self, env: Any, bins: int):
        super().__init__(env)
        self.num_actions, self.action_dimensions = bins, dimensions_of(env)
        low, high = (np.asarray(bound, np.float32) for bound in env.action_bounds)
        self._low, self._width = low, (high - low) / np.float32(bins - 1)
        values = low + np.arange(bins)[:, None] * self._width
        if (values == values[:, :1]).all():  # else the same bin has another value in another dimension
            self.action_names = tuple(f"{value:g}" for value in values[:, 0])
        continuous: Space = getattr(env, "described_spaces", {}).get("action") or {
            "type": "Box",
            "shape": [self.action_dimensions],
            "dtype": "float32",
            "low": low.tolist(),
            "high": high.tolist(),
        }
        self.described_spaces = getattr(env, "described_spaces", {}) | {"action": {**continuous, "bins": bins}}


class Bins(_Binned):
    """Environment in JAX whose continuous actions are discrete: each dimension is one of equally spaced values.

    The first value of a dimension is its lower bound and the last one its upper bound. An action of D dimensions is
    int32 `[D]`, of which each is 0 to `bins - 1`. PQN learns a value for each bin of each dimension, and combines the
    dimensions as it combines the members of a team: by their sum, or by their mean.

    Args:
      env: Environment with continuous actions, that is, with `action_bounds`.
      bins: Number of values of each dimension, at least 2: the two bounds.

    Source: Seyde et al., "Solving continuous control via Q-learning", 2023, arXiv:2210.12566.

    Example:
      ```python
      env = qlax.Bins(qlax.make("gymnax/Pendulum-v1"), bins=3)
      ```
    """

    def __init__(self, env: Any, bins: int):  # `Env` has `num_actions`, which continuous actions lack
        super().__init__(env, bins)

    def reset(self, key: jax.Array) -> tuple[PyTree, Step]:
        """See `qlax.Env`."""
        return self._env.reset(key)

    def step(self, key: jax.Array, state: PyTree, action: jax.Array, *shared: PyTree) -> tuple[PyTree, Step]:
        """See `qlax.Env`."""
        return self._env.step(key, state, jnp.asarray(self._low) + action * jnp.asarray(self._width), *shared)


class _HostBins(_Binned):
    """Environments on the host whose continuous actions are discrete; see `Bins`."""

    _env: Any

    def step(self, action: np.ndarray) -> Step:
        """See `qlax.HostEnv`."""
        return self._env.step(self._low + action * self._width)


def with_bins(env: Any, bins: int | None, env_id: str, algorithm: str = "pqn") -> Any:
    """Make the actions of an environment discrete, unless the algorithm is for continuous ones.

    Args:
      env: An `Env` or `HostEnv`.
      bins: Number of values of each dimension of continuous actions; None if the actions are discrete.
      env_id: Name of the environment, for messages.
      algorithm: Setting `algorithm`.

    Raises:
      UserError: The actions are not such as `bins` and the algorithm are for.
    """
    if getattr(env, "action_bounds", None) is None:
        if bins is None and algorithm == "pqn":
            return env
        count = f"{env.num_actions} actions" if not team_of(env) else f"{env.num_actions} actions of each member"
        name, value = ("algorithm", algorithm) if bins is None else ("bins", bins)
        raise UserError(f"{name}={value} is for continuous actions, but {env_id} has {count}; leave {name} out")
    if algorithm != "pqn":
        return env
    if bins is None:
        dimensions = f"{dimensions_of(env)} dimension{'s' if dimensions_of(env) > 1 else ''}"
        raise UserError(f"{env_id} has continuous actions of {dimensions}; {HINT}")
    return (_HostBins if hasattr(env, "num_envs") else Bins)(env, bins)
