"""Population-based training: after every evaluation the worst runs go on as copies of the best, with other settings.

The members of a population are the settings of one seed; every seed has a population of its own. What is explored are
the hyper-parameters that were given several values or a distribution: those values are where the members begin.

Source: Jaderberg et al., "Population based training of neural networks", 2017, arXiv:1711.09846: truncation selection
and perturbation, section 4.1.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from qlax.config.settings import FIELDS, Config
from qlax.pqn import TrainState
from qlax.training.guard import Record

SHARE = 0.2  # of a population, that are replaced, and of the best that replace them
FACTORS = (0.5, 2.0)  # by which a setting is multiplied: the paper's for GANs; its 0.8 and 1.2 take many more steps
OWN = 2**31  # folded into the seed's key, of which a run's are split
DISCOUNTS = ("gamma", "lam")  # what matters of them is how much they differ from 1


class Exchange(NamedTuple):
    """What happened after an evaluation."""

    parent: jax.Array  # [R] int32: whose weights and settings each run goes on with
    settings: dict[str, jax.Array]  # [R] each: what was explored, as it was until then


def make(config: Config) -> Callable[[TrainState, Record, jax.Array, jax.Array], tuple[TrainState, Record, Exchange]]:
    """The exchange of weights and settings within the populations of all runs.

    A run that is replaced keeps its worlds and its random key. It takes over the weights, the statistics, the state of
    the optimiser and the settings of one of the best, each setting then multiplied by one of `FACTORS`; what it
    remembered was another network's, and is forgotten. Those that diverged count as the worst, and are so revived.

    Args:
      config: whose `swept` fields are explored.

    Returns:
      `(state, record, returns, is_last) -> state, record, exchange`, with returns `[R, E]` of an evaluation; after the
      last one nothing is exchanged. The same seed gives the same exchange at the same update.
    """
    num_runs, populations = config.num_runs, config.seeds
    members = num_runs // populations
    replaced = max(1, int(SHARE * members))

    def parents_within(key: jax.Array, score: jax.Array) -> jax.Array:
        """Of one population, `[members]`."""
        order = jnp.argsort(score)
        chosen = jax.random.choice(key, order[-replaced:], (replaced,))
        return jnp.arange(members).at[order[:replaced]].set(chosen)

    def exchange(
        state: TrainState, record: Record, returns: jax.Array, is_last: jax.Array
    ) -> tuple[TrainState, Record, Exchange]:
        mean = returns[:, : config.eval_episodes].mean(-1)
        score = jnp.where((record.diverged < 0) & jnp.isfinite(mean), mean, -jnp.inf)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), OWN), state.updates[0])
        key_parents, key_factors = jax.random.split(key)
        of_population = score.reshape(members, populations).T  # runs are ordered by setting, then seed
        within = jax.vmap(parents_within)(jax.random.split(key_parents, populations), of_population)
        themselves = jnp.arange(num_runs)
        parent = (within.T * populations + jnp.arange(populations)).reshape(-1)
        # Members that are equally good stay, as those of a population that has solved its task.
        parent = jnp.where(is_last | (score[parent] <= score), themselves, parent)
        is_new = parent != themselves

        def inherited(x):
            return x[parent]

        settings = {name: getattr(state.hyper, name) for name in config.swept}
        keys = jax.random.split(key_factors, len(settings))
        explored = {
            name: jnp.where(is_new, _explored(one, name, inherited(x)), x)
            for one, (name, x) in zip(keys, settings.items(), strict=True)
        }
        params, stats, opt_state = jax.tree.map(inherited, (state.params, state.stats, state.opt_state))
        memory = jax.tree.map(
            lambda x: jnp.where(is_new.reshape(-1, *(1,) * (x.ndim - 1)), jnp.zeros_like(x), x), state.memory
        )
        state = state._replace(
            params=params, stats=stats, opt_state=opt_state, memory=memory, hyper=state.hyper._replace(**explored)
        )
        record = record._replace(diverged=inherited(record.diverged), cause=inherited(record.cause))
        return state, record, Exchange(parent, settings)

    return exchange


def _explored(key: jax.Array, name: str, x: jax.Array) -> jax.Array:
    """Values of a field near those of `x [R]`."""
    kind = FIELDS[name].metadata["kind"]
    factor = jnp.where(jax.random.bernoulli(key, shape=x.shape), *FACTORS)
    near = 1 - factor * (1 - x) if name in DISCOUNTS else factor * x
    return jnp.clip(near, kind.low, kind.high)
