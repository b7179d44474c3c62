from typing import get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from qlax.config import FIELDS
from qlax.errors import UserError
from qlax.layers import Convolution
from qlax.memories import MEMORIES, MinGRU
from qlax.networks import BatchRenorm, Memory, QNetwork, build, checked_encoder, default_encoder

A, L, B = 3, 4, 2
KEY = jax.random.key(0)


@pytest.fixture(autouse=True, scope="module")
def strict_ranks():
    with jax.numpy_rank_promotion("raise"):
        yield


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(x, y):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), x, y)


def initial(network, obs):
    """Variables for `obs [L, B, ...]`."""
    arguments = network.initial_memory(obs.shape[1]), obs, np.zeros(obs.shape[:2], bool), True
    return jax.jit(network.init, static_argnums=4)(KEY, *arguments)


def act(network, variables, obs):
    """Q of `obs [L, B, ...]`, by a network without memory, not in training."""
    return jax.jit(network.apply, static_argnums=4)(variables, (), obs, np.ones(obs.shape[:2], bool), False)[0]


# BatchRenorm

LIMITS = {  # gradient steps: r_max, d_max
    0: (1, 0),
    5_000: (1, 0),
    15_000: (1 + 4 / 7, 2.5),
    22_500: (2, 4.375),
    25_000: (1 + 8 / 7, 5),
    40_000: (3, 5),
    90_000: (3, 5),
}


def batch_with_extremes(seed=0):
    """Twelve rows whose six features are too wide, too narrow, too high, too low, and twice ordinary."""
    scales, offsets = np.array([20, 0.01, 1, 1, 1, 1.3]), np.array([0, 0, 9, -9, 0.2, -0.5])
    return (noise(12, 6, seed=seed) * scales + offsets).astype(np.float32)


def corrections(x, stats):
    """Mean and deviation of the batch, and r and d of Ioffe's algorithm 1."""
    mean, deviation = x.mean(0), np.sqrt(x.var(0) + 1e-5)
    r_max, d_max = LIMITS[int(stats["steps"])]
    running_deviation = np.sqrt(stats["var"] + 1e-5)
    r = np.clip(deviation / running_deviation, 1 / r_max, r_max)
    d = np.clip((mean - stats["mean"]) / running_deviation, -d_max, d_max)
    return mean, deviation, r, d


def stats_of(mean, var, steps):
    mean, var = (np.full(6, x, np.float32) for x in (mean, var))
    return {"mean": mean, "var": var, "steps": np.int32(steps)}


PARAMS = {"scale": noise(6, seed=8), "bias": noise(6, seed=9)}


@pytest.mark.parametrize("steps", LIMITS)
def test_batch_renorm_is_algorithm_1_of_the_paper(steps):
    stats = stats_of(0.3, 1.7, steps)
    for seed in range(3):
        x = batch_with_extremes(seed)
        mean, deviation, r, d = corrections(x, stats)
        variables = {"params": PARAMS, "batch_stats": stats}
        y, changed = BatchRenorm().apply(variables, x, True, mutable=["batch_stats"])
        close(y, ((x - mean) / deviation * r + d) * PARAMS["scale"] + PARAMS["bias"])
        expected = {"mean": 0.99 * stats["mean"] + 0.01 * mean, "var": 0.99 * stats["var"] + 0.01 * x.var(0)}
        close(changed["batch_stats"], expected | {"steps": steps + 1})
        stats = expected | {"steps": np.int32(steps)}  # its limits are in the table, those one step later are not
    if steps >= 40_000:
        assert {*np.sign(r - 1), *np.sign(d)} == {-1, 1}
        assert (r.max(), r.min(), d.max(), d.min()) == (3, pytest.approx(1 / 3), 5, -5)  # every bound is met
        assert np.sum((r > 0.34) & (r < 2.9)) >= 2
        assert np.sum(np.abs(d) < 4.9) >= 3


def test_batch_renorm_is_plain_batch_norm_for_the_first_5000_steps():
    theirs = nn.BatchNorm(use_running_average=False)
    for steps in (0, 4_999):
        stats = stats_of(0.3, 1.7, steps)
        variables = {"params": PARAMS, "batch_stats": stats}
        y, changed = BatchRenorm().apply(variables, batch_with_extremes(), True, mutable=["batch_stats"])
        variables["batch_stats"] = {name: stats[name] for name in ("mean", "var")}
        expected_y, expected = theirs.apply(variables, batch_with_extremes(), mutable=["batch_stats"])
        close(y, expected_y)
        close({name: changed["batch_stats"][name] for name in ("mean", "var")}, expected["batch_stats"])


