"""An environment for qlax, in JAX; replace the corridor by your own task."""

import jax
import jax.numpy as jnp
import qlax


class MyTask:
    """Walk right to the end of a corridor of ten cells within 100 steps."""

    num_actions = 2  # 0: left, 1: right
    time_limit = 100

    def reset(self, key):
        """Begin an episode; all randomness comes from the key."""
        state = jnp.int32(0), jnp.int32(0)  # position, time
        return state, self.show(*state)

    def step(self, key, state, action):
        """Take one step and never reset; use jnp.where instead of if."""
        state = jnp.maximum(state[0] + 2 * action - 1, 0), state[1] + 1
        return state, self.show(*state)

    def show(self, position, time):
        """Return what the agent observes of a state, its reward, and whether the episode ends."""
        obs, at_end, late = jax.nn.one_hot(position, 10), position == 9, time >= self.time_limit
        return qlax.Step(obs=obs, legal=None, reward=jnp.float32(at_end), terminated=at_end, truncated=late, metrics={})
