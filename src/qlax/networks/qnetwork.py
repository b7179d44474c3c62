"""Q-networks: encoder, memory, head and the normalisation that replaces the target network.

Axes: L steps of a segment, B rows of a batch, then features; A actions.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from qlax.errors import UserError, described
from qlax.networks.encoders import LAYERS
from qlax.networks.layers import Convolution, Dense, LayerNorm, along_last
from qlax.networks.memories import CELLS
from qlax.networks.names import ENCODERS, Dtype, Encoder, Memory, Norm, is_convolved, is_image, is_screen
from qlax.types import PyTree
from qlax.util.imports import import_object


class QNetwork(nn.Module):
    """Encoder, memory if any, and a linear head; satisfies `qlax.types.Network`.

    Attributes:
      num_actions: A.
      encoder: by its name in `names.py`: "mlp" flattens the observation; "cnn" has a 3 x 3 convolution of 16
        features first, as for MinAtar; "nature", "impala" and "hadamax" are for the screens of Atari. Of a tree of
        arrays, each that the encoder can convolve has convolutions of its own, the others are flattened.
      hidden: widths of the dense layers; the memory is as wide as the last.
      norm: before every activation. "none" is for ablations: nothing else stabilises the learning.
      input_norm: of the observation, of each of its arrays by itself; "layer" leaves one number among others as it is.
      memory: between encoder and head, by its name in `qlax.networks.names`; or "none".
      dueling: separate value and advantage (Wang et al., 2016, arXiv:1511.06581).
      compute_dtype: "float32", or "bfloat16" for the products of the hidden and the convolutional layers; parameters,
        norms, memory and the head stay float32.
      axis_name: of the mapped axis over which batch statistics are shared.
    """

    num_actions: int
    encoder: Encoder = "mlp"
    hidden: tuple[int, ...] = (256, 256)
    norm: Norm = "layer"
    input_norm: Norm = "none"
    memory: Memory = "none"
    dueling: bool = False
    compute_dtype: Dtype = "float32"
    axis_name: str | None = None

    @property
    def recurrent(self) -> bool:
        """Whether it has a memory, and so learns from segments of the whole rollout."""
        return self.memory != "none"

    def initial_memory(self, batch: int) -> PyTree:
        """Zeros, each leaf `[batch, hidden[-1]]`; `()` without memory."""
        if not self.recurrent:
            return ()
        return CELLS[self.memory](self.hidden[-1], parent=None).initial(batch)

    @nn.compact
    def __call__(self, memory: PyTree, obs: PyTree, first: jax.Array, train: bool) -> tuple[jax.Array, PyTree]:
        """`obs`, each `[L, B, ...]`, `first [L, B]` -> `q [L, B, A]` float32, memory after the last step."""
        length, batch = first.shape
        dtype = jnp.dtype(self.compute_dtype)
        encoder = LAYERS[self.encoder]
        leaves = jax.tree.leaves(obs)

        def activate(x):
            x = encoder.activation(self._normalise(self.norm, x, train))
            self.sow("intermediates", "activation", x)  # nothing, unless asked for by `qlax.training.guard`
            return x

        def features(x):
            convolve = encoder.convolve if is_convolved(self.encoder, x.shape[2:]) else None
            pixels = is_image(x.dtype, x.shape[2:])
            x = x.reshape(length * batch, *x.shape[2:])
            x = x.astype(jnp.float32) / 255 if pixels else x.astype(jnp.float32)
            if convolve is None:
                x = x.reshape(length * batch, -1)
            # Of one number among others layer normalisation would leave nothing.
            if len(leaves) == 1 or self.input_norm != "layer" or x.shape[-1] > 1:
                x = self._normalise(self.input_norm, x, train)
            if convolve is None:
                return x
            x = convolve(x, partial(Convolution, kernel_init=encoder.kernel_init, dtype=dtype), activate)
            return x.transpose(0, 3, 1, 2).reshape(length * batch, -1)  # plane after plane, as saved agents have it

        x = jnp.concatenate([features(leaf) for leaf in leaves], axis=-1)
        for width in self.hidden:
            x = activate(Dense(width, encoder.kernel_init, dtype)(x))
        if self.recurrent:
            remember = CELLS[self.memory](self.hidden[-1], name="memory_cell")
            x, memory = remember(memory, x.reshape(length, batch, -1), first)
            x = x.reshape(length * batch, -1)
        q = Dense(self.num_actions)(x)
        if self.dueling:
            q = Dense(1)(x) + q - q.mean(-1, keepdims=True)
        return q.reshape(length, batch, -1), memory

    def _normalise(self, norm: Norm, x: jax.Array, train: bool) -> jax.Array:
        match norm:
            case "layer":
                return LayerNorm()(x)
            case "batch":
                return nn.BatchNorm(use_running_average=not train, axis_name=self.axis_name)(x)
            case "batch_renorm":
                return BatchRenorm(axis_name=self.axis_name)(x, train)
        return x


class BatchRenorm(nn.Module):
    """Batch normalisation whose training output follows the running statistics, within limits.

    The limits widen with the number of gradient steps as in the paper: plain batch normalisation for
    5,000 steps, then r up to 3 at 40,000 and d up to 5 at 25,000. Averaged over time is the variance,
    as in every batch normalisation of today, where the paper averages its root.

    Source: Ioffe, "Batch renormalization", 2017, arXiv:1702.03275, algorithm 1 and section 4.
    """

    momentum: float = 0.99
    epsilon: float = 1e-5
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`x [..., F]`; statistics are over all axes but the last."""
        features = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, features)
        var = self.variable("batch_stats", "var", jnp.ones, features)
        steps = self.variable("batch_stats", "steps", jnp.zeros, (), jnp.int32)
        scale = self.param("scale", nn.initializers.ones_init(), features)
        bias = self.param("bias", nn.initializers.zeros_init(), features)
        sigma = jnp.sqrt(var.value + self.epsilon)
        if train:
            axes = tuple(range(x.ndim - 1))
            batch_mean = self._over_devices(x.mean(axes))
            batch_var = self._over_devices(jnp.square(x - along_last(batch_mean, x)).mean(axes))
            batch_sigma = jnp.sqrt(batch_var + self.epsilon)
            r_max = 1 + 2 * jnp.clip((steps.value - 5_000) / 35_000, 0.0, 1.0)
            d_max = 5 * jnp.clip((steps.value - 5_000) / 20_000, 0.0, 1.0)
            r = jax.lax.stop_gradient(jnp.clip(batch_sigma / sigma, 1 / r_max, r_max))
            d = jax.lax.stop_gradient(jnp.clip((batch_mean - mean.value) / sigma, -d_max, d_max))
            mean.value = self.momentum * mean.value + (1 - self.momentum) * batch_mean
            var.value = self.momentum * var.value + (1 - self.momentum) * batch_var
            steps.value = steps.value + 1
            center, slope, shift = batch_mean, r / batch_sigma * scale, d * scale + bias
        else:
            center, slope, shift = mean.value, scale / sigma, bias
        return (x - along_last(center, x)) * along_last(slope, x) + along_last(shift, x)

    def _over_devices(self, x: jax.Array) -> jax.Array:
        return x if self.axis_name is None else jax.lax.pmean(x, self.axis_name)


