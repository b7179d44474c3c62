"""`pqn.py`: an update against plain NumPy, and against the same update computed in other ways."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest
import reference
from probes import LossyVec, RandomWorld

from qlax import pqn
from qlax.envs.vec import Vec
from qlax.learning.gradients import OPTIMIZERS
from qlax.learning.mixing import INDEPENDENT, member_q
from qlax.learning.returns import q_lambda
from qlax.networks.qnetwork import QNetwork
from qlax.playing import host

SHAPE = pqn.Shape(num_envs=6, num_steps=8, num_minibatches=2, num_epochs=2, num_updates=8)
HYPER = pqn.Hyper(
    learning_rate=1e-2,
    learning_rate_end=0.2,
    gamma=0.9,
    lam=0.7,
    epsilon_start=0.8,
    epsilon_end=0.2,
    epsilon_fraction=0.5,
    max_grad_norm=0.3,
    reward_scale=0.5,
)
KEY = jax.random.key(0)


@pytest.fixture(autouse=True, scope="module")
def strict_and_quick():
    with probes.strict_and_quick():
        yield


class Leaky(nn.Module):
    """Flax version of the network `reference.leaky`."""

    num_actions: int
    recurrent = True

    def initial_memory(self, batch):
        return jnp.zeros((batch, RandomWorld.num_features))

    @nn.compact
    def __call__(self, memory, obs, first, train):
        def step(memory, inputs):
            obs, first = inputs
            memory = reference.MEMORY_DECAY * jnp.where(first[:, None], 0.0, memory) + obs
            return memory, memory

        memory, memories = jax.lax.scan(step, memory, (obs, first))
        return nn.Dense(self.num_actions)(memories), memory


def mlp(**options):
    return QNetwork(RandomWorld.num_actions, hidden=(8,), **options)


class Case(NamedTuple):
    """Algorithm with its environments, compiled part by part; `traces` has an entry for every tracing of `update`."""

    worlds: Vec
    algorithm: pqn.PQN
    traces: list
    start: Any  # key, hyper -> state
    act: Any
    rollout: Any
    learn: Any
    update: Any


def build(worlds, network, shape=SHAPE, **options):
    algorithm, traces = pqn.make(worlds, network, shape, **options), []

    def start(key, hyper=HYPER):
        worlds_state, step = worlds.reset(key)
        return algorithm.init(key, hyper, step, worlds_state)

    def update(state):
        traces.append("update")
        return algorithm.update(state)

    parts = (start, algorithm.act, algorithm.rollout, algorithm.learn, update)
    return Case(worlds, algorithm, traces, *map(jax.jit, parts))


WORLDS = {"single": RandomWorld(), "team": RandomWorld(num_agents=2, masked=True)}


@functools.cache
def single():
    """Build the algorithm for a single agent in `Vec`."""
    return build(Vec(WORLDS["single"], SHAPE.num_envs), mlp())


@functools.cache
def team():
    """Build the algorithm for a team with action masks and memory, in environments that lose observations."""
    return build(LossyVec(WORLDS["team"], SHAPE.num_envs), Leaky(RandomWorld.num_actions))


@pytest.fixture(params=[single, team])
def case(request):
    return request.param()


@pytest.fixture
def in_order(monkeypatch):
    """Make minibatches without shuffling, in programs that are compiled within the test."""
    monkeypatch.setattr(jax.random, "permutation", lambda key, number: jnp.arange(number))


def ended(steps):
    return steps.terminated | steps.truncated


def ignored(steps):
    """Return where steps have weight 0, because nothing can be learned from them."""
    return steps.truncated & ~steps.terminated


def assert_close(actual, expected, tolerance):
    """Check that trees of arrays, which may hold random keys, are equal up to `tolerance`."""

    def check(a, b):
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)

    jax.tree.map(check, actual, expected)


def stacked(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def means(metrics):
    return {name: total / weight for name, (total, weight) in metrics.items()}


def assert_all_finite(tree):
    for leaf in jax.tree.leaves(tree):
        assert np.isfinite(leaf).all()


# --- compilation


def test_update_compiles_once(case):
    state = case.start(KEY)
    for _ in range(3):
        state, _ = case.update(state)
    assert case.traces == ["update"]


@pytest.mark.parametrize("options", [{"memory": "lstm"}, {"norm": "batch", "dueling": True}, {"norm": "batch_renorm"}])
@pytest.mark.parametrize("kind", ["single", "team"])
def test_update_maps_the_state_to_its_own_types(kind, options):
    def types(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)

    case = build(Vec(WORLDS[kind], SHAPE.num_envs), mlp(**options))
    state = jax.eval_shape(case.start, KEY)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))
    assert types(jax.eval_shape(case.algorithm.update, state)[0]) == types(state)


# --- runs side by side


def five_updates(update, state):
    """Return the parameters after each of five updates."""
    params = []
    for _ in range(5):
        state, _ = update(state)
        params.append(state.params)
    return params


def test_run_alone_equals_the_same_run_among_others(case):
    keys = jax.random.split(KEY, 3)
    hypers = [
        HYPER,
        HYPER._replace(learning_rate=3e-3, gamma=0.5, lam=0.0, max_grad_norm=10.0),
        HYPER._replace(epsilon_start=0.1, epsilon_fraction=0.0, learning_rate_end=1.0, reward_scale=2.0),
    ]
    states = [case.start(key, hyper) for key, hyper in zip(keys, hypers, strict=True)]
    alone = [five_updates(case.update, state) for state in states]
    together = five_updates(jax.jit(jax.vmap(case.algorithm.update)), stacked(states))
    assert_close(together, stacked(alone), 1e-5)


def test_traced_hyper_parameters_equal_constants():
    case = single()

    def update(state):
        state, metrics = case.algorithm.update(state._replace(hyper=HYPER))
        return state._replace(hyper=jax.tree.map(jnp.float32, HYPER)), metrics

    state = case.start(KEY)
    assert_close(five_updates(jax.jit(update), state), five_updates(case.update, state), 1e-5)


def test_python_loop_equals_update(case):
    """The loop of `host.py` (act, step, observe, then learn) gives the same as `update`."""
    state, _ = case.update(case.start(KEY))  # begin in the middle of episodes
    expected, expected_metrics = case.update(state)
    memory, seen = state.memory, []
    step_worlds = jax.jit(case.worlds.step)
    for _ in range(SHAPE.num_steps):
        state, decision = case.act(state)
        state, transition = case.algorithm.observe(
            state, decision, *step_worlds(decision.key, state.env, decision.action)
        )
        seen.append(transition)
    state, metrics = case.learn(state, pqn.Rollout(memory, stacked(seen)))
    assert_close(state, expected, 1e-6)
    assert_close(metrics, expected_metrics, 1e-5)


# --- the same in plain NumPy


def reference_params(network, params):
    """Convert Flax's parameters to the form of `reference`."""
    if network == "leaky":
        return params["Dense_0"]
    hidden = [
        params[f"Dense_{i}"] | {"scale": norm["scale"], "shift": norm["bias"]}
        for i, norm in enumerate(params[name] for name in sorted(params) if name.startswith("LayerNorm"))
    ]
    return [*hidden, params[f"Dense_{len(hidden)}"]]


