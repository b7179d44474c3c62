"""Count what the dimensions of an action cost: `python benchmarks/dimensions.py`.

Nothing is timed. For D dimensions of three values each, with and without a memory, the script counts the floating-point
operations of an update (a rollout of 32 steps in 64 environments, and one epoch of learning from it) as XLA reports
them, those of the network's forward pass, and the bytes of a rollout. D = None is an action of one number. The record
is `benchmarks/results/dimensions.json`.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
from records import RESULTS, circumstances

import qlax
from qlax import Step, pqn

FEATURES, BINS, SHAPE = 17, 3, pqn.Shape(num_envs=64, num_steps=32, num_minibatches=8, num_epochs=1)


class Still:
    """Environment that never changes, so that all costs are those of the agent."""

    num_actions = BINS

    def __init__(self, dimensions: int | None):
        if dimensions is not None:
            self.action_dimensions = dimensions

    def reset(self, key):
        """See `qlax.Env`."""
        return jnp.int32(0), self._shown()

    def step(self, key, state, action):
        """See `qlax.Env`."""
        return state, self._shown()

    def _shown(self):
        return Step(jnp.ones(FEATURES), None, jnp.float32(0), jnp.bool_(False), jnp.bool_(False), {})


def main() -> None:
    """Count all cases, keep the record and print it as a table."""
    rows = [
        {"memory": memory, "dimensions": dimensions, **counts(memory, dimensions)}
        for memory in ("none", "gru")
        for dimensions in (None, 1, 6, 17)
    ]
    record = circumstances("python benchmarks/dimensions.py") | {"bins": BINS, "rows": rows}
    (RESULTS / "dimensions.json").write_text(json.dumps(record, indent=2) + "\n")
    print("| memory | D | forward pass, FLOP | update, MFLOP | rollout, KB |\n| --- | ---: | ---: | ---: | ---: |")
    for row in rows:
        numbers = row["forward_flops"], row["update_flops"] / 1e6, row["rollout_bytes"] / 1e3
        print(f"| {row['memory']} | {row['dimensions']} | {' | '.join(f'{number:,.0f}' for number in numbers)} |")


def counts(memory: str, dimensions: int | None) -> dict[str, float]:
    """Return the operations of a forward pass of one row, the operations of an update, and the bytes of a rollout."""
    env = Still(dimensions)
    network = qlax.QNetwork(BINS, memory=memory, dimensions=dimensions)
    vec = qlax.Vec(env, SHAPE.num_envs)
    algorithm = pqn.make(vec, network, SHAPE, mixing=qlax.MEAN)
    worlds, step = vec.reset(jax.random.key(0))
    state = algorithm.init(jax.random.key(0), pqn.Hyper(), step, worlds)
    row = network.initial_memory(1), step.obs[:1], jnp.ones((1, 1), bool)
    forward = jax.jit(lambda params, *x: network.apply({"params": params}, *x, False)[0]).lower(state.params, *row)
    # XLA counts the body of a loop once, so one turn of each loop is counted and multiplied.
    _, rollout = jax.eval_shape(algorithm.rollout, state)
    acting = jax.jit(lambda state: algorithm.act(state)).lower(state)
    learning = jax.jit(lambda state, rollout: algorithm.learn(state, rollout)).lower(state, rollout)
    flops = [float(each.compile().cost_analysis()["flops"]) for each in (forward, acting, learning)]
    return {
        "forward_flops": flops[0],
        "update_flops": SHAPE.num_steps * flops[1] + SHAPE.num_minibatches * flops[2],
        "rollout_bytes": float(sum(np.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(rollout))),
    }


if __name__ == "__main__":
    main()
