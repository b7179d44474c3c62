"""Measurements outside of `pqn.py`, against slow loops and networks with known dead units."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import strict_and_quick

from qlax import pqn
from qlax.networks.names import ENCODERS
from qlax.networks.qnetwork import QNetwork
from qlax.pqn import Rollout, Transition
from qlax.training import guard

KEY = jax.random.key(0)
A = 3


@pytest.fixture(autouse=True, scope="module")
def strict():
    with strict_and_quick():
        yield


class Silent:
    """Network that is not a Flax module, and has no intermediate values."""

    recurrent = False


def rollout_of(reward, terminated, truncated, value, obs=None, first=None, memory=(), legal=None):
    """Make a rollout of arrays `[T, N]`, with values `[T, N, G]`."""
    reward, terminated, truncated = np.asarray(reward, np.float32), np.asarray(terminated), np.asarray(truncated)
    obs = np.zeros((*reward.shape, 1, 2), np.float32) if obs is None else obs
    action = np.zeros(jax.tree.leaves(obs)[0].shape[:3], np.int32)
    first = np.zeros_like(terminated) if first is None else first
    value = np.asarray(value, np.float32)
    steps = Transition(first, obs, legal, action, value, reward, terminated, truncated, {})
    return Rollout(memory, jax.tree.map(jnp.asarray, steps))


def quiet(obs, first=None, memory=()):
    """Make a rollout with observations `[T, N, M, ...]` in which everything else is zero."""
    T, N = jax.tree.leaves(obs)[0].shape[:2]
    nothing = np.zeros((T, N), bool)
    return rollout_of(nothing, nothing, nothing, np.zeros((T, N, 1)), obs, first, memory)


def state_of(variables=None, **hyper):
    """Make a `TrainState` with only the fields that are measured."""
    params, stats = (), {}
    if variables is not None:
        stats = dict(variables)
        params = stats.pop("params")
    hyper = jax.tree.map(jnp.float32, pqn.Hyper(**hyper))
    return pqn.TrainState(params, stats, (), (), (), (), hyper, KEY, jnp.int32(0))


def measured(network, state, rollout):
    """Return total and weight of every measurement, as floats."""
    found = jax.jit(lambda state, rollout: guard.measures(network, state, rollout))(state, rollout)
    return {name: (float(mean.total), float(mean.weight)) for name, mean in found.items()}


# Dead units


def dead(layer, units):
    """Set the biases of a layer so that these units are always negative, and all others positive."""
    bias = np.full(layer["bias"].shape, 100, np.float32)
    bias[units] = -100
    return layer | {"bias": bias}


def variables_of(network, obs):
    """Return variables of the network for observations `[T, N, M, ...]`."""
    rows = jax.tree.map(lambda x: x[:1].reshape(1, -1, *x.shape[3:]), obs)
    B = jax.tree.leaves(rows)[0].shape[1]
    arguments = network.initial_memory(B), rows, np.ones((1, B), bool)
    return jax.jit(lambda *x: network.init(KEY, *x, True))(*arguments)


def share_of_dead(network, variables, rollout):
    total, weight = measured(network, state_of(variables), rollout)["dead_units"]
    assert weight == 1
    return total


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("team", [1, 2])
def test_dead_units_of_an_mlp(team):
    network, obs = QNetwork(A, hidden=(8, 6), norm="none"), noise(2, 3, team, 4)
    variables = variables_of(network, obs)
    params = variables["params"] | {
        "Dense_0": dead(variables["params"]["Dense_0"], [1, 5]),
        "Dense_1": dead(jax.tree.map(lambda x: x / 1000, variables["params"]["Dense_1"]), [0, 2, 3]),
    }
    assert math.isclose(share_of_dead(network, {"params": params}, quiet(obs)), 5 / 14, rel_tol=1e-5)


@pytest.mark.parametrize("encoder", ["cnn", "hadamax"])
def test_a_feature_map_is_one_unit(encoder):
    network = QNetwork(A, encoder, hidden=(6,), norm="none")
    obs = np.random.default_rng(0).integers(0, 256, (2, 2, 1, 4, 5, 2)).astype(np.uint8)
    variables = variables_of(network, obs)
    params = jax.tree.map(lambda x: x / 1e6, variables["params"])  # so small that only biases matter
    layers = [name for name in params if name.startswith("Convolution")]
    units = sum(len(params[name]["bias"]) for name in layers) + 6
    params |= {name: dead(params[name], []) for name in layers} | {"Dense_0": dead(params["Dense_0"], [2])}
    params["Convolution_0"] = dead(params["Convolution_0"], [0, 3, 4])
    assert units == {"cnn": 16 + 6, "hadamax": 2 * (32 + 64 + 64) + 6}[encoder]
    assert math.isclose(share_of_dead(network, {"params": params}, quiet(obs)), 4 / units, rel_tol=1e-5)


def test_a_feature_that_is_positive_in_one_place_is_alive():
    network = QNetwork(A, "cnn", hidden=(1,), norm="none")
    obs = np.zeros((2, 2, 1, 4, 5, 1), bool)
    params = jax.tree.map(np.zeros_like, variables_of(network, obs)["params"])
    params["Convolution_0"] = {"kernel": np.ones((3, 3, 1, 16)), "bias": np.r_[-8.5 * np.ones(4), -9.5 * np.ones(12)]}
    params = jax.tree.map(np.float32, params)
    assert math.isclose(share_of_dead(network, {"params": params}, quiet(obs)), 1)
    obs[1, 1, 0, 1:4, 2:5] = True  # the nine pixels under the last position of the filter
    assert math.isclose(share_of_dead(network, {"params": params}, quiet(obs)), 13 / 17, rel_tol=1e-5)


def test_dead_units_of_trees_of_observations():
    network = QNetwork(A, "cnn", hidden=(4,), norm="none")
    obs = {"grid": noise(2, 2, 2, 3, 3, 1), "number": noise(2, 2, 2)}
    variables = variables_of(network, obs)
    params = variables["params"] | {
        "Convolution_0": dead(variables["params"]["Convolution_0"], range(16)),
        "Dense_0": dead(variables["params"]["Dense_0"], []),
    }
    assert math.isclose(share_of_dead(network, {"params": params}, quiet(obs)), 16 / 20, rel_tol=1e-5)


def one_hot_network(units):
    """Return an MLP whose hidden units equal the observed numbers, and its parameters."""
    network = QNetwork(A, hidden=(units,), norm="none")
    params = {
        "Dense_0": {"kernel": np.eye(units, dtype=np.float32), "bias": np.zeros(units, np.float32)},
        "Dense_1": {"kernel": np.zeros((units, A), np.float32), "bias": np.zeros(A, np.float32)},
    }
    return network, {"params": params}


@pytest.mark.parametrize(
    ("T", "N", "M", "envs"), [(32, 12, 1, 8), (32, 5, 1, 5), (30, 12, 2, 5), (1, 300, 1, 256), (300, 2, 1, 1)]
)
def test_the_sample_is_all_steps_of_the_first_environments(T, N, M, envs):
    network, variables = one_hot_network(N)
    obs = np.zeros((T, N, M, N), np.float32)
    for n in range(N):  # one unit per environment, active only for one member in the last step
        obs[-1, n, -1, n] = 1
    assert math.isclose(share_of_dead(network, variables, quiet(obs)), 1 - envs / N, rel_tol=1e-5, abs_tol=1e-6)
    obs[:, envs:] = 0
    assert math.isclose(share_of_dead(network, variables, quiet(obs)), 1 - envs / N, rel_tol=1e-5, abs_tol=1e-6)


class Counter(nn.Module):
    """Recurrent network that counts the steps of an episode; unit k is active while the count is k."""

    num_actions: int
    recurrent = True
    units = 8

    def initial_memory(self, batch):
        return jnp.zeros((batch, 1))

    @nn.compact
    def __call__(self, memory, obs, first, train):
        bias = self.param("bias", nn.initializers.zeros_init(), (self.num_actions,))

        def count(memory, first):
            memory = jnp.where(first[:, None], 0.0, memory) + 1
            return memory, memory

        memory, counts = jax.lax.scan(count, memory, first)
        self.sow("intermediates", "activation", (counts == jnp.arange(self.units)[None, None]).astype(jnp.float32))
        return jnp.zeros((*first.shape, 1)) + bias[None, None], memory


def test_a_recurrent_network_goes_on_from_the_memory_of_the_rollout(monkeypatch):
    T, N, M = 3, 3, 2
    monkeypatch.setattr(guard, "SAMPLE", 2 * T * M)  # the sample leaves out the last environment
    memory = np.array([[[2], [2]], [[4], [5]], [[-1], [-1]]], np.float32)  # [N, M, 1]
    first = np.array([[False, False, False], [True, False, False], [False, False, False]])
    network = Counter(A)
    variables = {"params": {"bias": np.zeros(A, np.float32)}}
    found = share_of_dead(network, variables, quiet(noise(T, N, M, 4), first, memory))
    alive = {3, 1, 2} | {5, 6, 7} | {6, 7, 8}  # among units 0 to 7
    assert math.isclose(found, 1 - len(alive & set(range(8))) / 8)


def test_a_network_of_ours_with_memory():
    network, obs = QNetwork(A, hidden=(8,), norm="none", memory="gru"), noise(3, 2, 1, 4)
    variables = variables_of(network, obs)
    params = variables["params"] | {"Dense_0": dead(variables["params"]["Dense_0"], [1, 5])}
    rollout = quiet(obs, memory=np.ones((2, 1, 8), np.float32))
    assert math.isclose(share_of_dead(network, {"params": params}, rollout), 2 / 8, rel_tol=1e-5)


def test_batch_statistics_are_used_as_they_are():
    network, obs = QNetwork(A, hidden=(4,), norm="batch"), noise(2, 3, 1, 4)
    variables = variables_of(network, obs)
    norm = {"mean": np.array([9e9, 0, 0, 0], np.float32), "var": np.ones(4, np.float32)}  # a mean far above all sums
    variables = {**variables, "batch_stats": {"BatchNorm_0": norm}}
    variables["params"] = variables["params"] | {"Dense_0": dead(variables["params"]["Dense_0"], [])}
    assert math.isclose(share_of_dead(network, variables, quiet(obs)), 1 / 4, rel_tol=1e-5)


def test_runs_side_by_side_have_dead_units_of_their_own():
    network, obs = QNetwork(A, hidden=(8,), norm="none"), noise(2, 3, 1, 4)
    params = variables_of(network, obs)["params"]
    runs = [params | {"Dense_0": dead(params["Dense_0"], list(range(n)))} for n in (0, 3, 8)]
    states = jax.tree.map(lambda *x: jnp.stack(x), *(state_of({"params": run}) for run in runs))
    found = jax.vmap(lambda state: guard.measures(network, state, quiet(obs)))(states)
    np.testing.assert_allclose(found["dead_units"].total, [0, 3 / 8, 1], rtol=1e-5)


class Own(nn.Module):
    """Network of the user's own that sows the values that it is given, by name."""

    given: Callable[[], tuple]
    recurrent = False

    def initial_memory(self, batch):
        return ()

    @nn.compact
    def __call__(self, memory, obs, first, train):
        q = nn.Dense(A)(obs)
        for name, value in self.given():
            self.sow("intermediates", name, jnp.asarray(value))
        return q, memory


