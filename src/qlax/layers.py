"""Layers with Flax's arithmetic, in an order that suits the CPU.

XLA reduces over a last axis on the CPU one element at a time, compiles a convolution inside a loop to
slower code than outside, and transposes the gradient of a kernel anew for everything that reads it. So
there the features come first and the batch last, sums are matrix products, and a convolution is a matrix
product over shifted slices. Every layer takes and returns the batch first: XLA cancels the transpositions
between one layer and the next. Elsewhere the plain layers are the fast ones. There are no forward-mode
derivatives.

Axes: B rows of a batch, I inputs, F features; n columns, each of one row or of one place in a row.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

Initializer = Callable[..., jax.Array]
Layer = Callable[[jax.Array, jax.Array], jax.Array]  # of x and kernel


class Dense(nn.Module):
    """`flax.linen.Dense`; `dtype` is that of the product, parameters and result are float32."""

    features: int
    kernel_init: Initializer = nn.initializers.lecun_normal()
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, I]` -> `[B, F]`."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))

        def features_first(x, kernel):
            return _product(x.T, kernel).T

        return _by_platform(self.dtype, features_first, jnp.matmul)(x, kernel) + along_last(bias, x)


class LayerNorm(nn.Module):
    """`flax.linen.LayerNorm`: over the last axis of `x [B, ..., F]`."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, ..., F]` -> `[B, ..., F]`."""
        scale = self.param("scale", nn.initializers.ones_init(), x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros_init(), x.shape[-1:])

        def features_first(x, scale, bias):
            swapped = jnp.swapaxes(x, 0, -1)
            y = _normalised(swapped.reshape(x.shape[-1], -1), scale, bias, self.epsilon)
            return jnp.swapaxes(y.reshape(swapped.shape), 0, -1)

        def plain(x, scale, bias):
            mean = x.mean(-1, keepdims=True)
            variance = jnp.square(x).mean(-1, keepdims=True) - jnp.square(mean)
            normal = (x - mean) * jax.lax.rsqrt(jnp.maximum(variance, 0) + self.epsilon)
            return normal * along_last(scale, x) + along_last(bias, x)

        return jax.lax.platform_dependent(x, scale, bias, cpu=features_first, default=plain)


class Convolution(nn.Module):
    """`flax.linen.Conv` of 3 x 3, stride 1, without padding; `dtype` as in `Dense`."""

    features: int
    kernel_init: Initializer = nn.initializers.lecun_normal()
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C]` -> `[B, H - 2, W - 2, F]`."""
        kernel = self.param("kernel", self.kernel_init, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        height, width = x.shape[1] - 2, x.shape[2] - 2

        def shifted_slices(x, kernel):
            x = x.transpose(3, 1, 2, 0)
            slices = [x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
            patches = jnp.concatenate(slices).reshape(9 * x.shape[0], -1)
            y = _product(patches, kernel.reshape(-1, self.features))
            return y.reshape(self.features, height, width, -1).transpose(3, 1, 2, 0)

        def convolution(x, kernel):
            layout = ("NHWC", "HWIO", "NHWC")
            return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=layout)

        return _by_platform(self.dtype, shifted_slices, convolution)(x, kernel) + along_last(bias, x)


def _by_platform(dtype: jax.typing.DTypeLike, cpu: Layer, default: Layer) -> Layer:
    """The layer for the device; CPUs gain nothing by fewer bits, and their product is not made for them."""
    if dtype == jnp.float32:
        return lambda x, kernel: jax.lax.platform_dependent(x, kernel, cpu=cpu, default=default)
    return lambda x, kernel: default(x.astype(dtype), kernel.astype(dtype)).astype(jnp.float32)


def along_last(values: jax.Array, x: jax.Array) -> jax.Array:
    """`[F]` as `[1, ..., F]`, to go with `x [..., F]`."""
    return values.reshape(*(1,) * (x.ndim - 1), -1)


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x [I, n]`, `kernel [I, F]` -> `[F, n]`."""
    return kernel.T @ x


def _product_forward(x, kernel):
    return _product(x, kernel), (x, kernel)


def _product_backward(saved, upstream):
    x, kernel = saved
    # Summed over the columns of both, the gradient comes as the kernel lies in memory: nothing transposes it.
    return kernel @ upstream, jax.lax.dot_general(x, upstream, (((1,), (1,)), ((), ())))


_product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def _normalised(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """Layer normalisation over the first axis of `x [F, n]`."""
    return _normalised_forward(x, scale, bias, epsilon)[0]


def _normalised_forward(x, scale, bias, epsilon):
    average = jnp.full(len(x), 1 / len(x), x.dtype)
    mean = (average @ x)[None]
    variance = (average @ jnp.square(x))[None] - jnp.square(mean)
    slope = jax.lax.rsqrt(jnp.maximum(variance, 0) + epsilon)
    return (x - mean) * slope * scale[:, None] + bias[:, None], (x, mean, slope, scale)


def _normalised_backward(saved, upstream):
    x, mean, slope, scale = saved
    normal = (x - mean) * slope
    product = upstream * normal
    each = jnp.ones(x.shape[1], x.dtype)
    mean_upstream, mean_product = ((scale / len(x) @ y)[None] for y in (upstream, product))
    downstream = slope * (upstream * scale[:, None] - mean_upstream - normal * mean_product)
    return downstream, product @ each, upstream @ each, None


_normalised.defvjp(_normalised_forward, _normalised_backward)
