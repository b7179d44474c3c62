"""Worker of `baselines.py` for the Python that has rejax: `rejax_curve.py SETTINGS`, as JSON; prints JSON.

It trains one seed of rejax's DQN or PPO, and evaluates it greedily at given intervals, as qlax does: one whole episode
in each of several environments. All programs are compiled ahead of time; training and evaluation are timed separately.
"""

import importlib.metadata
import json
import sys
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from craftax.craftax_env import make_craftax_env_from_name
from gymnax.environments import spaces
from rejax import DQN, PPO, buffers
from rejax.compat import create
from rejax.networks import DiscreteQNetwork, DuelingQNetwork, EpsilonGreedyPolicy
from rejax_pqn import MinAtarNetwork

RESET_RATIO = 16  # copies per new world of Craftax in a step, as in qlax and in Craftax's own baselines
NETWORKS = {"cnn": MinAtarNetwork, "mlp": DiscreteQNetwork, "dueling": DuelingQNetwork}
ACTIVATIONS = {
    **{name: getattr(nn, name) for name in ("relu", "swish", "tanh")},
    "layer norm, relu": lambda x: nn.relu(nn.LayerNorm()(x)),
}


class Craftax:
    """Craftax-Classic with the interface that rejax expects, and with Gymnax's spaces."""

    def __init__(self) -> None:
        env = make_craftax_env_from_name("Craftax-Classic-Symbolic-v1", auto_reset=False)
        self.default_params = env.default_params
        self.reset, self.step_env = env.reset_env, env.step_env
        self._actions = spaces.Discrete(env.num_actions)
        shape = jax.eval_shape(env.reset_env, jax.random.key(0), env.default_params)[0].shape
        self._observations = spaces.Box(0, 1, shape, jnp.float32)

    def action_space(self, params: Any = None) -> spaces.Discrete:
        """See gymnax."""
        return self._actions

    def observation_space(self, params: Any = None) -> spaces.Box:
        """See gymnax."""
        return self._observations