def reference_rollout(before, after, rollout):
    """Convert the steps of a rollout's environments to the form of `reference`, without its values and targets."""
    steps = rollout.transitions

    def followed(seen, last):
        return None if seen is None else jnp.concatenate([seen, last[None]])

    ends = jnp.concatenate([ended(before.step)[None], ended(steps)])
    return {
        "memory": before.memory if jax.tree.leaves(before.memory) else None,
        "first": ends[:-1],
        "obs": followed(steps.obs, after.step.obs),
        "legal": followed(steps.legal, after.step.legal),
        "action": steps.action,
        "reward": steps.reward,
        "terminated": steps.terminated,
        "truncated": steps.truncated,
        "first_after": ends[-1],
    }


@pytest.mark.parametrize(
    ("name", "kind", "num_minibatches"), [("mlp", "single", 3), ("mlp", "team", 1), ("leaky", "team", 3)]
)
@pytest.mark.usefixtures("in_order")
def test_updates_equal_plain_numpy(name, kind, num_minibatches):
    """The tolerance is the rounding of float32, which is a thousandth of RAdam's first rectified steps."""
    shape, hyper = SHAPE._replace(num_minibatches=num_minibatches), HYPER._replace(learning_rate=0.03)
    world = WORLDS[kind]
    network = QNetwork(world.num_actions, hidden=(8, 8)) if name == "mlp" else Leaky(world.num_actions)
    case = build(LossyVec(world, shape.num_envs), network, shape)
    state, tolerance = case.start(KEY, hyper), 1e-4
    first = params = reference.as_float64(reference_params(name, state.params))
    optimizer_state = reference.RAdam(0, 0, 0, 1).initial(params)
    for _ in range(5):
        after, rollout = case.rollout(state)
        assert rollout.transitions.terminated.any()
        assert ignored(rollout.transitions).any()
        data = reference_rollout(state, after, rollout)
        state, metrics = case.learn(after, rollout)
        params, optimizer_state, expected = reference.learn(
            name, params, optimizer_state, data, hyper._asdict(), shape._asdict()
        )
        assert_close(reference_params(name, state.params), params, tolerance)
        found = means(metrics)
        assert found["td_error"] == pytest.approx(expected["td_error"], rel=1e-3)
        if num_minibatches == 1:  # several minibatches differ in weight, which the reference ignores
            assert found["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    changes = reference.tree_map(lambda a, b: np.abs(a - b).max(), params, first)
    assert min(jax.tree.leaves(changes)) > 20 * tolerance


@pytest.mark.usefixtures("in_order")
def test_members_that_learn_apart_are_as_many_single_agents_with_the_reward_of_the_team():
    world, shape = WORLDS["team"], SHAPE._replace(num_minibatches=1)
    apart = build(LossyVec(world, shape.num_envs), mlp(), shape, mixing=INDEPENDENT)
    after, rollout = apart.rollout(apart.start(KEY))
    number = shape.num_envs * world.num_agents
    steps = rollout.transitions
    assert steps.value.shape == (shape.num_steps, shape.num_envs, world.num_agents)

    def of_members(x, axis):  # [..., N, M, ...] -> [..., N * M, 1, ...]
        return x.reshape(*x.shape[:axis], number, 1, *x.shape[axis + 2 :])

    def of_each(x, axis):  # [..., N] -> [..., N * M]
        return jnp.repeat(x, world.num_agents, axis)

    def as_singles(step, axis):
        each = {name: of_each(getattr(step, name), axis) for name in ("reward", "terminated", "truncated")}
        members = {name: of_members(getattr(step, name), axis) for name in ("obs", "legal")}
        return step._replace(**each, **members, metrics={})

    singles = as_singles(steps, 1)._replace(
        first=of_each(steps.first, 1), action=of_members(steps.action, 1), value=of_members(steps.value, 1)
    )
    alone = pqn.make(None, mlp(), shape._replace(num_envs=number))
    expected, measured = jax.jit(alone.learn)(after._replace(step=as_singles(after.step, 0)), pqn.Rollout((), singles))
    state, metrics = apart.learn(after, rollout)
    assert_close(state.params, expected.params, 1e-5)
    for name in ("loss", "td_error"):
        assert means(metrics)[name] == pytest.approx(float(means(measured)[name]), rel=1e-5)


# --- targets


def targets_of_one_update(case, network):
    """Return the targets of one update: of the whole rollout and of every minibatch; and the rollout's steps."""
    seen = []

    def recorded(*arguments):
        g = q_lambda(*arguments)
        jax.debug.callback(lambda g: seen.append(np.asarray(g)), g, ordered=True)
        return g

    state, rollout = case.rollout(case.start(KEY))
    build(None, network, returns=recorded).learn(state, rollout)
    jax.effects_barrier()
    return *seen, rollout.transitions


@pytest.mark.usefixtures("in_order")
def test_first_targets_of_a_recurrent_network_are_those_of_the_rollout():
    whole, *minibatches, _ = targets_of_one_update(team(), Leaky(RandomWorld.num_actions))
    half = SHAPE.num_envs // 2
    np.testing.assert_allclose(minibatches[0][:-1], whole[:-1, :half], atol=1e-5)
    # After a gradient step, targets follow the newest Q-values.
    assert np.abs(minibatches[1][:-1] - whole[:-1, half:]).max() > 1e-3


@pytest.mark.usefixtures("in_order")
def test_targets_without_memory_stay_those_of_the_rollout():
    whole, *minibatches, steps = targets_of_one_update(single(), mlp())
    targets = np.concatenate([g[0] for g in minibatches]).reshape(SHAPE.num_epochs, *whole[:-1].shape)
    learned_from = ~ignored(steps)
    assert not learned_from.all()
    for epoch in targets:
        np.testing.assert_allclose(epoch[learned_from], whole[:-1][learned_from], atol=1e-5)


# --- acting


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0])
def test_illegal_actions_are_never_taken(epsilon):
    case = team()
    state = case.start(KEY)
    state = state._replace(
        hyper=state.hyper._replace(epsilon_start=jnp.float32(epsilon), epsilon_end=jnp.float32(epsilon))
    )
    for _ in range(5):
        state, rollout = case.rollout(state)
        steps = rollout.transitions
        assert not steps.legal.all()
        assert jnp.take_along_axis(steps.legal, steps.action[..., None], -1).all()


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("legal", [None, [True, False, True, True, False]])
def test_exploration_is_uniform_over_legal_actions(legal, epsilon):
    number, q = 20_000, jnp.array([3.0, 9.0, 4.0, -1.0, 8.0])
    everyone = functools.partial(jnp.broadcast_to, shape=(number, 5))
    mask = None if legal is None else everyone(jnp.array(legal))
    action = pqn.epsilon_greedy(KEY, everyone(q), mask, jnp.float32(epsilon))
    assert action.dtype == jnp.int32
    allowed = np.ones(5) if legal is None else np.array(legal)
    expected = epsilon * allowed / allowed.sum()
    expected[1 if legal is None else 2] += 1 - epsilon
    frequency = np.bincount(action, minlength=5) / number
    np.testing.assert_array_less(np.abs(frequency - expected), 5 * np.sqrt(expected * (1 - expected) / number) + 1e-9)


