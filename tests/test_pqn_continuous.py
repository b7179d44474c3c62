"""The page for continuous actions: an update held against plain NumPy, known tasks, and statistics that travel."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import probes
import pytest
import reference
from probes import show

import qlax
from qlax import pqn, pqn_continuous
from qlax.envs.vec import Vec
from qlax.learning.mixing import INDEPENDENT
from qlax.networks.actor_critic import ActorCritic, orthogonal, reward_deviation
from qlax.playing import evaluation

SHAPE = pqn.Shape(num_envs=6, num_steps=5, num_minibatches=2, num_epochs=2, num_updates=8)
HYPER = pqn_continuous.Hyper(
    learning_rate=1e-2,
    learning_rate_end=0.2,
    gamma=0.9,
    lam=0.7,
    noise_start=0.5,
    noise_end=0.1,
    drift_penalty=3.0,
    drift_threshold=0.02,
    max_grad_norm=0.3,
    reward_scale=0.5,
)
SMALL = {
    **{"algorithm": "pqn-continuous", "total_steps": 256, "num_envs": 4, "num_steps": 8, "num_minibatches": 2},
    **{"num_epochs": 1, "hidden": (8,), "eval_episodes": 2, "eval_max_steps": 5},
    **{"log_interval": 2, "eval_interval": 4, "checkpoint_interval": 4},
}
PENDULUM = "gymnax/Pendulum-v1"


@pytest.fixture(autouse=True, scope="module")
def strict_and_quick():
    with probes.strict_and_quick():
        yield


class World:
    """Random observations and ends, actions of two dimensions; the reward depends on both, and is far from 0."""

    action_bounds = (np.array([-2, 0], np.float32), np.array([2, 1], np.float32))

    def __init__(self, num_agents=None):
        self.team = () if num_agents is None else (num_agents,)
        if num_agents is not None:
            self.num_agents = num_agents

    def reset(self, key):
        obs = 5 + 3 * jax.random.normal(key, (*self.team, 3))
        return obs, show(obs)

    def step(self, key, state, action):
        key_show, key_ends = jax.random.split(key)
        terminated, truncated = jax.random.uniform(key_ends, (2,)) < jnp.array([0.15, 0.2])
        obs, _ = self.reset(key_show)
        return obs, show(obs, jnp.sin(state.sum()) + 2 * action.sum(), terminated, truncated)


class Regulator:
    """Linear-quadratic regulator, x' = x + a / 2, cut after 4 steps: the least cost of x^2 + a^2 / 4 is known."""

    action_bounds = (np.array([-2], np.float32), np.array([2], np.float32))
    time_limit = 4

    def reset(self, key):
        x = jax.random.uniform(key, (), minval=-1.0, maxval=1.0)
        return (x, jnp.int32(0)), show(x[None])

    def step(self, key, state, action):
        del key
        x, time = state
        reward = -jnp.square(x) - jnp.square(action[0]) / 4
        x, time = x + action[0] / 2, time + 1
        return (x, time), show(x[None], reward, truncated=time == self.time_limit)


class Paid:
    """A reward of 1 at every step whatever the action, cut after 3 steps: with gamma 0.5 the value is 2."""

    action_bounds = (np.array([-1], np.float32), np.array([1], np.float32))
    time_limit = 3

    def reset(self, key):
        del key
        return jnp.int32(0), show(jnp.ones(2))

    def step(self, key, state, action):
        del key, action
        return state + 1, show(jnp.ones(2), 1.0, truncated=state + 1 == self.time_limit)


def network_of(env, **options):
    low, high = (tuple(bound.tolist()) for bound in env.action_bounds)
    return ActorCritic(low, high, **{"hidden": (8,), "critic_hidden": (7,), **options})


def begun(env, shape, hyper, network, **options):
    """The algorithm, and its state in new environments."""
    vec = Vec(env, shape.num_envs)
    algorithm = pqn_continuous.make(vec, network, shape, **options)

    @jax.jit
    def start(key):
        worlds, step = vec.reset(key)
        return algorithm.init(key, hyper, step, worlds)

    return algorithm, start(jax.random.key(0))


