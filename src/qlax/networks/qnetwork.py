"""Q-networks: encoder, memory and head, with the normalisation that replaces a target network.

Axes: L steps of a segment, B rows of a batch, then features; D dimensions of an action, if it has any; K outputs of an
action, A actions.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from qlax.errors import UserError, described
from qlax.learning import heads
from qlax.learning.heads import Head, scalar
from qlax.networks.actor_critic import ActorCritic
from qlax.networks.encoders import LAYERS
from qlax.networks.layers import Convolution, Dense, LayerNorm, along_last
from qlax.networks.memories import CELLS
from qlax.networks.names import (
    ENCODERS,
    EPSILONS,
    HEADS,
    Dtype,
    Encoder,
    Memory,
    Norm,
    algorithm_of,
    is_convolved,
    is_image,
    is_screen,
)
from qlax.types import PyTree
from qlax.util.imports import import_object
from qlax.util.text import actions_in_words


class QNetwork(nn.Module):
    """Encoder, optional memory, and a linear layer of outputs; satisfies `qlax.Network`.

    Attributes:
      num_actions: Number of actions, A; of each dimension if an action has several.
      dimensions: Number of dimensions of an action, D, with outputs of their own; None if an action is one number.
      encoder: Name of an encoder. "mlp" flattens the observation; "cnn" begins with a 3 x 3 convolution of 16
        features, for MinAtar, and "product" with the product of two such; "nature", "impala" and "hadamax" are for the
        screens of Atari. In a tree of arrays, each array that is large enough has convolutions of its own, and the
        others are flattened.
      hidden: Widths of the dense layers; the last one is also the width of the memory.
      norm: Norm before every activation. "none" is for ablations, as nothing else stabilises learning.
      input_norm: Norm of the observation, applied to each of its arrays separately. "layer" does not change an array
        that is a single number beside other arrays.
      memory: Name of a memory: "lstm", "gru", "mingru" or "lru"; or "none".
      head: Meaning of the outputs, see `qlax.heads`.
      dueling: If True, add a value and advantages to each of the K outputs (Wang et al., 2016, arXiv:1511.06581).
      compute_dtype: Dtype of the products in dense and convolutional layers, "float32" or "bfloat16"; parameters,
        norms, memory and outputs are always float32.
      axis_name: Name of the mapped axis of devices over which batch statistics are averaged; None if there is none.

    Example:
      ```python
      network = qlax.QNetwork(num_actions=4, hidden=(64,), memory="gru", head=qlax.heads.hl_gauss(low=-1, high=1))
      obs, first = jnp.zeros((5, 2, 3)), jnp.zeros((5, 2), bool)  # 5 steps of 2 rows
      memory = network.initial_memory(2)
      variables = network.init(jax.random.key(0), memory, obs, first, False)
      outputs, memory = network.apply(variables, memory, obs, first, False)
      q = network.head.q(outputs)  # [5, 2, 4]
      ```
    """

    num_actions: int
    encoder: Encoder = "mlp"
    hidden: tuple[int, ...] = (256, 256)
    norm: Norm = "layer"
    input_norm: Norm = "none"
    memory: Memory = "none"
    head: Head = scalar()
    dueling: bool = False
    compute_dtype: Dtype = "float32"
    axis_name: str | None = None
    dimensions: int | None = None

    @property
    def recurrent(self) -> bool:
        """True if the network has a memory, and so is trained on segments as long as a rollout."""
        return self.memory != "none"

    def initial_memory(self, batch: int) -> PyTree:
        """Return the memory at the start of an episode: zeros, each leaf `[batch, hidden[-1]]`; `()` without memory."""
        if not self.recurrent:
            return ()
        return CELLS[self.memory](self.hidden[-1], parent=None).initial(batch)

    @nn.compact
    def __call__(self, memory: PyTree, obs: PyTree, first: jax.Array, train: bool) -> tuple[jax.Array, PyTree]:
        """Compute the outputs for a segment of steps; those of the head `scalar()` are Q-values.

        Args:
          memory: Memory before the first step.
          obs: Observations of L steps in a batch of B, each array `[L, B, ...]`.
          first: Bool `[L, B]`, True where an episode begins, which resets the memory before the step.
          train: True in training, where batch statistics are computed and updated.

        Returns:
          Outputs, float32 `[L, B, K * A]`, or `[L, B, D, K * A]` for actions of D dimensions, with all actions of an
          output side by side; and the memory after the last step.
        """
        length, batch = first.shape
        dtype = jnp.dtype(self.compute_dtype)
        encoder = LAYERS[self.encoder]
        leaves = jax.tree.leaves(obs)

        def activate(x):
            x = encoder.activation(self._normalise(self.norm, x, train))
            self.sow("intermediates", "activation", x)  # stored only where `qlax.training.guard` asks for it
            return x

        def features(x):
            convolve = encoder.convolve if is_convolved(self.encoder, x.shape[2:]) else None
            pixels = is_image(x.dtype, x.shape[2:])
            x = x.reshape(length * batch, *x.shape[2:])
            x = x.astype(jnp.float32) / 255 if pixels else x.astype(jnp.float32)
            if convolve is None:
                x = x.reshape(length * batch, -1)
            # Layer normalisation would turn a single number into 0; an array alone is normalised all the same.
            if len(leaves) == 1 or self.input_norm != "layer" or x.shape[-1] > 1:
                x = self._normalise(self.input_norm, x, train)
            if convolve is None:
                return x
            x = convolve(x, partial(Convolution, kernel_init=encoder.kernel_init, dtype=dtype), activate)
            return x.transpose(0, 3, 1, 2).reshape(length * batch, -1)  # plane by plane, the order in saved agents

        x = jnp.concatenate([features(leaf) for leaf in leaves], axis=-1)
        for width in self.hidden:
            x = activate(Dense(width, encoder.kernel_init, dtype)(x))
        if self.recurrent:
            remember = CELLS[self.memory](self.hidden[-1], name="memory_cell")
            x, memory = remember(memory, x.reshape(length, batch, -1), first)
            x = x.reshape(length * batch, -1)
        blocks = self.head.outputs * (self.dimensions or 1)
        outputs = Dense(blocks * self.num_actions)(x)
        if self.dueling:
            advantages = outputs.reshape(length * batch, -1, self.num_actions)
            outputs = Dense(blocks)(x)[..., None] + advantages - advantages.mean(-1, keepdims=True)
        rows = (length, batch) if self.dimensions is None else (length, batch, self.dimensions)
        return outputs.reshape(*rows, self.head.outputs * self.num_actions), memory

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
    """Batch renormalisation: batch normalisation that uses the running statistics in training too, within limits.

    It is plain batch normalisation for 1,000 gradient steps; then r is between 1/3 and 3, and d between -5 and 5. The
    paper opens these limits slowly, until step 40,000; the limits and constants here are those of the reference
    implementation of PQN. The running average is that of the variance, where the paper averages the deviation.

    Source: Ioffe, "Batch renormalization", 2017, arXiv:1702.03275, algorithm 1 and section 4.

    Attributes:
      momentum: Weight of the old value in the running averages.
      epsilon: Number added to variances, to avoid division by zero.
      axis_name: See `QNetwork`.
    """

    momentum: float = 0.999
    epsilon: float = EPSILONS["batch_renorm"]
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Normalise `x [..., F]` with statistics over all axes except the last."""
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
            is_open = steps.value >= 1_000
            r_max, d_max = jnp.where(is_open, 3.0, 1.0), jnp.where(is_open, 5.0, 0.0)
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
    """Return the encoder for an observation: "nature" for screens, "cnn" for other grids, else "mlp".

    For a tree of arrays, it is the first of these that suits one of the arrays.

    Args:
      obs: One member's observation, or its shapes and dtypes, without the axes N and M.

    Raises:
      UserError: No encoder accepts one of the arrays.
    """
    leaves = jax.tree_util.tree_leaves_with_path(obs)
    if not leaves:
        raise UserError(f"observation holds no array: {obs}")
    for path, leaf in leaves:
        if not is_understood(leaf.dtype, leaf.shape):
            raise UserError(
                f"observation{jax.tree_util.keystr(path)} is {leaf.dtype}{list(leaf.shape)}; expected bool, float, or "
                "uint8 with three axes (an image): show categories one-hot and counts as float in the environment, "
                "or use --wrappers one_hot=<categories> or flatten for an environment in JAX"
            )
    if any(is_screen(leaf.dtype, leaf.shape) for _, leaf in leaves):
        return "nature"
    return "cnn" if any(is_convolved("cnn", leaf.shape) for _, leaf in leaves) else "mlp"


