"""An environment with Gymnasium's interface, for qlax; replace the corridor by your own task."""

import gymnasium
from gymnasium import spaces


class MyTask(gymnasium.Env):
    """Walk right to the end of a corridor of ten cells within 100 steps."""

    observation_space = spaces.Discrete(10)  # the network sees categories as one-hot
    action_space = spaces.Discrete(2)  # 0: left, 1: right

    def reset(self, *, seed=None, options=None):
        """Begin an episode; all randomness comes from self.np_random."""
        super().reset(seed=seed)
        self.position = 0
        return self.position, {}

    def step(self, action):
        """Take one step; Gymnasium checks the time limit."""
        self.position = max(self.position + 2 * int(action) - 1, 0)
        at_end = self.position == 9
        return self.position, float(at_end), at_end, False, {}


gymnasium.register("MyTask-v0", "my_task:MyTask", max_episode_steps=100)
