from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest
from probes import strict_and_quick

from qlax.networks import layers
from qlax.networks.layers import Convolution, Dense, LayerNorm, max_pool

LAYERS = {  # our layer, Flax's layer, shape of the input
    "dense": (Dense(7), nn.Dense(7), (6, 5)),
    "wide dense": (Dense(300), nn.Dense(300), (3, 130)),
    "layer norm": (LayerNorm(), nn.LayerNorm(), (6, 5)),
    "layer norm of an image": (LayerNorm(), nn.LayerNorm(), (2, 4, 3, 16)),
    "convolution": (Convolution(8, 3), nn.Conv(8, (3, 3), padding="VALID"), (2, 5, 6, 3)),
    "strided convolution": (Convolution(5, 4, 2), nn.Conv(5, (4, 4), 2, "VALID"), (2, 7, 10, 3)),
    "padded convolution": (Convolution(5, 3, 1, "SAME"), nn.Conv(5, (3, 3)), (2, 5, 6, 3)),
    "even padded convolution": (Convolution(5, 4, 1, "SAME"), nn.Conv(5, (4, 4)), (2, 3, 6, 3)),
    "strided padded convolution": (Convolution(5, 4, 3, "SAME"), nn.Conv(5, (4, 4), 3), (2, 9, 7, 3)),
}
KEY = jax.random.key(0)


@pytest.fixture(autouse=True, scope="module")
def strict():
    with strict_and_quick():
        yield


@pytest.fixture(params=["chosen", "cpu", "cpu, as if large", "default"])
def branch(request, monkeypatch):
    """Run one branch of the layers, whatever the device is, and also for small images."""
    platform, _, large = request.param.partition(",")
    if large:
        monkeypatch.setattr(layers, "SMALL", 0)
    if platform != "chosen":
        always(platform, monkeypatch)


def always(platform, monkeypatch):
    choose = lambda *arguments, **branches: branches[platform](*arguments)  # noqa: E731
    monkeypatch.setattr(jax.lax, "platform_dependent", choose)


def noise(shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(x, y):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), x, y)


def close_to_theirs(ours, theirs, variables, x):
    """Check that the values of two layers and all gradients of a function of them are equal."""
    weight = noise(jax.eval_shape(theirs.apply, variables, x).shape, 3)

    def loss(module, variables, x):
        y = module.apply(variables, x)
        return (y * weight).sum(), y

    close(*(jax.jit(jax.grad(partial(loss, module), (0, 1), has_aux=True))(variables, x) for module in (ours, theirs)))


@pytest.mark.usefixtures("branch")
@pytest.mark.parametrize(("ours", "theirs", "shape"), LAYERS.values(), ids=LAYERS)
def test_a_layer_equals_that_of_flax(ours, theirs, shape):
    x = noise(shape, 0) * 3 + 1
    with jax.numpy_rank_promotion("allow"):  # Flax's layers promote ranks
        variables = theirs.init(KEY, x)
        assert jax.tree.map(np.shape, ours.init(KEY, x)) == jax.tree.map(np.shape, variables)
        variables = jax.tree.map(lambda value: value + noise(value.shape, 1), variables)
        close_to_theirs(ours, theirs, variables, x)


@pytest.mark.parametrize("platform", ["cpu", "default"])
@pytest.mark.parametrize(("ours", "theirs", "shape"), [LAYERS["dense"], LAYERS["convolution"]])
def test_in_bfloat16_products_are_rounded_and_the_rest_is_not(ours, theirs, shape, platform, monkeypatch):
    always(platform, monkeypatch)
    x, ours = noise(shape, 0), ours.clone(dtype=jax.numpy.bfloat16)
    variables = theirs.init(KEY, x)
    weight = noise(jax.eval_shape(theirs.apply, variables, x).shape, 3)

    def loss(module, variables):
        return (module.apply(variables, x) * weight).sum()

    y, expected = ours.apply(variables, x), theirs.apply(variables, x)
    assert y.dtype == np.float32
    assert 1e-4 < np.abs(y - expected).max() < 0.05
    gradients, expected = (jax.grad(loss, 1)(module, variables)["params"] for module in (ours, theirs))
    assert gradients["kernel"].dtype == np.float32
    assert 1e-4 < np.abs(gradients["kernel"] - expected["kernel"]).max() < 0.2
    text = str(jax.make_jaxpr(jax.grad(loss, 1), static_argnums=0)(ours, variables))
    products = [line for line in text.splitlines() if "dot_general[" in line or "conv_general_dilated[" in line]
    assert len(products) >= 2  # in the backward pass as well
    assert all(":bf16[" in line for line in products)