def test_batch_renorm_takes_r_and_d_for_constants_in_the_gradient():
    x, stats, weight = batch_with_extremes(), stats_of(0.3, 1.7, 40_000), noise(12, 6, seed=3)
    _, _, r, d = (np.tile(term, (12, 1)) for term in corrections(x, stats))

    def expected(x):
        centred = x - jnp.tile(x.mean(0), (12, 1))
        normal = centred / jnp.sqrt(jnp.tile(jnp.square(centred).mean(0), (12, 1)) + 1e-5)
        return ((normal * r + d) * np.tile(PARAMS["scale"], (12, 1)) * weight).sum()

    def ours(x):
        variables = {"params": PARAMS, "batch_stats": stats}
        return (BatchRenorm().apply(variables, x, True, mutable=["batch_stats"])[0] * weight).sum()

    close(jax.grad(ours)(x), jax.grad(expected)(x))


def test_batch_renorm_acts_with_the_running_statistics():
    x, stats = batch_with_extremes(), stats_of(0.3, 1.7, 7)
    y = BatchRenorm().apply({"params": PARAMS, "batch_stats": stats}, x, False)
    close(y, (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * PARAMS["scale"] + PARAMS["bias"])


def test_batch_renorm_reduces_every_axis_but_the_last():
    x = batch_with_extremes()
    variables = {"params": PARAMS, "batch_stats": stats_of(0.3, 1.7, 40_000)}
    y, changed = BatchRenorm().apply(variables, x, True, mutable=["batch_stats"])
    cube = BatchRenorm().apply(variables, x.reshape(2, 3, 2, 6), True, mutable=["batch_stats"])
    close((cube[0].reshape(12, 6), cube[1]), (y, changed))


# QNetwork


@pytest.mark.parametrize(
    ("encoder", "memory"),
    [
        ("mlp", "none"),
        ("mlp", "lstm"),
        ("cnn", "none"),
        ("cnn", "lstm"),
        ("nature", "none"),
        ("impala", "none"),
        ("hadamax", "lstm"),
    ],
)
@pytest.mark.parametrize("norm", ["layer", "batch", "batch_renorm", "none"])
def test_shapes(encoder, norm, memory):
    network = QNetwork(A, encoder, hidden=(8, 6), norm=norm, input_norm=norm, memory=memory, dueling=True)
    obs = jax.ShapeDtypeStruct((L, B, *((36, 40) if encoder == "nature" else (5, 4)), 2), jnp.uint8)
    first, carry = jax.ShapeDtypeStruct((L, B), bool), network.initial_memory(B)
    variables = jax.eval_shape(lambda *x: network.init(*x, True), KEY, carry, obs, first)
    statistics = sorted(set(variables) - {"params"})
    assert statistics == (["batch_stats"] if norm in ("batch", "batch_renorm") else [])
    train = lambda *x: network.apply(*x, True, mutable=statistics)  # noqa: E731
    (q, after), changed = jax.eval_shape(train, variables, carry, obs, first)
    assert (q.shape, q.dtype, q.weak_type) == ((L, B, A), jnp.float32, False)
    kinds = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, getattr(x, "weak_type", False)), tree)  # noqa: E731
    assert kinds(after) == kinds(carry)
    assert kinds(changed) == kinds({name: variables[name] for name in statistics})
    assert network.recurrent == (memory != "none")


@pytest.mark.parametrize(("memory", "arrays"), [("none", 0), ("lstm", 2), ("gru", 1), ("mingru", 1), ("lru", 2)])
def test_the_initial_memory_is_zeros(memory, arrays):
    network = QNetwork(A, hidden=(8, 6), memory=memory)
    leaves = jax.tree.leaves(network.initial_memory(B))
    assert len(leaves) == arrays
    for leaf in leaves:
        np.testing.assert_array_equal(leaf, np.zeros((B, 6)))


def layers(params, norm):
    """Parameters of hidden layers and head as `reference.mlp` wants them."""
    denses = [params[f"Dense_{i}"] for i in range(3)]
    norms = [params[f"LayerNorm_{i + norm}"] for i in range(2)]
    hidden = [dense | {"scale": x["scale"], "shift": x["bias"]} for dense, x in zip(denses, norms, strict=False)]
    return jax.tree.map(np.asarray, [*hidden, denses[2]])


