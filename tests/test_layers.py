import flax.linen as nn
import jax
import numpy as np
import pytest

from qlax.layers import Convolution, Dense, LayerNorm

LAYERS = {  # ours, theirs, the shape of what they are applied to
    "dense": (Dense(7), nn.Dense(7), (6, 5)),
    "wide dense": (Dense(300), nn.Dense(300), (3, 130)),
    "layer norm": (LayerNorm(), nn.LayerNorm(), (6, 5)),
    "layer norm of an image": (LayerNorm(), nn.LayerNorm(), (2, 4, 3, 16)),
    "convolution": (Convolution(8), nn.Conv(8, (3, 3), padding="VALID"), (2, 5, 6, 3)),
}
KEY = jax.random.key(0)


@pytest.fixture(autouse=True, scope="module")
def strict_ranks():
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(params=["chosen", "cpu", "default"])
def branch(request, monkeypatch):
    """The branch that is run, whatever the machine."""
    if request.param != "chosen":
        choose = lambda *arguments, **branches: branches[request.param](*arguments)  # noqa: E731
        monkeypatch.setattr(jax.lax, "platform_dependent", choose)


def noise(shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(x, y):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), x, y)


def close_to_theirs(ours, theirs, variables, x):
    """Values, and gradients by everything, of some function of the values."""
    weight = noise(jax.eval_shape(theirs.apply, variables, x).shape, 3)

    def loss(module, variables, x):
        return (module.apply(variables, x) * weight).sum()

    close(ours.apply(variables, x), theirs.apply(variables, x))
    close(*(jax.grad(loss, (1, 2))(module, variables, x) for module in (ours, theirs)))


@pytest.mark.usefixtures("branch")
@pytest.mark.parametrize(("ours", "theirs", "shape"), LAYERS.values(), ids=LAYERS)
def test_a_layer_equals_that_of_flax(ours, theirs, shape):
    x = noise(shape, 0) * 3 + 1
    with jax.numpy_rank_promotion("allow"):  # Flax's own
        variables = theirs.init(KEY, x)
        assert jax.tree.map(np.shape, ours.init(KEY, x)) == jax.tree.map(np.shape, variables)
        variables = jax.tree.map(lambda value: value + noise(value.shape, 1), variables)
        close_to_theirs(ours, theirs, variables, x)


@pytest.mark.parametrize(("ours", "theirs", "shape"), [LAYERS["dense"], LAYERS["convolution"]])
def test_in_bfloat16_products_are_rounded_and_the_rest_is_not(ours, theirs, shape):
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
    assert len(products) == 2
    assert all(":bf16[" in line for line in products)  # backwards too


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


def test_a_convolution_is_slices_on_the_cpu_and_a_convolution_elsewhere():
    layer, x = Convolution(8), noise((2, 5, 6, 3), 0)
    traced = jax.jit(layer.apply).trace(layer.init(KEY, x), x)
    for platform, expected in {"cpu": False, "cuda": True}.items():
        assert ("stablehlo.convolution" in traced.lower(lowering_platforms=(platform,)).as_text()) == expected


def test_on_the_cpu_the_gradient_of_a_kernel_comes_as_the_kernel_lies():
    layer, x = Dense(7), noise((6, 5), 0)
    gradient = jax.grad(lambda variables: layer.apply(variables, x).sum())
    text = jax.jit(gradient).trace(layer.init(KEY, x)).lower(lowering_platforms=("cpu",)).as_text()
    assert any("dot_general" in line and "-> tensor<5x7xf32>" in line for line in text.splitlines())