def default_encoder(obs: PyTree) -> Encoder:
    """The encoder that fits one member's observation: "nature" for screens, "cnn" for other grids, else "mlp".

    Of a tree the first of these that fits one of its arrays.

    Args:
      obs: arrays, or their shapes and dtypes, without the axes N and M.

    Raises:
      UserError: no encoder of ours understands one of them.
    """
    leaves = jax.tree_util.tree_leaves_with_path(obs)
    if not leaves:
        raise UserError(f"observation holds no array: {obs}")
    for path, leaf in leaves:
        if not is_understood(leaf.dtype, leaf.shape):
            raise UserError(
                f"observation{jax.tree_util.keystr(path)} is {leaf.dtype}{list(leaf.shape)}; expected bool, float, or "
                "uint8 with three axes (an image): let the environment deliver categories one-hot and counts as float, "
                "or one in JAX a wrapper: --wrappers one_hot=<categories> or flatten"
            )
    if any(is_screen(leaf.dtype, leaf.shape) for _, leaf in leaves):
        return "nature"
    return "cnn" if any(is_convolved("cnn", leaf.shape) for _, leaf in leaves) else "mlp"


def is_understood(dtype: Any, shape: tuple[int, ...]) -> bool:
    """Whether `QNetwork` understands an array of one member's observation: bool, float or an image."""
    return dtype == "bool" or jnp.issubdtype(dtype, jnp.floating) or is_image(dtype, shape)


def checked_encoder(encoder: Any, obs: PyTree) -> Encoder:
    """The encoder, if it understands an array of one member's observation; see `default_encoder` for both.

    Raises:
      UserError: it does not.
    """
    default_encoder(obs)
    shapes = [leaf.shape for leaf in jax.tree.leaves(obs)]
    side = ENCODERS[encoder].smallest
    if side is not None and not any(is_convolved(encoder, shape) for shape in shapes):
        raise UserError(
            f"encoder={encoder}: expected an observation with three axes, at least {side} x {side}; "
            f"this has {', '.join(map(str, shapes))}"
        )
    return encoder


def build(description: dict[str, Any], num_actions: int, axis_name: str | None = None) -> Any:
    """The network that a description names.

    Args:
      description: fields of `QNetwork`, or `{"network": "module:Name"}` of one's own, called with A.
      num_actions: A.
      axis_name: as in `QNetwork`; one's own is not told.

    Raises:
      UserError: it cannot be imported, or lacks what `qlax.types.Network` asks for.
    """
    if "network" not in description:
        return QNetwork(num_actions, **{**description, "hidden": tuple(description["hidden"])}, axis_name=axis_name)
    path = description["network"]
    try:
        network = import_object(path)(num_actions)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"network {path!r} cannot be made for {num_actions} actions: {described(error)}") from error
    for member in ("recurrent", "initial_memory", "init", "apply"):
        if not hasattr(network, member):
            raise UserError(f"network {path!r} has no {member!r}; see qlax.Network")
    return network
