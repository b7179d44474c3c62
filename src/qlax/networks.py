"""Q-networks: encoder, memory, head and the normalisation that replaces the target network.

Axes: L steps of a segment, B rows of a batch, then features; A actions.
"""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from qlax.encoders import ENCODERS
from qlax.errors import UserError, described
from qlax.imports import import_object
from qlax.layers import Convolution, Dense, LayerNorm, along_last
from qlax.memories import MEMORIES
from qlax.types import PyTree

Norm = Literal["layer", "batch", "batch_renorm", "none"]
Memory = Literal["none", "lstm", "gru", "mingru", "lru"]
Encoder = Literal["mlp", "cnn", "nature", "impala", "hadamax"]

HIDDEN = {name: encoder.hidden for name, encoder in ENCODERS.items()}  # unless other widths are asked for


class QNetwork(nn.Module):
    """Encoder, memory if any, and a linear head; satisfies `qlax.types.Network`.

    Attributes:
      num_actions: A.
      encoder: by its name in `qlax.encoders`: "mlp" flattens the observation; "cnn" has a 3 x 3 convolution of 16
        features first, as for MinAtar; "nature", "impala" and "hadamax" are for the screens of Atari.
      hidden: widths of the dense layers; the memory is as wide as the last.
      norm: before every activation. "none" is for ablations: nothing else stabilises the learning.
      input_norm: of the observation.
      memory: between encoder and head, by its name in `qlax.memories`; or "none".
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
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    axis_name: str | None = None

    @property
    def recurrent(self) -> bool:
        """Whether it has a memory, and so learns from segments of the whole rollout."""
        return self.memory != "none"

    def initial_memory(self, batch: int) -> PyTree:
        """Zeros, each leaf `[batch, hidden[-1]]`; `()` without memory."""
        if not self.recurrent:
            return ()
        return MEMORIES[self.memory](self.hidden[-1], parent=None).initial(batch)

    @nn.compact
    def __call__(self, memory: PyTree, obs: jax.Array, first: jax.Array, train: bool) -> tuple[jax.Array, PyTree]:
        """`obs [L, B, ...]`, `first [L, B]` -> `q [L, B, A]` float32, memory after the last step."""
        length, batch = first.shape
        dtype = jnp.dtype(self.compute_dtype)
        x = obs.reshape(length * batch, *obs.shape[2:])
        x = x.astype(jnp.float32) / 255 if x.dtype == jnp.uint8 else x.astype(jnp.float32)
        encoder = ENCODERS[self.encoder]
        if encoder.convolve is None:
            x = x.reshape(length * batch, -1)
        x = self._normalise(self.input_norm, x, train)

        def normalise(x):
            return self._normalise(self.norm, x, train)

        if encoder.convolve is not None:
            convolution = partial(Convolution, kernel_init=encoder.kernel_init, dtype=dtype)
            x = encoder.convolve(x, convolution, normalise)
            x = x.transpose(0, 3, 1, 2).reshape(length * batch, -1)  # plane after plane, as saved agents have it
        for width in self.hidden:
            x = encoder.activation(normalise(Dense(width, encoder.kernel_init, dtype)(x)))
        if self.recurrent:
            remember = MEMORIES[self.memory](self.hidden[-1], name="memory_cell")
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


def default_encoder(obs: Any) -> Encoder:
    """The encoder that fits one member's observation: "nature" for screens, "cnn" for other grids, else "mlp".

    Args:
      obs: array, or its shape and dtype, without the axes N and M.

    Raises:
      UserError: no encoder of ours understands it.
    """
    if not hasattr(obs, "dtype"):
        kind = type(obs).__name__
        raise UserError(
            f"observation is a {kind} of arrays, which needs a network of your own: --network my_module:MyNetwork"
        )
    is_image = obs.dtype == jnp.uint8 and len(obs.shape) == 3
    if not (is_image or obs.dtype == bool or jnp.issubdtype(obs.dtype, jnp.floating)):
        raise UserError(
            f"observation is {obs.dtype}{list(obs.shape)}; expected bool, float, or uint8 with three axes (an image): "
            "let the environment deliver categories one-hot and counts as float"
        )
    if is_image and _takes("nature", obs):
        return "nature"
    return "cnn" if _takes("cnn", obs) else "mlp"


def checked_encoder(encoder: Any, obs: Any) -> Encoder:
    """The encoder, if it understands one member's observation; see `default_encoder` for both.

    Raises:
      UserError: it does not.
    """
    default_encoder(obs)
    if not _takes(encoder, obs):
        side = ENCODERS[encoder].smallest
        raise UserError(
            f"encoder={encoder}: expected an observation with three axes, at least {side} x {side}; "
            f"this has {obs.shape}"
        )
    return encoder


def _takes(encoder: Encoder, obs: Any) -> bool:
    """Whether the encoder leaves something of an observation of this shape."""
    if ENCODERS[encoder].convolve is None:
        return True
    return len(obs.shape) == 3 and min(obs.shape[:2]) >= ENCODERS[encoder].smallest


def build(description: dict[str, Any], num_actions: int) -> Any:
    """The network that a description names.

    Args:
      description: fields of `QNetwork`, or `{"network": "module:Name"}` of one's own, called with A.
      num_actions: A.

    Raises:
      UserError: it cannot be imported, or lacks what `qlax.types.Network` asks for.
    """
    if "network" not in description:
        return QNetwork(num_actions, **{**description, "hidden": tuple(description["hidden"])})
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
