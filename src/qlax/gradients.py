"""Norm of gradients, and clipping by it, with the arithmetic of Optax in a form that is fast on CPUs too."""

import jax
import jax.numpy as jnp
import optax

from qlax.types import PyTree


def norm(tree: PyTree) -> jax.Array:
    """Return the square root of the sum of the squares of all numbers in a tree, as `optax.tree.norm`.

    On a CPU, XLA sums all numbers of an array one at a time. Therefore sums over rows are products there.
    """

    def squared(x: jax.Array) -> jax.Array:
        rows = jnp.square(x).reshape(-1, x.shape[-1] if x.ndim else 1)
        return (jnp.ones(len(rows), rows.dtype) @ rows).sum()

    def products(tree: PyTree) -> jax.Array:
        return jnp.sqrt(sum(map(squared, jax.tree.leaves(tree))))

    return jax.lax.platform_dependent(tree, cpu=products, default=optax.tree.norm)


def clip_by_norm(maximum: float | jax.Array) -> optax.GradientTransformation:
    """Scale gradients whose norm is larger than `maximum` to that norm, as `optax.clip_by_global_norm`."""

    def clipped(grads: PyTree, params: PyTree | None) -> PyTree:
        del params
        length = norm(grads)
        return jax.tree.map(lambda x: jnp.where(length < maximum, x, x / length * maximum), grads)

    return optax.stateless(clipped)
