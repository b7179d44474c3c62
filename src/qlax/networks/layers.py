"""Layers with the same arithmetic as Flax's, written so that they are fast on CPUs too.

On a CPU, XLA reduces over the last axis one element at a time, compiles the gradients of a convolution inside a loop
to slow code, and transposes the gradient of a kernel again for each of its uses. Therefore, on a CPU:

- features of rows and of small images are the first axis and the batch is the last one, sums are matrix products, and
  a convolution is a matrix product over shifted slices. Every layer's input and output have the batch first; XLA
  cancels the transpositions between layers;
- larger images keep their layout, as their slices would not fit in the caches, and the gradients of their
  convolutions are written in a form for which XLA has fast code.

On other devices the plain layers are fast, except for small images: where several agents are mapped over, XLA makes one
convolution in groups of theirs, and a CUDA graph ends at each. Products have neither disadvantage. There are no
forward-mode derivatives.

Axes: B rows of a batch, I inputs, F features; H and W rows and columns of an image with C channels, h and w those of
a layer's output, K those of a square kernel; n columns of a matrix, each of one row or of one place in an image.
"""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from qlax.networks.names import EPSILONS
from qlax.types import PyTree

Initializer = Callable[..., jax.Array]
Layer = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # x, kernel, bias -> output
Product = Callable[[jax.Array, jax.Array], jax.Array]  # x, kernel -> output without bias
Padding = Literal["VALID", "SAME"]
SMALL = 2_048  # most numbers in a small image; convolutions for MinAtar have 1,024, the smallest for Atari 3,136


class Dense(nn.Module):
    """Dense layer, as `flax.linen.Dense`.

    Attributes:
      features: Number of outputs, F.
      kernel_init: Initialiser of the kernel.
      dtype: Dtype of the matrix product; parameters and output are float32.
    """

    features: int
    kernel_init: Initializer = nn.initializers.lecun_normal()
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `x [B, I]` to `[B, F]`."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return dense(x, kernel, bias, self.dtype)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, as `flax.linen.LayerNorm`."""

    epsilon: float = EPSILONS["layer"]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise `x [B, ..., F]`."""
        scale = self.param("scale", nn.initializers.ones_init(), x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros_init(), x.shape[-1:])

        def features_first(x, scale, bias):
            swapped = jnp.swapaxes(x, 0, -1)
            y = _normalised(FIRST, swapped.reshape(x.shape[-1], -1), scale, bias, self.epsilon)
            return jnp.swapaxes(y.reshape(swapped.shape), 0, -1)

        def plain(x, scale, bias):
            return _normalised(LAST, x, scale, bias, self.epsilon)

        cpu = features_first if x.ndim == 2 or _is_small(x) else plain
        return jax.lax.platform_dependent(x, scale, bias, cpu=cpu, default=plain)


class Convolution(nn.Module):
    """Convolution with a square kernel, as `flax.linen.Conv`.

    Attributes:
      features: Number of output channels, F.
      size: Rows and columns of the kernel, K.
      stride: Stride in both directions.
      padding: "VALID" for none, "SAME" for zeros on all sides such that h = ceil(H / stride).
      kernel_init: Initialiser of the kernel.
      dtype: See `Dense`.
    """

    features: int
    size: int
    stride: int = 1
    padding: Padding = "VALID"
    kernel_init: Initializer = nn.initializers.lecun_normal()
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `x [B, H, W, C]` to `[B, h, w, F]`."""
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        for axis in (1, 2):
            x = _fitted(x, axis, self.size, self.stride, self.padding, 0)
        reach = [length - self.size + 1 for length in x.shape[1:3]]

        def over_slices(x, kernel, multiply):
            x = x.transpose(3, 1, 2, 0)
            offsets = list(itertools.product(range(self.size), repeat=2))
            slices = [x[:, i : i + reach[0] : self.stride, j : j + reach[1] : self.stride] for i, j in offsets]
            patches = jnp.concatenate(slices).reshape(self.size**2 * len(x), -1)
            y = multiply(patches, kernel.reshape(-1, self.features))
            return y.reshape(self.features, *slices[0].shape[1:]).transpose(3, 1, 2, 0)

        def shifted_slices(x, kernel, bias):
            return over_slices(x, kernel, lambda patches, rows: _affine(patches, rows, bias))

        def product_of_slices(x, kernel):
            return over_slices(x, kernel, lambda patches, rows: rows.T @ patches)

        def convolution(x, kernel, bias):
            return _convolution(x, kernel, self.stride) + along_last(bias, x)

        def plain(x, kernel):
            return _convolved(x, kernel, (self.stride, self.stride))

        if _is_small(x):
            return _by_platform(self.dtype, shifted_slices, product_of_slices, plain)(x, kernel, bias)
        return _by_platform(self.dtype, convolution, plain)(x, kernel, bias)


