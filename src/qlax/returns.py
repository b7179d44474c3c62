"""Targets for value learning: pure functions of time-major arrays."""

import jax
import jax.numpy as jnp


def q_lambda(
    reward: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    value: jax.Array,
    gamma: jax.Array | float,
    lam: jax.Array | float,
) -> jax.Array:
    """Peng's Q(lambda) returns of a stretch of experience.

        G_t = r_t + gamma (1 - terminated_t) [(1 - lam) v_{t+1} + lam G_{t+1}],    G_T = v_T

    `r_t` is the reward for acting in `s_t`, and `v_t = max_a Q(s_t, a)`. After a truncated step the
    successor of `s_t` was never seen: there `G_t = v_t`, so that earlier steps bootstrap from `s_t`;
    the caller gives the step itself no weight. A step both terminated and truncated is terminated.

    Args:
      reward: `[T, ...]` float.
      terminated: `[T, ...]` bool, nothing follows step t.
      truncated: `[T, ...]` bool, what follows step t is not its successor.
      value: `[T + 1, ...]`, `v_0 .. v_T`: one array, so that `v_t` and `v_{t+1}` cannot be confused.
      gamma: discount, scalar.
      lam: scalar; 0 is one-step Q-learning, 1 the bootstrapped Monte-Carlo return.

    Returns:
      `[T + 1, ...]`, `G_0 .. G_T`.

    Source: Peng and Williams, "Incremental multi-step Q-learning", 1996; as used by Gallici et al.,
    "Simplifying deep temporal difference learning", 2024, arXiv:2407.04811, section 4.
    """

    def backward(g, step):
        reward, terminated, truncated, value, next_value = step
        g = reward + gamma * jnp.where(terminated, 0.0, (1 - lam) * next_value + lam * g)
        g = jnp.where(truncated & ~terminated, value, g)
        return g, g

    steps = (reward, terminated, truncated, value[:-1], value[1:])
    _, g = jax.lax.scan(backward, value[-1], steps, reverse=True)
    return jnp.concatenate([g, value[-1:]])
