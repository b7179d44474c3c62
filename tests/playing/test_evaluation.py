import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import Paid, show

import qlax
from qlax import pqn
from qlax.envs.vec import Vec
from qlax.envs.worker import Worker
from qlax.networks.qnetwork import QNetwork
from qlax.playing import evaluation, host


class Lengths:
    """Environment in which action 1 pays 1. Episodes last 1 to 6 steps; with `endless`, 6 stands for endless ones."""

    num_actions = 2

    def __init__(self, endless=False):
        self.endless = endless

    def reset(self, key):
        length = jax.random.randint(key, (), 1, 7)
        return (length, jnp.int32(0)), show(jnp.array([length, 0], jnp.float32), metrics={"won": jnp.nan})

    def step(self, key, state, action):
        del key
        length, count = state[0], state[1] + 1
        ended = (count >= length) & ~((length == 6) & self.endless)
        obs = jnp.array([length, count], jnp.float32)
        won = jnp.where(ended, length.astype(jnp.float32), jnp.nan)
        return (length, count), show(obs, reward=action, terminated=ended, metrics={"won": won})


class Fixed:
    """Network that prefers action 1 for every observation."""

    recurrent = False

    def initial_memory(self, batch):
        del batch
        return ()

    def init(self, *arguments):
        del arguments
        return {"params": {"unused": jnp.zeros(1)}}

    def apply(self, variables, memory, obs, first, train, mutable=()):
        del variables, train, mutable
        q = jnp.broadcast_to(jnp.array([0.0, 1.0]), (*first.shape, 2)) + 0 * obs[..., :1]
        return (q, memory), {}


def evaluated(network, endless=False, envs=16, max_steps=9, **hyper):
    """Evaluate an agent that explores always in training; return the records `[E]` and the true lengths of episodes."""
    vec = Vec(Lengths(endless), 4)
    algorithm = pqn.make(vec, network, pqn.Shape(4, 2, 1, 1, 10))
    env_state, step = vec.reset(jax.random.key(0))
    state = algorithm.init(jax.random.key(1), pqn.Hyper(epsilon_end=1.0, **hyper), step, env_state)
    evaluation_vec = Vec(Lengths(endless), envs)
    key = jax.random.key(2)
    records = jax.jit(evaluation.in_jax(algorithm, evaluation_vec, max_steps))(key, state)
    _, first = evaluation_vec.reset(jax.random.split(key)[0])
    return records, np.asarray(first.obs[:, 0, 0])


@pytest.mark.parametrize("network", [Fixed(), QNetwork(2, hidden=(4,), memory="gru")], ids=["fixed", "memory"])
def test_the_first_whole_episode_of_every_environment_counts(network):
    records, lengths = evaluated(network)
    assert len(set(lengths)) > 3
    np.testing.assert_array_equal(records["episode_length"], lengths)
    np.testing.assert_array_equal(records["won"], lengths)
    np.testing.assert_array_equal(records["cut"], np.zeros(16))


@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_what_was_promised_is_compared_with_what_came(gamma):
    records, lengths = evaluated(Fixed(), gamma=gamma, reward_scale=3.0)
    came = [3.0 * sum(gamma**t for t in range(int(length))) for length in lengths]
    np.testing.assert_allclose(records["overestimation"], 1.0 - np.array(came), rtol=1e-5)
    cut = evaluated(Fixed(), max_steps=3)[0]
    np.testing.assert_array_equal(np.isnan(cut["overestimation"]), cut["cut"] == 1)


class Constant(Fixed):
    """Network with the exact Q-value of an endless reward of 1, which is 1 / (1 - gamma)."""

    def __init__(self, gamma):
        self.value = 1 / (1 - gamma)

    def apply(self, variables, memory, obs, first, train, mutable=()):
        (q, memory), stats = super().apply(variables, memory, obs, first, train, mutable)
        return (jnp.full_like(q, self.value), memory), stats


