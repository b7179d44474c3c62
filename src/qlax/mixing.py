"""How the values of a team's members make those of whoever has a target.

Axes: M team members, A actions; G learners, each with a target of its own: 1 a team, or M if its members learn apart.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Mixing(NamedTuple):
    """How the members' values make those of whoever has a target: the team, or each member."""

    value: Callable[..., jax.Array]  # q [..., M, A], legal -> value of the best (joint) action [..., G]
    q: Callable[..., jax.Array]  # q [..., M, A], action [..., M] -> Q of that (joint) action [..., G]


def only_legal(q: jax.Array, legal: jax.Array | None) -> jax.Array:
    """Illegal actions are worth -inf; a row without any legal action is left as it is. `[..., A]`."""
    return q if legal is None else jnp.where(legal | ~legal.any(-1, keepdims=True), q, -jnp.inf)


def member_value(q: jax.Array, legal: jax.Array | None) -> jax.Array:
    """Each member is worth its own best legal value. `[..., M, A]` -> `[..., M]`."""
    return only_legal(q, legal).max(-1)


def member_q(q: jax.Array, action: jax.Array) -> jax.Array:
    """Q of each member's own action. `[..., M, A]`, `[..., M]` -> `[..., M]`."""
    return jnp.take_along_axis(q, action[..., None], axis=-1)[..., 0]


def team_value(q: jax.Array, legal: jax.Array | None) -> jax.Array:
    """VDN: a team is worth the sum of its members' best legal values. `[..., M, A]` -> `[..., 1]`."""
    return member_value(q, legal).sum(-1, keepdims=True)


def team_q(q: jax.Array, action: jax.Array) -> jax.Array:
    """VDN: Q of a joint action is the sum over members. `[..., M, A]`, `[..., M]` -> `[..., 1]`."""
    return member_q(q, action).sum(-1, keepdims=True)


VDN = Mixing(team_value, team_q)  # Sunehag et al., 2017, arXiv:1706.05296
INDEPENDENT = Mixing(member_value, member_q)  # Tan, 1993: every member learns from the team's reward by itself
