"""Worker of `peers.py` for the Python that has rejax: `rejax_pqn.py SETTINGS`, as JSON; prints JSON.

The program is compiled ahead of time, so that only training is timed. The network has the layers, widths and norms of
ours; it is given by `replace`, because `create` allows no other width than 64.
"""

import importlib.metadata
import json
import sys
import time

import flax.linen as nn
import jax
from rejax import PQN
from rejax.networks import DiscreteQNetwork, EpsilonGreedyPolicy


class MinAtarNetwork(DiscreteQNetwork):
    """Network of a 3 x 3 convolution with 16 features, and then dense layers."""

    @nn.compact
    def __call__(self, obs):
        """Map observations `[B, H, W, C]` to Q-values `[B, A]`."""
        x = self.activation(nn.Conv(16, (3, 3), padding="VALID")(obs))
        x = x.reshape(len(x), -1)
        for width in self.hidden_layer_sizes:
            x = self.activation(nn.Dense(width)(x))
        return nn.Dense(self.action_dim)(x)


def main(env: str, encoder: str, hidden: list[int], seeds: int, settings: dict) -> dict:
    """Train several seeds side by side; return times, speed and greedy returns."""
    # The interval of evaluation is the whole run, and its callback does nothing.
    algorithm = PQN.create(env=env, eval_freq=settings["total_timesteps"], skip_initial_evaluation=True, **settings)
    network = MinAtarNetwork if encoder == "cnn" else DiscreteQNetwork
    agent = EpsilonGreedyPolicy(network)(
        hidden_layer_sizes=tuple(hidden),
        activation=lambda x: nn.relu(nn.LayerNorm()(x)),
        action_dim=algorithm.action_dim,
    )
    evaluate = algorithm.eval_callback
    algorithm = algorithm.replace(agent=agent, eval_callback=lambda algorithm, state, key: ())

    keys = jax.random.split(jax.random.key(0), seeds)
    start = time.perf_counter()
    train = jax.jit(jax.vmap(algorithm.train)).lower(keys).compile()
    compiled = time.perf_counter()
    state, _ = jax.block_until_ready(train(keys))
    done = time.perf_counter()
    steps = int(state.global_step[0])
    _, returns = jax.jit(jax.vmap(lambda state, key: evaluate(algorithm, state, key)))(state, keys)
    return {
        "total_steps": steps,
        "compile_seconds": compiled - start,
        "train_seconds": done - compiled,
        "steps_per_second": seeds * steps / (done - compiled),
        "eval_return": returns.mean(1).tolist(),  # of each seed
        "versions": {name: importlib.metadata.version(name) for name in ("rejax", "gymnax", "jax", "flax", "optax")},
    }


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
