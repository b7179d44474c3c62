import re
from typing import NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from probes import strict_and_quick

from qlax.config.settings import FIELDS
from qlax.errors import UserError
from qlax.networks.layers import Convolution, Dense, LayerNorm
from qlax.networks.memories import CELLS, MinGRU
from qlax.networks.names import MEMORIES, Memory
from qlax.networks.qnetwork import BatchRenorm, QNetwork, build, checked_encoder, default_encoder
from qlax.types import PyTree

A, L, B = 3, 4, 2
KEY = jax.random.key(0)


@pytest.fixture(autouse=True, scope="module")
def strict():
    with strict_and_quick():
        yield


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(x, y):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), x, y)


def initial(network, obs):
    """Return variables for observations `[L, B, ...]`."""
    arguments = network.initial_memory(obs.shape[1]), obs, np.zeros(obs.shape[:2], bool), True
    return jax.jit(network.init, static_argnums=4)(KEY, *arguments)


def act(network, variables, obs):
    """Return the Q-values of observations `[L, B, ...]` from a network without memory, outside of training."""
    first = np.ones(jax.tree.leaves(obs)[0].shape[:2], bool)
    return jax.jit(network.apply, static_argnums=4)(variables, (), obs, first, False)[0]


# BatchRenorm

LIMITS = {0: (1, 0), 999: (1, 0), 1_000: (3, 5), 90_000: (3, 5)}  # gradient steps: r_max, d_max


def batch_with_extremes(seed=0):
    """Return twelve rows of six features: too wide, too narrow, too high, too low, and two ordinary ones."""
    scales, offsets = np.array([20, 0.01, 1, 1, 1, 1.3]), np.array([0, 0, 9, -9, 0.2, -0.5])
    return (noise(12, 6, seed=seed) * scales + offsets).astype(np.float32)


def corrections(x, stats):
    """Return mean and deviation of the batch, and r and d of algorithm 1 in Ioffe's paper on batch renormalisation."""
    mean, deviation = x.mean(0), np.sqrt(x.var(0) + 1e-3)
    r_max, d_max = LIMITS[int(stats["steps"])]
    running_deviation = np.sqrt(stats["var"] + 1e-3)
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
        expected = {"mean": 0.999 * stats["mean"] + 0.001 * mean, "var": 0.999 * stats["var"] + 0.001 * x.var(0)}
        close(changed["batch_stats"], expected | {"steps": steps + 1})
        stats = expected | {"steps": np.int32(steps)}  # only the limits of this number of steps are in the table
    if steps >= 1_000:
        assert {*np.sign(r - 1), *np.sign(d)} == {-1, 1}
        assert (r.max(), r.min(), d.max(), d.min()) == (3, pytest.approx(1 / 3), 5, -5)  # the batch reaches every limit
        assert np.sum((r > 0.34) & (r < 2.9)) >= 2
        assert np.sum(np.abs(d) < 4.9) >= 3


def test_batch_renorm_is_plain_batch_norm_for_the_first_1000_steps():
    theirs = nn.BatchNorm(use_running_average=False, momentum=0.999, epsilon=1e-3)
    for steps in (0, 999):
        stats = stats_of(0.3, 1.7, steps)
        variables = {"params": PARAMS, "batch_stats": stats}
        y, changed = BatchRenorm().apply(variables, batch_with_extremes(), True, mutable=["batch_stats"])
        variables["batch_stats"] = {name: stats[name] for name in ("mean", "var")}
        expected_y, expected = theirs.apply(variables, batch_with_extremes(), mutable=["batch_stats"])
        close(y, expected_y)
        close({name: changed["batch_stats"][name] for name in ("mean", "var")}, expected["batch_stats"])


def test_batch_renorm_takes_r_and_d_for_constants_in_the_gradient():
    x, stats, weight = batch_with_extremes(), stats_of(0.3, 1.7, 1_000), noise(12, 6, seed=3)
    _, _, r, d = (np.tile(term, (12, 1)) for term in corrections(x, stats))

    def expected(x):
        centred = x - jnp.tile(x.mean(0), (12, 1))
        normal = centred / jnp.sqrt(jnp.tile(jnp.square(centred).mean(0), (12, 1)) + 1e-3)
        return ((normal * r + d) * np.tile(PARAMS["scale"], (12, 1)) * weight).sum()

    def ours(x):
        variables = {"params": PARAMS, "batch_stats": stats}
        return (BatchRenorm().apply(variables, x, True, mutable=["batch_stats"])[0] * weight).sum()

    close(jax.grad(ours)(x), jax.grad(expected)(x))


