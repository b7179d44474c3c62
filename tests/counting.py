"""Environment whose steps are easy to predict, for the tests of the contract and of `Vec`."""

import jax
import jax.numpy as jnp

from qlax.types import Step

STOP = 2  # action that ends the episode


class Counting:
    """Environment that shows its start and the number of steps since then; the reward is the action.

    An episode terminates at the length that its start picks from `lengths`, or by the action STOP. Past `time_limit`
    the reward is infinite and the count is nan, so that tests notice a step that should be ignored.
    """

    num_actions = 3

    def __init__(self, lengths=(1000,), time_limit=1000, random_starts=True):
        self.lengths, self.time_limit, self.random_starts = jnp.array(lengths), time_limit, random_starts

    def reset(self, key):
        start = jax.random.randint(key, (), 0, 1 << 20) if self.random_starts else jnp.int32(0)
        state = {"start": start, "count": jnp.int32(0)}
        return state, self._show(state, jnp.float32(0), jnp.bool_(False), jnp.float32(jnp.nan))

    def step(self, key, state, action):
        del key
        state = {"start": state["start"], "count": state["count"] + 1}
        length = self.lengths[state["start"] % len(self.lengths)]
        reward = jnp.where(state["count"] > self.time_limit, jnp.inf, action.astype(jnp.float32))
        terminated = (state["count"] >= length) | (action == STOP)
        return state, self._show(state, reward, terminated, state["count"].astype(jnp.float32))

    def _show(self, state, reward, terminated, count):
        shown = jnp.where(state["count"] > self.time_limit, jnp.nan, state["count"])
        obs = jnp.array([state["start"], shown], jnp.float32)
        return Step(obs, None, reward, terminated, state["count"] >= self.time_limit, {"count": count})
