"""Environments of Gymnasium that return random observations of their spaces, and check every action."""

import gymnasium
import numpy as np
from gymnasium import spaces


class Shown(gymnasium.Env):
    """Environment of ten steps with random observations of its space; after `after` steps it returns `odd` instead."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012  # as in Gymnasium

    def __init__(self, observation_space, action_space, odd=None, after=0, render_mode=None):
        self.observation_space, self.action_space = observation_space, action_space
        self.odd, self.after, self.render_mode = odd, after, render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self.time = 0
        return self.observed(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.time += 1
        return self.observed(), float(self.time % 3), self.time == 10, False, {}

    def render(self):
        return np.zeros((4, 4, 3), np.uint8)

    def observed(self):
        return self.observation_space.sample() if self.odd is None or self.time < self.after else self.odd


BYTES = spaces.Box(0, 255, (4,), np.uint8)
PARTS = spaces.Dict(
    {
        "bits": spaces.MultiBinary(2),
        "bytes": BYTES,
        "frames": spaces.Box(0, 255, (2, 5, 6), np.uint8),
        "kind": spaces.Tuple((spaces.Discrete(3, start=-1), spaces.MultiDiscrete([2, 2], start=[0, 5]))),
    }
)
for name, shown in {
    "Parts-v0": (PARTS, spaces.MultiDiscrete([2, 3], start=[0, 5])),
    "Category-v0": (spaces.Discrete(3), spaces.Discrete(2)),
}.items():
    gymnasium.register(name, lambda shown=shown, **options: Shown(*shown, **options))
