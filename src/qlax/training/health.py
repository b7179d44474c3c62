"""How learning goes, measured from a rollout beside the page: dead units, and what is not finite.

Axes as in `qlax.pqn`: T steps, N environments, M team members; L steps of a segment.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from qlax.pqn import Mean, Rollout, TrainState
from qlax.types import Network, PyTree

SAMPLE = 256  # rows that the network sees once more: a hundredth of what an update takes at the paper's settings


def measures(network: Network, state: TrainState, rollout: Rollout) -> dict[str, Mean]:
    """Metrics of an update, beside those of `learn`; may be mapped over states and rollouts.

    `dead_units`: the share of units, of dense layers and feature maps, whose activation is above 0 nowhere in a sample
    of the rollout: all steps of the first environments, as many as make up `SAMPLE` rows. Units are what a network
    gives as `self.sow("intermediates", "activation", x)`, with x float `[rows, ..., units]` or `[L, B, ..., units]`;
    without that, the metric is missing.

    Args:
      network: that of the learner.
      state: after learning.
      rollout: what was learned from.

    Source: Sokar et al., "The dormant neuron phenomenon", 2023, arXiv:2302.12902, definition 3.1, with tau = 0.
    """
    alive = [_ever_positive(x) for x in _activations(network, state, rollout)]
    return {"dead_units": Mean(1 - jnp.concatenate(alive).mean(dtype=jnp.float32), jnp.float32(1))} if alive else {}


def finite(tree: PyTree) -> jax.Array:
    """Whether every float of the tree is finite: a bool scalar."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    # One reduction a leaf, which nothing overflows: a maximum is nan where there is a nan.
    largest = [jnp.abs(x).max(initial=0) for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(x) for x in largest]).all() if largest else jnp.bool_(True)


def finite_rewards(rollout: Rollout) -> jax.Array:
    """Whether every reward that is learned from is finite; those of cut steps are not. A bool scalar."""
    steps = rollout.transitions
    return finite(jnp.where(steps.truncated & ~steps.terminated, 0.0, steps.reward))


def _activations(network: Network, state: TrainState, rollout: Rollout) -> list[jax.Array]:
    """What the network sows of a sample of the rollout, cut into segments as in `learn`."""
    if not isinstance(network, nn.Module):  # others cannot sow, and may not know of the collection
        return []
    steps = rollout.transitions
    T, N, M = jax.tree.leaves(steps.obs)[0].shape[:3]
    envs = min(N, math.ceil(SAMPLE / (T * M)))
    L = T if network.recurrent else 1
    B = T // L * envs * M

    def segments(x):  # [T, envs, M, ...] -> [L, B, ...]
        return x[:, :envs].reshape(L, B, *x.shape[3:])

    obs = jax.tree.map(segments, steps.obs)
    first = segments(jnp.repeat(steps.first[..., None], M, axis=-1))
    memory = jax.tree.map(lambda x: x[:envs].reshape(envs * M, *x.shape[2:]), rollout.memory)
    variables = {"params": state.params, **state.stats}
    _, sown = network.apply(variables, memory, obs, first, False, mutable=["intermediates"])
    return [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(sown)
        if jax.tree_util.DictKey("activation") in path and _has_rows(leaf, L, B)
    ]


def _has_rows(leaf: PyTree, L: int, B: int) -> bool:
    """Whether it is a float array `[L * B, ..., units]` or `[L, B, ..., units]`."""
    if not isinstance(leaf, jax.Array) or not jnp.issubdtype(leaf.dtype, jnp.floating):
        return False
    return (leaf.ndim > 1 and len(leaf) == L * B) or (leaf.ndim > 2 and leaf.shape[:2] == (L, B))


def _ever_positive(x: jax.Array) -> jax.Array:
    """Of each unit, over all other axes: `[..., units]` -> `[units]` bool."""
    return (x > 0).any(range(x.ndim - 1))