@pytest.mark.parametrize(
    ("sown", "share"),
    [
        ((), None),
        ((("attention", -np.ones((6, 4), np.float32)),), None),  # not sown as "activation"
        ((("activation", np.ones((6, 4), np.int32)), ("activation", np.float32(3))), None),
        ((("activation", np.ones(6, np.float32)), ("activation", np.ones((5, 4), np.float32))), None),
        ((("activation", np.ones((6, 4), np.float32)), ("activation", np.ones((6, 4), np.int32))), 0),
        ((("activation", np.diag([-1, 0, 2, 3, 0, 0]).astype(np.float32)[:, :4]),), 1 / 2),
        ((("activation", np.diag([-1, 0, 2, 3, 0, 0]).astype(np.float32)[None, :, :4]),), 1 / 2),
    ],
)
def test_of_what_users_sow_float_activations_of_every_row_count(sown, share):
    network, obs = Own(lambda: sown), noise(2, 3, 1, 4)
    with jax.numpy_rank_promotion("allow"):  # Flax's layers promote ranks
        variables = {"params": {"Dense_0": {"kernel": np.ones((4, A), np.float32), "bias": np.ones(A, np.float32)}}}
        found = measured(network, state_of(variables), quiet(obs))
    assert ("dead_units" in found) == (share is not None)
    if share is not None:
        assert math.isclose(found["dead_units"][0], share, abs_tol=1e-6)


