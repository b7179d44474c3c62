"""Encoders against plain Flax, written from their papers; test_qnetwork.py tests `QNetwork` around them."""

import subprocess
import sys
from typing import get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import strict_and_quick

from qlax.config.settings import FIELDS
from qlax.networks.encoders import LAYERS
from qlax.networks.layers import Convolution
from qlax.networks.names import ENCODERS, Encoder
from qlax.networks.qnetwork import QNetwork

KEY = jax.random.key(0)


@pytest.fixture(autouse=True, scope="module")
def strict():
    with strict_and_quick():
        yield


def shapes(encoder, *image):
    """Return the shapes of the parameters of a network with six actions, by their paths."""
    network, obs = QNetwork(6, encoder, ENCODERS[encoder].hidden), jax.ShapeDtypeStruct((1, 2, *image), jnp.uint8)
    init = lambda obs: network.init(KEY, (), obs, jnp.zeros((1, 2), bool), True)  # noqa: E731
    return {"/".join(path): x.shape for path, x in flat(jax.eval_shape(init, obs)["params"]).items()}


def flat(params):
    return {(layer, name): value for layer, values in params.items() for name, value in values.items()}


class Nature(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.LayerNorm()(nn.Conv(32, (8, 8), 4, "VALID")(x)))
        x = nn.relu(nn.LayerNorm()(nn.Conv(64, (4, 4), 2, "VALID")(x)))
        x = nn.relu(nn.LayerNorm()(nn.Conv(64, (3, 3), 1, "VALID")(x)))
        return head(x, nn.relu)


class Impala(nn.Module):
    @nn.compact
    def __call__(self, x):
        for features in (16, 32, 32):
            x = nn.max_pool(nn.Conv(features, (3, 3))(x), (3, 3), (2, 2), "SAME")
            for _ in range(2):
                y = nn.Conv(features, (3, 3))(nn.relu(nn.LayerNorm()(x)))
                x += nn.Conv(features, (3, 3))(nn.relu(nn.LayerNorm()(y)))
        return head(nn.relu(nn.LayerNorm()(x)), nn.relu)


class Hadamax(nn.Module):
    @nn.compact
    def __call__(self, x):
        for features, size, window, stride in ((32, 8, 4, 4), (64, 4, 2, 2), (64, 3, 3, 1)):
            y = nn.gelu(nn.LayerNorm()(nn.Conv(features, (size, size))(x)))
            y *= nn.gelu(nn.LayerNorm()(nn.Conv(features, (size, size))(x)))
            x = nn.max_pool(y, (window, window), (stride, stride), "SAME")
        return head(x, nn.gelu)


class Product(nn.Module):
    @nn.compact
    def __call__(self, x):
        both = nn.Conv(32, (3, 3), padding="VALID")(x)
        y = nn.gelu(nn.LayerNorm()(both[..., :16])) * nn.gelu(nn.LayerNorm()(both[..., 16:]))
        return head(nn.max_pool(y, (2, 2), (2, 2)), nn.gelu)


def head(x, activation):
    """Apply a dense layer of 16 features, and the linear layer of six actions."""
    planes = jnp.moveaxis(x, -1, 1).reshape(len(x), -1)
    x = activation(nn.LayerNorm()(nn.Dense(16)(planes)))
    return nn.Dense(6)(x)


