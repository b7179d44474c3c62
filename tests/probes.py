"""Small environments with known Q-values, each for one mechanism, and random ones for tests that need every case.

All satisfy `qlax.types.Env`; the docstrings give the Q-values.
"""

import contextlib

import jax
import jax.numpy as jnp

from qlax.envs.vec import Vec
from qlax.types import Step


@contextlib.contextmanager
def strict_and_quick():
    """Within the context, refuse implicit promotion of ranks, and compile quickly without XLA's optimisations."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.numpy_rank_promotion("raise"):
        yield
    jax.config.update("jax_disable_most_optimizations", before)


def show(obs, reward=0.0, terminated=False, truncated=False, legal=None, metrics=None) -> Step:
    """Return a step of one copy; values that are not given are those of a reset."""
    return Step(obs, legal, jnp.float32(reward), jnp.bool_(terminated), jnp.bool_(truncated), metrics or {})


class Blank:
    """Base of environments whose observation never changes."""

    num_actions = 2

    def reset(self, key):
        del key
        return jnp.int32(0), show(jnp.ones(1))


class Paid:
    """One-step environment whose reward is the value that all copies share."""

    num_actions = 2
    shared = jnp.float32(1)

    def reset(self, key):
        del key
        return jnp.int32(0), show(jnp.ones(1))

    def step(self, key, state, action, wage):
        del key, action
        return state, show(jnp.ones(1), reward=wage, terminated=True)


class ConstantReward(Blank):
    """One-step environment with reward 1: Q = 1."""

    def step(self, key, state, action):
        del key, action
        return state, show(jnp.ones(1), reward=1, terminated=True)


class ObservationReward:
    """One-step environment whose reward is the observation, -1 or 1: Q = observation."""

    num_actions = 2

    def reset(self, key):
        obs = jax.random.rademacher(key, (1,), jnp.float32)
        return obs, show(obs)

    def step(self, key, state, action):
        del key, action
        return state, show(state, reward=state[0], terminated=True)


class DelayedReward:
    """Environment of `length` steps shown one-hot, with reward 1 in the last: Q = gamma^k, k steps before it."""

    num_actions = 2

    def __init__(self, length=5):
        self.length = length

    def reset(self, key):
        del key
        return jnp.int32(0), show(jax.nn.one_hot(0, self.length))

    def step(self, key, state, action):
        del key, action
        last = state == self.length - 1
        return state + 1, show(jax.nn.one_hot(state + 1, self.length), reward=last, terminated=last)


class ActionReward:
    """One-step environment whose observation names one of two actions: Q = 1 for that action, -1 for the other."""

    num_actions = 2

    def reset(self, key):
        named = jax.random.randint(key, (), 0, 2)
        return named, show(jax.nn.one_hot(named, 2))

    def step(self, key, state, action):
        del key
        return state, show(jax.nn.one_hot(state, 2), reward=jnp.where(action == state, 1, -1), terminated=True)


class MaskedAction:
    """Two-step environment whose second step pays 1 for action 1, which is legal in half of the episodes only.

    The first step shows whether the episode is open, which means that action 1 will be legal. The second step looks the
    same in open and closed episodes, so that the network knows the Q-value of the illegal action, which is high. Q =
    gamma in the first step of an open episode and 0 in that of a closed one; in the second step Q = 0 for action 0 and
    1 for action 1. The metric `illegal` counts illegal actions.
    """

    num_actions = 2

    def reset(self, key):
        is_open = jax.random.bernoulli(key)
        return (jnp.int32(0), is_open), self._show(jnp.int32(0), is_open, illegal=jnp.nan)

    def step(self, key, state, action):
        del key
        index, is_open = state
        last = index == 1
        took_it = last & (action == 1)
        return (index + 1, is_open), self._show(index + 1, is_open, took_it & ~is_open, reward=took_it, terminated=last)

    def _show(self, index, is_open, illegal, **ends):
        obs = jnp.where(index == 0, jax.nn.one_hot(is_open.astype(int), 3), jax.nn.one_hot(2, 3))
        legal = jnp.stack([jnp.bool_(True), (index == 0) | is_open])
        return show(obs, legal=legal, metrics={"illegal": jnp.float32(illegal)}, **ends)


class Recall:
    """Four-step environment whose first step shows the action to take in the last (reward 1, else -1).

    The other steps show nothing. In the last step Q = 1 or -1, which only an agent with memory can know; in the first
    step Q = gamma^3.
    """

    num_actions = 2
    length = 4

    def reset(self, key):
        wanted = jax.random.randint(key, (), 0, 2)
        return (jnp.int32(0), wanted), show(jax.nn.one_hot(wanted, 2))

    def step(self, key, state, action):
        del key
        index, wanted = state
        last = index == self.length - 1
        reward = jnp.where(last, jnp.where(action == wanted, 1, -1), 0)
        return (index + 1, wanted), show(jnp.zeros(2), reward=reward, terminated=last)


class EndlessReward:
    """Endless environment with reward 1 every `period` steps, whose time limit truncates episodes.

    The observation is the phase p, one-hot: Q = gamma^(period - 1 - p) / (1 - gamma^period). With a period of 1 that is
    1 / (1 - gamma); with a period as long as the time limit only the very last step of an episode pays.

    Args:
      period: Number of phases.
      time_limit: Number of steps of an episode.
      shows_time: Whether the observation is the time since the reset, one-hot, instead of the phase.
    """

    num_actions = 2

    def __init__(self, period, time_limit, shows_time=False):
        self.period, self.time_limit, self.shows_time = period, time_limit, shows_time

    def reset(self, key):
        del key
        return jnp.int32(0), show(self.shown(0))

    def step(self, key, state, action):
        del key, action
        state = state + 1
        return state, show(self.shown(state), reward=state % self.period == 0, truncated=state == self.time_limit)

    def shown(self, time):
        return (
            jax.nn.one_hot(time, self.time_limit + 1)
            if self.shows_time
            else jax.nn.one_hot(time % self.period, self.period)
        )


class Team:
    """Team of `num_agents` members, each in its own copy of `env`; the reward is the sum, and so is Q."""

    def __init__(self, env, num_agents):
        self.env, self.num_agents, self.num_actions = env, num_agents, env.num_actions

    def reset(self, key):
        return self._together(*jax.vmap(self.env.reset)(jax.random.split(key, self.num_agents)))

    def step(self, key, state, action):
        return self._together(*jax.vmap(self.env.step)(jax.random.split(key, self.num_agents), state, action))

    def _together(self, state, steps):
        return state, show(steps.obs, steps.reward.sum(), steps.terminated.all(), steps.truncated.all())


class RandomWorld:
    """Environment with random observations, legal actions and ends; the reward depends on observation and actions.

    Args:
      num_agents: Size of the team; None for a single agent.
      masked: Whether some actions are illegal.
    """

    num_actions = 4
    num_features = 3

    def __init__(self, num_agents=None, masked=False):
        self.masked = masked
        self.team = () if num_agents is None else (num_agents,)
        if num_agents is not None:
            self.num_agents = num_agents

    def reset(self, key):
        step = self._show(key, reward=0.0)
        return step.obs, step

    def step(self, key, state, action):
        key_show, key_ends = jax.random.split(key)
        terminated, truncated = jax.random.uniform(key_ends, (2,)) < jnp.array([0.15, 0.2])
        reward = jnp.sin(3 * state.sum()) + jnp.cos(2 * action).sum()
        step = self._show(key_show, reward=reward, terminated=terminated, truncated=truncated)
        return step.obs, step

    def _show(self, key, **ends):
        numbers = jax.random.normal(key, (*self.team, self.num_features + self.num_actions))
        obs, chances = jnp.split(numbers, [self.num_features], axis=-1)
        legal = chances >= jnp.minimum(chances.max(-1, keepdims=True), 0.0)  # at least the action with the best chance
        return show(obs, legal=legal if self.masked else None, **ends)


class LossyVec(Vec):
    """Copies of an environment that sometimes lose the step after an action, even a step that terminates."""

    def step(self, key, state, action):
        state, step = super().step(key, state, action)
        lost = jax.random.bernoulli(jax.random.fold_in(key, 1), 0.15, (self.num_envs,))
        return state, step._replace(truncated=step.truncated | lost)