@pytest.mark.parametrize("fraction", [0.5, 0.0])
def test_epsilon_falls_linearly_over_a_fraction_of_the_run(fraction):
    def epsilon_as_action(key, q, legal, epsilon):
        return jnp.full(q.shape[:-1], 100 * epsilon).round().astype(jnp.int32)

    case = build(None, mlp(), SHAPE._replace(num_updates=40), explore=epsilon_as_action)
    state = single().start(KEY, HYPER._replace(epsilon_fraction=fraction))
    percent = [
        int(case.act(state._replace(updates=jnp.int32(update)))[1].action[0, 0]) for update in (0, 5, 10, 20, 39)
    ]
    assert percent == ([80, 65, 50, 20, 20] if fraction else [20] * 5)


def test_metric_epsilon_is_the_one_acted_with(case):
    state = case.start(KEY)
    for expected in (0.8, 0.65, 0.5):
        state, metrics = case.update(state)
        assert means(metrics)["epsilon"] == pytest.approx(expected)


def of_every_environment(acted):
    return np.array(acted[1].action[:, 0]) / 1e6


def millionths(key, q, legal, epsilon):
    return (1e6 * jnp.broadcast_to(epsilon, q.shape[:-1])).round().astype(jnp.int32)


@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_every_environment_has_its_epsilon_however_they_are_split(spread):
    hyper = HYPER._replace(epsilon_start=0.1, epsilon_end=0.1, epsilon_spread=spread)
    case = build(None, mlp(), explore=millionths)
    state = single().start(KEY, hyper)
    found = of_every_environment(case.act(state))
    np.testing.assert_allclose(np.exp(np.log(found).mean()), 0.1, rtol=1e-4)
    # Six values at the middles of six equal parts of the logarithms from 0.1 / spread to 0.1 spread.
    np.testing.assert_allclose(found, 0.1 * spread ** (np.array([-5, -3, -1, 1, 3, 5]) / 6), rtol=1e-4)
    assert means(single().update(state)[1])["epsilon"] == pytest.approx(found.mean(), rel=1e-5)
    # On the host, halves of the environments take turns.
    _, parts = host.begin(state)
    halves = [of_every_environment(host.act(case.algorithm, state, part)) for part in parts]
    np.testing.assert_array_equal(np.concatenate(halves), found)
    # The same on two devices.
    on_each = pqn.make(None, mlp(), SHAPE._replace(num_envs=3), explore=millionths, axis_name="devices")
    both = jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), state.step)
    act = jax.vmap(lambda step: on_each.act(state._replace(step=step)), axis_name="devices")
    np.testing.assert_array_equal(np.array(act(both)[1].action).reshape(-1) / 1e6, found)


