"""Targets for value learning, as pure functions of arrays with the time axis first."""

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
    """Compute Peng's Q(lambda) returns of a sequence of steps.

        G_t = r_t + gamma (1 - terminated_t) [(1 - lam) v_{t+1} + lam G_{t+1}],    G_T = v_T

    `r_t` is the reward for the action in state `s_t`, and `v_t = max_a Q(s_t, a)`. The successor of a truncated step
    is unknown; there `G_t = v_t`, so that earlier steps bootstrap from `s_t`, and the caller has to give the step
    itself no weight. A step that is both terminated and truncated counts as terminated.

    Args:
      reward: Rewards, float `[T, ...]`.
      terminated: Bool `[T, ...]`, True where the step led to a terminal state.
      truncated: Bool `[T, ...]`, True where the next entry is not the successor of the step.
      value: Values `v_0 .. v_T`, `[T + 1, ...]`, in one array so that `v_t` and `v_{t+1}` cannot be confused.
      gamma: Discount factor, a scalar.
      lam: Trace parameter lambda, a scalar; 0 is one-step Q-learning, 1 the bootstrapped Monte-Carlo return.

    Returns:
      Returns `G_0 .. G_T`, `[T + 1, ...]`.

    Source: Peng and Williams, "Incremental multi-step Q-learning", 1996; as used by Gallici et al.,
    "Simplifying deep temporal difference learning", 2024, arXiv:2407.04811, section 4.

    Example:
      ```python
      reward, value, no = jnp.ones((3, 1)), jnp.zeros((4, 1)), jnp.zeros((3, 1), bool)
      print(qlax.q_lambda(reward, no, no, value, gamma=1.0, lam=1.0))  # 3, 2, 1 and 0
      ```
    """

    def backward(g: jax.Array, step: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        reward, terminated, truncated, value, next_value = step
        g = reward + gamma * jnp.where(terminated, 0.0, (1 - lam) * next_value + lam * g)
        g = jnp.where(truncated & ~terminated, value, g)
        return g, g

    steps = (reward, terminated, truncated, value[:-1], value[1:])
    _, g = jax.lax.scan(backward, value[-1], steps, reverse=True)
    return jnp.concatenate([g, value[-1:]])


def q_lambda_at_once(
    reward: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    value: jax.Array,
    gamma: jax.Array | float,
    lam: jax.Array | float,
) -> jax.Array:
    """Compute `q_lambda` by an associative scan, for GPUs; finite results differ by rounding only.

    Every return is a linear function of the next, `G_t = a_t + b_t G_{t+1}`, and so is every composition of these.
    Arguments and result are those of `q_lambda`.
    """
    ends = terminated | truncated
    a = reward + gamma * jnp.where(terminated, 0.0, (1 - lam) * value[1:])
    a = jnp.where(truncated & ~terminated, value[:-1], a)
    b = jnp.where(ends, 0.0, gamma * lam)

    def after(later: tuple[jax.Array, jax.Array], earlier: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return earlier[0] + earlier[1] * later[0], earlier[1] * later[1]

    a, b = jax.lax.associative_scan(after, (a, b), reverse=True)
    return jnp.concatenate([a + b * value[-1:], value[-1:]])