def is_understood(dtype: Any, shape: tuple[int, ...]) -> bool:
    """Return True if `QNetwork` accepts an array of one member's observation: bool, float or an image."""
    return dtype == "bool" or jnp.issubdtype(dtype, jnp.floating) or is_image(dtype, shape)


def checked_encoder(encoder: Any, obs: PyTree) -> Encoder:
    """Return the encoder if it suits an observation.

    Args:
      encoder: Name of the encoder.
      obs: See `default_encoder`.

    Raises:
      UserError: No encoder accepts one of the arrays, or all arrays are too small for this encoder's convolutions.
    """
    default_encoder(obs)
    shapes = [leaf.shape for leaf in jax.tree.leaves(obs)]
    side = ENCODERS[encoder].smallest
    if side is not None and not any(is_convolved(encoder, shape) for shape in shapes):
        raise UserError(
            f"encoder={encoder}: expected an observation with three axes, at least {side} x {side}; "
            f"found {', '.join(map(str, shapes))}"
        )
    return encoder


def build(
    description: dict[str, Any], num_actions: int, dimensions: int | None = None, axis_name: str | None = None
) -> Any:
    """Make a network from its description.

    Args:
      description: Fields of `QNetwork`, with the name of the head and its arguments as `head_<argument>`; those of
        `ActorCritic`; or
        `{"network": "module:Name"}` with the import path of a user's own class or function, which is called with the
        number of actions, and with that of their dimensions if there are any.
      num_actions: Number of actions, A.
      dimensions: See `QNetwork`.
      axis_name: See `QNetwork`; it is not passed to a user's own network.

    Raises:
      UserError: A user's own network cannot be imported or made, or lacks a member of `qlax.types.Network`.
    """
    if algorithm_of(description) == "pqn-continuous":
        lists = {name: tuple(value) for name, value in description.items() if isinstance(value, list | tuple)}
        return ActorCritic(**description | lists, axis_name=axis_name)
    if "network" not in description:
        fields = {name: value for name, value in description.items() if not name.startswith("head")}
        name = description.get("head", "scalar")
        given = {part: description[f"head_{part}"] for part in HEADS[name] if f"head_{part}" in description}
        head = getattr(heads, name)(**given)
        fields |= {"hidden": tuple(fields["hidden"]), "head": head, "axis_name": axis_name, "dimensions": dimensions}
        return QNetwork(num_actions, **fields)
    path = description["network"]
    try:
        network = import_object(path)(num_actions, *([] if dimensions is None else [dimensions]))
    except UserError:
        raise
    except Exception as error:
        actions = actions_in_words(num_actions, dimensions)
        raise UserError(f"network {path!r} cannot be made for {actions}: {described(error)}") from error
    for member in ("recurrent", "initial_memory", "init", "apply"):
        if not hasattr(network, member):
            raise UserError(f"network {path!r} has no {member!r}; see qlax.Network")
    return network
