"""Sums over gradients, their norm and clipping by it, with usual arithmetic in a form that is fast on CPUs too."""

import jax
import jax.numpy as jnp
import optax

from qlax.types import PyTree


def sum_of_rows(x: jax.Array) -> jax.Array:
    """Sum `x [n, F]` over its rows: `[F]`.

    On a CPU, XLA sums all numbers of an array one at a time. Therefore the sum is a product there.
    """
    return jax.lax.platform_dependent(x, cpu=lambda x: jnp.ones(len(x), x.dtype) @ x, default=lambda x: x.sum(0))


def norm(tree: PyTree) -> jax.Array:
    """Return the square root of the sum of the squares of all numbers in a tree, as `optax.tree.norm`."""

    def squared(x: jax.Array) -> jax.Array:
        return sum_of_rows(jnp.square(jnp.abs(x)).reshape(-1, x.shape[-1] if x.ndim else 1)).sum()

    def by_rows(tree: PyTree) -> jax.Array:
        return jnp.sqrt(sum((squared(x) for x in jax.tree.leaves(tree) if x.size), jnp.float32(0)))

    return jax.lax.platform_dependent(tree, cpu=by_rows, default=optax.tree.norm)


def clip_by_norm(maximum: float | jax.Array) -> optax.GradientTransformation:
    """Scale gradients whose norm is larger than `maximum` to that norm, as `optax.clip_by_global_norm`."""

    def clipped(grads: PyTree, params: PyTree | None) -> PyTree:
        del params
        length = norm(grads)
        return jax.tree.map(lambda x: jnp.where(length < maximum, x, x / length * maximum), grads)

    return optax.stateless(clipped)
