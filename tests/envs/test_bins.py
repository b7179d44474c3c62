"""Continuous actions in bins, and actions of several dimensions: learning, evaluation, agents and exports."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hosts import HostWalk
from probes import RandomWorld, Team, show, strict_and_quick
from runs import SMALL

import qlax
from qlax import Step, UserError, pqn
from qlax.agents import export
from qlax.envs.bins import with_bins
from qlax.envs.check.env import check_contract
from qlax.envs.vec import Vec

KEY = jax.random.key(0)


class Target:
    """One-step task whose reward is 1 minus the squared distance of the action from a point in [-1, 1]^D."""

    def __init__(self, *point, limit=None):
        self.point = jnp.asarray(point, jnp.float32)
        self.action_bounds = (np.full(len(point), -1, np.float32), np.ones(len(point), np.float32))
        if limit:
            self.time_limit = limit

    def reset(self, key):
        del key
        return jnp.int32(0), show(jnp.ones(2))

    def step(self, key, state, action):
        del key
        return state, show(jnp.ones(2), 1 - jnp.square(action - self.point).sum(), terminated=True)


class Corner(Target):
    """Task that tests name as `module:Name`, as users name theirs."""

    def __init__(self):
        super().__init__(1.0, -1.0, 1.0)


class Swarm:
    """Team of two members with two dimensions each, every one of which has its own best value."""

    num_agents = 2
    action_bounds = (np.array([-1, 0], np.float32), np.array([1, 4], np.float32))

    def reset(self, key):
        del key
        return jnp.int32(0), show(jnp.eye(2))

    def step(self, key, state, action):
        del key
        best = jnp.array([[1.0, 0.0], [-1.0, 4.0]])
        return state, show(jnp.eye(2), -jnp.abs(action - best).sum(), terminated=True)


class OneDimension(qlax.Wrapper):
    """Environment whose actions are arrays `[1]` instead of single numbers."""

    action_dimensions = 1

    def reset(self, key):
        return self._env.reset(key)

    def step(self, key, state, action):
        return self._env.step(key, state, action[0])


class HostTarget(HostWalk):
    """Environments on the host with continuous actions, which are recorded in `seen`."""

    action_bounds = (np.array([0, -2], np.float32), np.array([1, 2], np.float32))
    num_actions = None
    seen: ClassVar[list[np.ndarray]] = []

    def step(self, action):
        self.seen.append(action)
        return super().step((action[:, 0] > 0.5).astype(np.int32))


def greedy(env, mixing, *, num_updates=60, **network):
    """Train in a task of one step, and return the greedy action and its value."""
    shape = pqn.Shape(16, 8, 2, 2, num_updates)
    dimensions = env.action_dimensions
    net = qlax.QNetwork(env.num_actions, hidden=(32,), dimensions=dimensions, **network)
    algorithm = pqn.make(Vec(env, 16), net, shape, mixing=mixing)

    @jax.jit
    def run():
        worlds, step = Vec(env, 16).reset(KEY)
        state = algorithm.init(KEY, pqn.Hyper(learning_rate=1e-2, epsilon_fraction=0.8), step, worlds)
        state = jax.lax.scan(lambda state, _: (algorithm.update(state)[0], None), state, length=num_updates)[0]
        return algorithm.act(state._replace(hyper=state.hyper._replace(epsilon_start=0.0, epsilon_end=0.0)))[1]

    return jax.tree.map(lambda x: np.asarray(x)[0], run()._replace(key=jnp.zeros(16)))


@pytest.mark.parametrize("mixing", [qlax.VDN, qlax.MEAN], ids=["sum", "mean"])
def test_the_best_corner_is_found_with_two_bins_and_the_best_inner_point_with_eleven(mixing):
    with strict_and_quick():
        corner = greedy(qlax.Bins(Target(1.0, -1.0), 2), mixing)
        inner = greedy(qlax.Bins(Target(0.4, -0.6), 11), mixing, num_updates=300)
    assert corner.action.tolist() == [1, 0]
    assert inner.action.tolist() == [7, 2]  # bin i is the value -1 + 0.2 i
    np.testing.assert_allclose([*corner.value, *inner.value], 1, atol=0.05)


def test_members_of_a_team_each_choose_in_every_dimension():
    with strict_and_quick():
        found = greedy(qlax.Bins(Swarm(), 3), qlax.VDN)
    assert found.action.tolist() == [2, 0, 0, 2]  # the two dimensions of the first member, then those of the second
    np.testing.assert_allclose(found.value, 0, atol=0.1)


def test_one_dimension_is_learned_bit_for_bit_as_a_single_number():
    def trained(env, network):
        algorithm = pqn.make(Vec(env, 8), network, pqn.Shape(8, 4, 2, 2, 10))
        worlds, step = Vec(env, 8).reset(KEY)
        state = algorithm.init(KEY, pqn.Hyper(), step, worlds)
        return jax.jit(lambda state: jax.lax.scan(lambda s, _: algorithm.update(s), state, length=5))(state)

    world = RandomWorld(masked=True)
    single = trained(world, qlax.QNetwork(4, hidden=(16,)))
    several = trained(OneDimension(world), qlax.QNetwork(4, hidden=(16,), dimensions=1))
    for one, other in zip(*map(jax.tree.leaves, (single, several)), strict=True):
        if not jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(one, other)


def test_values_of_a_dimension_are_equally_spaced_from_bound_to_bound():
    env = qlax.Bins(Swarm(), 5)
    check_contract(env)
    assert (env.num_actions, env.action_dimensions, env.action_bounds) == (5, 2, None)
    seen = []
    env._env.step = lambda key, state, action: seen.append(action) or (state, None)
    for value in range(5):
        env.step(KEY, jnp.int32(0), jnp.full((2, 2), value))
    np.testing.assert_allclose([each[0] for each in seen], [[-1, 0], [-0.5, 1], [0, 2], [0.5, 3], [1, 4]])


def test_axes_of_actions_in_vec():
    for env, axis in ((qlax.Bins(Target(0, 0, 0), 2), 3), (qlax.Bins(Swarm(), 2), 4), (Team(RandomWorld(), 2), 2)):
        vec = Vec(env, 5)
        state, step = vec.reset(KEY)
        _, after = vec.step(KEY, state, jnp.zeros((5, axis), jnp.int32))
        assert after.reward.shape == step.reward.shape == (5,)
    vec = Vec(Target(0.5, 0.5), 5)
    assert vec.num_actions == 0
    action = jnp.stack([jnp.full(2, number) for number in np.linspace(-1, 1, 5)])[:, None]
    reward = vec.step(KEY, vec.reset(KEY)[0], action)[1].reward
    np.testing.assert_allclose(reward, 1 - 2 * (np.linspace(-1, 1, 5) - 0.5) ** 2, rtol=1e-6)


def test_cost_grows_by_the_outputs_only():
    def flops(dimensions, memory):
        network = qlax.QNetwork(3, hidden=(64, 64), memory=memory, dimensions=dimensions)
        obs, first, before = jnp.ones((4, 8, 6)), jnp.ones((4, 8), bool), network.initial_memory(8)
        variables = network.init(KEY, before, obs, first, False)
        compiled = jax.jit(lambda *x: network.apply(*x, False)[0]).lower(variables, before, obs, first).compile()
        return compiled.cost_analysis()["flops"]

    for memory in ("none", "gru"):
        alone = flops(None, memory)
        for dimensions in (1, 6, 17):
            blocks = 2 * 4 * 8 * 64 * 3 * (dimensions - 1)  # a product and a sum for each further weight
            assert flops(dimensions, memory) - alone <= 1.1 * blocks + 4 * 8 * 3 * dimensions


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run of the user's own task, one agent with a memory."""
    out = tmp_path_factory.mktemp("run") / "corner"
    options = {"bins": 2, "mixing": "mean", "memory": "gru", "wrappers": ("last_action",), "learning_rate": 0.01}
    qlax.train("test_bins:Corner", out=out, **SMALL | {"num_epochs": 4, "total_steps": 60 * 32}, **options)
    return out