def test_batch_renorm_acts_with_the_running_statistics():
    x, stats = batch_with_extremes(), stats_of(0.3, 1.7, 7)
    y = BatchRenorm().apply({"params": PARAMS, "batch_stats": stats}, x, False)
    close(y, (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-3) * PARAMS["scale"] + PARAMS["bias"])


def test_batch_renorm_reduces_every_axis_but_the_last():
    x = batch_with_extremes()
    variables = {"params": PARAMS, "batch_stats": stats_of(0.3, 1.7, 1_000)}
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
    """Return the parameters of hidden layers and head in the form of `reference.mlp`."""
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
    network = QNetwork(A, "cnn", hidden=(6,), norm="none")  # a norm would remove the scale of the weights
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


# Trees of arrays


class Sight(NamedTuple):
    image: jax.Array
    rest: PyTree


def made_up(network, obs):
    """Return random variables for arrays `[L, B, ...]`, without an initialiser, which takes long to compile."""
    first = np.zeros((L, B), bool)
    shapes = jax.eval_shape(lambda obs: network.init(KEY, network.initial_memory(B), obs, first, True), obs)
    leaves, structure = jax.tree.flatten(shapes)
    return jax.tree.unflatten(structure, [0.3 * noise(*leaf.shape, seed=i) for i, leaf in enumerate(leaves)])


class Frozen(nn.Module):
    """Network for a single array as it was before trees of arrays: saved agents have its parameter names."""

    @nn.compact
    def __call__(self, memory, obs, first):
        x = obs.reshape(L * B, *obs.shape[2:]).astype(jnp.float32) / 255
        x = LayerNorm(name="LayerNorm_0")(x)
        he = nn.initializers.he_normal()
        x = nn.relu(LayerNorm(name="LayerNorm_1")(Convolution(16, 3, kernel_init=he, name="Convolution_0")(x)))
        x = x.transpose(0, 3, 1, 2).reshape(L * B, -1)
        x = nn.relu(LayerNorm(name="LayerNorm_2")(Dense(8, he, name="Dense_0")(x)))
        x, memory = MinGRU(8, name="memory_cell")(memory, x.reshape(L, B, -1), first)
        return Dense(A, name="Dense_1")(x.reshape(L * B, -1)).reshape(L, B, -1), memory


def test_a_single_array_is_seen_bit_for_bit_as_by_agents_saved_before():
    obs = np.random.default_rng(0).integers(0, 256, (L, B, 5, 4, 2)).astype(np.uint8)
    network, first = QNetwork(A, "cnn", hidden=(8,), input_norm="layer", memory="mingru"), np.zeros((L, B), bool)
    memory = network.initial_memory(B)

    def frozen(obs):
        variables = Frozen().init(KEY, memory, obs, first)
        return variables, Frozen().apply(variables, memory, obs, first)

    def ours(obs):
        variables = network.init(KEY, memory, obs, first, True)
        return variables, network.apply(variables, memory, obs, first, False)

    def program(function, obs):
        """Return the operations of a function, and the structure of its results."""
        computed, shapes = jax.make_jaxpr(function, return_shape=True)(obs)
        return re.sub(r"0x[0-9a-f]+", "", str(computed)), jax.tree.structure(shapes)

    assert program(ours, obs) == program(ours, {"alone": obs}) == program(frozen, obs)


def test_of_a_tree_the_features_of_each_array_lie_side_by_side():
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (L, B, 5, 4, 2)).astype(np.uint8)
    narrow = random.integers(0, 256, (L, B, 5, 2, 1)).astype(np.uint8)  # too small for convolutions
    obs = Sight(image, {"b": narrow, "c": noise(L, B), "a": noise(L, B, 3, 3, 1, seed=1) > 0})
    network = QNetwork(A, "cnn", hidden=(8, 6))
    variables = made_up(network, obs)
    params = variables["params"]
    assert set(params) == {
        f"{name}_{i}" for name, count in (("Convolution", 2), ("Dense", 3), ("LayerNorm", 4)) for i in range(count)
    }

    def convolved(index, x):
        (height, width), kernel = (x.shape[2] - 2, x.shape[3] - 2), params[f"Convolution_{index}"]["kernel"]
        places = [(i, j) for i in range(height) for j in range(width)]
        y = np.stack([np.einsum("lbhwc,hwcf->lbf", x[:, :, i : i + 3, j : j + 3], kernel) for i, j in places], axis=2)
        y += params[f"Convolution_{index}"]["bias"]
        y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
        y = np.maximum(y * params[f"LayerNorm_{index}"]["scale"] + params[f"LayerNorm_{index}"]["bias"], 0)
        return y.swapaxes(2, 3).reshape(L, B, -1)

    in_order = [
        convolved(0, image / np.float32(255)),
        convolved(1, obs.rest["a"].astype(np.float32)),
        narrow.reshape(L, B, -1) / np.float32(255),
        obs.rest["c"].reshape(L, B, 1),
    ]
    close(act(network, variables, obs), reference.mlp(layers(params, 2), np.concatenate(in_order, axis=-1)))


