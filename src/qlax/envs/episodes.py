"""Bookkeeping of episodes for environments on the host that reset themselves."""

import numpy as np

from qlax.types import PyTree, Step


class Episodes:
    """Converter of a back end's steps to `Step`, which counts the returns and lengths of N environments' episodes.

    Back ends differ in when they reset. Most take one step for a reset: the step after the end of an episode ignores
    its action and returns the first observation of the next episode. The final observation of a truncated episode is
    then seen and learned from, and the step that resets is marked by `Step.truncated`. Other back ends reset in the
    same step in which an episode ends, and return the first observation of the next episode in place of the final
    one; the last transition of a truncated episode is then not learned from.

    Args:
      num_envs: Number of environments, N.
      reset_takes_a_step: True if the step after an end resets, False if the step that ends an episode does.

    Example:
      ```python
      episodes = qlax.Episodes(num_envs=2)
      step = episodes.begin(np.zeros((2, 3), np.float32))
      obs, reward, no = np.ones((2, 3), np.float32), np.ones(2), np.zeros(2, bool)
      step = episodes.step(obs, reward, terminated=no, truncated=~no)
      print(step.metrics["episode_return"])  # 1 and 1
      ```
    """

    def __init__(self, num_envs: int, *, reset_takes_a_step: bool = True):
        self._reset_takes_a_step = reset_takes_a_step
        self._nothing = np.full(num_envs, np.nan, np.float32)
        self._zeros, self._falses = np.zeros(num_envs, np.float32), np.zeros(num_envs, bool)

    def begin(self, obs: PyTree) -> Step:
        """Return the first steps of N new episodes.

        Args:
          obs: First observations, each array `[N, ...]`.
        """
        self._ended = self._falses
        # Of large rewards, float32 would drop the small ones that follow.
        self._return, self._length = self._zeros.astype(np.float64), self._zeros
        metrics = {"episode_return": self._nothing, "episode_length": self._nothing}
        return Step(obs, None, self._zeros, self._falses, self._falses, metrics)

    def step(self, obs: PyTree, reward: np.ndarray, terminated: np.ndarray, truncated: np.ndarray) -> Step:
        """Convert one step of the back end.

        Args:
          obs: Observations, each array `[N, ...]`.
          reward: Raw rewards, `[N]`.
          terminated: Bool `[N]`, True where the task ended.
          truncated: Bool `[N]`, True where a time limit cut the episode.

        Returns:
          The step with the meaning of `terminated` and `truncated` that `Step` defines, and with the metrics
          `episode_return` and `episode_length`.
        """
        acted = ~self._ended if self._reset_takes_a_step else ~self._falses
        reward = np.where(acted, reward, 0).astype(np.float32)
        terminated = terminated.astype(bool) & acted
        cut = truncated.astype(bool) & acted
        ended = terminated | cut
        self._return = np.where(self._ended, 0, self._return) + reward
        self._length = np.where(self._ended, 0, self._length) + acted.astype(np.float32)
        totals: dict[str, np.ndarray] = {"episode_return": self._return, "episode_length": self._length}
        metrics = {name: np.where(ended, value, np.nan).astype(np.float32) for name, value in totals.items()}
        self._ended = ended
        return Step(obs, None, reward, terminated, ~acted if self._reset_takes_a_step else cut, metrics)
