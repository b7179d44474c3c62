"""PQN learns the Q-values of environments for which they are known, one mechanism each."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest
from probes import (
    ActionReward,
    ConstantReward,
    DelayedReward,
    EndlessReward,
    MaskedAction,
    ObservationReward,
    RandomWorld,
    Recall,
    Team,
)

from qlax import pqn
from qlax.envs.check.env import check_contract
from qlax.envs.vec import Vec
from qlax.networks.qnetwork import QNetwork

GAMMA = 0.8
EXACT = 0.01
LAGGING = 0.05  # acting with running statistics is less exact


@pytest.fixture(autouse=True, scope="module")
def strict_and_quick():
    with probes.strict_and_quick():
        yield


class Trained(NamedTuple):
    network: QNetwork
    state: pqn.TrainState
    metrics: dict[str, pqn.Mean]  # [updates]

    def q(self, obs):
        """Return the Q-values `[L, B, A]` of B episodes from their first steps on, with observations `[L, B, F]`."""
        obs = jnp.asarray(obs, jnp.float32)
        length, batch = obs.shape[:2]
        first = jnp.zeros((length, batch), bool).at[0].set(True)
        variables = {"params": self.state.params, **self.state.stats}
        q, _ = self.network.apply(variables, self.network.initial_memory(batch), obs, first, False)
        return np.asarray(q)

    def phase_q(self):
        """Return the Q-values `[F, A]` of all one-hot observations."""
        features = self.state.step.obs.shape[-1]
        return self.q(np.eye(features)[None])[0]


def train(env, *, num_updates=150, num_steps=8, num_minibatches=2, time_limit_is_terminal=False, network=None, **hyper):
    """Train an agent; `network` has arguments of `QNetwork`, and `hyper` fields of `Hyper`."""
    shape = pqn.Shape(16, num_steps, num_minibatches, num_epochs=2, num_updates=num_updates)
    worlds = Vec(env, shape.num_envs, time_limit_is_terminal=time_limit_is_terminal)
    network = QNetwork(env.num_actions, hidden=(32,), **(network or {}))
    algorithm = pqn.make(worlds, network, shape)
    settings = pqn.Hyper(learning_rate=1e-2, gamma=GAMMA, epsilon_fraction=0.5)._replace(**hyper)

    @jax.jit
    def run(key):
        worlds_state, step = worlds.reset(key)
        state = algorithm.init(key, settings, step, worlds_state)
        return jax.lax.scan(lambda state, _: algorithm.update(state), state, length=num_updates)

    return Trained(network, *run(jax.random.key(0)))


@pytest.mark.parametrize(
    "env",
    [
        ConstantReward(),
        ObservationReward(),
        DelayedReward(),
        ActionReward(),
        MaskedAction(),
        Recall(),
        EndlessReward(2, 3),
        Team(Recall(), 2),
        RandomWorld(),
        RandomWorld(2, masked=True),
    ],
    ids=lambda env: type(env).__name__,
)
def test_probe_keeps_the_contract(env):
    check_contract(env)


def assert_q(q, expected, tolerance=EXACT):
    expected = np.broadcast_to(np.asarray(expected, np.float32), q.shape)
    np.testing.assert_allclose(q, expected, rtol=0, atol=tolerance)


def test_constant_reward():
    assert_q(train(ConstantReward(), network={"norm": "none"}).q([[[1]]]), 1)


def test_reward_that_depends_on_the_observation():
    assert_q(train(ObservationReward()).q([[[-1], [1]]])[0], [[-1, -1], [1, 1]])


def test_reward_that_depends_on_the_action():
    assert_q(train(ActionReward()).phase_q(), [[1, -1], [-1, 1]])


@pytest.mark.parametrize("norm", ["layer", "batch", "batch_renorm"])
def test_delayed_reward(norm):
    # A rollout has two whole episodes, so that all batches have the same statistics.
    # The running statistics of batch renormalisation lag by a thousand gradient steps.
    num_updates = 1500 if norm == "batch_renorm" else 300
    q = train(DelayedReward(length=5), num_steps=10, num_updates=num_updates, network={"norm": norm}).phase_q()
    assert_q(q, GAMMA ** np.array([[4], [3], [2], [1], [0]]), LAGGING if norm.startswith("batch") else EXACT)


def test_team_with_batch_norm_learns_the_joint_reward():
    q = train(Team(ActionReward(), num_agents=3), num_updates=300, network={"norm": "batch"}).phase_q()
    for named in itertools.product(range(2), repeat=3):
        for action in itertools.product(range(2), repeat=3):
            reward = sum(1 if a == b else -1 for a, b in zip(action, named, strict=True))
            assert sum(q[named, action]) == pytest.approx(reward, abs=3 * LAGGING)


def test_illegal_action_is_never_taken_and_not_in_the_target():
    trained = train(MaskedAction(), lam=0.0)  # with lambda = 0 the targets are those of the greedy policy
    assert_q(trained.phase_q(), [[0, 0], [GAMMA, GAMMA], [0, 1]])
    illegal = trained.metrics["illegal"]
    assert illegal.weight.sum() == 150 * 8 * 16
    assert illegal.total.sum() == 0


def train_recall(env, memory):
    """Train in `Recall`; return Q `[2, B, A]` of the first and last step of episodes whose right action is 0 and 1."""
    trained = train(env, num_updates=400, epsilon_end=0.3, lam=0.0, network={"memory": memory})
    obs = np.zeros((Recall.length, 2, 2))
    obs[0] = np.eye(2)
    return trained.q(obs)[[0, -1]]


@pytest.mark.parametrize(
    ("env", "memory"),
    [
        pytest.param(Recall(), "lstm", id="lstm"),
        pytest.param(Team(Recall(), num_agents=2), "gru", id="team with gru", marks=pytest.mark.slow),
        pytest.param(Recall(), "lru", id="lru", marks=pytest.mark.slow),
        pytest.param(Recall(), "mingru", id="mingru", marks=pytest.mark.slow),
    ],
)
def test_memory_recalls_over_blank_steps(env, memory):
    first, last = train_recall(env, memory)
    assert_q(first, GAMMA**3)
    assert_q(last, [[1, -1], [-1, 1]])


def test_no_recall_without_memory():
    _, last = train_recall(Recall(), "none")
    np.testing.assert_array_equal(last[0], last[1])  # without memory, both episodes look the same
    assert np.abs(last).max() < 0.3  # either action is right in half of the cases, so Q is close to 0


# If the time limit is terminal, one step in five is the last: v = 1 + gamma 4/5 v for lambda = 0.
@pytest.mark.parametrize(
    ("time_limit_is_terminal", "lam", "value"), [(False, 0.65, 10), (True, 0.0, 1 / (1 - 0.9 * 4 / 5))]
)
def test_time_limit_does_not_pull_the_value_to_zero(time_limit_is_terminal, lam, value):
    env = EndlessReward(period=1, time_limit=5)
    options = {"num_steps": 10, "learning_rate": 3e-2, "gamma": 0.9, "lam": lam}
    q = train(env, time_limit_is_terminal=time_limit_is_terminal, **options).q([[[1]]])
    assert_q(q, value, tolerance=0.3)


def test_reward_on_the_last_step_before_a_time_limit():
    q = train(EndlessReward(period=4, time_limit=4)).phase_q()
    assert_q(q, GAMMA ** np.array([[3], [2], [1], [0]]) / (1 - GAMMA**4))


def test_clock_with_a_time_limit_that_is_terminal():
    # Nothing follows a terminal limit, so an agent that observes the time can learn the exact values.
    q = train(EndlessReward(period=5, time_limit=5, shows_time=True), time_limit_is_terminal=True).phase_q()
    assert_q(q[:5], GAMMA ** np.array([[4], [3], [2], [1], [0]]))


@pytest.mark.parametrize(
    "memory", ["mingru", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lstm", "gru", "lru"))]
)
def test_memory_with_a_time_limit_that_is_terminal(memory):
    options = {"num_steps": 10, "num_updates": 300, "network": {"memory": memory}}
    trained = train(EndlessReward(period=5, time_limit=5), time_limit_is_terminal=True, **options)
    assert_q(trained.q(np.eye(5)[:, None]), GAMMA ** np.array([[[4]], [[3]], [[2]], [[1]], [[0]]]), 2 * EXACT)
