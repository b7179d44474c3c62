"""Parameters, and each moment of the optimiser, as one vector while a GPU learns.

A GPU needs a few microseconds to launch an operation, however small it is, and an optimiser does the same few
operations for every layer. On one vector it does them once. An optimiser may be given a vector only if it treats all
parameters alike, and says so by an attribute `elementwise`; all others see the layers. The values differ by rounding
only, as sums over all parameters are added in another order. Outside of `learn`, states have their usual form.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qlax.pqn import TrainState
from qlax.types import Network, PyTree

Change = Callable[[TrainState], TrainState]


class Form(NamedTuple):
    """Form of the state of one agent while it learns.

    Attributes:
      network: Network that takes parameters in this form.
      enter: Function from a state to one in this form.
      leave: Function from a state in this form to the usual one.
    """

    network: Network
    enter: Change
    leave: Change


def usual(network: Network) -> Form:
    """Return the form of states outside of `learn`."""
    return Form(network, lambda state: state, lambda state: state)


def fits(platform: str, optimizer: Any, params: PyTree) -> bool:
    """Tell whether parameters should become a vector: on GPUs, if the optimiser permits it and they are float32."""
    is_elementwise = getattr(optimizer, "elementwise", False)
    return platform == "gpu" and is_elementwise and all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))


def vector(network: Network, params: PyTree) -> Form:
    """Return the form in which parameters and moments are vectors.

    Args:
      network: Network whose parameters become a vector.
      params: Shapes of the parameters of one agent.
    """
    leaves, structure = jax.tree.flatten(params)
    sizes = [math.prod(leaf.shape) for leaf in leaves]
    ends = [sum(sizes[: n + 1]) for n in range(len(sizes) - 1)]

    def joined(tree: PyTree) -> jax.Array:
        return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(tree)])

    def divided(joint: jax.Array) -> PyTree:
        parts = jnp.split(joint, ends)
        return structure.unflatten([part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)])

    def is_tree(tree: PyTree) -> bool:
        return jax.tree.structure(tree) == structure

    def is_vector(leaf: PyTree) -> bool:
        return jnp.shape(leaf) == (sum(sizes),)

    def enter(state: TrainState) -> TrainState:
        moments = jax.tree.map(lambda x: joined(x) if is_tree(x) else x, state.opt_state, is_leaf=is_tree)
        return state._replace(params=joined(state.params), opt_state=moments)

    def leave(state: TrainState) -> TrainState:
        moments = jax.tree.map(lambda x: divided(x) if is_vector(x) else x, state.opt_state)
        return state._replace(params=divided(state.params), opt_state=moments)

    return Form(_OfVector(network, divided), enter, leave)
