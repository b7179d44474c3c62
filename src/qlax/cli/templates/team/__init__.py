"""An environment for a team, in JAX; replace the corridor by your own task."""

import jax
import jax.numpy as jnp
import qlax


class MyTask:
    """Two carry a table to the end of a corridor of ten cells within 100 steps; it moves only if both pull one way."""

    num_actions = 2  # of each member; 0: left, 1: right
    num_agents = 2
    time_limit = 100

    def reset(self, key):
        """Begin an episode; all randomness comes from the key."""
        state = jnp.int32(0), jnp.int32(0)  # position, time
        return state, self.show(*state)

    def step(self, key, state, action):
        """Take one step with the actions int32 [2] of both members; never reset, and use jnp.where instead of if."""
        pull = (2 * action - 1).sum() // 2  # -1 or 1 if both pull one way, otherwise 0
        state = jnp.maximum(state[0] + pull, 0), state[1] + 1
        return state, self.show(*state)

    def show(self, position, time):
        """Return what each member observes of a state, the team's reward, and whether the episode ends."""
        member = jnp.eye(self.num_agents)  # members share one network, so each observes which one it is
        place = jnp.tile(jax.nn.one_hot(position, 10), (self.num_agents, 1))
        obs, at_end, late = jnp.concatenate([place, member], axis=1), position == 9, time >= self.time_limit
        return qlax.Step(obs=obs, legal=None, reward=jnp.float32(at_end), terminated=at_end, truncated=late, metrics={})
