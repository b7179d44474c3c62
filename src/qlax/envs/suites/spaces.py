"""Conversion of Gymnasium's spaces: observations to arrays for networks, and actions to one discrete choice."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces

from qlax.envs.episodes import Episodes
from qlax.errors import UserError
from qlax.networks.names import is_image
from qlax.types import PyTree, Step

MAX_JOINT_ACTIONS = 256  # largest number of combinations of several simultaneous choices


class SpacesEnv:
    """Vector environment with Gymnasium's interface as a `qlax.HostEnv`.

    Args:
      env_id: Name of the environment, for messages.
      env: Vector environment of N environments, with the methods `reset(seed=...)`, `step` and `close`.
      observation_space: Observation space of one environment.
      action_space: Action space of one environment.
      num_envs: Number of environments, N.
      reset_takes_a_step: See `Episodes`.

    Raises:
      UserError: PQN cannot use the spaces.
    """

    def __init__(
        self,
        env_id: str,
        env: Any,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        num_envs: int,
        reset_takes_a_step: bool = True,
    ):
        self._env = env
        self._observation = observations(env_id, observation_space)
        self.num_actions, self._action = actions(env_id, action_space)
        self._episodes = Episodes(num_envs, reset_takes_a_step=reset_takes_a_step)
        self.num_envs = num_envs

    def reset(self, seed: int) -> Step:
        """See `qlax.HostEnv`."""
        obs, _ = self._env.reset(seed=seed)
        return self._episodes.begin(self._observation(obs))

    def step(self, action: np.ndarray) -> Step:
        """See `qlax.HostEnv`."""
        obs, reward, terminated, truncated, _ = self._env.step(self._action(action))
        return self._episodes.step(self._observation(obs), reward, terminated, truncated)

    def close(self) -> None:
        """See `qlax.HostEnv`."""
        self._env.close()


def observations(env_id: str, space: spaces.Space) -> Callable[[Any], PyTree]:
    """Return a function from a batch of observations, each array `[N, ...]`, to the arrays given to networks.

    Categories become one-hot bool and other numbers float32; bytes that are no image are divided by 255. An image,
    uint8 with three axes, stays uint8, and its channels are moved to the last axis (a view). A dict or tuple becomes
    one float32 vector, or a dict of its parts if one of them is an image.

    Args:
      env_id: Name of the environment, for messages.
      space: Observation space of one environment.

    Raises:
      UserError: The space is of another kind.
    """
    if isinstance(space, spaces.Discrete):
        return lambda x: np.asarray(x)[:, None] - space.start == np.arange(int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        return lambda x: _one_hots(np.asarray(x).reshape(len(x), -1) - space.start.ravel(), space.nvec.ravel())
    if isinstance(space, spaces.MultiBinary):
        return lambda x: np.asarray(x).astype(bool)
    if isinstance(space, spaces.Box):
        return _box(space)
    if isinstance(space, spaces.Dict | spaces.Tuple):
        named = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        parts = {name: (observations(env_id, part), _holds_image(part)) for name, part in named}
        if any(shows_image for _, shows_image in parts.values()):
            return lambda x: {str(name): part(x[name]) for name, (part, _) in parts.items()}
        return lambda x: np.concatenate([_vector(part(x[name])) for name, (part, _) in parts.items()], axis=-1)
    raise UserError(
        f"{env_id} has observations of {space}; expected Box, Discrete, MultiBinary, MultiDiscrete, Dict or Tuple"
    )


def actions(env_id: str, space: spaces.Space) -> tuple[int, Callable[[np.ndarray], np.ndarray]]:
    """Return the number of actions, and a function from actions `[N]`, numbered from 0, to those of the environment.

    Several simultaneous choices (MultiDiscrete, MultiBinary) become one joint action.

    Args:
      env_id: Name of the environment, for messages.
      space: Action space of one environment.

    Raises:
      UserError: The actions are not discrete, or there are more than `MAX_JOINT_ACTIONS` joint actions.
    """
    if isinstance(space, spaces.Discrete):
        return int(space.n), lambda action: action + space.start
    choices: tuple[int, ...] = ()
    start: Any = 0
    if isinstance(space, spaces.MultiDiscrete):
        choices, start = tuple(int(n) for n in space.nvec.ravel()), space.start
    elif isinstance(space, spaces.MultiBinary):
        choices = (2,) * math.prod(space.shape)
    if not choices:
        raise UserError(f"{env_id} has actions of {space}; PQN needs discrete actions")
    if math.prod(choices) > MAX_JOINT_ACTIONS:
        count = f"{env_id} has {math.prod(choices):,} joint actions, of {space}"
        raise UserError(f"{count}; expected at most {MAX_JOINT_ACTIONS}: add a wrapper that leaves fewer")

    shape = space.shape or ()

    def split(action):
        return np.stack(np.unravel_index(action, choices), axis=-1).reshape(len(action), *shape) + start

    return math.prod(choices), split


def _holds_image(space: spaces.Space) -> bool:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
        return any(_holds_image(part) for part in parts)
    return isinstance(space, spaces.Box) and is_image(space.dtype, space.shape)


def _box(space: spaces.Box) -> Callable[[Any], np.ndarray]:
    if not _holds_image(space):
        scale = np.float32(1 / 255) if space.dtype == np.uint8 else np.float32(1)
        return lambda x: np.asarray(x, np.float32) * scale
    if space.shape[0] <= 16 and space.shape[0] < min(space.shape[1:]):  # the first axis is frames or colours
        return lambda x: np.asarray(x).transpose(0, 2, 3, 1)
    return np.asarray


def _one_hots(x: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([x[:, i, None] == np.arange(size) for i, size in enumerate(sizes)], axis=-1)


def _vector(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1).astype(np.float32)
