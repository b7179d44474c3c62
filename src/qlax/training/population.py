"""Population-based training: after every evaluation the worst members copy the best ones and change their settings.

The members of a population are the agents of one seed; every seed has a population of its own. Training explores the
hyper-parameters that were given several values or a distribution; these values are the initial ones of the members.

The training loop only calls the exchange after an evaluation; everything else about populations is in this module.

Source: Jaderberg et al., "Population based training of neural networks", 2017, arXiv:1711.09846: truncation selection
and perturbation, section 4.1.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qlax.config.settings import FIELDS, Config
from qlax.pqn import TrainState
from qlax.training.guard import Record
from qlax.training.plan import Plan
from qlax.types import Network
from qlax.util.text import six_digits

SHARE = 0.2  # share of a population that is replaced, and share of the best members that replace it
FACTORS = (0.5, 2.0)  # factors that perturb a setting, as in the paper for GANs; 0.8 and 1.2 explore more slowly
OWN = 2**31  # constant folded into the seed's key, so that the key differs from those of the agents
DISCOUNTS = ("gamma", "lam", "lam_end")  # settings of which the difference from 1 is perturbed


Exchange = Callable[[TrainState, Record, jax.Array, jax.Array | bool], tuple[TrainState, Record, dict[str, jax.Array]]]


def make(config: Config, network: Network) -> Exchange:
    """Make the function that exchanges weights and settings within the populations of all seeds.

    A replaced member keeps its environments and its random key. It copies the weights, statistics, optimiser state and
    settings of one of the best members, and multiplies each explored setting by one of `FACTORS`. Its memory is reset,
    because the old memory belongs to another network. Members that diverged count as the worst, so that they are
    revived by a copy.

    Args:
      config: Configuration, whose `swept` fields are explored.
      network: Network of the members.

    Returns:
      Function `(state, record, returns, is_last) -> state, record, columns` of the returns `[R, E]` of an evaluation;
      if `is_last`, nothing is exchanged. The columns `[R]` are for the line of metrics: `parent`, int32, is the member
      whose weights and settings each member has from now on; the others are the explored settings before the exchange.
      The same seed gives the same exchange at the same update.
    """
    populations = config.seeds
    members = config.num_members // populations
    replaced = max(1, int(SHARE * members))

    def parents_within(key: jax.Array, score: jax.Array) -> jax.Array:
        """Return the parent of each member of one population, `[members]`."""
        order = jnp.argsort(score)
        chosen = jax.random.choice(key, order[-replaced:], (replaced,))
        return jnp.arange(members).at[order[:replaced]].set(chosen)

    def exchange(
        state: TrainState, record: Record, returns: jax.Array, is_last: jax.Array | bool
    ) -> tuple[TrainState, Record, dict[str, jax.Array]]:
        mean = returns[:, : config.eval_episodes].mean(-1)
        score = jnp.where((record.diverged < 0) & jnp.isfinite(mean), mean, -jnp.inf)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), OWN), state.updates[0])
        key_parents, key_factors = jax.random.split(key)
        scores = score.reshape(members, populations).T  # agents are ordered by setting, then by seed
        within = jax.vmap(parents_within)(jax.random.split(key_parents, populations), scores)
        themselves = jnp.arange(config.num_members)
        parent = (within.T * populations + jnp.arange(populations)).reshape(-1)
        # Members with equal scores stay, for example in a population that has solved its task.
        parent = jnp.where(is_last | (score[parent] <= score), themselves, parent)
        is_new = parent != themselves

        def inherited(x):
            return x[parent]

        settings = {name: getattr(state.hyper, name) for name in config.swept}
        keys = jax.random.split(key_factors, len(settings))
        explored = {
            name: jnp.where(is_new, _explored(key_setting, name, inherited(x)), x)
            for key_setting, (name, x) in zip(keys, settings.items(), strict=True)
        }
        params, stats, opt_state = jax.tree.map(inherited, (state.params, state.stats, state.opt_state))
        n, m = jax.tree.leaves(state.step.obs)[0].shape[1:3]

        def reset(x, initial):  # [R, N, M, ...], [N * M, ...]
            return jnp.where(is_new.reshape(-1, *(1,) * (x.ndim - 1)), initial.reshape(x.shape[1:]), x)

        memory = state.memory  # of the environments, unless the network is recurrent
        if network.recurrent:
            memory = jax.tree.map(reset, memory, network.initial_memory(n * m))
        state = state._replace(
            params=params, stats=stats, opt_state=opt_state, memory=memory, hyper=state.hyper._replace(**explored)
        )
        record = record._replace(diverged=inherited(record.diverged), cause=inherited(record.cause))
        return state, record, {"parent": parent, **settings}

    return exchange


def _explored(key: jax.Array, name: str, x: jax.Array) -> jax.Array:
    """Perturb the values `x` `[R]` of a hyper-parameter."""
    kind = FIELDS[name].metadata["kind"]
    factor = jnp.where(jax.random.bernoulli(key, shape=x.shape), *FACTORS)
    near = 1 - factor * (1 - x) if name in DISCOUNTS else factor * x
    return jnp.clip(near, kind.low, kind.high)


def compile(plan: Plan) -> Exchange | None:
    """Compile the exchange, in which the worst agents of a population become copies of the best.

    The program writes the new state into the memory of the old one. Runs without populations get None.

    The exchange is not distributed by `Placement.lower` as other programs are, because it mixes agents of all devices.
    """
    if plan.config.population == "none":
        return None
    placement = plan.placement
    episodes = -(-plan.config.eval_episodes // placement.parts) * placement.parts
    returns = jax.ShapeDtypeStruct((len(plan.seeds), episodes), jnp.float32)
    where = (plan.where, placement.runs, placement.split)
    shapes = placement.placed((plan.shapes, plan.new_record(), returns), where)
    result = (plan.where, placement.runs, placement.whole)
    jitted = jax.jit(make(plan.config, plan.network), out_shardings=result, donate_argnums=0)
    return placement.compile(jitted.lower(*shapes, False))


def outcome(config: Config, curves: dict[str, np.ndarray], last: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the summary's entries about populations: final settings, and the number of replacements.

    Args:
      config: Configuration of the run.
      curves: Learning curves, `[lines, R]`.
      last: Last values of the explored settings, `[R]`.
    """
    if config.population == "none":
        return {}
    found = curves.get("parent", np.empty((0, config.num_members)))  # missing if lines of metrics were lost
    known = found[np.isfinite(found).all(axis=1)]
    return {
        "final_settings": {name: list(map(six_digits, last[name])) for name in config.swept if name in curves},
        "replaced": int((known != np.arange(config.num_members)).sum()),
    }
