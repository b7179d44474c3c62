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


@pytest.mark.usefixtures("branch")
@pytest.mark.parametrize(("ours", "theirs", "shape"), [LAYERS["dense"], LAYERS["convolution"]])
def test_in_bfloat16_only_the_product_is_rounded(ours, theirs, shape):
    x = noise(shape, 0)
    variables = theirs.init(KEY, x)
    rounded = {"kernel": variables["params"]["kernel"].astype(jax.numpy.bfloat16).astype(np.float32)}
    rounded = {"params": variables["params"] | rounded}
    expected = theirs.apply(rounded, x.astype(jax.numpy.bfloat16).astype(np.float32))
    y = ours.clone(dtype=jax.numpy.bfloat16).apply(variables, x)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, expected, rtol=1e-2, atol=1e-2)  # a convolution's sum is rounded too
    assert np.abs(y - theirs.apply(variables, x)).max() > 1e-4
    gradient = jax.grad(lambda variables: ours.clone(dtype=jax.numpy.bfloat16).apply(variables, x).sum())(variables)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {np.dtype(np.float32)}


def test_a_constant_row_has_no_variance_to_divide_by():
    x = np.full((2, 5), 1e4, np.float32)  # the mean of squares less the squared mean may come out negative
    variables = LayerNorm().init(KEY, x)
    assert np.abs(LayerNorm().apply(variables, x)).max() < 1e3 * np.finfo(np.float32).eps * 1e4


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