def layers_of(part, critic=None):
    """The parameters of an actor or of one critic as `reference.mlp` takes them, float64."""
    names = sorted(part, key=lambda name: int(name.split("_")[1]))
    dense, norms = ([part[name] for name in names if name.startswith(kind)] for kind in ("Dense", "LayerNorm"))
    layers = [{**layer} for layer in dense]
    for layer, norm in zip(layers, norms, strict=False):
        layer |= {"scale": norm["scale"], "shift": norm["bias"]}
    chosen = [{name: x if critic is None else x[critic] for name, x in layer.items()} for layer in layers]
    return reference.as_float64(jax.device_get(chosen))


def huber(x):
    return np.where(np.abs(x) <= 1, 0.5 * x**2, np.abs(x) - 0.5)


class Plain:
    """The page's `learn` in NumPy and float64, with gradients by hand; minibatches take the data in their order."""

    def __init__(self, state, network, hyper, shape, greedy):
        self.low, self.high = np.float64(network.low), np.float64(network.high)
        self.half = (self.high - self.low) / 2
        self.hyper, self.shape, self.greedy = hyper, shape, greedy
        self.actor = layers_of(state.params["actor"])
        self.critics = [layers_of(state.params["critic"], index) for index in range(network.critics)]
        steps = shape.num_updates * shape.num_epochs * shape.num_minibatches
        self.optimizer = reference.RAdam(hyper.learning_rate, hyper.learning_rate_end, hyper.max_grad_norm, steps)

    def policy(self, obs):
        """The actor's actions, whose first observations are not normalised, but clipped."""
        obs = np.clip(obs, -10, 10)
        return np.tanh(reference.mlp(self.actor, obs)) * self.half + (self.high + self.low) / 2

    def inputs(self, obs, action):
        return np.concatenate([np.clip(obs, -10, 10), (action - (self.high + self.low) / 2) / self.half], -1)

    def learn(self, raw, last, steps, so_far):
        """Learn from raw observations `[T, N, 3]`, and return the new statistics."""
        hyper, shape = self.hyper, self.shape
        acted = self.policy(raw)  # the statistics of the first update are those of no observation
        rows = raw.reshape(-1, raw.shape[-1])
        mean, var = rows.mean(0), rows.var(0)
        returns = []
        for reward, terminated, truncated in zip(steps["reward"], steps["terminated"], steps["truncated"], strict=True):
            so_far = reward + hyper.gamma * so_far
            returns.append(so_far)
            so_far = np.where(terminated | truncated, 0, so_far)
        deviation = np.sqrt(np.var(returns) + 1e-8)
        value = np.concatenate([steps["value"], last[None]])
        ends = steps["terminated"], steps["truncated"]
        targets = reference.q_lambda(
            hyper.reward_scale / deviation * steps["reward"], *ends, value, hyper.gamma, hyper.lam
        )
        weight = np.where(steps["truncated"] & ~steps["terminated"], 0.0, 1.0).ravel()
        obs = np.clip((rows - mean) / np.sqrt(var + 1e-8), -10, 10)
        data = obs, steps["action"].reshape(len(obs), -1), acted.reshape(len(obs), -1), targets[:-1].ravel(), weight
        states = {"critic": self.optimizer.initial(self.critics), "actor": self.optimizer.initial(self.actor)}
        losses, gains, far = [], [], []
        for _ in range(shape.num_epochs):
            for block in np.split(np.arange(len(obs)), shape.num_minibatches):
                x, action, acted, target, w = (each[block] for each in data)
                total = max(w.sum(), 1)
                errors = [target - reference.mlp(critic, self.inputs(x, action))[:, 0] for critic in self.critics]
                grads = [
                    reference.mlp_gradient(
                        critic, self.inputs(x, action), (-w * np.clip(error, -1, 1) / total)[:, None]
                    )
                    for critic, error in zip(self.critics, errors, strict=True)
                ]
                self.critics, states["critic"] = self.optimizer.step(self.critics, grads, states["critic"])
                losses.append((w * sum(map(huber, errors))).sum())
                chosen = self.policy(x)
                drift = (chosen - acted) / self.half
                is_far = np.abs(drift).mean(-1) >= hyper.drift_threshold
                of_penalty = hyper.drift_penalty * is_far[:, None] * np.clip(drift, -1, 1) / drift.shape[-1]
                slope = np.mean([self.slope(critic, x, chosen) for critic in self.critics], axis=0)
                # Through the range of the action and tanh: both are in halves of the range.
                squashed = (chosen - (self.high + self.low) / 2) / self.half
                upstream = (w[:, None] / total) * (of_penalty - slope) * (1 - squashed**2)
                gain = np.mean([reference.mlp(each, self.inputs(x, chosen))[:, 0] for each in self.critics], axis=0)
                penalty = hyper.drift_penalty * is_far * huber(drift).mean(-1)
                gains.append((w * (penalty - gain)).sum())
                far.append((w * is_far).sum())
                grads = reference.mlp_gradient(self.actor, x, upstream)
                self.actor, states["actor"] = self.optimizer.step(self.actor, grads, states["actor"])
        measured = {"loss": losses, "actor_loss": gains, "drift": far}
        weights = weight.sum() * shape.num_epochs
        return (mean, var, deviation), {name: sum(each) / weights for name, each in measured.items()}

    def slope(self, critic, obs, action, size=1e-5):
        """The derivative of a critic by the action in halves of its range, by differences."""
        slopes = []
        for dimension in range(action.shape[-1]):
            change = size * self.half * np.eye(action.shape[-1])[dimension]
            above, below = (reference.mlp(critic, self.inputs(obs, action + sign * change)) for sign in (1, -1))
            slopes.append((above - below)[:, 0] / (2 * size))
        return np.stack(slopes, -1)