def test_no_epsilon_is_larger_than_1():
    state = single().start(KEY, HYPER._replace(epsilon_start=0.5, epsilon_spread=100.0))
    found = of_every_environment(build(None, mlp(), explore=millionths).act(state))
    assert found.max() == 1
    assert means(single().update(state)[1])["epsilon"] == pytest.approx(found.mean(), rel=1e-5)


@pytest.mark.parametrize(("update", "lam"), [(0, 0.9), (1, 0.7), (4, 0.1), (7, 0.1)])
def test_lambda_moves_linearly_over_a_fraction_of_the_run(case, update, lam):
    """The targets use the moved lambda, and so do, for networks with memory, the returns that follow a segment."""
    state, rollout = case.rollout(case.start(KEY))
    state = state._replace(updates=jnp.int32(update))

    def learned(**hyper):
        hyper = {name: jnp.float32(value) for name, value in hyper.items()}
        return case.learn(state._replace(hyper=state.hyper._replace(**hyper)), rollout)[0].params

    moved = learned(lam=0.9, lam_end=0.1, lam_fraction=0.5)
    assert_close(moved, learned(lam=lam), 1e-5)
    if update:
        apart = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), moved, learned(lam=0.9))
        assert max(jax.tree.leaves(apart)) > 1e-4
    # With a fraction of 0, lambda is constant, whatever its end is, and the bits are the same.
    assert_close(learned(lam=lam), learned(lam=lam, lam_end=0.2), 0)


