"""Encoders: layers that compute features of an observation, before memory and head.

An encoder has convolutional layers, or none, and then dense layers. This module defines the convolutional layers;
`QNetwork` in `qlax.networks.qnetwork` adds the dense layers and chooses the norm and the dtype.

Axes: B rows of a batch; H and W rows and columns of an image with C channels, h and w those of a layer's output; F
features.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from qlax.networks.layers import Initializer, in_layout, max_pool
from qlax.networks.names import Encoder

Function = Callable[[jax.Array], jax.Array]
MakeLayer = Callable[..., Function]  # `layers.Convolution` with the encoder's kernel_init and the network's dtype set


class Layers(NamedTuple):
    """Layers of an encoder.

    Attributes:
      convolve: Function `(x [B, H, W, C], convolution, activate) -> [B, h, w, F]`, called within a Flax module;
        `convolution` makes a layer, and `activate` applies norm and activation. None for an encoder that flattens
        observations of any shape.
      kernel_init: Initialiser of the kernels of all layers.
      activation: Activation function, applied after every norm.
    """

    convolve: Callable[[jax.Array, MakeLayer, Function], jax.Array] | None = None
    kernel_init: Initializer = nn.initializers.he_normal()
    activation: Function = nn.relu


def _stack(*convolutions: tuple[int, int, int]) -> Callable[[jax.Array, MakeLayer, Function], jax.Array]:
    """Return a stack of convolutions without padding, each followed by norm and activation.

    Args:
      convolutions: Number of features, size of the kernel, and stride of each convolution.
    """

    def convolve(x, convolution, activate):
        for features, size, stride in convolutions:
            x = activate(convolution(features, size, stride)(x))
        return x

    return convolve


def _impala(x, convolution, activate):
    """Apply three sections, each a convolution, max pooling to half the size, and two residual blocks.

    The source has no norm. Here a norm precedes each activation instead of following each convolution, so the skip
    connections stay free of norms (He et al., 2016, arXiv:1603.05027) and the input of every activation is normalised.
    Nothing is normalised at full size, where it would be most expensive.
    """
    for features in (16, 32, 32):
        x = max_pool(convolution(features, 3, padding="SAME")(x), 3, 2)
        for _ in range(2):
            y = x
            for _ in range(2):
                y = convolution(features, 3, padding="SAME")(activate(y))
            x = x + y
    return activate(x)


def _gelu(x):
    """Apply GELU in the layout of the rows or images; the gradient of ReLU needs nothing that could be transposed."""
    return in_layout(lambda _, x: nn.gelu(x), x)


def _hadamax(x, convolution, activate):
    """Apply three blocks, each the product of two parallel convolutions with norm and activation, and max pooling."""
    for features, size, window, stride in ((32, 8, 4, 4), (64, 4, 2, 2), (64, 3, 3, 1)):
        kernel_init = nn.initializers.xavier_normal()
        parallel = [convolution(features, size, padding="SAME", kernel_init=kernel_init) for _ in range(2)]
        one, other = (activate(layer(x)) for layer in parallel)
        x = max_pool(one * other, window, stride)
    return x


def _product(x, convolution, activate):
    """Apply the product of two parallel convolutions with norm and activation, and max pooling.

    The two are one convolution of twice the features, which unfolds its input only once.
    """
    one, other = in_layout(lambda features, x: tuple(jnp.split(x, 2, features)), convolution(32, 3)(x))
    return max_pool(in_layout(lambda _, x, y: x * y, activate(one), activate(other)), 2, 2)


# Sources: "mlp" and "cnn": Gallici et al., 2024, arXiv:2407.04811, for classic control and MinAtar; "product": a block
# of "hadamax" with the convolutions of "cnn"; "nature": Mnih et al., 2015, doi:10.1038/nature14236, with the norms of
# Gallici et al.; "impala": Espeholt et al., 2018, arXiv:1802.01561, figure 3; "hadamax": Kooi et al., 2025,
# arXiv:2505.15345.
LAYERS: dict[Encoder, Layers] = {
    "mlp": Layers(kernel_init=nn.initializers.lecun_normal()),
    "cnn": Layers(_stack((16, 3, 1))),
    "product": Layers(_product, activation=_gelu),
    "nature": Layers(_stack((32, 8, 4), (64, 4, 2), (64, 3, 1))),
    "impala": Layers(_impala),
    "hadamax": Layers(_hadamax, activation=_gelu),
}