@pytest.mark.parametrize("greedy", [False, True])
def test_an_update_is_that_of_plain_numpy(greedy, monkeypatch):
    monkeypatch.setattr(jax.random, "permutation", lambda key, number: jnp.arange(number))
    network = network_of(World())
    algorithm, state = begun(World(), SHAPE, HYPER, network, greedy_target=greedy)
    plain = Plain(state, network, HYPER, SHAPE, greedy)
    before, rollout = jax.jit(algorithm.rollout)(state)
    after, metrics = jax.jit(algorithm.learn)(before, rollout)
    steps = rollout.transitions
    found = {name: np.asarray(getattr(steps, name)) for name in ("reward", "terminated", "truncated")}
    obs, action = np.asarray(steps.obs[:, :, 0], np.float64), np.asarray(steps.action[:, :, 0], np.float64)
    # What the rollout stored: noise around the actor's action, and the value of one of both.
    noise = (action - plain.policy(obs)) / plain.half
    assert 0.1 < np.abs(noise).mean() < 0.6
    assert ((action >= plain.low - 1e-6) & (action <= plain.high + 1e-6)).all()
    valued = plain.inputs(obs, plain.policy(obs) if greedy else action)
    value = np.mean([reference.mlp(critic, valued)[..., 0] for critic in plain.critics], axis=0)
    np.testing.assert_allclose(steps.value[..., 0], value, rtol=1e-4, atol=1e-4)
    # The value of the last state is that of a fresh action, which the greedy one is not.
    end = np.asarray(before.step.obs[:, 0], np.float64)
    chosen = plain.policy(end)
    if not greedy:
        key = jax.random.split(before.key, 3)[1]
        drawn = np.asarray(jax.random.normal(key, (SHAPE.num_envs, 1, 2)))[:, 0]
        chosen = np.clip(chosen + 0.5 * plain.half * drawn, plain.low, plain.high)
    last = np.mean([reference.mlp(critic, plain.inputs(end, chosen))[..., 0] for critic in plain.critics], axis=0)
    stored = {**found, "action": action, "value": np.asarray(steps.value[..., 0], np.float64)}
    (mean, var, deviation), measured = plain.learn(obs, last, stored, np.zeros(SHAPE.num_envs))
    seen = after.stats["running"]["seen"]
    np.testing.assert_allclose(seen["mean"], mean, rtol=1e-4)
    np.testing.assert_allclose(seen["var"], var, rtol=1e-4)
    assert float(seen["count"]) == SHAPE.num_envs * SHAPE.num_steps
    np.testing.assert_allclose(reward_deviation(after.stats), deviation, rtol=1e-4)
    for name, expected in measured.items():
        np.testing.assert_allclose(metrics[name].total / metrics[name].weight, expected, rtol=1e-3, err_msg=name)
    for expected, part in (
        (plain.actor, layers_of(after.params["actor"])),
        (plain.critics[1], layers_of(after.params["critic"], 1)),
    ):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), part, expected)