def test_the_mlp_is_dense_norm_relu_and_a_linear_head():
    obs = noise(L, B, 5, 2)
    network = QNetwork(A, hidden=(8, 6))
    variables = initial(network, obs)
    close(act(network, variables, obs), reference.mlp(layers(variables["params"], 0), obs.reshape(L, B, 10)))


def test_the_cnn_has_a_convolution_of_16_features_first():
    obs = noise(L, B, 5, 4, 2)
    network = QNetwork(A, "cnn", hidden=(8, 6))
    variables = initial(network, obs)
    params = variables["params"]
    assert params["Convolution_0"]["kernel"].shape == (3, 3, 2, 16)
    x = Convolution(16, 3).apply({"params": params["Convolution_0"]}, obs.reshape(L * B, 5, 4, 2))
    x = np.maximum(nn.LayerNorm().apply({"params": params["LayerNorm_0"]}, x), 0)
    x = x.transpose(0, 3, 1, 2).reshape(L, B, 16 * 3 * 2)
    close(act(network, variables, obs), reference.mlp(layers(params, 1), x))


def test_without_norm_there_is_none():
    params = initial(QNetwork(A, "cnn", hidden=(8, 6), norm="none"), noise(L, B, 5, 4, 2))["params"]
    assert set(params) == {"Convolution_0", "Dense_0", "Dense_1", "Dense_2"}


def test_images_are_divided_by_255_and_bools_used_as_they_are():
    network = QNetwork(A, "cnn", hidden=(6,), norm="none")  # a norm would hide the scale
    obs = np.random.default_rng(0).integers(0, 256, (L, B, 5, 4, 2)).astype(np.uint8)
    variables = initial(network, obs)
    close(act(network, variables, obs), act(network, variables, obs.astype(np.float32) / 255))
    planes = obs > 99
    close(act(network, variables, planes), act(network, variables, planes.astype(np.float32)))


def test_the_input_norm_makes_the_scale_of_observations_irrelevant():
    network, obs = QNetwork(A, hidden=(8,), input_norm="layer"), noise(L, B, 5)
    variables = initial(network, obs)
    close(act(network, variables, obs * 100 + 7), act(network, variables, obs * 100))
    assert set(variables["params"]) == {"LayerNorm_0", "Dense_0", "LayerNorm_1", "Dense_1"}


def test_dueling_centres_the_advantages_on_the_value():
    network, obs = QNetwork(A, hidden=(6,), dueling=True), noise(L, B, 5)
    arguments = initial(network, obs), (), obs, np.ones((L, B), bool), False
    (q, _), captured = network.apply(*arguments, capture_intermediates=True, mutable=["intermediates"])
    advantage, value = (captured["intermediates"][name]["__call__"][0] for name in ("Dense_1", "Dense_2"))
    assert (advantage.shape, value.shape) == ((L * B, A), (L * B, 1))
    q = q.reshape(L * B, A)
    close(q.mean(-1), value[..., 0])
    close(q - q.mean(-1, keepdims=True), advantage - advantage.mean(-1, keepdims=True))


# Memory


def test_every_memory_has_a_name():
    assert get_args(Memory) == ("none", *MEMORIES) == FIELDS["memory"].metadata["kind"].choices


def test_the_memory_lies_between_encoder_and_head():
    network, obs, first = QNetwork(A, hidden=(8, 6), memory="mingru"), noise(L, B, 5), np.zeros((L, B), bool)
    first[2, 0] = True
    variables, remembered = initial(network, obs), np.ones((B, 6), np.float32)
    q, after = jax.jit(network.apply, static_argnums=4)(variables, remembered, obs, first, False)
    params = jax.tree.map(np.asarray, variables["params"])
    identity = {"kernel": np.eye(6), "bias": np.zeros(6)}
    x = np.maximum(reference.mlp(layers(params | {"Dense_2": identity}, 0), obs), 0)
    y, expected = jax.jit(MinGRU(6).apply)({"params": params["memory_cell"]}, remembered, x, first)
    close(q, np.asarray(y) @ params["Dense_2"]["kernel"] + params["Dense_2"]["bias"])
    close(after, expected)


# Batch statistics


def train(network, variables, obs):
    """Q, and the variables that changed."""
    first = jnp.ones(obs.shape[:2], bool)
    (q, _), changed = network.apply(variables, (), obs, first, True, mutable=["batch_stats"])
    return q, changed


