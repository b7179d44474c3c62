"""Gradients: their norm and clipping by it, in a form that is fast on CPUs too, and the optimisers that follow them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import muon as optax_muon

from qlax.types import PyTree


def sum_of_rows(x: jax.Array) -> jax.Array:
    """Sum `x [n, F]` over its rows: `[F]`.

    On a CPU, XLA adds the numbers of an array one after the other. A product with a vector of ones is faster there.
    """
    total: jax.Array = jax.lax.platform_dependent(
        x, cpu=lambda x: jnp.ones(len(x), x.dtype) @ x, default=lambda x: x.sum(0)
    )
    return total


def norm(tree: PyTree) -> jax.Array:
    """Return the square root of the sum of the squares of all numbers in a tree, as `optax.tree.norm`."""

    def squared(x: jax.Array) -> jax.Array:
        return sum_of_rows(jnp.square(jnp.abs(x)).reshape(-1, x.shape[-1] if x.ndim else 1)).sum()

    def by_rows(tree: PyTree) -> jax.Array:
        return jnp.sqrt(sum((squared(x) for x in jax.tree.leaves(tree) if x.size), jnp.float32(0)))

    found: jax.Array = jax.lax.platform_dependent(tree, cpu=by_rows, default=optax.tree.norm)
    return found


def clip_by_norm(maximum: float | jax.Array) -> optax.GradientTransformation:
    """Scale gradients whose norm is larger than `maximum` to that norm, as `optax.clip_by_global_norm`."""

    def clipped(grads: PyTree, params: PyTree | None) -> PyTree:
        del params
        length = norm(grads)
        return jax.tree.map(lambda x: jnp.where(length < maximum, x, x / length * maximum), grads)

    return optax.stateless(clipped)


def _clipped(make: Callable[..., optax.GradientTransformation], hyper: Any, num_gradient_steps: int) -> Any:
    """Make an Optax optimiser with clipped gradients, and a learning rate that is linear over `num_gradient_steps`."""
    end = hyper.learning_rate * hyper.learning_rate_end
    schedule = optax.linear_schedule(hyper.learning_rate, end, num_gradient_steps)
    return optax.chain(clip_by_norm(hyper.max_grad_norm), make(schedule))


def radam(hyper: Any, num_gradient_steps: int) -> Any:
    """Make the paper's optimiser: RAdam with clipped gradients, and a learning rate linear over `num_gradient_steps`.

    Args:
      hyper: `qlax.pqn.Hyper`, whose values may be traced.
      num_gradient_steps: Number of gradient steps of the whole run.
    """
    return _clipped(optax.radam, hyper, num_gradient_steps)


def adam(hyper: Any, num_gradient_steps: int) -> Any:
    """Make Adam (Kingma and Ba, 2015, arXiv:1412.6980); see `radam` for the arguments."""
    return _clipped(optax.adam, hyper, num_gradient_steps)


def adamw(hyper: Any, num_gradient_steps: int) -> Any:
    """Make AdamW with a weight decay of 1e-4 (Loshchilov and Hutter, 2019, arXiv:1711.05101); see `radam`."""
    return _clipped(optax.adamw, hyper, num_gradient_steps)


def muon(hyper: Any, num_gradient_steps: int) -> Any:
    """Make Muon for matrices and Adam for all other arrays (Jordan et al., 2024, kellerjordan.github.io/posts/muon).

    The length of a step is the learning rate, whatever the gradients; see `radam` for the arguments.
    """
    return _clipped(optax_muon, hyper, num_gradient_steps)


OPTIMIZERS = {"radam": radam, "adam": adam, "adamw": adamw, "muon": muon}
ELEMENTWISE = (radam, adam, adamw)  # the others treat matrices as such