@pytest.mark.parametrize("max_steps", [20, 50])
@pytest.mark.parametrize("gamma", [0.9, 0.99])
def test_an_exact_q_overestimates_nothing_at_a_time_limit(gamma, max_steps):
    vec = Vec(qlax.TimeLimit(Rewarded(), 20), 4)
    algorithm = pqn.make(vec, Constant(gamma), pqn.Shape(4, 2, 1, 1, 10))
    env_state, step = vec.reset(jax.random.key(0))
    state = algorithm.init(jax.random.key(1), pqn.Hyper(gamma=gamma), step, env_state)
    records = jax.jit(evaluation.in_jax(algorithm, vec, max_steps))(jax.random.key(2), state)
    np.testing.assert_array_equal(records["episode_length"], np.full(4, 20))
    np.testing.assert_array_equal(records["cut"], np.zeros(4))
    np.testing.assert_allclose(records["overestimation"], np.zeros(4), atol=1e-3)


class Rewarded:
    """Endless environment with reward 1 at every step."""

    num_actions = 2

    def reset(self, key):
        return jnp.int32(0), show(jnp.ones(1))

    def step(self, key, state, action):
        return state, show(jnp.ones(1), reward=1)


def test_small_rewards_after_a_large_one_count():
    episodes, no = qlax.Episodes(1), np.zeros(1, bool)
    episodes.begin(np.zeros((1, 1)))
    episodes.step(np.zeros((1, 1)), np.array([2.0**24]), no, no)
    for count in range(1000):
        step = episodes.step(np.zeros((1, 1)), np.ones(1), np.array([count == 999]), no)
    assert step.metrics["episode_return"] == 2**24 + 1000


class RewardedOnHost:
    """N copies of `Rewarded` on the host, cut after 20 steps, by a back end that resets in that step or the next."""

    num_actions = 2

    def __init__(self, num_envs, reset_takes_a_step):
        self.num_envs, self.takes = num_envs, reset_takes_a_step
        self.episodes = qlax.Episodes(num_envs, reset_takes_a_step=reset_takes_a_step)

    def reset(self, seed):
        self.time = 0
        return self.episodes.begin(np.ones((self.num_envs, 1), np.float32))

    def step(self, action):
        self.time = 0 if self.time == 20 else self.time + 1
        cut = np.full(self.num_envs, self.time == 20)
        if self.time == 20 and not self.takes:
            self.time = 0
        ones = np.ones(self.num_envs, np.float32)
        return self.episodes.step(ones[:, None], ones, ~cut & cut, cut)

    def close(self):
        pass


@pytest.mark.parametrize(("takes", "expected"), [(True, 0.0), (False, np.nan)])
def test_on_the_host_an_exact_q_overestimates_nothing_at_a_time_limit(takes, expected):
    algorithm = pqn.make(None, Constant(0.9), pqn.Shape(4, 2, 1, 1, 10))
    worker = Worker("rewarded", lambda n: RewardedOnHost(n, takes), 4, device=jax.devices()[0], timeout=60.0)
    try:
        worker.reset(0)
        step, _ = worker.result()
        state = algorithm.init(jax.random.key(1), pqn.Hyper(gamma=0.9), step)
        act = jax.jit(functools.partial(host.act, algorithm))
        records = evaluation.on_host(act, worker, state, 0, 20, lambda: False)
    finally:
        worker.close()
    np.testing.assert_array_equal(records["episode_length"], np.full(4, 20))
    np.testing.assert_array_equal(records["cut"], np.zeros(4))
    np.testing.assert_allclose(records["overestimation"], np.full(4, expected), atol=1e-3)


def test_what_the_environments_share_is_as_it_is_in_training():
    vec = Vec(Paid(), 4)
    algorithm = pqn.make(vec, Fixed(), pqn.Shape(4, 2, 1, 1, 10))
    env_state, step = vec.reset(jax.random.key(0))
    state = algorithm.init(jax.random.key(1), pqn.Hyper(), step, env_state._replace(shared=(jnp.float32(0.5),)))
    records = evaluation.in_jax(algorithm, vec, 3)(jax.random.key(2), state)
    np.testing.assert_array_equal(records["episode_return"], np.full(4, 0.5))


class Endless:
    """Endless environment whose reward is 3, of which 1 is reported."""

    num_actions = 2

    def reset(self, key):
        del key
        return jnp.int32(0), show(jnp.ones(1), metrics={"raw_reward": jnp.nan})

    def step(self, key, state, action):
        del key, action
        return state, show(jnp.ones(1), reward=3, metrics={"raw_reward": jnp.float32(1)})


