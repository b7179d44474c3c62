"""Heads against slow histograms, finite differences, closed forms and environments with known Q-values."""

import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import ActionReward, DelayedReward, MaskedAction, RandomWorld, Team, strict_and_quick

from qlax import pqn
from qlax.envs.vec import Vec
from qlax.errors import UserError
from qlax.learning import heads
from qlax.learning.mixing import INDEPENDENT
from qlax.networks.qnetwork import QNetwork

SHAPE = pqn.Shape(num_envs=8, num_steps=8, num_minibatches=2, num_epochs=2, num_updates=150)
LOSS = pqn.half_squared
KEY = jax.random.key(0)
HEADS = {
    "hl_gauss": heads.hl_gauss(low=-2, high=2, bins=40),
    "symlog": heads.hl_gauss(low=-2, high=2, bins=40, transform="symlog"),
    "ensemble": heads.ensemble(3),
}


@pytest.fixture(autouse=True, scope="module")
def strict():
    with strict_and_quick():
        yield


def slow_histogram(x, low, high, bins, sigma):
    """Return the share of every bin in a Gaussian around the clipped x, computed bin by bin."""
    width, beyond = (high - low) / bins, math.ceil(4 * sigma)
    x = min(max(x, low), high)
    below = [
        0.5 * math.erfc((x - low - width * index) / (math.sqrt(2) * sigma * width))
        for index in range(-beyond, bins + beyond + 1)
    ]
    return np.diff(below) / (below[-1] - below[0])


def cost_of(head, logits, target):
    """Return the cost of the logits `[K]` of one member."""
    outputs, error = logits[None, None], jnp.zeros((1, 1))
    return head.cost(LOSS, error, jnp.full((1, 1), target), outputs, jnp.zeros((1, 1), jnp.int32))[0, 0]


@pytest.mark.parametrize(("low", "high", "bins", "sigma"), [(-10, 10, 51, 0.75), (0, 1, 7, 0.3), (-3, 2, 20, 2.0)])
def test_the_histogram_and_its_cost_are_those_of_a_slow_one(low, high, bins, sigma):
    bars, head = heads._histogram(low, high, bins, sigma, "none"), heads.hl_gauss(low, high, bins, sigma)
    assert head.outputs == bins + 2 * math.ceil(4 * sigma)
    logits = jax.random.normal(jax.random.key(0), (head.outputs,))
    log_share = np.float64(logits) - np.log(np.exp(np.float64(logits)).sum())
    for x in np.linspace(low - 1, high + 1, 23):
        expected = slow_histogram(x, low, high, bins, sigma)
        np.testing.assert_allclose(bars.weights(jnp.float32(x)), expected, atol=2e-6)
        assert cost_of(head, logits, x) == pytest.approx(-(expected * log_share).sum(), rel=1e-4)
    centers = low + (high - low) / bins * (np.arange(head.outputs) - math.ceil(4 * sigma) + 0.5)
    (q,) = head.estimates(logits)
    assert q[0] == pytest.approx((np.exp(log_share) * centers).sum(), abs=1e-4)


def test_the_gradient_of_the_cost_is_that_of_finite_differences():
    head = heads.hl_gauss(-1, 1, 6)
    logits = jax.random.normal(jax.random.key(1), (head.outputs,))
    found, step = jax.grad(lambda x: cost_of(head, x, 0.3))(logits), 1e-2
    for index, slope in enumerate(found):
        after, before = (cost_of(head, logits.at[index].add(sign * step), 0.3) for sign in (1, -1))
        assert slope == pytest.approx(float(after - before) / (2 * step), abs=1e-3)


def test_a_narrow_gaussian_is_the_one_hot_of_its_bin():
    bars = heads._histogram(-2, 3, 10, 1e-3, "none")
    for x in (-1.9, -0.26, 0.1, 2.8):
        bin_of = math.floor((x + 2) / 0.5) + 1  # one bin lies below the support
        np.testing.assert_allclose(bars.weights(jnp.float32(x)), np.eye(12)[bin_of], atol=1e-6)


