"""Encoders: what makes features of an observation, before memory and head.

Each is a few convolutional layers, or none, and dense layers after them; `QNetwork` in `qlax.networks.qnetwork` puts
them together, with its norm and its dtype.

Axes: B rows of a batch; H and W rows and columns of an image of C channels, h and w those that are left; F features.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax

from qlax.networks.layers import Initializer, max_pool
from qlax.networks.names import Encoder

Function = Callable[[jax.Array], jax.Array]
MakeLayer = Callable[..., Function]  # `layers.Convolution`, with the encoder's kernel_init and the network's dtype


class Layers(NamedTuple):
    """Layers of an encoder, as `QNetwork` needs them.

    Attributes:
      convolve: `(x [B, H, W, C], convolution, activate) -> [B, h, w, F]`, called within a module, where `activate` is
        norm and activation; None takes observations of any shape and flattens them.
      kernel_init: of the layers.
      activation: after every norm.
    """

    convolve: Callable[[jax.Array, MakeLayer, Function], jax.Array] | None = None
    kernel_init: Initializer = nn.initializers.he_normal()
    activation: Function = nn.relu


def _stack(*convolutions: tuple[int, int, int]) -> Callable[[jax.Array, MakeLayer, Function], jax.Array]:
    """Convolutions of (features, size, stride) without padding, each with norm and activation."""

    def convolve(x, convolution, activate):
        for features, size, stride in convolutions:
            x = activate(convolution(features, size, stride)(x))
        return x

    return convolve


def _impala(x, convolution, activate):
    """Three sections: a convolution, pooling to half the size, two residual blocks.

    The norm, which the source has not, comes before each activation and not after each convolution: so the sum
    that the blocks add to passes from section to section as it is (He et al., 2016, arXiv:1603.05027), and what every
    activation sees is normalised all the same. Nothing is normalised at full size, where it would cost the most.
    """
    for features in (16, 32, 32):
        x = max_pool(convolution(features, 3, padding="SAME")(x), 3, 2)
        for _ in range(2):
            y = x
            for _ in range(2):
                y = convolution(features, 3, padding="SAME")(activate(y))
            x = x + y
    return activate(x)


def _hadamax(x, convolution, activate):
    """Three blocks: the product of two convolutions, each with norm and activation, and pooling."""
    for features, size, window, stride in ((32, 8, 4, 4), (64, 4, 2, 2), (64, 3, 3, 1)):
        kernel_init = nn.initializers.xavier_normal()
        parallel = [convolution(features, size, padding="SAME", kernel_init=kernel_init) for _ in range(2)]
        one, other = (activate(layer(x)) for layer in parallel)
        x = max_pool(one * other, window, stride)
    return x


# Sources: of "mlp" and "cnn" Gallici et al., 2024, arXiv:2407.04811, for classic control and MinAtar; of "nature"
# Mnih et al., 2015, doi:10.1038/nature14236, with the norms of Gallici et al.; of "impala" Espeholt et al., 2018,
# arXiv:1802.01561, figure 3; of "hadamax" Kooi et al., 2025, arXiv:2505.15345.
LAYERS: dict[Encoder, Layers] = {
    "mlp": Layers(kernel_init=nn.initializers.lecun_normal()),
    "cnn": Layers(_stack((16, 3, 1))),
    "nature": Layers(_stack((32, 8, 4), (64, 4, 2), (64, 3, 1))),
    "impala": Layers(_impala),
    "hadamax": Layers(_hadamax, activation=nn.gelu),
}