class FewWorlds:
    """Mixin whose copies share new worlds, because rejax would make one for every copy at every step."""

    @property
    def vmap_step(self):
        """Return the function that rejax calls for a step of all copies."""

        def step(keys, state, action, params):
            stepped = jax.vmap(self.env.step_env, in_axes=(0, 0, 0, None))(keys, state, action, params)
            obs, state, reward, done, info = stepped

            def deal():
                worlds = jax.vmap(self.env.reset, in_axes=(0, None))(keys[::RESET_RATIO], params)
                dealt = (jnp.cumsum(done) - 1) % (len(keys) // RESET_RATIO)

                def pick(fresh, old):
                    return jnp.where(done.reshape(-1, *[1] * (old.ndim - 1)), fresh[dealt], old)

                return jax.tree.map(pick, worlds, (obs, state))

            obs, state = jax.lax.cond(done.any(), deal, lambda: (obs, state))
            return obs, state, reward, done, info

        return step


class CraftaxDQN(FewWorlds, DQN):
    """DQN of rejax with few new worlds."""


class CraftaxPPO(FewWorlds, PPO):
    """PPO of rejax with few new worlds."""


def sample(buffer: Any, num: int, key: jax.Array) -> Any:
    """Sample uniformly with replacement; rejax samples without, at a cost proportional to the whole buffer."""
    index = jax.random.randint(key, (num,), 0, buffer.num_entries)
    return jax.tree.map(lambda column: column[index], buffer.data)


def make(kind: str, env: str, network: dict, total_steps: int, decay: bool, settings: dict) -> DQN | PPO:
    """Return the algorithm; with `decay`, its learning rate falls to 0."""
    on_craftax = env == "Craftax-Classic-Symbolic-v1"
    env, params = (Craftax(), Craftax().default_params) if on_craftax else create(env)
    activation = ACTIVATIONS[network["activation"]]
    settings = settings | {"env": env, "env_params": params, "total_timesteps": total_steps}
    hidden = tuple(network["hidden"])
    if decay:
        iterations = total_steps // (settings["num_envs"] * settings.get("num_steps", 1))
        gradient_steps = iterations * settings["num_epochs"] * settings.get("num_minibatches", 1)
        settings["learning_rate"] = optax.linear_schedule(settings["learning_rate"], 0, gradient_steps)
    if kind == "ppo":
        agent = {"activation": network["activation"], "hidden_layer_sizes": hidden}
        return (CraftaxPPO if on_craftax else PPO).create(**settings, agent_kwargs=agent)
    algorithm = (CraftaxDQN if on_craftax else DQN).create(**settings)
    agent = EpsilonGreedyPolicy(NETWORKS[network["kind"]])
    return algorithm.replace(
        agent=agent(hidden_layer_sizes=hidden, activation=activation, action_dim=algorithm.action_dim)
    )


def evaluator(algorithm: DQN | PPO, episodes: int, max_steps: int, sampled: bool) -> Any:
    """Return a function from `(state, key)` to the returns of whole episodes, `[episodes]`.

    Actions are the best ones, or `sampled` as in the training of PPO.
    """
    env, params = algorithm.env, algorithm.env_params

    def choose(state, obs, key):
        if isinstance(algorithm, DQN):
            return algorithm.agent.apply(state.q_ts.params, obs).argmax(-1)
        actions = algorithm.actor.apply(state.actor_ts.params, obs, method="_action_dist")
        return actions.sample(seed=key) if sampled else actions.mode()

    def evaluate(state, key):
        key, key_reset = jax.random.split(key)
        obs, env_state = jax.vmap(env.reset, in_axes=(0, None))(jax.random.split(key_reset, episodes), params)

        def goes_on(carry):
            _, _, _, _, playing, steps = carry
            return playing.any() & (steps < max_steps)

        def step(carry):
            key, obs, env_state, returns, playing, steps = carry
            key, key_action, key_step = jax.random.split(key, 3)
            obs, env_state, reward, done, _ = jax.vmap(env.step_env, in_axes=(0, 0, 0, None))(
                jax.random.split(key_step, episodes), env_state, choose(state, obs, key_action), params
            )
            return key, obs, env_state, returns + playing * reward, playing & ~done, steps + 1

        carry = (key, obs, env_state, jnp.zeros(episodes), jnp.ones(episodes, bool), 0)
        return jax.lax.while_loop(goes_on, step, carry)[3]

    return evaluate


def main(
    kind: str,
    env: str,
    network: dict,
    seed: int,
    total_steps: int,
    eval_interval: int,
    evaluations: int,
    episodes: int,
    max_steps: int,
    settings: dict,
    decay: bool = False,
) -> dict:
    """Train one seed, and evaluate it every `eval_interval` steps, rounded to whole iterations."""
    buffers.ReplayBuffer.sample = sample
    algorithm = make(kind, env, network, total_steps, decay, settings)
    iteration = algorithm.num_envs * (algorithm.num_steps if kind == "ppo" else 1)
    iterations = max(1, round(eval_interval / iteration))

    key = jax.random.key(seed)
    start = time.perf_counter()
    state = jax.jit(algorithm.init_state)(key)
    train = jax.jit(
        lambda state: jax.lax.fori_loop(0, iterations, lambda _, state: algorithm.train_iteration(state), state),
        donate_argnums=0,
    )
    # Evaluations get no replay buffer, because it is large and they do not need it.
    small = (lambda state: state.replace(replay_buffer=None)) if kind == "dqn" else (lambda state: state)
    train = train.lower(state).compile()
    kinds = {"eval_returns": False} | ({"sampled_returns": True} if kind == "ppo" else {})
    looks = {
        name: jax.jit(evaluator(algorithm, episodes, max_steps, sampled)).lower(small(state), key).compile()
        for name, sampled in kinds.items()
    }
    compiled = time.perf_counter()
    train_seconds = eval_seconds = 0.0
    curve = {name: [] for name in ("steps", "seconds", *looks)}
    for look in range(evaluations):
        begun = time.perf_counter()
        state = jax.block_until_ready(train(state))
        trained = time.perf_counter()
        train_seconds += trained - begun
        returns = {name: float(e(small(state), jax.random.fold_in(key, look)).mean()) for name, e in looks.items()}
        eval_seconds += time.perf_counter() - trained
        for name, value in ({"steps": int(state.global_step), "seconds": train_seconds} | returns).items():
            curve[name].append(value)
    return {
        "compile_seconds": compiled - start,
        "train_seconds": train_seconds,
        "eval_seconds": eval_seconds,
        **curve,
        "device": str(jax.devices()[0]),
        "versions": {
            name: importlib.metadata.version(name) for name in ("rejax", "gymnax", "craftax", "jax", "flax", "optax")
        },
    }


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
