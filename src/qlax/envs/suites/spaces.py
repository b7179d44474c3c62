"""Environments with Gymnasium's interface and spaces as environments on the host."""

import functools
from typing import Any

import numpy as np
from gymnasium import spaces

from qlax.envs.episodes import Episodes
from qlax.envs.suites.masks import MASK, Masks
from qlax.errors import HostError, UserError
from qlax.networks.spaces import Space, action, observation
from qlax.types import PyTree, Step


class SpacesEnv:
    """Adapter that makes a vector environment with Gymnasium's interface a `qlax.HostEnv`.

    Args:
      env_id: Name of the environment, for messages.
      env: Vector environment of N environments, with the methods `reset(seed=...)`, `step` and `close`.
      observation_space: Observation space of one environment.
      action_space: Action space of one environment.
      num_envs: Number of environments, N.
      reset_takes_a_step: True if the step after the end of an episode resets, see `Episodes`.

    Attributes:
      described_spaces: The spaces `observation` and `action` as JSON, in the form of `qlax.networks.spaces`; and as
        `mask` the entry of observations that holds the legal actions, which `observation` leaves out.

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
        if isinstance(action_space, spaces.Box):
            self.action_bounds = tuple(np.array(described_choice[end], np.float32) for end in ("low", "high"))
            self._exists = np.ones(0, bool)
            self._action: Any = functools.partial(_in_box, action_space)
        else:
            self._action = action(described_choice)
            self.num_actions = self._action.num_actions
            if self._action.dimensions is not None:
                self.action_dimensions = self._action.dimensions
            whole = np.ones((self._action.dimensions or 1, self.num_actions), bool)
            self._exists = whole if self._action.exists is None else self._action.exists
        self._masks = Masks(env_id, env, observation_space, action_space, num_envs, int(self._exists.sum()))
        described_shown = described(env_id, self._masks.space)
        self.described_spaces: dict[str, Any] = {"observation": described_shown, "action": described_choice}
        if self._masks.in_observation:
            self.described_spaces["mask"] = MASK
        self._convert = observation(described_shown, f"{env_id}: observation")
        self._episodes = Episodes(num_envs, reset_takes_a_step=reset_takes_a_step)
        self._shows_ends = reset_takes_a_step
        self.num_envs = num_envs

    def reset(self, seed: int) -> Step:
        """See `qlax.HostEnv`."""
        obs, info = self._env.reset(seed=seed)
        step = self._episodes.begin(self._converted(self._masks.shown(obs)))
        return step._replace(legal=self._legal(self._masks.first(obs, info)))

    def step(self, action: np.ndarray) -> Step:
        """See `qlax.HostEnv`."""
        obs, reward, terminated, truncated, info = self._env.step(self._action(action))
        step = self._episodes.step(self._converted(self._masks.shown(obs)), reward, terminated, truncated)
        is_end = (terminated | truncated).astype(bool) if self._shows_ends else np.zeros(self.num_envs, bool)
        return step._replace(legal=self._legal(self._masks.following(obs, info, is_end)))

    def close(self) -> None:
        """See `qlax.HostEnv`."""
        self._env.close()

    def _legal(self, mask: np.ndarray | None) -> np.ndarray | None:
        """Return the legal actions `[N, A]`, or `[N, D, A]`, for those of all values that exist, `[N, number]`."""
        if mask is None and self._exists.all():
            return None
        legal = np.repeat(self._exists[None], self.num_envs, axis=0)
        if mask is not None:
            legal[legal] = mask.ravel()
        return legal if hasattr(self, "action_dimensions") else legal[:, 0]

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
      UserError: The space is of another kind, is empty or has no bounds.
    """
    kinds = spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary, spaces.Box
    if not isinstance(space, kinds) or 0 in (space.shape or ()):
        raise UserError(f"{env_id} has actions of {space}; expected Discrete, MultiDiscrete, MultiBinary or Box")
    if not isinstance(space, spaces.Box):
        return described(env_id, space)
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise UserError(f"{env_id} has actions without finite bounds, {space}; add a wrapper that sets bounds")
    bounds = {end: getattr(space, end).astype(np.float32).ravel().tolist() for end in ("low", "high")}
    return described(env_id, space) | bounds


def _in_box(space: spaces.Box, action: np.ndarray) -> np.ndarray:
    """Return continuous actions `[N, D]` in the shape and dtype of their space."""
    action = np.rint(action) if np.issubdtype(space.dtype, np.integer) else action
    return action.reshape(len(action), *space.shape).astype(space.dtype)
