"""Layers with Flax's arithmetic, in an order that suits the CPU.

XLA reduces over a last axis on the CPU one element at a time, compiles the gradients of a convolution inside a
loop to slow code, and transposes the gradient of a kernel anew for everything that reads it. So there the features of
rows and of small images come first and the batch last, sums are matrix products, and a convolution is a matrix
product over shifted slices. Every layer takes and returns the batch first: XLA cancels the transpositions between
one layer and the next. The slices of larger images would not fit the caches: those stay as they are, and the gradients
of their convolutions are written as XLA has fast code for. Elsewhere than on CPUs the plain layers are the fast ones.
There are no forward-mode derivatives.

Axes: B rows of a batch, I inputs, F features; H and W rows and columns of an image of C channels, h and w those
that a layer makes of them, K those of a square kernel; n columns, each of one row or of one place in a row.
"""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

Initializer = Callable[..., jax.Array]
Layer = Callable[[jax.Array, jax.Array], jax.Array]  # of x and kernel
Padding = Literal["VALID", "SAME"]
SMALL = 2_048  # numbers of an image that has its features first on the CPU: MinAtar has 1,024, the least of Atari 3,136


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

        cpu = features_first if x.ndim == 2 or _is_small(x) else plain
        return jax.lax.platform_dependent(x, scale, bias, cpu=cpu, default=plain)


class Convolution(nn.Module):
    """`flax.linen.Conv` with a square kernel; `dtype` as in `Dense`.

    Attributes:
      features: F.
      size: K.
      stride: places from one output to the next, in both directions.
      padding: "VALID" for none, "SAME" for zeros all around, such that h = ceil(H / stride).
    """

    features: int
    size: int
    stride: int = 1
    padding: Padding = "VALID"
    kernel_init: Initializer = nn.initializers.lecun_normal()
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C]` -> `[B, h, w, F]`."""
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        for axis in (1, 2):
            x = _fitted(x, axis, self.size, self.stride, self.padding, 0)
        reach = [length - self.size + 1 for length in x.shape[1:3]]

        def shifted_slices(x, kernel):
            x = x.transpose(3, 1, 2, 0)
            offsets = list(itertools.product(range(self.size), repeat=2))
            slices = [x[:, i : i + reach[0] : self.stride, j : j + reach[1] : self.stride] for i, j in offsets]
            patches = jnp.concatenate(slices).reshape(self.size**2 * len(x), -1)
            y = _product(patches, kernel.reshape(-1, self.features))
            return y.reshape(self.features, *slices[0].shape[1:]).transpose(3, 1, 2, 0)

        def convolution(x, kernel):
            return _convolution(x, kernel, self.stride)

        def plain(x, kernel):
            return _convolved(x, kernel, (self.stride, self.stride))

        cpu = shifted_slices if _is_small(x) else convolution
        return _by_platform(self.dtype, cpu, plain)(x, kernel) + along_last(bias, x)


def max_pool(x: jax.Array, size: int, stride: int) -> jax.Array:
    """`flax.linen.max_pool` with padding "SAME": `[B, H, W, C]` -> `[B, h, w, C]`.

    Along rows and then along columns, by comparing slices: the CPU takes longer for XLA's own and for its gradient.
    The gradient goes to the first of equal entries, as there.
    """
    for axis in (2, 1):
        x = _fitted(x, axis, size, stride, "SAME", -jnp.inf)
        end = x.shape[axis] - size + 1
        best, *others = (jax.lax.slice_in_dim(x, i, end + i, stride, axis) for i in range(size))
        for other in others:
            best = jnp.where(best >= other, best, other)
        x = best
    return x


def _fitted(x: jax.Array, axis: int, size: int, stride: int, padding: Padding, value: float) -> jax.Array:
    """`x` padded with `value` along `axis`, and without the end of it that no window of this size reaches."""
    ((before, after),) = jax.lax.padtype_to_pads(x.shape[axis : axis + 1], (size,), (stride,), padding)
    unreached = (before + x.shape[axis] + after - size) % stride
    pads = [(0, 0, 0)] * x.ndim
    pads[axis] = (before, after - unreached, 0)
    return jax.lax.pad(x, jnp.asarray(value, x.dtype), pads)


def _is_small(x: jax.Array) -> bool:
    return math.prod(x.shape[1:]) <= SMALL


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


def _convolved(x: jax.Array, kernel: jax.Array, window_strides=(1, 1), padding="VALID", **dilations) -> jax.Array:
    """`x [B, H, W, C]`, `kernel [K, K, C, F]` -> `[B, h, w, F]`."""
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, window_strides, padding, dimension_numbers=layout, **dilations)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolution(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """`_convolved`, for an image of which nothing is left over: H = (h - 1) stride + K."""
    return _convolved(x, kernel, (stride, stride))


def _convolution_forward(x, kernel, stride):
    return _convolution(x, kernel, stride), (x, kernel)


def _convolution_backward(stride, saved, upstream):
    # JAX's own gradients have other layouts, for which XLA's CPU code within a loop takes 30 to 80 times as long.
    x, kernel = saved
    apart = (stride, stride)
    reach = (len(kernel) - 1, len(kernel) - 1)
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    to_x = _convolved(upstream, turned, padding=(reach, reach), lhs_dilation=apart)
    # Of channels as the batch, with the batch as channels: [C, H, W, B] and [h, w, B, F] -> [C, K, K, F].
    to_kernel = _convolved(x.transpose(3, 1, 2, 0), upstream.transpose(1, 2, 0, 3), rhs_dilation=apart)
    return to_x, to_kernel.transpose(1, 2, 0, 3)


_convolution.defvjp(_convolution_forward, _convolution_backward)


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