def test_statistics_of_several_rollouts_are_those_of_all_their_observations():
    network = network_of(World())
    algorithm, state = begun(World(), SHAPE, HYPER, network)
    seen = []
    for _ in range(3):
        state, rollout = jax.jit(algorithm.rollout)(state)
        state, _ = jax.jit(algorithm.learn)(state, rollout)
        seen.append(np.asarray(rollout.transitions.obs, np.float64).reshape(-1, 3))
    running = state.stats["running"]["seen"]
    np.testing.assert_allclose(running["mean"], np.concatenate(seen).mean(0), rtol=1e-4)
    np.testing.assert_allclose(running["var"], np.concatenate(seen).var(0), rtol=1e-3)


def test_devices_that_share_an_agent_learn_what_one_device_does():
    shape = SHAPE._replace(num_minibatches=1)  # the order of the transitions does not matter then
    algorithm, state = begun(World(), shape, HYPER, network_of(World()), greedy_target=True)
    state, rollout = jax.jit(algorithm.rollout)(state)
    steps = rollout.transitions
    nan = steps._replace(reward=jnp.where(steps.truncated & ~steps.terminated, jnp.nan, steps.reward))
    state, rollout = state._replace(env=()), rollout._replace(transitions=nan)  # such rewards belong to no action
    whole, metrics = jax.jit(algorithm.learn)(state, rollout)
    network = network_of(World(), axis_name="devices")
    shared = pqn_continuous.make(None, network, shape._replace(num_envs=3), greedy_target=True, axis_name="devices")

    def halves(tree, axis):
        return jax.tree.map(lambda x: jnp.stack(jnp.split(x, 2, axis)), tree)

    parts = state._replace(step=halves(state.step, 0), memory=halves(state.memory, 0))
    seen = pqn.Rollout(halves(rollout.memory, 0), halves(rollout.transitions, 1))
    axes = jax.tree.map(lambda _: None, state)._replace(step=0, memory=0)
    after, found = jax.jit(jax.vmap(shared.learn, (axes, 0), axis_name="devices"))(parts, seen)
    for part in range(2):
        expected = jax.tree.map(lambda x, part=part: x[part], (after.params, after.stats))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), expected, (whole.params, whole.stats)
        )
    for name in ("loss", "actor_loss", "drift", "value", "noise"):
        ours, of_both = (each[name] for each in (metrics, found))
        np.testing.assert_allclose(of_both.total / of_both.weight, ours.total / ours.weight, rtol=1e-3, err_msg=name)


@pytest.mark.parametrize("shape", [(5, 12), (12, 5), (6, 6), (4, 1)])
def test_kernels_begin_orthogonal(shape):
    kernel = np.asarray(orthogonal(jax.random.key(1), shape), np.float64)
    assert kernel.shape == shape
    gram = kernel @ kernel.T if shape[0] < shape[1] else kernel.T @ kernel
    np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-6)