@pytest.mark.parametrize("transform", ["none", "symlog"])
def test_the_mean_of_a_target_is_the_scalar_to_1_percent_of_a_bin(transform):
    bars = heads._histogram(-10, 10, 51, 0.75, transform)
    x = jnp.linspace(-10, 10, 301)
    mean = (bars.weights(x) * bars.centers[None]).sum(-1)
    width = bars.edges[1] - bars.edges[0]
    np.testing.assert_allclose(mean, bars.transformed(x), atol=0.01 * width)
    np.testing.assert_allclose(bars.restored(bars.transformed(x)), x, rtol=1e-5, atol=1e-6)
    # Targets outside of the support count as its nearest end.
    for far, end in ((1e6, 10), (-1e6, -10)):
        np.testing.assert_array_equal(bars.weights(jnp.float32(far)), bars.weights(jnp.float32(end)))


def test_the_share_of_targets_outside_is_measured_with_their_weights():
    target, weight = jnp.array([[0.5], [3.0], [-2.1], [99.0]]), jnp.array([[1.0], [1.0], [1.0], [0.0]])
    total, of_all = heads.hl_gauss(-2, 2).measures(target, weight)["target_outside"]
    assert (float(total), float(of_all)) == (2, 3)


def test_symlog_averages_transformed_returns():
    """With symlog, the best value for the returns 0 and 8 is exp(log(9) / 2) - 1 = 2, and not their mean 4."""
    head = heads.hl_gauss(-10, 10, 51, transform="symlog")

    def cost(logits):
        return cost_of(head, logits, 0.0) + cost_of(head, logits, 8.0)

    logits = jnp.zeros(head.outputs)
    step = jax.jit(lambda x: x - 2.0 * jax.grad(cost)(x))
    for _ in range(400):
        logits = step(logits)
    (q,) = head.estimates(logits)
    assert q[0] == pytest.approx(2.0, abs=0.05)


def trained(env, head, *, lam=0.65, mixing=None, **options):
    """Train an agent, and return its Q-values of observations, with the last metrics."""
    vec, network = Vec(env, SHAPE.num_envs), QNetwork(env.num_actions, hidden=(32,), head=head, **options)
    algorithm = pqn.make(vec, network, SHAPE, **({} if mixing is None else {"mixing": mixing}))
    hyper = pqn.Hyper(learning_rate=1e-2, learning_rate_end=0.01, gamma=0.5, lam=lam, epsilon_end=1.0)

    @jax.jit
    def run(key):
        world, step = vec.reset(key)
        state = algorithm.init(key, hyper, step, world)
        return jax.lax.scan(lambda state, _: algorithm.update(state), state, length=SHAPE.num_updates)

    state, metrics = run(jax.random.key(0))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))

    def outputs(obs):
        variables = {"params": state.params, **state.stats}
        return network.apply(variables, (), obs[None], jnp.ones((1, len(obs)), bool), False)[0][0]

    return lambda obs: heads.q_values(network, outputs(obs)), outputs, metrics


@pytest.mark.parametrize("name", HEADS)
def test_every_head_learns_known_values(name):
    q, outputs, metrics = trained(DelayedReward(3), HEADS[name], dueling=name == "symlog")
    np.testing.assert_allclose(q(jnp.eye(3)), np.repeat([[0.25], [0.5], [1.0]], 2, 1), atol=0.02)
    if name == "ensemble":
        members = outputs(jnp.full((1, 3), 5.0)).reshape(3, 2)  # an observation that was never seen
        assert np.ptp(members, axis=0).min() > 0.01
        np.testing.assert_allclose(q(jnp.full((1, 3), 5.0))[0], members.mean(0), rtol=1e-5)
    else:
        total, weight = metrics["target_outside"]
        assert (total == 0).all()
        assert (weight > 0).all()