class Replies:
    """Environment of three steps whose last reward is 0, 1 or 2, as drawn at the start; `shown` makes it observable."""

    num_actions = 3

    def __init__(self, starts, shown):
        self.starts, self.shown = starts, shown

    def reset(self, key):
        start = jax.random.randint(key, (), 0, self.starts)
        return (start, jnp.int32(0)), show(jax.nn.one_hot(start * self.shown, 3))

    def step(self, key, state, action):
        del key, action
        start, count = state[0], state[1] + 1
        return (start, count), show(
            jax.nn.one_hot(start * self.shown, 3), reward=start * (count == 3), terminated=count == 3
        )


class Copies(Fixed):
    """Network whose Q-values are the observation."""

    def apply(self, variables, memory, obs, first, train, mutable=()):
        return (obs, memory), {}


@pytest.mark.parametrize(
    ("starts", "shown", "epsilon", "expected"),
    [(1, True, 0.0, 1), (3, True, 0.0, 3), (3, False, 0.0, 3), (1, True, 1.0, 27)],
    ids=["nothing random", "actions and rewards differ", "only rewards differ", "random actions"],
)
def test_distinct_episodes_are_counted(starts, shown, epsilon, expected):
    envs = 512
    vec = Vec(Replies(starts, shown), envs)
    algorithm = pqn.make(vec, Copies(), pqn.Shape(envs, 2, 1, 1, 10))
    env_state, step = vec.reset(jax.random.key(0))
    state = algorithm.init(jax.random.key(1), pqn.Hyper(), step, env_state)
    records = jax.jit(evaluation.in_jax(algorithm, vec, 9, epsilon))(jax.random.key(2), state)
    assert evaluation.distinct(np.asarray(records["fingerprint"])[None]).tolist() == [expected]


def test_first_observations_tell_episodes_apart():
    random = np.random.default_rng(0)
    screen, number = random.integers(2, size=(300, 2, 3, 1)).astype(np.uint8), random.integers(2, size=(300, 1)) > 0
    found = evaluation.first_fingerprints({"screen": screen, "number": jnp.asarray(number)})
    assert len(np.unique(found)) == len({(a.tobytes(), b.tobytes()) for a, b in zip(screen, number, strict=True)})


def test_fingerprints_are_the_same_in_numpy_and_jax_and_depend_on_everything():
    random = np.random.default_rng(0)
    actions = random.integers(4, size=(1000, 5, 2)).astype(np.int32)
    rewards = random.choice([0, 1, -1, 0.5], size=(1000, 5)).astype(np.float32)
    found = [np.zeros(1000, np.uint32), jnp.zeros(1000, jnp.uint32)]
    for t in range(5):
        found = [
            evaluation.fingerprints(found[0], actions[:, t], rewards[:, t]),
            evaluation.fingerprints(found[1], jnp.array(actions[:, t]), jnp.array(rewards[:, t])),
        ]
    np.testing.assert_array_equal(*found)
    episodes = {(a.tobytes(), r.tobytes()) for a, r in zip(actions, rewards, strict=True)}
    assert len(np.unique(found[0])) == len(episodes)


def test_an_episode_that_is_cut_counts_raw_rewards():
    vec = Vec(Endless(), 4)
    algorithm = pqn.make(vec, Fixed(), pqn.Shape(4, 2, 1, 1, 10))
    env_state, step = vec.reset(jax.random.key(0))
    state = algorithm.init(jax.random.key(1), pqn.Hyper(), step, env_state)
    records = evaluation.in_jax(algorithm, vec, 5)(jax.random.key(2), state)
    np.testing.assert_array_equal(records["episode_return"], np.full(4, 5))
    np.testing.assert_array_equal(records["cut"], np.ones(4))


def test_evaluation_is_greedy():
    records, lengths = evaluated(Fixed())
    np.testing.assert_array_equal(records["episode_return"], lengths)


def test_an_episode_without_end_is_cut_counts_as_it_stands_and_is_reported():
    records, lengths = evaluated(Fixed(), endless=True)
    endless = lengths == 6
    assert endless.any()
    np.testing.assert_array_equal(records["cut"], endless)
    np.testing.assert_array_equal(records["episode_return"], np.where(endless, 9, lengths))
    np.testing.assert_array_equal(records["episode_length"], np.where(endless, 9, lengths))