@pytest.mark.parametrize("mixing", [None, INDEPENDENT])
def test_members_of_a_team_share_a_network_and_learn(mixing):
    options = {} if mixing is None else {"mixing": mixing}
    algorithm, state = begun(World(num_agents=2), SHAPE, HYPER, network_of(World()), **options)
    after, metrics = jax.jit(algorithm.update)(state)
    assert jax.eval_shape(algorithm.act, state)[1].action.shape == (6, 2, 2)
    assert jax.eval_shape(algorithm.act, state)[1].value.shape == (6, 1 if mixing is None else 2)
    assert all(np.isfinite(mean.total) for mean in metrics.values())
    assert int(after.updates) == 1


def test_a_time_limit_is_bootstrapped():
    shape = pqn.Shape(num_envs=8, num_steps=8, num_minibatches=2, num_epochs=4, num_updates=60)
    hyper = pqn_continuous.Hyper(learning_rate=5e-3, learning_rate_end=0.1, gamma=0.5)
    algorithm, state = begun(Paid(), shape, hyper, network_of(Paid(), input_norm="none", reward_norm=False))
    state, metrics = jax.jit(lambda state: jax.lax.scan(lambda s, _: algorithm.update(s), state, length=60))(state)
    value = metrics["value"].total[-1] / metrics["value"].weight[-1]
    assert value == pytest.approx(2, abs=0.15)  # 1.75 at most if the limit were an end


@pytest.mark.parametrize("greedy", [False, True])
def test_a_linear_quadratic_regulator_is_learned(greedy):
    shape = pqn.Shape(num_envs=16, num_steps=16, num_minibatches=4, num_epochs=4, num_updates=200)
    hyper = pqn_continuous.Hyper(learning_rate=3e-3, learning_rate_end=0.05, gamma=0.9, lam=0.7, noise_end=0.05)
    network = network_of(Regulator(), hidden=(32,), critic_hidden=(32,))
    algorithm, state = begun(Regulator(), shape, hyper, network, greedy_target=greedy)
    state, _ = jax.jit(lambda state: jax.lax.scan(lambda s, _: algorithm.update(s), state, length=200))(state)
    played = Vec(Regulator(), 64)
    records = jax.jit(evaluation.in_jax(algorithm, played, 4))(jax.random.key(1), state)
    np.testing.assert_array_equal(records["episode_length"], 4)
    cost = 1.0  # least cost of x^2 without a limit, by the Riccati equation; after four steps nothing is left of x
    for _ in range(50):
        cost = 1 + cost - (cost / 2) ** 2 / (0.25 + cost / 4)
    start = np.asarray(jax.vmap(Regulator().reset)(jax.random.split(jax.random.split(jax.random.key(1))[0], 64))[1].obs)
    best = -cost * np.square(start[:, 0])
    assert np.mean(records["episode_return"] - best) > -0.08
    assert np.mean(best) < -0.3  # an actor that stands still pays 4 x^2


