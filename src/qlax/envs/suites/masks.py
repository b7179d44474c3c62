"""Action masks of environments with Gymnasium's interface, from which the learner gets its legal actions."""

import math
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from qlax.errors import HostError
from qlax.networks.spaces import without
from qlax.util.text import shown

MASK = "action_mask"  # in `info`, as Taxi has it, or in observations, as PettingZoo has it
METHOD = "action_masks"  # as sb3-contrib has it


class Masks:
    """Action masks of N environments: 1 or True for each legal action.

    They are an entry `action_mask` of dict observations, or else what a method `action_masks()` returns, or else
    `info["action_mask"]`. Where one is missing in `info`, all actions are legal.

    Args:
      env_id: Name of the environment, for messages.
      env: Vector environment of N environments.
      observation_space: Observation space of one environment.
      action_space: Action space of one environment.
      num_envs: Number of environments, N.
      num_actions: Number of (joint) actions, A; or, where an action has dimensions, that of the values of all, in turn.

    Attributes:
      space: Observation space of one environment, without the mask.
      in_observation: True if observations hold the mask.
    """

    def __init__(
        self,
        env_id: str,
        env: Any,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        num_envs: int,
        num_actions: int,
    ):
        self._env_id, self._all = env_id, np.ones((num_envs, num_actions), bool)
        self._method = getattr(env, METHOD, getattr(getattr(env, "unwrapped", env), METHOD, None))
        self._is_given = False
        # Masks of several choices are also written one after the other, which may have the length of a joint mask.
        choices = _choices(action_space)
        is_joint = bool(choices) and math.prod(choices) == num_actions
        self._is_ambiguous = is_joint and len(choices) > 1 and sum(choices) == num_actions
        self._actions = f"each of its {num_actions} {'joint ' if is_joint else ''}actions of {action_space}"
        self.in_observation = isinstance(observation_space, spaces.Dict) and MASK in observation_space.spaces
        self.space = observation_space
        if self.in_observation:
            rest = without(MASK, observation_space.spaces)  # type: ignore[attr-defined]
            self.space = spaces.Dict(rest) if isinstance(rest, dict) else rest

    def shown(self, obs: Any) -> Any:
        """Return observations without the mask."""
        return without(MASK, obs) if self.in_observation else obs

    def first(self, obs: Any, info: dict[str, Any]) -> np.ndarray | None:
        """Return the legal actions after a reset, bool `[N, A]`; None if there are no masks.

        Args:
          obs: Observations, with the mask.
          info: Further information, as the environment returned it.

        Raises:
          HostError: A mask does not fit the actions.
        """
        legal = self._legal(obs, info)
        self._is_given = legal is not None
        return legal

    def following(self, obs: Any, info: dict[str, Any], is_end: np.ndarray) -> np.ndarray | None:
        """Return the legal actions after a step, as `first` does.

        Args:
          obs: See `first`.
          info: See `first`.
          is_end: Bool `[N]`, True where an episode ended and `obs` is its last observation, after which no action has
            to be legal.

        Raises:
          HostError: A mask does not fit the actions, or there was none after the reset.
        """
        legal = self._legal(obs, info)
        if not self._is_given:
            if legal is None:
                return None
            raise HostError(f"{self._env_id} has an action mask after a step, but not after a reset; expected both")
        legal = self._all if legal is None else legal
        return legal | (is_end & ~legal.any(-1))[:, None]

    def _legal(self, obs: Any, info: dict[str, Any]) -> np.ndarray | None:
        given = np.ones(len(self._all), bool)
        if self.in_observation:
            mask = obs[MASK]
        elif self._method is not None:
            mask = self._method()
        else:
            mask, given = info.get(MASK), info.get(f"_{MASK}", given)
        if mask is None:
            return None
        if self._is_ambiguous:
            entries = "which may be one for each joint action, or one for each choice"
            raise HostError(f"{self._env_id} has an action mask for {self._actions}, {entries}; expected no mask")
        try:
            if not isinstance(mask, np.ndarray) or mask.dtype == object or not np.all(given):
                pairs = zip(mask, given, strict=True)
                mask = np.stack([self._all[0] if row is None or not there else np.ravel(row) for row, there in pairs])
            rows = mask.reshape(len(self._all), -1)
            fits = rows.shape == self._all.shape and rows.dtype.kind in "biuf" and np.isin(rows, (0, 1)).all()
        except (TypeError, ValueError):  # no list, or lists of different lengths
            fits = False
        if not fits:
            raise HostError(f"{self._env_id} has the action mask {shown(mask)}; expected 0 or 1 for {self._actions}")
        return rows.astype(bool)


def alone() -> type[gymnasium.Wrapper]:
    """Return a wrapper of single environments whose `info` has the action mask and nothing else.

    Gymnasium stacks what environments have in `info`, and fails if it differs in kind or shape. The class is made
    in this function so that it is sent to other processes by value: importing it from this module would import JAX.
    """

    class Alone(gymnasium.Wrapper):
        def __init__(self, env: gymnasium.Env):
            super().__init__(env)
            self._method = env.get_wrapper_attr(METHOD) if env.has_wrapper_attr(METHOD) else None

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
            obs, info = self.env.reset(seed=seed, options=options)
            return obs, self._masked(info)

        def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
            obs, reward, terminated, truncated, info = self.env.step(action)
            return obs, reward, terminated, truncated, {} if terminated else self._masked(info)

        def _masked(self, info: dict[str, Any]) -> dict[str, Any]:
            mask = info.get(MASK) if self._method is None else self._method()
            return {} if mask is None else {MASK: [mask]}  # a list, as lists are not stacked

    return Alone


def _choices(space: spaces.Space) -> list[int]:
    """Return the number of options of each of several simultaneous choices; empty for a single one."""
    if isinstance(space, spaces.MultiBinary):
        return [2] * math.prod(space.shape)
    return space.nvec.ravel().tolist() if isinstance(space, spaces.MultiDiscrete) else []
