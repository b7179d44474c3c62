"""Measurements of updates, and the guard that freezes an agent whose numbers are no longer finite.

Axes as in `qlax.pqn`: T steps, N environments, M team members; L steps of a segment, B segments; R agents.
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
from qlax.training.vector import USUAL, Form
from qlax.types import Array, Network, PyTree

SAMPLE = 256  # rows for measuring dead units: about 1 % of an update's computation at the paper's settings


class Record(NamedTuple):
    """Measurements and divergence of one agent, or of R agents with an axis `[R]` first."""

    sums: dict[str, Mean]  # sums over the updates since the last line of metrics
    diverged: Array  # int32: number of updates before the first with a number that was not finite; -1 if none was
    cause: Array  # int32: first measurement that was not finite, as an index into `measurements.watched()`


Learn = Callable[[TrainState, Record, Rollout], tuple[TrainState, Record]]
Measure = Callable[[TrainState, Rollout], tuple[TrainState, dict[str, Mean]]]


def make(algorithm: PQN, network: Network, axis_name: str | None = None, form: Form = USUAL) -> tuple[Learn, Measure]:
    """Make the function that learns with measurements and the guard, and the function that only learns and measures.

    When a number is not finite, the update is discarded and the agent is frozen: its last finite weights never change
    again, while other agents continue. Its environments are still stepped, but its measurements no longer count.

    Args:
      algorithm: Algorithm whose `learn` is guarded, with the network of `form`.
      network: Network of the agents.
      axis_name: Name of the mapped axis of devices that share an agent, see `pqn.make`.
      form: Form of states while they are learned from and guarded.

    Returns:
      Guarded function of `(state, record, rollout)`, and unguarded function of `(state, rollout)`, whose result also
      tells which measurements there are.
    """

    def total(tree: PyTree) -> PyTree:
        return tree if axis_name is None else jax.lax.psum(tree, axis_name)

    @jax.jit  # so that tracing for its shapes and for the program happens only once
    def measured(state: TrainState, rollout: Rollout) -> tuple[TrainState, dict[str, Mean]]:
        after, metrics = algorithm.learn(state, rollout)
        return after, metrics | total(measures(network, form.leave(after), rollout))

    def learn(state: TrainState, record: Record, rollout: Rollout) -> tuple[TrainState, Record]:
        state = form.enter(state)
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
        return form.leave(after._replace(params=params, stats=stats, opt_state=opt_state)), record

    return learn, lambda state, rollout: measured(form.enter(state), rollout)


def empty(sums: dict[str, Mean], num_agents: int) -> Record:
    """Return the record of all agents before their first update.

    Args:
      sums: Shapes and dtypes of the measurements, `[R]` each.
      num_agents: Number of agents, R.
    """
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), sums)
    return Record(zeros, np.full(num_agents, -1, np.int32), np.zeros(num_agents, np.int32))


def with_fresh_sums(record: Record, fresh: Array) -> Record:
    """Set the sums of a record to zero if `fresh`, because a new line of metrics begins."""
    return record._replace(sums=jax.tree.map(lambda x: jnp.where(fresh, jnp.zeros_like(x), x), record.sums))


class Divergence:
    """Agents that have diverged.

    Args:
      config: Configuration of the run.

    Attributes:
      found: For every agent that diverged, its environment steps before (`steps`) and the measurement that was not
        finite (`what`); None for every other agent.
      why: Message about the first agent in the latest report; empty if no agent has diverged.
    """

    def __init__(self, config: Config):
        self.found: list[dict[str, Any] | None] = [None] * config.num_members
        self.why = ""
        self._config = config

    @property
    def of_all(self) -> bool:
        """True if all agents have diverged, so that nothing is left to train."""
        return all(self.found)

    def update(self, record: Record) -> list[str]:
        """Update `found` from a record, and return one message about each agent that has newly diverged."""
        reports = []
        for index, updates in enumerate(np.asarray(record.diverged).tolist()):
            if updates < 0:
                self.found[index] = None  # an agent that diverged trains again if its population replaced it
            elif self.found[index] is None:
                what = measurements.watched()[int(record.cause[index])]
                begin, end = (n * self._config.steps_per_update for n in (updates, updates + 1))
                self.found[index] = {"steps": begin, "what": what.key}
                which = f"agent {index} of {len(self.found)} ({_seed_and_settings(self._config, index)})"
                when = f"in update {updates + 1}, between {begin:,} and {end:,} steps"
                reports.append(f"{what.key} not finite in {which} {when}: {what.cause}")
        self.why = reports[0] if reports else self.why
        return reports


def _seed_and_settings(config: Config, index: int) -> str:
    """Return the seed and own settings of an agent in words; of a population's member, the settings it began with."""
    agent = config.members[index]
    settings = ", ".join(f"{field}={agent[field]:g}" for field in config.swept)
    begun = "" if config.compared else "begun with "
    return ", ".join([f"seed={agent['seed']}", *([f"{begun}{settings}"] if settings else [])])


def measures(network: Network, state: TrainState, rollout: Rollout) -> dict[str, Mean]:
    """Return measurements of an update besides those of `pqn`'s `learn`; may be mapped over agents.

    `dead_units` is the share of units (of dense layers and feature maps) whose activation is positive nowhere in a
    sample of the rollout. The sample holds all steps of the first environments, about `SAMPLE` rows. Units are those
    that a network reports by `self.sow("intermediates", "activation", x)`, with x float `[rows, ..., units]` or
    `[L, B, ..., units]`; for a network that reports none, the measurement is missing.

    Args:
      network: Network of the algorithm.
      state: State after learning.
      rollout: Rollout that the update learned from.

    Source: Sokar et al., "The dormant neuron phenomenon", 2023, arXiv:2302.12902, definition 3.1, with tau = 0.
    """
    # Any positive activation of each unit, over all other axes: [..., units] -> [units] bool.
    alive = [(x > 0).any(range(x.ndim - 1)) for x in _activations(network, state, rollout)]
    return {"dead_units": Mean(1 - jnp.concatenate(alive).mean(dtype=jnp.float32), jnp.float32(1))} if alive else {}


def finite(tree: PyTree) -> jax.Array:
    """Return a bool scalar: True if all floats of the tree are finite."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    # A maximum cannot overflow as a sum can, and it is nan if any element is nan.
    largest = [jnp.abs(x).max(initial=0) for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(x) for x in largest]).all() if largest else jnp.bool_(True)


def finite_rewards(rollout: Rollout) -> jax.Array:
    """Return a bool scalar: True if all rewards are finite, except those of truncated steps, which are not learned."""
    steps = rollout.transitions
    return finite(jnp.where(steps.truncated & ~steps.terminated, 0.0, steps.reward))


def _activations(network: Network, state: TrainState, rollout: Rollout) -> list[jax.Array]:
    """Return the activations that the network sows for a sample of the rollout, in segments as in `learn`."""
    if not isinstance(network, nn.Module):  # only Flax modules can sow intermediates
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
    """Tell whether a leaf is a float array `[L * B, ..., units]` or `[L, B, ..., units]`."""
    if not isinstance(leaf, jax.Array) or not jnp.issubdtype(leaf.dtype, jnp.floating):
        return False
    return (leaf.ndim > 1 and len(leaf) == L * B) or (leaf.ndim > 2 and leaf.shape[:2] == (L, B))