@pytest.mark.usefixtures("branch")
def test_a_constant_row_has_no_variance_to_divide_by():
    x = np.full((2, 16), 9999.1, np.float32)  # the mean of squares less the squared mean comes out at -8
    assert np.isfinite(LayerNorm().apply(LayerNorm().init(KEY, x), x)).all()


def test_runs_side_by_side_get_what_each_gets_alone():
    layer, x = Dense(4), noise((3, 6, 5), 0)
    variables = jax.vmap(lambda key, x: layer.init(key, x))(jax.random.split(KEY, 3), x)
    together = jax.vmap(layer.apply)(variables, x)
    for run in range(3):
        close(together[run], layer.apply(jax.tree.map(lambda value, run=run: value[run], variables), x[run]))


def lowered(function, *arguments, platform):
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
    ("dtype", "size", "expected"), [("float32", 5, (0, 0)), ("float32", 50, (1, 1)), (jax.numpy.bfloat16, 5, (1, 0))]
)
def test_a_small_convolution_is_a_product_except_in_bfloat16_on_a_cpu(dtype, size, expected):
    layer, x = Convolution(8, 3, dtype=np.dtype(dtype)), noise((2, size, size, 3), 0)
    variables = layer.init(KEY, x)
    found = [
        lowered(layer.apply, variables, x, platform=name).count("stablehlo.convolution") for name in ("cpu", "cuda")
    ]
    assert tuple(found) == expected


def test_on_the_cpu_a_large_convolution_and_its_gradients_have_the_layout_that_is_fast_in_a_loop(monkeypatch):
    monkeypatch.setattr(layers, "SMALL", 0)
    layer, x = Convolution(8, 4, 2), noise((2, 6, 6, 3), 0)
    gradients = jax.value_and_grad(lambda variables, x: layer.apply(variables, x).sum(), (0, 1))
    text = lowered(gradients, layer.init(KEY, x), x, platform="cpu")
    convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert len(convolutions) == 3
    assert all("[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" in line for line in convolutions)


@pytest.mark.parametrize(("size", "stride"), [(3, 2), (4, 4), (2, 2), (3, 1)])
def test_pooling_equals_that_of_flax_also_where_entries_are_equal(size, stride):
    x = np.random.default_rng(0).integers(0, 3, (2, 9, 6, 3)).astype(np.float32)
    both = max_pool, lambda x, size, stride: nn.max_pool(x, (size, size), (stride, stride), "SAME")
    weight = noise(jax.eval_shape(lambda: both[1](x, size, stride)).shape, 3)

    def pooled(pool, x):
        y = pool(x, size, stride)
        return (y * weight).sum(), y

    (ours_down, ours), (theirs_down, theirs) = (
        jax.jit(jax.grad(partial(pooled, pool), has_aux=True))(x) for pool in both
    )
    np.testing.assert_array_equal(ours, theirs)
    close(ours_down, theirs_down)


def test_on_the_cpu_the_gradient_of_a_kernel_comes_as_the_kernel_lies():
    layer, x = Dense(7), noise((6, 5), 0)
    gradient = jax.grad(lambda variables: layer.apply(variables, x).sum())
    text = lowered(gradient, layer.init(KEY, x), platform="cpu")
    assert any("dot_general" in line and "-> tensor<5x7xf32>" in line for line in text.splitlines())
