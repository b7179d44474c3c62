"""Episodes of environments on the host that are reset by their back end."""

import numpy as np

from qlax.types import PyTree, Step


class Episodes:
    """Steps of N environments as the learner needs them, with the metrics of their episodes.

    Most back ends take a step for a reset: the step after an end ignores its action and shows the first observation
    of a new episode. So the last observation of an episode cut by a time limit is there to be learned from, and that
    the next one does not follow from it is said there. Some reset in the very step of the end, and show the new
    episode in place of the last observation: a cut episode's last step is then not learned from.

    Args:
      num_envs: N.
      reset_takes_a_step: whether it does, or happens in the step of the end.
    """

    def __init__(self, num_envs: int, *, reset_takes_a_step: bool = True):
        self._reset_takes_a_step = reset_takes_a_step
        self._nothing = np.full(num_envs, np.nan, np.float32)
        self._zeros, self._falses = np.zeros(num_envs, np.float32), np.zeros(num_envs, bool)

    def begin(self, obs: PyTree) -> Step:
        """Return the first steps of N new episodes."""
        self._ended = self._falses
        self._return, self._length = self._zeros, self._zeros
        metrics = {"episode_return": self._nothing, "episode_length": self._nothing}
        return Step(obs, None, self._zeros, self._falses, self._falses, metrics)

    def step(self, obs: PyTree, reward: np.ndarray, terminated: np.ndarray, truncated: np.ndarray) -> Step:
        """Turn the back end's step into the learner's.

        Args:
          obs: each `[N, ...]`.
          reward: `[N]`, raw.
          terminated: `[N]` bool, the task came to its end.
          truncated: `[N]` bool, a time limit cut the episode.
        """
        acted = ~self._ended if self._reset_takes_a_step else ~self._falses
        reward = np.where(acted, reward, 0).astype(np.float32)
        terminated = terminated.astype(bool) & acted
        cut = truncated.astype(bool) & acted
        ended = terminated | cut
        self._return = np.where(self._ended, 0, self._return) + reward
        self._length = np.where(self._ended, 0, self._length) + acted.astype(np.float32)
        metrics = {"episode_return": self._return, "episode_length": self._length}
        metrics = {name: np.where(ended, value, np.nan).astype(np.float32) for name, value in metrics.items()}
        self._ended = ended
        return Step(obs, None, reward, terminated, ~acted if self._reset_takes_a_step else cut, metrics)
