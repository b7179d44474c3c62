"""What is measured of updates, and the guard that freezes a run whose numbers are no longer finite.

Axes as in `qlax.pqn`: T steps, N environments, M team members; L steps of a segment.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from qlax.config.settings import Config
from qlax.pqn import PQN, Mean, Rollout, TrainState
from qlax.storage import measurements
from qlax.types import Array, Network, PyTree

SAMPLE = 256  # rows that the network sees once more: a hundredth of what an update takes at the paper's settings


class Record(NamedTuple):
    """Of one run; `[R]` of several."""

    sums: dict[str, Mean]  # over the updates since the last line of metrics
    diverged: Array  # int32: updates before the first in which something was not finite; -1: there was none
    cause: Array  # int32: what was not finite there, the first in the order of `measurements.watched()`


Learn = Callable[[TrainState, Record, Rollout], tuple[TrainState, Record]]
Measure = Callable[[TrainState, Rollout], tuple[TrainState, dict[str, Mean]]]


def make(algorithm: PQN, network: Network, axis_name: str | None = None) -> tuple[Learn, Measure]:
    """Learning that records what it measures and has this guard; and without them, to find out what is measured.

    An update after which something is not finite changes no weights, nor does any after it: the run is frozen with the
    last good ones, while those beside it go on. Its environments are stepped on, but nothing of it is added up.

    Args:
      algorithm: that learns.
      network: that of the algorithm.
      axis_name: as in `pqn.make`.
    """

    def total(tree: PyTree) -> PyTree:
        return tree if axis_name is None else jax.lax.psum(tree, axis_name)

    @jax.jit  # traced once, for its shapes and for the program
    def measured(state: TrainState, rollout: Rollout) -> tuple[TrainState, dict[str, Mean]]:
        after, metrics = algorithm.learn(state, rollout)
        return after, metrics | total(measures(network, after, rollout))

    def learn(state: TrainState, record: Record, rollout: Rollout) -> tuple[TrainState, Record]:
        after, metrics = measured(state, rollout)
        are_finite = jnp.stack(
            [  # in the order of `measurements.watched()`
                total(~finite_rewards(rollout)) == 0,
                *(jnp.isfinite(metrics[name].total) for name in ("value", "loss", "grad_norm")),
                finite((after.params, after.stats)),
            ]
        )
        was_good = record.diverged < 0
        good = was_good & are_finite.all()
        kept = jax.tree.map(
            lambda new, old: jnp.where(good, new, old),
            (after.params, after.stats, after.opt_state),
            (state.params, state.stats, state.opt_state),
        )
        params, stats, opt_state = kept
        record = Record(
            jax.tree.map(lambda total, x: jnp.where(good, total + x, total), record.sums, metrics),
            jnp.where(was_good & ~good, state.updates, record.diverged),
            jnp.where(was_good & ~good, jnp.argmin(are_finite).astype(jnp.int32), record.cause),
        )
        return after._replace(params=params, stats=stats, opt_state=opt_state), record

    return learn, measured


def empty(sums: dict[str, Mean], num_runs: int) -> Record:
    """Of so many runs, before their first update; `sums` are shapes of theirs."""
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), sums)
    return Record(zeros, np.full(num_runs, -1, np.int32), np.zeros(num_runs, np.int32))


def begun(record: Record, fresh: Array) -> Record:
    """The record, with its sums at zero where a new line begins."""
    return record._replace(sums=jax.tree.map(lambda x: jnp.where(fresh, jnp.zeros_like(x), x), record.sums))


class Divergence:
    """What is known of the agents that diverged.

    Args:
      config: of the run.

    Attributes:
      found: of every agent `steps` and `what`, when and where it diverged; None where it did not.
      why: reason why the first agent diverged; empty while none has.
    """

    def __init__(self, config: Config):
        self.found: list[dict[str, Any] | None] = [None] * config.num_members
        self.why = ""
        self._config = config

    @property
    def of_all(self) -> bool:
        """Whether every agent diverged, so that nothing is left to train."""
        return all(self.found)

    def update(self, record: Record) -> list[str]:
        """Learn which agents are frozen by now; return a line about each that was not the last time."""
        reports = []
        for index, updates in enumerate(np.asarray(record.diverged).tolist()):
            if updates < 0:
                self.found[index] = None  # a member of a population may be revived
            elif self.found[index] is None:
                what = measurements.watched()[int(record.cause[index])]
                begun, end = (n * self._config.steps_per_update for n in (updates, updates + 1))
                self.found[index] = {"steps": begun, "what": what.key}
                which = f"agent {index} of {len(self.found)} ({_named(self._config, index)})"
                when = f"in update {updates + 1}, between {begun:,} and {end:,} steps"
                reports.append(f"{what.key} not finite in {which} {when}: {what.cause}")
        self.why = reports[0] if reports else self.why
        return reports


def _named(config: Config, index: int) -> str:
    """The seed of an agent and its own settings; those of a population's member are what it began with."""
    agent = config.members[index]
    settings = ", ".join(f"{field}={agent[field]:g}" for field in config.swept)
    begun = "" if config.compared else "begun with "
    return ", ".join([f"seed={agent['seed']}", *([f"{begun}{settings}"] if settings else [])])


def measures(network: Network, state: TrainState, rollout: Rollout) -> dict[str, Mean]:
    """Metrics of an update, beside those of `pqn`'s `learn`; may be mapped over states and rollouts.

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
    # Of each unit, over all other axes: [..., units] -> [units] bool.
    alive = [(x > 0).any(range(x.ndim - 1)) for x in _activations(network, state, rollout)]
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