@pytest.mark.parametrize("name", ["hl_gauss", "ensemble"])
def test_heads_with_actions_masks_and_teams(name):
    q, *_ = trained(ActionReward(), HEADS[name])
    np.testing.assert_allclose(q(jnp.eye(2)), [[1, -1], [-1, 1]], atol=0.03)
    q, *_, metrics = trained(MaskedAction(), HEADS[name], lam=0)
    np.testing.assert_allclose(q(jnp.eye(3)), [[0, 0], [0.5, 0.5], [0, 1]], atol=0.05)
    assert metrics["illegal"].total.sum() == 0
    if name == "ensemble":
        q, *_ = trained(Team(ActionReward(), 2), HEADS[name])
        np.testing.assert_allclose(np.ptp(q(jnp.eye(2)), axis=1), [2, 2], atol=0.1)


def test_hl_gauss_refuses_the_sum_of_a_team_and_another_loss_but_not_independent_members():
    with pytest.raises(UserError, match=r"their sum or mean has none; expected mixing=none or head=scalar"):
        trained(Team(ActionReward(), 2), HEADS["hl_gauss"])
    vec = Vec(ActionReward(), SHAPE.num_envs)
    algorithm = pqn.make(vec, QNetwork(2, head=HEADS["hl_gauss"]), SHAPE, loss=jnp.abs)
    with pytest.raises(UserError, match="loss and head=hl_gauss cannot be combined"):
        jax.eval_shape(lambda key: algorithm.update(algorithm.init(key, pqn.Hyper(), *vec.reset(key)[::-1])), KEY)
    _, _, metrics = trained(Team(ActionReward(), 2), HEADS["hl_gauss"], mixing=INDEPENDENT)
    assert np.isfinite(metrics["loss"].total).all()


def test_every_estimate_learns_from_its_own_target():
    """Targets of an ensemble are those of `q_lambda` for each estimate's own values, not for their mean."""
    vec = Vec(RandomWorld(), 4)
    algorithm = pqn.make(vec, QNetwork(4, hidden=(8,), head=heads.ensemble(3)), pqn.Shape(4, 5, 1, 1, 10))
    world, step = vec.reset(KEY)
    state = algorithm.init(KEY, pqn.Hyper(), step, world)
    _, decision = jax.jit(algorithm.act)(state)
    assert decision.value.shape == (4, 3)
    q = QNetwork(4, hidden=(8,), head=heads.ensemble(3)).apply(
        {"params": state.params}, (), step.obs.reshape(1, 4, -1), jnp.ones((1, 4), bool), False
    )[0][0]
    np.testing.assert_allclose(decision.value, q.reshape(4, 3, 4).max(-1), rtol=1e-5)
    greedy = jax.jit(algorithm.act)(state._replace(hyper=state.hyper._replace(epsilon_start=jnp.float32(0))))[1]
    np.testing.assert_array_equal(greedy.action[:, 0], q.reshape(4, 3, 4).mean(1).argmax(-1))


def test_a_network_with_another_attribute_of_that_name_is_scalar():
    class Own:
        head = "a part of its own"

    assert heads.head_of(Own()) == heads.scalar()
    assert heads.head_of(QNetwork(2)) == heads.scalar()


@pytest.mark.parametrize("head", [heads.scalar(), *HEADS.values()])
def test_a_network_can_be_sent_to_another_process(head):
    network = QNetwork(2, hidden=(4,), head=head)
    variables = network.init(KEY, (), jnp.ones((1, 1, 3)), jnp.ones((1, 1), bool), False)
    sent = pickle.loads(pickle.dumps(network))
    q, same = (
        heads.q_values(each, each.apply(variables, (), jnp.ones((1, 1, 3)), jnp.ones((1, 1), bool), False)[0])
        for each in (network, sent)
    )
    np.testing.assert_array_equal(q, same)