@pytest.mark.parametrize(
    ("encoder", "reference", "image"),
    [
        ("nature", Nature, (36, 40, 2)),
        ("impala", Impala, (12, 9, 2)),
        ("hadamax", Hadamax, (12, 9, 2)),
        ("product", Product, (8, 6, 2)),
    ],
)
def test_an_encoder_is_what_its_paper_says(encoder, reference, image):
    obs = np.random.default_rng(0).integers(0, 256, (1, 2, *image)).astype(np.uint8)
    network, first = QNetwork(6, encoder, (16,)), np.zeros((1, 2), bool)
    variables = jax.jit(network.init, static_argnums=4)(KEY, (), obs, first, True)
    q, _ = jax.jit(network.apply, static_argnums=4)(variables, (), obs, first, False)
    params = {name.replace("Convolution", "Conv"): values for name, values in variables["params"].items()}
    with jax.numpy_rank_promotion("allow"):  # Flax's layers promote ranks
        expected = jax.jit(reference().apply)({"params": params}, obs[0] / np.float32(255))
    np.testing.assert_allclose(q[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("encoder", "convolutions", "dense"),
    [
        ("nature", [(8, 8, 4, 32), (4, 4, 32, 64), (3, 3, 64, 64)], (7 * 7 * 64, 512)),
        (
            "impala",
            [
                shape
                for before, after in ((4, 16), (16, 32), (32, 32))
                for shape in [(3, 3, before, after)] + 4 * [(3, 3, after, after)]
            ],
            (11 * 11 * 32, 256),
        ),
        ("hadamax", 2 * [(8, 8, 4, 32)] + 2 * [(4, 4, 32, 64)] + 2 * [(3, 3, 64, 64)], (11 * 11 * 64, 512)),
    ],
)
def test_parameters_for_the_screens_of_atari(encoder, convolutions, dense):
    found = shapes(encoder, 84, 84, 4)
    assert [found[f"Convolution_{i}/kernel"] for i in range(len(convolutions))] == convolutions
    assert f"Convolution_{len(convolutions)}/kernel" not in found
    assert (found["Dense_0/kernel"], found["Dense_1/kernel"]) == (dense, (dense[1], 6))


class Convolved(nn.Module):
    """Convolutions of an encoder, without the layers behind them that fix the size of the image."""

    encoder: str

    @nn.compact
    def __call__(self, x):
        return LAYERS[self.encoder].convolve(x, Convolution, lambda x: x)


@pytest.mark.parametrize("encoder", [name for name, sizes in ENCODERS.items() if sizes.smallest is not None])
def test_the_smallest_image_is_the_smallest(encoder):
    side = ENCODERS[encoder].smallest

    def left(height, width):
        image = jax.ShapeDtypeStruct((2, height, width, 1), jnp.float32)
        return jax.eval_shape(lambda x: Convolved(encoder).init_with_output(KEY, x)[0], image).size

    assert left(side, side + 1) > 0
    if side > 1:
        assert left(side - 1, side + 1) == left(side + 1, side - 1) == 0


@pytest.mark.parametrize("encoder", ["cnn", "nature"])
def test_what_is_too_small_to_be_convolved_is_flattened(encoder):
    side = ENCODERS[encoder].smallest - 1
    found = shapes(encoder, side, 50, 1)
    assert found["Dense_0/kernel"] == (side * 50, ENCODERS[encoder].hidden[0])
    assert "Convolution_0/kernel" not in found


def test_kernels_begin_as_the_paper_of_hadamax_says():
    network, obs = QNetwork(6, "hadamax", (512,)), np.zeros((1, 1, 9, 9, 4), np.uint8)
    params = jax.jit(network.init, static_argnums=4)(KEY, (), obs, np.zeros((1, 1), bool), True)["params"]
    xavier = np.sqrt(2 / (3 * 3 * 64 + 3 * 3 * 64))
    he = np.sqrt(2 / len(params["Dense_0"]["kernel"]))
    np.testing.assert_allclose(np.std(params["Convolution_5"]["kernel"]), xavier, rtol=0.03)
    np.testing.assert_allclose(np.std(params["Dense_0"]["kernel"]), he, rtol=0.03)


def test_every_encoder_has_a_name():
    assert get_args(Encoder) == tuple(ENCODERS) == tuple(LAYERS) == FIELDS["encoder"].metadata["kind"].choices
    assert [sizes.smallest is None for sizes in ENCODERS.values()] == [of.convolve is None for of in LAYERS.values()]


def test_names_need_no_jax():
    """Importing the settings, or agents in NumPy, must not import JAX."""
    code = "import sys, qlax.config.settings, qlax.networks.plain; assert not {'jax', 'flax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