# --- optimisation


def test_optimisers_by_name_make_their_first_step():
    weights = {"matrix": jnp.array([[3.0, 1.0], [1.0, 2.0]]), "bias": jnp.array([1.0, -2.0])}
    grads = jax.tree.map(lambda x: 0.01 * x, weights)

    @functools.partial(jax.jit, static_argnums=0)
    def step(make):
        optimizer = make(HYPER, 10)
        return optimizer.update(grads, optimizer.init(weights), weights)[0]

    rate = HYPER.learning_rate
    for name, decay in (("adam", 0), ("adamw", 1e-4)):
        for key, change in step(OPTIMIZERS[name]).items():
            expected = -rate * (np.sign(weights[key]) + decay * np.array(weights[key]))
            np.testing.assert_allclose(change, expected, rtol=1e-4)
    changes = step(OPTIMIZERS["muon"])
    assert (np.abs(np.linalg.svd(changes["matrix"])[1] / rate - 1) < 0.35).all()  # Newton-Schulz is inexact
    np.testing.assert_allclose(changes["bias"], changes["bias"][0] * np.sign(weights["bias"]), rtol=1e-4)
    assert -1.5 * rate < changes["bias"][0] < -rate  # Adam with Nesterov's momentum


@pytest.mark.parametrize("end", [0.0, 0.2, 1.0])
def test_learning_rate_falls_linearly(end):
    @jax.jit
    def changes(hyper):
        optimizer, gradient = pqn.radam(hyper, 10), jnp.float32(0.1)

        def step(state, _):
            return optimizer.update(gradient, state, gradient)[::-1]

        return jax.lax.scan(step, optimizer.init(gradient), length=13)[1]

    constant = changes(HYPER._replace(learning_rate_end=1.0))
    expected = [1 + min(step / 10, 1) * (end - 1) for step in range(13)]
    np.testing.assert_allclose(changes(HYPER._replace(learning_rate_end=end)) / constant, expected, atol=1e-5)
    assert constant[0] == pytest.approx(-HYPER.learning_rate * 0.1)  # first step: plain gradient descent


# --- steps of weight 0


def test_steps_of_weight_0_give_no_gradient(case):
    state, (memory, steps) = case.rollout(case.start(KEY))
    where = ignored(steps)
    assert where.any()

    def learn(reward, other_action):
        action = (steps.action + other_action) % case.worlds.num_actions
        changed = steps._replace(
            reward=jnp.where(where, reward, steps.reward),
            action=jnp.where(where[..., None], action, steps.action),
        )
        learned, metrics = case.learn(state, pqn.Rollout(memory, changed))
        return learned.params, metrics["loss"], metrics["td_error"], metrics["grad_norm"]

    expected = learn(0.0, 0)
    assert_all_finite(expected)
    for reward, other_action in ((7.0, 0), (jnp.inf, 0), (0.0, 1), (-jnp.inf, 3)):
        assert_close(learn(reward, other_action), expected, 0)


def test_empty_masks_make_nothing_nan():
    case = team()
    state, (memory, steps) = case.rollout(case.start(KEY))
    where = ignored(steps)
    steps = steps._replace(
        legal=steps.legal & ~where[..., None, None],
        reward=jnp.where(where, jnp.inf, steps.reward),
    )
    nothing = jnp.zeros_like(state.step.legal)
    state = state._replace(step=state.step._replace(legal=nothing))  # and in the first step of the next rollout
    learned, metrics = case.learn(state, pqn.Rollout(memory, steps))
    assert_all_finite((learned.params, learned.opt_state, metrics))
    _, (_, steps) = case.rollout(learned)
    assert_all_finite(steps.value)
    assert ((steps.action >= 0) & (steps.action < case.worlds.num_actions)).all()


