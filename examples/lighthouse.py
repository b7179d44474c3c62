"""A lighthouse: when to burn its oil, and when to fetch more."""

import jax
import jax.numpy as jnp

import qlax

WAIT, LIGHT, FETCH = 0, 1, 2
FAR = 6  # distance at which a ship comes in sight


class Lighthouse:
    """Ships come one at a time, at varying speed. A ship that passes a lit lamp pays 1; in the dark it wrecks.

    A wreck ends the episode. A full tank lets the lamp burn for `tank` steps. Fetching oil fills the tank, and the
    lamp is dark meanwhile.
    """

    num_actions = 3
    time_limit = 100

    def __init__(self, tank=3):
        self.tank = tank

    def reset(self, key):
        """Begin a new night; every night begins alike."""
        del key
        state = {"ship": jnp.int32(0), "oil": jnp.int32(self.tank), "time": jnp.int32(0), "saved": jnp.float32(0)}
        return state, self.show(state, saved=jnp.bool_(False), wrecked=jnp.bool_(False))

    def step(self, key, state, action):
        """Take one step; all randomness comes from the key."""
        key_speed, key_arrival = jax.random.split(key)
        at_sea = state["ship"] > 0
        ship = jnp.maximum(state["ship"] - jax.random.randint(key_speed, (), 1, 3), 0)  # 1 or 2 nearer
        passes = at_sea & (ship == 0)
        arrives = ~at_sea & jax.random.bernoulli(key_arrival)
        lit = action == LIGHT
        state = {
            "ship": jnp.where(arrives, FAR, ship),  # distance; 0 if none is in sight
            "oil": jnp.where(action == FETCH, self.tank, state["oil"] - lit),
            "time": state["time"] + 1,
            "saved": state["saved"] + (passes & lit),
        }
        return state, self.show(state, saved=passes & lit, wrecked=passes & ~lit)

    def show(self, state, saved, wrecked):
        """Return what the agent observes of a state."""
        ship, oil, time_is_up = state["ship"], state["oil"], state["time"] >= self.time_limit
        return qlax.Step(
            obs=jnp.concatenate([jax.nn.one_hot(ship, FAR + 1), jax.nn.one_hot(oil, self.tank + 1)]),
            legal=jnp.stack([jnp.bool_(True), oil > 0, oil < self.tank]),  # WAIT, LIGHT, FETCH
            reward=saved.astype(jnp.float32),
            terminated=wrecked,
            truncated=time_is_up,
            metrics={"saved": jnp.where(wrecked | time_is_up, state["saved"], jnp.nan)},
        )

    def score(self, episode_return):
        """Return the return in percent of a perfect keeper's, with the usual tank."""
        return 100 * episode_return / 15.7


if __name__ == "__main__":
    qlax.check_env(Lighthouse(), num_steps=300)
    result = qlax.train("lighthouse:Lighthouse", total_steps=300_000, epsilon_fraction=0.5)
    print(result.summary["eval_return"], result.summary["eval_score"])
