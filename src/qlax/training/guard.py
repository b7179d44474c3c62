"""What is measured of updates, and the guard that freezes a run whose numbers are no longer finite."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qlax.pqn import PQN, Mean, Rollout, TrainState
from qlax.training import health
from qlax.types import Array, Network, PyTree


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
        return after, metrics | total(health.measures(network, after, rollout))

    def learn(state: TrainState, record: Record, rollout: Rollout) -> tuple[TrainState, Record]:
        after, metrics = measured(state, rollout)
        finite = jnp.stack(
            [  # in the order of `measurements.watched()`
                total(~health.finite_rewards(rollout)) == 0,
                *(jnp.isfinite(metrics[name].total) for name in ("value", "loss", "grad_norm")),
                health.finite((after.params, after.stats)),
            ]
        )
        was_good = record.diverged < 0
        good = was_good & finite.all()
        kept = jax.tree.map(
            lambda new, old: jnp.where(good, new, old),
            (after.params, after.stats, after.opt_state),
            (state.params, state.stats, state.opt_state),
        )
        params, stats, opt_state = kept
        record = Record(
            jax.tree.map(lambda total, x: jnp.where(good, total + x, total), record.sums, metrics),
            jnp.where(was_good & ~good, state.updates, record.diverged),
            jnp.where(was_good & ~good, jnp.argmin(finite).astype(jnp.int32), record.cause),
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
