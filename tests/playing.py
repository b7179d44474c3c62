"""Agents at play: some that want one action, saved as a run leaves them, and an episode told by its return."""

import jax
import jax.numpy as jnp
import numpy as np
from hosts import LENGTH
from probes import show

from qlax import Agent

ONE = [["float32", [1]]]
WALK = [["float32", [LENGTH + 1]]]


class Wants:
    """A network that always wants the action its weights say: Q is 1 there, else 0."""

    recurrent = False

    def __init__(self, num_actions):
        self.num_actions = num_actions

    def initial_memory(self, batch):
        del batch
        return ()

    def init(self, *arguments):
        del arguments
        return {"params": {"action": jnp.int32(0)}}

    def apply(self, variables, memory, obs, first, train, mutable=()):
        del obs, train, mutable
        q = jax.nn.one_hot(variables["params"]["action"], self.num_actions)
        return (jnp.broadcast_to(q, (*first.shape, self.num_actions)), memory), {}


def saved(folder, env, obs, actions=(1,), num_actions=2, wrappers=(), **options):
    """A run's folder with an agent for each action, as training leaves them, but nothing else."""
    (folder / "agents").mkdir(parents=True)
    for index, action in enumerate(actions):
        info = {"env": env, "env_options": options, "wrappers": list(wrappers), "num_actions": num_actions}
        info |= {"network": {"network": "playing:Wants"}, "obs": obs, "obs_paths": [""], "seed": 7 + index}
        variables = {"params": {"action": np.int32(action)}}
        Agent(variables, info).save(folder / "agents" / f"{index}.safetensors")
    return folder


class Script:
    """A team of two for whom every step has legal actions and a reward a joint action of its own, and looks the same.

    Nothing in it is random, so the return tells the actions apart: two sequences of them hardly ever pay the same.
    """

    num_actions, num_agents, time_limit = 64, 2, 12

    def __init__(self):
        random = np.random.default_rng(0)
        self.obs = jnp.broadcast_to(jnp.array(3 + 2 * random.normal(size=(2, 4)), jnp.float32), (13, 2, 4))
        self.legal = jnp.array(random.random((13, 2, 64)) < 0.7).at[..., 0].set(True)
        self.rewards = jnp.array(random.normal(size=(13, 64, 64)), jnp.float32)

    def reset(self, key):
        del key
        return jnp.int32(0), show(self.obs[0], legal=self.legal[0])

    def step(self, key, t, action):
        del key
        reward = self.rewards[t, action[0], action[1]]
        return t + 1, show(self.obs[t + 1], reward, truncated=t + 1 >= self.time_limit, legal=self.legal[t + 1])


def play(agent, forget=False):
    """The return of one greedy episode of `Script`; with `forget`, every step begins an episode to the agent."""
    env, total = Script(), 0.0
    state, step = env.reset(jax.random.key(0))
    for _ in range(env.time_limit):
        if forget:
            agent.reset()
        action = agent.act(step.obs, step.legal)
        assert np.take_along_axis(np.asarray(step.legal), action[:, None], -1).all()
        state, step = env.step(jax.random.key(0), state, action)
        total += float(step.reward)
    return total