# --- devices


def twice(tree):
    """Stack a tree twice, as for two devices."""
    return stacked([tree, tree])


def in_halves(tree, axis):
    """Split the environments between two devices: `[.., N, ..]` to `[2, .., N / 2, ..]`."""
    return jax.tree.map(lambda x: jnp.stack(jnp.split(x, 2, axis)), tree)


@pytest.mark.parametrize("norm", ["layer", pytest.param("batch", marks=pytest.mark.slow), "batch_renorm"])
def test_run_split_over_devices_equals_the_whole(norm):
    shape = SHAPE._replace(num_minibatches=1)
    half = shape._replace(num_envs=shape.num_envs // 2)
    whole = build(single().worlds, mlp(norm=norm), shape)
    part = pqn.make(None, mlp(norm=norm, axis_name="devices"), half, axis_name="devices")
    # The network that made the experience does not matter here.
    after, (_, transitions) = single().rollout(single().start(jax.random.key(1)))
    weight = (~ignored(transitions)).sum(0)
    assert weight[: half.num_envs].sum() != weight[half.num_envs :].sum()  # or a mean of means would do

    state = whole.start(KEY)._replace(env=(), step=after.step)
    expected, expected_metrics = whole.learn(state, pqn.Rollout((), transitions))
    halves = twice(state)._replace(step=in_halves(after.step, axis=0))
    rollouts = pqn.Rollout((), in_halves(transitions, axis=1))
    learned, metrics = jax.jit(jax.vmap(part.learn, axis_name="devices"))(halves, rollouts)
    assert_close((learned.params, learned.stats), twice((expected.params, expected.stats)), 1e-5)
    assert_close(means(metrics), twice(means(expected_metrics)), 1e-5)


def test_devices_act_with_keys_of_their_own():
    algorithm = pqn.make(None, mlp(), SHAPE, axis_name="devices")
    state = single().start(KEY, HYPER._replace(epsilon_start=1.0))
    after, decision = jax.jit(jax.vmap(algorithm.act, axis_name="devices"))(twice(state))
    assert decision.key[0] != decision.key[1]
    assert (decision.action[0] != decision.action[1]).any()
    assert after.key[0] == after.key[1]  # keys for learning are equal on all devices


# --- metrics


def test_metrics_are_sums_with_their_weights(case):
    state, rollout = case.rollout(case.start(KEY))
    _, metrics = case.learn(state, rollout)
    steps = rollout.transitions
    assert {"episode_return", "episode_length"} <= set(steps.metrics)
    for name, seen in steps.metrics.items():
        reported = seen[~np.isnan(seen)]
        assert metrics[name].weight == len(reported) > 0
        assert metrics[name].total == pytest.approx(float(reported.sum()), rel=1e-5)
    learned_from = SHAPE.num_epochs * (~ignored(steps)).sum()
    assert metrics["loss"].weight == metrics["td_error"].weight == learned_from
    assert metrics["grad_norm"].weight == SHAPE.num_epochs * SHAPE.num_minibatches
    assert means(metrics)["value"] == pytest.approx(float(steps.value.mean()), rel=1e-5)


def test_episode_returns_are_those_of_the_transitions():
    """Episodes are followed over three rollouts, because one may begin in one rollout and end in another."""
    case = single()
    state, ended, total, count = case.start(KEY), [], 0.0, 0.0
    running = np.zeros(SHAPE.num_envs)
    for _ in range(3):
        state, rollout = case.rollout(state)
        steps = rollout.transitions
        for reward, terminated, truncated in zip(steps.reward, steps.terminated, steps.truncated, strict=True):
            ended += [*running[truncated]]  # a time limit is seen one step later, at the reset
            running = np.where(truncated, 0, running + reward)
            ended += [*running[terminated]]
            running = np.where(terminated, 0, running)
        state, metrics = case.learn(state, rollout)
        total, count = total + metrics["episode_return"].total, count + metrics["episode_return"].weight
    ended += [*running[state.env.copies.overdue]]
    assert count == len(ended) > 5
    assert total == pytest.approx(sum(ended), rel=1e-5)


def test_an_action_that_does_not_exist_has_no_value():
    q = jnp.float32([[1, 2, 3]] * 4)
    np.testing.assert_array_equal(member_q(q, jnp.int32([0, 2, 3, -1])), [1, 3, np.nan, np.nan])