def test_a_run_is_resumed_bit_for_bit_and_keeps_its_statistics(tmp_path):
    whole = qlax.train(PENDULUM, out=tmp_path / "whole", **SMALL)
    ended = qlax.train(PENDULUM, out=tmp_path / "part", callback=lambda line: line["updates"] >= 4, **SMALL)
    assert ended.summary["total_steps"] < 256
    part = qlax.resume(tmp_path / "part")
    assert part.summary["total_steps"] == whole.summary["total_steps"]
    agents = [qlax.load(tmp_path / name) for name in ("whole", "part")]
    jax.tree.map(np.testing.assert_array_equal, *(agent.variables for agent in agents))
    running = agents[0].variables["running"]
    assert running["seen"]["count"] == 256
    assert running["returns"]["var"] != 1
    before = jax.tree.map(np.copy, running)
    obs = np.ones((5, 3), np.float32)
    action = agents[0].act(obs)
    assert (action.shape, action.dtype) == ((5, 1), np.float32)
    jax.tree.map(np.testing.assert_array_equal, agents[0].variables["running"], before)
    plain = qlax.load(tmp_path / "whole", numpy_only=True)
    np.testing.assert_allclose(plain.act(obs), action, rtol=1e-5, atol=1e-5)
    with pytest.raises(qlax.UserError, match="has no Q-values"):
        agents[0].q_values(obs)
    with pytest.raises(qlax.UserError, match="legal is for a choice"):
        agents[0].act(obs, legal=np.ones((5, 1), bool))
    result = qlax.evaluate(tmp_path / "whole", episodes=3, max_steps=4)
    assert result.returns.shape == (1, 3)
    with pytest.raises(qlax.UserError, match=r"epsilon=0\.1 is for a choice"):
        qlax.evaluate(tmp_path / "whole", episodes=3, epsilon=0.1)
    with pytest.raises(qlax.UserError, match="values draws"):
        qlax.render(tmp_path / "whole", tmp_path / "a.gif", values=True)
    assert qlax.render(tmp_path / "whole", tmp_path / "a.gif", max_steps=3).lengths == [3]
    file = qlax.export(tmp_path / "whole", tmp_path / "a.stablehlo")
    exported = jax.export.deserialize(bytearray(file.read_bytes()))
    np.testing.assert_allclose(exported.call(obs), action, rtol=1e-5, atol=1e-5)
    described = json.loads((tmp_path / "a.stablehlo.json").read_text())
    onnx = qlax.export(tmp_path / "whole", tmp_path / "a.onnx", format="onnx")
    (computed,) = onnxruntime.InferenceSession(onnx).run(None, {"obs": obs})
    np.testing.assert_allclose(computed, action, rtol=1e-5, atol=1e-5)
    assert described["outputs"] == [{"name": "action", "dtype": "float32", "shape": ["batch", 1]}]


@pytest.mark.slow
def test_environments_on_the_host_get_actions_of_their_space(tmp_path):
    run = qlax.train("gymnasium/Pendulum-v1", out=tmp_path / "run", **SMALL)
    assert np.isfinite(run.summary["eval_return"]["mean"])
    agent = qlax.load(tmp_path / "run")
    action = agent.act(np.zeros(3, np.float32))
    assert (action.shape, action.dtype) == ((1,), np.float32)
    assert "continuous actions of 1 dimension>" in repr(agent)
    assert qlax.evaluate(tmp_path / "run", episodes=2, max_steps=4).returns.shape == (1, 2)


@pytest.mark.parametrize(
    ("env", "settings", "message"),
    [
        (PENDULUM, {}, r"--bins 3 .*--algorithm pqn-continuous"),
        ("gymnax/CartPole-v1", {"algorithm": "pqn-continuous"}, "algorithm=pqn-continuous is for continuous actions"),
        (PENDULUM, {"algorithm": "pqn-continuos"}, "did you mean"),
        (PENDULUM, {"algorithm": "pqn-continuous", "memory": "gru"}, "memory=gru is not for algorithm=pqn-continuous"),
        (PENDULUM, {"algorithm": "pqn-continuous", "head": "ensemble"}, "head=ensemble is not for"),
        (PENDULUM, {"algorithm": "pqn-continuous", "bins": 3}, "bins=3 is not for"),
        (PENDULUM, {"algorithm": "pqn-continuous", "epsilon_end": 0.1}, "epsilon_end is for algorithm=pqn"),
        (PENDULUM, {"algorithm": "pqn-continuous", "eval_epsilon": 0.1}, "eval_epsilon=0.1 is not for"),
        (PENDULUM, {"algorithm": "pqn-continuous", "explore": lambda *x: x}, "explore is for algorithm=pqn"),
        (PENDULUM, {"bins": 3, "noise_end": 0.2}, "noise_end is for algorithm=pqn-continuous"),
        (PENDULUM, {"bins": 3, "input_norm": "running"}, "input_norm=running is for algorithm=pqn-continuous"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(env, settings, message, tmp_path):
    with pytest.raises(qlax.UserError, match=message) as raised:
        qlax.train(env, out=tmp_path / "run", **settings)
    assert "\n" not in str(raised.value)
