"""Parameters, and each moment of the optimiser, as one vector while a GPU learns.

A GPU needs a few microseconds to launch an operation, however small it is, and an optimiser does the same few
operations for every layer. On one vector it does them once. An optimiser may be given a vector only if it treats all
parameters alike, and says so by an attribute `elementwise`; all others see the layers. The values differ by rounding
only, as sums over all parameters are added in another order. Outside of `learn`, states have their usual form.
"""

import itertools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qlax.learning.gradients import ELEMENTWISE
from qlax.learning.heads import head_of
from qlax.pqn import TrainState
from qlax.types import Network, PyTree


def _same(x: Any) -> Any:
    return x


class Form(NamedTuple):
    """Form of an agent's state while it learns; by default the usual one.

    Attributes:
      enter: Function from a state in the usual form to one in this form.
      leave: Function from a state in this form to the usual one.
      network: Function from a network to the same network with parameters in this form.
    """

    enter: Callable[[TrainState], TrainState] = _same
    leave: Callable[[TrainState], TrainState] = _same
    network: Callable[[Network], Network] = _same


USUAL = Form()


def chosen(platform: str, optimizer: Any, params: PyTree, opt_state: PyTree) -> Form:
    """Return the form for a device: with vectors on a GPU if the optimiser permits it, else the usual form.

    Args:
      platform: Platform of the device, such as "cpu" or "gpu".
      optimizer: Function that makes the optimiser, see `qlax.pqn.make`.
      params: Shapes of the parameters of one agent.
      opt_state: Shapes of its optimiser's state.
    """
    leaves = jax.tree.leaves(params)
    is_alike = getattr(optimizer, "elementwise", optimizer in ELEMENTWISE) and all(
        leaf.dtype == jnp.float32 for leaf in leaves
    )
    return _of_vectors(params, opt_state) if platform == "gpu" and is_alike and len(leaves) > 1 else USUAL


def _of_vectors(params: PyTree, usual: PyTree) -> Form:
    leaves = jax.tree.leaves(params)
    structure: Any = jax.tree.structure(params)
    shapes = [leaf.shape for leaf in leaves]
    ends = list(itertools.accumulate(math.prod(leaf.shape) for leaf in leaves))

    def joined(tree: PyTree) -> jax.Array:
        return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(tree)])

    def divided(vector: jax.Array) -> PyTree:
        parts = jnp.split(vector, ends[:-1])
        return structure.unflatten(part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True))

    def is_moment(tree: PyTree) -> bool:
        return jax.tree.structure(tree) == structure and [leaf.shape for leaf in jax.tree.leaves(tree)] == shapes

    def of_moments(function: Callable[[Any], Any], opt_state: PyTree) -> PyTree:
        """Apply a function to the parts of the optimiser's state that are trees of the parameters' form by default."""
        return jax.tree.map(lambda part, x: function(x) if is_moment(part) else x, usual, opt_state, is_leaf=is_moment)

    def enter(state: TrainState) -> TrainState:
        return state._replace(params=joined(state.params), opt_state=of_moments(joined, state.opt_state))

    def leave(state: TrainState) -> TrainState:
        return state._replace(params=divided(state.params), opt_state=of_moments(divided, state.opt_state))

    def of_vector(network: Network) -> Any:
        def apply(variables: dict[str, PyTree], *arguments: Any, **options: Any) -> Any:
            return network.apply(variables | {"params": divided(variables["params"])}, *arguments, **options)

        return SimpleNamespace(recurrent=network.recurrent, head=head_of(network), apply=apply)

    return Form(enter, leave, of_vector)
