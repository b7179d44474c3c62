"""Environments with Gymnasium's interface and spaces as environments on the host."""

from typing import Any

import numpy as np
from gymnasium import spaces

from qlax.envs.episodes import Episodes
from qlax.envs.suites.masks import Masks
from qlax.errors import HostError, UserError
from qlax.networks.spaces import Action, Space, observation
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

    Attributes:
      described_spaces: Descriptions of both spaces, `observation` and `action`, for `qlax.networks.spaces`.

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
        described_choice = described_action(env_id, action_space)
        self._action = Action(described_choice)
        self.num_actions = self._action.num_actions
        self._masks = Masks(env_id, env, observation_space, action_space, num_envs, self.num_actions)
        described_shown = described(env_id, self._masks.space)
        self.described_spaces = {"observation": described_shown, "action": described_choice}
        self._convert = observation(described_shown, f"{env_id}: observation")
        self._episodes = Episodes(num_envs, reset_takes_a_step=reset_takes_a_step)
        self._shows_ends = reset_takes_a_step
        self.num_envs = num_envs

    def reset(self, seed: int) -> Step:
        """See `qlax.HostEnv`."""
        obs, info = self._env.reset(seed=seed)
        step = self._episodes.begin(self._converted(self._masks.shown(obs)))
        return step._replace(legal=self._masks.first(obs, info))

    def step(self, action: np.ndarray) -> Step:
        """See `qlax.HostEnv`."""
        obs, reward, terminated, truncated, info = self._env.step(self._action(action))
        step = self._episodes.step(self._converted(self._masks.shown(obs)), reward, terminated, truncated)
        is_end = (terminated | truncated).astype(bool) if self._shows_ends else np.zeros(self.num_envs, bool)
        return step._replace(legal=self._masks.following(obs, info, is_end))

    def close(self) -> None:
        """See `qlax.HostEnv`."""
        self._env.close()

    def _converted(self, obs: Any) -> PyTree:
        try:
            return self._convert(obs)
        except UserError as error:  # training has to save what it has, as after a crash
            raise HostError(str(error)) from error


def described(env_id: str, space: spaces.Space) -> Space:
    """Return the description of a space, see `qlax.networks.spaces`.

    Args:
      env_id: Name of the environment, for messages.
      space: Space of one environment.

    Raises:
      UserError: The space, or one of its parts, is of another kind.
    """
    if isinstance(space, spaces.Box):
        return {"type": "Box", "shape": list(space.shape), "dtype": str(space.dtype)}
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "shape": list(space.shape), "dtype": str(space.dtype)}
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": str(space.dtype)}
    if isinstance(space, spaces.MultiDiscrete):
        nvec, start = space.nvec.tolist(), space.start.tolist()
        return {"type": "MultiDiscrete", "nvec": nvec, "start": start, "dtype": str(space.dtype)}
    if isinstance(space, spaces.Dict):
        parts = {str(name): described(env_id, part) for name, part in space.spaces.items()}
        return {"type": "Dict", "spaces": parts}
    if isinstance(space, spaces.Tuple):
        return {"type": "Tuple", "spaces": [described(env_id, part) for part in space.spaces]}
    raise UserError(
        f"{env_id} has observations of {space}; expected Box, Discrete, MultiBinary, MultiDiscrete, Dict or Tuple"
    )


def described_action(env_id: str, space: spaces.Space) -> Space:
    """Return the description of an action space, as `described` does.

    Args:
      env_id: Name of the environment, for messages.
      space: Action space of one environment.

    Raises:
      UserError: The actions are not discrete, or there are more than `MAX_JOINT_ACTIONS` joint actions.
    """
    is_discrete = isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary)
    if not is_discrete or 0 in (space.shape or ()):
        raise UserError(f"{env_id} has actions of {space}; PQN needs discrete actions")
    description = described(env_id, space)
    num_actions = Action(description).num_actions
    if space.shape and num_actions > MAX_JOINT_ACTIONS:
        count = f"{env_id} has {num_actions:,} joint actions, of {space}"
        raise UserError(f"{count}; expected at most {MAX_JOINT_ACTIONS}: add a wrapper that leaves fewer")
    return description