def dense(x: jax.Array, kernel: jax.Array, bias: jax.Array, dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
    """Multiply `x [B, I]` by `kernel [I, F]` in the given dtype, and add `bias [F]`: float32 `[B, F]`."""

    def features_first(x, kernel, bias):
        return _affine(x.T, kernel, bias).T

    return _by_platform(dtype, features_first, jnp.matmul)(x, kernel, bias)


def max_pool(x: jax.Array, size: int, stride: int) -> jax.Array:
    """Apply max pooling with padding "SAME", as `flax.linen.max_pool`: `[B, H, W, C]` to `[B, h, w, C]`.

    Slices are compared along W and then along H, as XLA's own pooling and its gradient are slower on a CPU.
    The gradient goes to the first of equal entries, as in XLA.
    """

    def pooled(_, x):
        for axis in (2, 1):
            x = _fitted(x, axis, size, stride, "SAME", -jnp.inf)
            end = x.shape[axis] - size + 1
            best, *others = (jax.lax.slice_in_dim(x, i, end + i, stride, axis) for i in range(size))
            for other in others:
                best = jnp.where(best >= other, best, other)
            x = best
        return x

    return in_layout(pooled, x) if x.size else x  # empty if the image was too small for the layers before


def in_layout(function: Callable[..., PyTree], *arrays: jax.Array) -> PyTree:
    """Call a function of arrays `[B, ..., F]` in the layout in which they lie, so that nothing has to transpose them.

    Otherwise XLA transposes what the gradient of an activation needs, and GELU makes learning four times as slow.

    Args:
      function: `(axis, *arrays)` to arrays, where `axis` is that of the features: 0 for arrays `[F, ..., B]` on a CPU,
        else -1.
      arrays: Rows `[B, F]` or images `[B, H, W, F]`.
    """

    def features_first(*arrays):
        swapped = (jnp.swapaxes(x, 0, -1) for x in arrays)
        return jax.tree.map(lambda x: jnp.swapaxes(x, 0, -1), function(0, *swapped))

    features_last = partial(function, -1)
    small = all(x.ndim == 2 or _is_small(x) for x in arrays)
    return jax.lax.platform_dependent(*arrays, cpu=features_first if small else features_last, default=features_last)


def _fitted(x: jax.Array, axis: int, size: int, stride: int, padding: Padding, value: float) -> jax.Array:
    """Pad `x` with `value` along `axis`, and drop the end that no window reaches."""
    ((before, after),) = jax.lax.padtype_to_pads(x.shape[axis : axis + 1], (size,), (stride,), padding)
    unreached = (before + x.shape[axis] + after - size) % stride
    pads = [(0, 0, 0)] * x.ndim
    pads[axis] = (before, after - unreached, 0)
    return jax.lax.pad(x, jnp.asarray(value, x.dtype), pads)


def _is_small(x: jax.Array) -> bool:
    return math.prod(x.shape[1:]) <= SMALL


def _by_platform(
    dtype: jax.typing.DTypeLike, cpu: Layer, product: Product, product_on_cpu: Product | None = None
) -> Layer:
    """Choose the layer for the device.

    Args:
      dtype: Dtype of the product.
      cpu: Layer for a CPU, which is faster in float32 only.
      product: Product of the layer for other devices.
      product_on_cpu: Product for other dtypes on a CPU; None for `product`.
    """

    def with_bias(product):
        def layer(x, kernel, bias):
            y = product(x.astype(dtype), kernel.astype(dtype)).astype(jnp.float32)
            return y + along_last(bias, y)

        return layer

    on_cpu = cpu if dtype == jnp.float32 else with_bias(product_on_cpu or product)
    return lambda *arguments: jax.lax.platform_dependent(*arguments, cpu=on_cpu, default=with_bias(product))


def along_last(values: jax.Array, x: jax.Array) -> jax.Array:
    """Reshape `values [F]` to `[1, ..., F]`, to broadcast with `x [..., F]`."""
    return values.reshape(*(1,) * (x.ndim - 1), -1)


@jax.custom_vjp
def _affine(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Multiply `kernel [I, F]`, transposed, by `x [I, n]`, and add `bias [F]`: `[F, n]`."""
    return kernel.T @ x + bias[:, None]


def _affine_forward(x, kernel, bias):
    return _affine(x, kernel, bias), (x, kernel)


def _affine_backward(saved, upstream):
    x, kernel = saved
    # This contraction yields the kernel's gradient in the kernel's own layout, so that nothing has to transpose it.
    of_kernel = jax.lax.dot_general(x, upstream, (((1,), (1,)), ((), ())))
    return kernel @ upstream, of_kernel, upstream @ jnp.ones(upstream.shape[1], upstream.dtype)


_affine.defvjp(_affine_forward, _affine_backward)


def _convolved(x: jax.Array, kernel: jax.Array, window_strides=(1, 1), padding="VALID", **dilations) -> jax.Array:
    """Convolve `x [B, H, W, C]` with `kernel [K, K, C, F]` to `[B, h, w, F]`."""
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, window_strides, padding, dimension_numbers=layout, **dilations)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolution(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolve without padding an image that the windows cover exactly: H = (h - 1) stride + K."""
    return _convolved(x, kernel, (stride, stride))


def _convolution_forward(x, kernel, stride):
    return _convolution(x, kernel, stride), (x, kernel)


def _convolution_backward(stride, saved, upstream):
    # JAX's own gradients have other layouts, for which XLA's code in a loop on a CPU takes 30 to 80 times as long.
    x, kernel = saved
    apart = (stride, stride)
    reach = (len(kernel) - 1, len(kernel) - 1)
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    to_x = _convolved(upstream, turned, padding=(reach, reach), lhs_dilation=apart)
    # Channels take the place of the batch and the batch that of channels: [C, H, W, B], [h, w, B, F] -> [C, K, K, F].
    to_kernel = _convolved(x.transpose(3, 1, 2, 0), upstream.transpose(1, 2, 0, 3), rhs_dilation=apart)
    return to_x, to_kernel.transpose(1, 2, 0, 3)


_convolution.defvjp(_convolution_forward, _convolution_backward)


class Features(NamedTuple):
    """Axis of the features of an array x whose other axes are those of rows and places.

    Attributes:
      mean: Function from weights `[F]` and x to the mean of their product over features, whose axis remains.
      over_rest: Function from x to the sum over all axes but that of features, `[F]`.
      along: Function from values `[F]` and x to an array that broadcasts with x.
    """

    mean: Callable[[jax.Array, jax.Array], jax.Array]
    over_rest: Callable[[jax.Array], jax.Array]
    along: Callable[[jax.Array, jax.Array], jax.Array]


FIRST = Features(  # of `[F, n]`
    lambda weights, x: (weights / len(weights) @ x)[None],
    lambda x: x @ jnp.ones(x.shape[1], x.dtype),
    lambda values, x: values[:, None],
)
LAST = Features(  # of `[..., F]`
    lambda weights, x: (along_last(weights, x) * x).mean(-1, keepdims=True),
    lambda x: x.sum(range(x.ndim - 1)),
    along_last,
)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalised(features: Features, x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """Apply layer normalisation over the features of x."""
    return _normalised_forward(features, x, scale, bias, epsilon)[0]


def _normalised_forward(features, x, scale, bias, epsilon):
    alike = jnp.ones_like(scale)
    mean = features.mean(alike, x)
    variance = features.mean(alike, jnp.square(x)) - jnp.square(mean)
    slope = jax.lax.rsqrt(jnp.maximum(variance, 0) + epsilon)
    return (x - mean) * slope * features.along(scale, x) + features.along(bias, x), (x, mean, slope, scale)


def _normalised_backward(features, saved, upstream):
    # JAX's own gradient takes GPUs more operations.
    x, mean, slope, scale = saved
    normal = (x - mean) * slope
    product = upstream * normal
    mean_upstream, mean_product = (features.mean(scale, y) for y in (upstream, product))
    downstream = slope * (upstream * features.along(scale, x) - mean_upstream - normal * mean_product)
    return downstream, features.over_rest(product), features.over_rest(upstream), None


_normalised.defvjp(_normalised_forward, _normalised_backward)
