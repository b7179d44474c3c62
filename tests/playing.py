"""Agents that always prefer one action, saved as a run saves them, and a game whose return reveals the actions."""

import jax
import jax.numpy as jnp
import numpy as np
from hosts import LENGTH
from probes import show

from qlax import Agent

ONE = [["float32", [1]]]
WALK = [["float32", [LENGTH + 1]]]


class Wants:
    """Network that always prefers the action in its weights: Q is 1 for this action and 0 for all others."""

    recurrent = False

    def __init__(self, num_actions):
        self.num_actions = num_actions

    def initial_memory(self, batch):
        del batch
        return ()

    def init(self, *arguments):
        del arguments
        return {"params": {"action": jnp.int32(0)}}

    def apply(self, variables, memory, obs, first, train, mutable=None):
        del obs, train
        q = jax.nn.one_hot(variables["params"]["action"], self.num_actions)
        result = jnp.broadcast_to(q, (*first.shape, self.num_actions)), memory
        return result if mutable is None else (result, {})


def saved(folder, env, obs, actions=(1,), num_actions=2, wrappers=(), **options):
    """Save an agent for each action as training does, and nothing else; return the folder."""
    (folder / "agents").mkdir(parents=True)
    for index, action in enumerate(actions):
        info = {"env": env, "env_options": options, "wrappers": list(wrappers), "num_actions": num_actions}
        info |= {"network": {"network": "playing:Wants"}, "obs": obs, "obs_paths": [""], "seed": 7 + index}
        variables = {"params": {"action": np.int32(action)}}
        Agent(variables, info).save(folder / "agents" / f"{index}.safetensors")
    return folder


class Script:
    """Game for a team of two in which every step has its own legal actions and its own reward for each joint action.

    All steps look the same, and nothing is random. So the return reveals the actions: two sequences of actions hardly
    ever have the same return.
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
    """Return the return of one greedy episode of `Script`; with `forget`, the agent is reset before every step."""
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