def test_a_network_without_flax_has_no_dead_units():
    assert "dead_units" not in measured(Silent(), state_of(), quiet(noise(2, 3, 1, 4)))


# Values that are not finite

LARGEST = np.finfo(np.float32).max


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (4, 6)])
def test_one_float_that_is_not_finite_is_found(bad, place):
    array = noise(5, 7)
    tree = {"a": np.ones(3, np.float32), "b": (array, np.arange(3), KEY, True)}
    found = jax.jit(guard.finite)
    assert found(tree)
    array[place] = bad
    assert not found(tree)
    assert not found({"c": jnp.asarray(array, jnp.bfloat16)})


def test_large_is_finite():
    assert guard.finite(np.full((100, 100), LARGEST))
    assert guard.finite([np.full(100, -LARGEST), np.zeros((0, 3), np.float32)])


def test_without_floats_everything_is_finite():
    assert guard.finite(())
    assert guard.finite({"a": np.arange(3), "b": np.zeros(2, bool)})


def test_finite_of_runs_side_by_side():
    array = noise(3, 4)
    array[1, 2] = np.nan
    np.testing.assert_array_equal(jax.vmap(guard.finite)({"a": array}), [True, False, True])


@pytest.mark.parametrize(
    ("terminated", "truncated", "expected"), [(0, 0, False), (1, 0, False), (1, 1, False), (0, 1, True)]
)
def test_the_reward_of_a_cut_step_need_not_be_finite(terminated, truncated, expected):
    ends = np.zeros((2, 3, 2), bool)
    ends[:, 1, 1] = terminated, truncated
    for bad in (np.nan, np.inf, -np.inf):
        reward = np.ones((3, 2), np.float32)
        reward[1, 1] = bad
        assert guard.finite_rewards(rollout_of(reward, *ends, np.ones((3, 2, 1)))) == expected


# Everything else is unchanged


@pytest.mark.parametrize(
    ("encoder", "convolutions", "norms"),
    [("mlp", 0, 2), ("cnn", 1, 3), ("nature", 3, 5), ("impala", 15, 15), ("hadamax", 6, 8)],
)
def test_parameters_have_the_names_that_agents_are_saved_by(encoder, convolutions, norms):
    image = (ENCODERS[encoder].smallest or 1,) * 2
    network, obs = QNetwork(A, encoder, hidden=(4, 4)), jax.ShapeDtypeStruct((1, 2, *image, 1), jnp.float32)
    variables = jax.eval_shape(lambda obs: network.init(KEY, (), obs, jnp.ones((1, 2), bool), True), obs)
    counts = {"Convolution": convolutions, "LayerNorm": norms, "Dense": 3}
    assert set(variables) == {"params"}
    assert set(variables["params"]) == {f"{name}_{i}" for name, count in counts.items() for i in range(count)}