@pytest.mark.parametrize("norm", ["batch", "batch_renorm"])
def test_batch_statistics_change_only_in_training(norm):
    network, obs = QNetwork(A, hidden=(6,), norm=norm, input_norm=norm), noise(L, B, 5)
    variables, first = initial(network, obs), np.ones((L, B), bool)
    (q, _), kept = network.apply(variables, (), obs, first, False, mutable=["batch_stats"])
    close(kept["batch_stats"], variables["batch_stats"])
    q_in_training, changed = jax.jit(train, static_argnums=0)(network, variables, obs)
    before, after = jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(changed)
    assert len(before) == {"batch": 4, "batch_renorm": 6}[norm]
    assert all(np.abs(a - b).max() > 0 for a, b in zip(before, after, strict=True))
    assert np.abs(q_in_training - q).max() > 1e-3  # by the batch; else by the running statistics


@pytest.mark.parametrize("norm", ["batch", "batch_renorm"])
def test_batch_statistics_are_shared_over_a_mapped_axis(norm):
    obs = noise(1, 6, 5) * 3 + 1
    network, mapped = (QNetwork(A, hidden=(6,), norm=norm, axis_name=name) for name in (None, "devices"))
    variables = initial(network, obs)
    q, changed = jax.jit(train, static_argnums=0)(network, variables, obs)
    parts = jax.vmap(lambda part: train(mapped, variables, part), axis_name="devices")(obs.reshape(2, 1, 3, 5))
    close(parts[0].reshape(1, 6, A), q)
    jax.tree.map(lambda ours, both: close(np.stack([ours, ours]), both), changed, parts[1])


# Choosing a network


@pytest.mark.parametrize(
    ("shape", "dtype", "encoder"),
    [
        ((4,), jnp.float32, "mlp"),
        ((), jnp.float32, "mlp"),
        ((16,), bool, "mlp"),
        ((10, 5), jnp.float32, "mlp"),
        ((10, 10, 4), bool, "cnn"),
        ((30, 40, 3), jnp.float32, "cnn"),
        ((84, 84, 4), jnp.float32, "cnn"),
        ((84, 84, 4), jnp.uint8, "nature"),
        ((36, 63, 3), jnp.uint8, "nature"),
        ((35, 63, 3), jnp.uint8, "cnn"),
        ((4,), jnp.bfloat16, "mlp"),
    ],
)
def test_the_encoder_that_fits(shape, dtype, encoder):
    assert default_encoder(jax.ShapeDtypeStruct(shape, dtype)) == encoder


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        (np.zeros(4, np.int32), r"observation is int32\[4\]; expected bool, float, or uint8 with three axes"),
        (np.zeros((9, 9, 2), np.int8), r"observation is int8\[9, 9, 2\]; expected .* categories one-hot"),
        (np.zeros(4, np.uint8), r"observation is uint8\[4\]; expected bool, float, or uint8 with three axes"),
        (
            {"a": np.zeros(4)},
            "observation is a dict of arrays, which needs a network of your own: --network",
        ),
    ],
)
def test_observations_that_no_encoder_understands(obs, message):
    with pytest.raises(UserError, match=message):
        default_encoder(obs)


@pytest.mark.parametrize(
    ("encoder", "shape", "side"),
    [("cnn", (2, 9, 4), 3), ("nature", (84, 35, 4), 36), ("nature", (84, 84), 36), ("hadamax", (0, 9, 4), 1)],
)
def test_an_encoder_refuses_what_it_would_leave_nothing_of(encoder, shape, side):
    message = f"encoder={encoder}: expected an observation with three axes, at least {side} x {side}; this has"
    with pytest.raises(UserError, match=message):
        checked_encoder(encoder, jax.ShapeDtypeStruct(shape, jnp.float32))


class Partial:
    """Stands for a network of one's own that is not finished."""

    recurrent = False

    def __init__(self, num_actions):
        self.num_actions = num_actions

    def initial_memory(self, batch):
        return ()


class Whole(Partial):
    def init(self, *arguments):
        return {}

    apply = init


def test_a_network_is_built_from_its_description():
    description = {"encoder": "cnn", "hidden": [8, 6], "norm": "batch", "memory": "gru", "dueling": True}
    expected = QNetwork(A, encoder="cnn", hidden=(8, 6), norm="batch", memory="gru", dueling=True)
    assert build(description, A) == expected
    assert build({"encoder": "hadamax", "hidden": [8]}, A) == QNetwork(A, encoder="hadamax", hidden=(8,))
    own = build({"network": "test_networks:Whole"}, A)
    assert (type(own).__name__, own.num_actions) == ("Whole", A)
    with pytest.raises(UserError, match=r"'test_networks:Partial' has no 'init'; see qlax\.Network"):
        build({"network": "test_networks:Partial"}, A)