def test_agents_answer_continuous_actions_and_are_evaluated_and_exported(run, tmp_path):
    agent = qlax.load(run)
    assert (agent.num_actions, agent.dimensions) == (2, 3)
    obs = np.zeros((2, 8), np.float32)  # two numbers, and the one-hot last action: 3 x 2
    obs[:, :2] = 1
    q = agent.q_values(obs)
    assert q.shape == (2, 3, 2)
    agent.reset()
    action = agent.act(obs)
    np.testing.assert_array_equal(action, [[1, -1, 1]] * 2)
    assert action.dtype == np.float32
    plain = qlax.load(run, numpy_only=True)
    np.testing.assert_allclose(plain.q_values(obs), q, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(plain.act(obs), action)
    assert qlax.evaluate(run, episodes=4).returns.min() == pytest.approx(1)
    assert "low [-1.0, -1.0, -1.0]" in export.to_stablehlo(agent)[1]["conversion"]["action"]


def test_mistakes_are_refused_in_one_line(tmp_path):
    small = SMALL | {"out": tmp_path / "run"}
    with pytest.raises(UserError, match="test_bins:Corner has continuous actions of 3 dimensions; bins=3 divides each"):
        qlax.train("test_bins:Corner", **small)
    with pytest.raises(UserError, match="bins=3 is for continuous actions, but gymnax/CartPole-v1 has 2 actions"):
        qlax.train("gymnax/CartPole-v1", bins=3, **small)
    with pytest.raises(UserError, match="bins=1: expected a whole number from 2"):
        qlax.train("test_bins:Corner", bins=1, **small)
    with pytest.raises(UserError, match="their sum or mean has none; expected mixing=none or head=scalar"):
        qlax.train("test_bins:Corner", bins=3, head="hl_gauss", **small)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ((np.zeros(2, np.float32), np.zeros(2, np.float32)), "the first lower in every dimension"),
        ((np.zeros(1, np.float32), np.full(1, np.inf, np.float32)), "finite"),
        ((0.0, 1.0), r"float32 \[D\] each"),
    ],
)
def test_bounds_that_are_none(bounds, words):
    env = Target(0.0, 0.0)
    env.action_bounds = bounds
    with pytest.raises(UserError, match=words):
        check_contract(env)
    env = Target(0.0)
    env.num_actions = 2
    with pytest.raises(UserError, match="it has num_actions and action_bounds"):
        check_contract(env)


def test_every_learner_of_a_dimension_has_a_distribution_without_mixing():
    with strict_and_quick():
        head = qlax.heads.hl_gauss(-4.0, 2.0, 31)
        found = greedy(qlax.Bins(Target(1.0, -1.0), 2), qlax.INDEPENDENT, num_updates=150, head=head)
    assert found.action.tolist() == [1, 0]


def test_environments_on_the_host_take_what_the_bins_stand_for():
    HostTarget.seen.clear()
    env = with_bins(HostTarget(num_envs=3), 3, "test_bins:HostTarget")
    env.reset(0)
    step = env.step(np.array([[0, 0], [1, 1], [2, 2]], np.int32))
    assert isinstance(step, Step)
    np.testing.assert_allclose(HostTarget.seen, [[[0, -2], [0.5, 0], [1, 2]]])