@pytest.mark.parametrize("encoder", ["mlp", "cnn"])
def test_q_depends_on_every_array_of_a_tree(encoder):
    obs = {"grid": noise(L, B, 4, 4, 1), "number": noise(L, B), "pair": (noise(L, B, 3), noise(L, B, 2, 5))}
    network = QNetwork(A, encoder, hidden=(32,), input_norm="layer", memory="mingru")
    variables, memory = made_up(network, obs), network.initial_memory(B)

    def q(obs):
        return network.apply(variables, memory, obs, jnp.zeros((L, B), bool), False)[0][..., 0].sum()

    for leaf in jax.tree.leaves(jax.jit(jax.grad(q))(obs)):
        assert np.abs(leaf).reshape(L * B, -1).max(-1).min() > 0  # in every row


def test_the_input_norm_has_statistics_of_each_array():
    obs = {"grid": noise(L, B, 4, 4, 2) * 3, "vector": noise(L, B, 3) + 7}
    network, first = QNetwork(A, "cnn", hidden=(6,), norm="none", input_norm="batch"), np.zeros((L, B), bool)
    variables = made_up(network, obs)
    variables["batch_stats"] = jax.tree.map(np.zeros_like, variables["batch_stats"])
    train = lambda obs: network.apply(variables, (), obs, first, True, mutable=["batch_stats"])[1]["batch_stats"]  # noqa: E731
    found = jax.jit(train)(obs)
    means = [obs["grid"].mean((0, 1, 2, 3)), obs["vector"].mean((0, 1))]
    close([found[f"BatchNorm_{i}"]["mean"] for i in range(2)], [0.01 * mean for mean in means])


# Memory


def test_every_memory_has_a_name():
    assert get_args(Memory) == tuple(MEMORIES) == ("none", *CELLS) == FIELDS["memory"].metadata["kind"].choices


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
    """Apply the network in training; return the Q-values and the changed variables."""
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
    assert np.abs(q_in_training - q).max() > 1e-3  # batch against running statistics


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
    ("obs", "encoder"),
    [
        ({"a": np.zeros(4), "b": np.zeros((36, 40, 3), np.uint8)}, "nature"),
        (Sight(np.zeros((9, 9, 3), np.uint8), np.zeros((84, 84, 4), np.uint8)), "nature"),
        ((np.zeros((84, 84, 4)), np.zeros(3)), "cnn"),
        ({"a": {"b": np.zeros((3, 3, 1), bool)}, "c": np.zeros(())}, "cnn"),
        ({"a": np.zeros((2, 9, 4), np.uint8), "b": np.zeros((5, 4))}, "mlp"),
    ],
)
def test_the_encoder_that_fits_a_part_of_a_tree(obs, encoder):
    assert default_encoder(obs) == encoder
    assert checked_encoder(encoder, obs) == encoder
    assert checked_encoder("mlp", obs) == "mlp"


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        (np.zeros(4, np.int32), r"observation is int32\[4\]; expected bool, float, or uint8 with three axes"),
        (np.zeros((9, 9, 2), np.int8), r"observation is int8\[9, 9, 2\]; expected .* categories one-hot"),
        (np.zeros(4, np.uint8), r"observation is uint8\[4\]; expected bool, float, or uint8 with three axes"),
        ({"a": np.zeros(4), "b": [np.zeros(2, bool), np.zeros(4, np.int8)]}, r"observation\['b'\]\[1\] is int8\[4\]"),
        (Sight(np.zeros(4, np.uint8), np.zeros(4)), r"observation\.image is uint8\[4\]"),
        ({"a": None}, "observation holds no array"),
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
    message = f"encoder={encoder}: expected an observation with three axes, at least {side} x {side}; found"
    with pytest.raises(UserError, match=message):
        checked_encoder(encoder, jax.ShapeDtypeStruct(shape, jnp.float32))
    with pytest.raises(UserError, match=message + r" \(4,\), \("):
        checked_encoder(encoder, {"a": np.zeros(4), "b": jax.ShapeDtypeStruct(shape, jnp.float32)})


class Partial:
    """Network of the user's own that lacks some members."""

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
    own = build({"network": "test_qnetwork:Whole"}, A)
    assert (type(own).__name__, own.num_actions) == ("Whole", A)
    with pytest.raises(UserError, match=r"'test_qnetwork:Partial' has no 'init'; see qlax\.Network"):
        build({"network": "test_qnetwork:Partial"}, A)
