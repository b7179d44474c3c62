"""Mixing: functions that combine the Q-values of a team's members into the values that are learned.

Axes: M team members, A actions; G learners, each with a target of its own: 1 for a team that learns together, M for
members that learn independently.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Mixing(NamedTuple):
    """Functions that combine the members' Q-values into those of each learner, the team or every member.

    Attributes:
      value: Function from `q [..., M, A]` and `legal`, bool of the same shape or None, to the value `[..., G]` of the
        best legal (joint) action.
      q: Function from `q [..., M, A]` and actions `[..., M]` to the Q-value `[..., G]` of the (joint) action.
    """

    value: Callable[..., jax.Array]
    q: Callable[..., jax.Array]


def only_legal(q: jax.Array, legal: jax.Array | None) -> jax.Array:
    """Replace the Q-values `[..., A]` of illegal actions by -inf; a row without a legal action is unchanged."""
    return q if legal is None else jnp.where(legal | ~legal.any(-1, keepdims=True), q, -jnp.inf)


def member_value(q: jax.Array, legal: jax.Array | None) -> jax.Array:
    """Return the value of each team member's own best legal action: `[..., M, A]` to `[..., M]`."""
    return only_legal(q, legal).max(-1)


def member_q(q: jax.Array, action: jax.Array) -> jax.Array:
    """Return the Q-value of each member's own action: `q [..., M, A]`, `action [..., M]` to `[..., M]`.

    The value of an action that does not exist is nan.
    """
    # A gather and its gradient take GPUs more operations.
    is_taken = jax.nn.one_hot(action, q.shape[-1], dtype=bool)
    exists = (action >= 0) & (action < q.shape[-1])
    return jnp.where(exists, jnp.where(is_taken, q, 0).sum(-1), jnp.nan)


def team_value(q: jax.Array, legal: jax.Array | None) -> jax.Array:
    """Sum each member's largest Q-value among its legal actions, as VDN does: `[..., M, A]` to `[..., 1]`."""
    return member_value(q, legal).sum(-1, keepdims=True)


def team_q(q: jax.Array, action: jax.Array) -> jax.Array:
    """Return the Q-value of a joint action in VDN, a sum over members: `[..., M, A]`, `[..., M]` to `[..., 1]`."""
    return member_q(q, action).sum(-1, keepdims=True)


def mean_value(q: jax.Array, legal: jax.Array | None) -> jax.Array:
    """Average each member's largest Q-value among its legal actions: `[..., M, A]` to `[..., 1]`."""
    return member_value(q, legal).mean(-1, keepdims=True)


def mean_q(q: jax.Array, action: jax.Array) -> jax.Array:
    """Return the Q-value of a joint action as a mean over members: `[..., M, A]`, `[..., M]` to `[..., 1]`."""
    return member_q(q, action).mean(-1, keepdims=True)


VDN = Mixing(team_value, team_q)
"""Value decomposition: a team is worth the sum of its members' values (Sunehag et al., 2017, arXiv:1706.05296)."""

MEAN = Mixing(mean_value, mean_q)
"""Mean in place of the sum, as in DecQN: a Q-value is as large as a return (Seyde et al., 2023, arXiv:2210.12566)."""

INDEPENDENT = Mixing(member_value, member_q)
"""Independent learners: every member learns its own Q from the team's reward (Tan, 1993)."""
