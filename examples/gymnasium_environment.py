"""A Gymnasium environment, registered under its own name: a greenhouse."""

import gymnasium
import numpy as np
from gymnasium import spaces

import qlax

REST, WATER, HEAT, AIR = 0, 1, 2, 3


class Greenhouse(gymnasium.Env):
    """Keep a plant neither cold nor hot, neither dry nor wet: it grows by 1 in each step in which all is well."""

    observation_space = spaces.Dict(
        {
            "warmth": spaces.Box(-1, 1, (1,), np.float32),
            "water": spaces.Box(-1, 1, (1,), np.float32),
            "weather": spaces.Discrete(3),
        }
    )
    action_space = spaces.Discrete(4)

    def reset(self, *, seed=None, options=None):
        """Begin with a new plant."""
        super().reset(seed=seed)
        self.warmth, self.water = self.np_random.uniform(-0.3, 0.3, size=2)
        self.weather = self.np_random.integers(3)  # cold, mild, hot
        return self.observed(), {}

    def step(self, action):
        """Take one step; the time limit is not checked here."""
        self.warmth += 0.1 * (self.weather - 1) + 0.2 * (action == HEAT) - 0.2 * (action == AIR)
        self.water += 0.4 * (action == WATER) - 0.1 - 0.1 * (self.weather == 2)
        if self.np_random.random() < 0.1:
            self.weather = self.np_random.integers(3)
        well = max(abs(self.warmth), abs(self.water)) < 0.4
        dead = max(abs(self.warmth), abs(self.water)) > 1
        return self.observed(), float(well), dead, False, {}

    def observed(self):
        """Return what the agent observes."""
        warmth, water = (np.clip([x], -1, 1).astype(np.float32) for x in (self.warmth, self.water))
        return {"warmth": warmth, "water": water, "weather": self.weather}


# Gymnasium checks the time limit, and truncates.
gymnasium.register("Greenhouse-v0", lambda **options: Greenhouse(**options), max_episode_steps=100)

if __name__ == "__main__":
    env = qlax.make("gymnasium/Greenhouse-v0", num_envs=8)
    qlax.check_env(env, num_steps=300)
    env.close()
    result = qlax.train("gymnasium/Greenhouse-v0", total_steps=50_000, num_envs=16, epsilon_fraction=0.5)
    print(result.summary["train_return"], result.summary["eval_return"])
