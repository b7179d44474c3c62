"""Actor and critics for continuous actions, with running statistics of what they see.

Axes: L steps of a segment, B rows of a batch; D dimensions of an action, C critics, F numbers of an observation.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from qlax.networks.layers import Dense, LayerNorm, along_last
from qlax.networks.names import FARTHEST, SMALLEST_VARIANCE, Dtype, InputNorm, Norm, is_image
from qlax.types import PyTree


class ActorCritic(nn.Module):
    """Deterministic actor and C critics, whose mean is the value; satisfies `qlax.types.Network`.

    Its outputs are actions in place of Q-values. The statistics of observations and returns are collections of
    variables: saved with the weights, updated only by `learn_statistics`, and never changed where an agent acts.

    Attributes:
      low: Lowest action, D numbers.
      high: Highest action, D numbers.
      hidden: Widths of the actor's dense layers.
      critic_hidden: Widths of the critics' dense layers.
      critics: Number of critics, C.
      norm: Norm before every activation, "layer"; "none" is for ablations, as nothing else stabilises learning.
      input_norm: Norm of the observation: "running" for the mean and the deviation of all observations so far, "layer",
        or "none".
      reward_norm: If True, keep the deviation of discounted returns, by which rewards are divided.
      compute_dtype: See `QNetwork`.
      axis_name: Name of the mapped axis of devices over which statistics are combined; None if there is none.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    hidden: tuple[int, ...] = (256, 256)
    critic_hidden: tuple[int, ...] = (256, 256)
    critics: int = 2
    norm: Norm = "layer"
    input_norm: InputNorm = "running"
    reward_norm: bool = True
    compute_dtype: Dtype = "float32"
    axis_name: str | None = None

    @property
    def recurrent(self) -> bool:
        """False, as there is no memory."""
        return False

    def setup(self) -> None:
        """Make the layers."""
        critic = nn.vmap(
            _Layers,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=None,
            axis_size=self.critics,
        )
        options = (self.norm, self.input_norm == "layer", self.compute_dtype)
        self.actor = _Layers(self.hidden, len(self.low), *options)
        self.critic = critic(self.critic_hidden, 1, *options)
        self.seen = Running(self.axis_name) if self.input_norm == "running" else None
        self.returns = Running(self.axis_name) if self.reward_norm else None

    def initial_memory(self, batch: int) -> PyTree:
        """Return `()`, as there is no memory, whatever the batch."""
        del batch
        return ()

    def __call__(self, memory: PyTree, obs: PyTree, first: jax.Array, train: bool) -> tuple[jax.Array, PyTree]:
        """Return the actions `[L, B, D]` of the actor for `obs [L, B, ...]`, and `memory`; `first`, `train`: unused."""
        del train
        length, batch = first.shape
        x = jax.tree.map(lambda leaf: leaf.reshape(length * batch, *leaf.shape[2:]), obs)
        action = self.policy(x)
        if self.is_initializing():
            self.values(x, action)
            self.learn_statistics(x, jnp.zeros(1))
        return action.reshape(length, batch, -1), memory

    def policy(self, obs: PyTree) -> jax.Array:
        """Return the actions of the actor, float32 `[B, D]`, for `obs [B, ...]`."""
        middle, half = self._range()
        squashed = jnp.tanh(self.actor(self._normalised(obs)))
        return squashed * along_last(half, squashed) + along_last(middle, squashed)

    def values(self, obs: PyTree, action: jax.Array) -> jax.Array:
        """Return the value of every `action [B, D]` by every critic, float32 `[C, B]`, for `obs [B, ...]`."""
        middle, half = self._range()
        relative = (action - along_last(middle, action)) / along_last(half, action)  # -1 to 1, as of an observation
        return self.critic(self._normalised(obs), relative)[..., 0]

    def learn_statistics(self, obs: PyTree, returns: jax.Array) -> None:
        """Add `obs [B, ...]` and discounted `returns` to the running statistics."""
        if self.seen is not None:
            self.seen(_flat(obs), learn=True)
        if self.returns is not None:
            self.returns(returns.reshape(-1, 1), learn=True)

    def reward_deviation(self) -> jax.Array:
        """Return the deviation of discounted returns, by which rewards are divided; 1 without `reward_norm`."""
        return reward_deviation(self.variables)

    def _normalised(self, obs: PyTree) -> jax.Array:
        x = _flat(obs)
        if self.seen is None:
            return x
        mean, deviation = (along_last(each, x) for each in self.seen(x))
        return jnp.clip((x - mean) / deviation, -FARTHEST, FARTHEST)

    def _range(self) -> tuple[jax.Array, jax.Array]:
        """Return the middle between the lowest and the highest action, and half of their distance, `[D]` each."""
        low, high = jnp.array(self.low, jnp.float32), jnp.array(self.high, jnp.float32)
        return (high + low) / 2, (high - low) / 2


class _Layers(nn.Module):
    """Dense layers with their norm and relu, and a last layer of outputs."""

    hidden: tuple[int, ...]
    outputs: int
    norm: Norm
    normalises_first: bool
    compute_dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, *more: jax.Array) -> jax.Array:
        """Map the observation `x [B, F]`, and further arrays beside it, to `[B, outputs]`."""
        x = jnp.concatenate([LayerNorm()(x) if self.normalises_first else x, *more], axis=-1)
        kernel_init, dtype = orthogonal, jnp.dtype(self.compute_dtype)
        for width in self.hidden:
            x = Dense(width, kernel_init, dtype)(x)
            x = nn.relu(LayerNorm()(x) if self.norm == "layer" else x)
            self.sow("intermediates", "activation", x)  # stored only where `qlax.training.guard` asks for it
        return Dense(self.outputs, kernel_init)(x)


class Running(nn.Module):
    """Mean and variance of all rows so far.

    Source: Chan et al., "Updating formulae and a pairwise algorithm for computing sample variances", 1979, which adds
    the statistics of a batch to those of all batches before.

    Attributes:
      axis_name: See `ActorCritic`.
    """

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, learn: bool = False) -> tuple[jax.Array, jax.Array]:
        """Return mean and deviation of each column, `[F]` each; if `learn`, add the rows `x [B, F]` to them before."""
        features = (x.shape[-1],)
        mean = self.variable("running", "mean", jnp.zeros, features)
        var = self.variable("running", "var", jnp.ones, features)
        count = self.variable("running", "count", jnp.zeros, ())
        if learn and not self.is_initializing():
            rows, sums = self._total((jnp.float32(len(x)), x.sum(0)))
            batch_mean = sums / rows
            squares = self._total(jnp.square(x - along_last(batch_mean, x)).sum(0))
            change, all_rows = batch_mean - mean.value, count.value + rows
            squares += var.value * count.value + jnp.square(change) * count.value * rows / all_rows
            mean.value, var.value, count.value = mean.value + change * rows / all_rows, squares / all_rows, all_rows
        return mean.value, jnp.sqrt(var.value + SMALLEST_VARIANCE)

    def _total(self, tree: PyTree) -> PyTree:
        return tree if self.axis_name is None else jax.lax.psum(tree, self.axis_name)


def orthogonal(key: jax.Array, shape: tuple[int, int], dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
    """Return a random kernel `[I, F]` whose shorter axis has orthonormal vectors, as Flax's `orthogonal`.

    The vectors of a Gaussian matrix are made orthonormal one after the other (Gram-Schmidt, twice for precision). A QR
    decomposition calls LAPACK, in which programs of several devices that share a CPU wait for each other for ever.

    Args:
      key: Random key.
      shape: I and F.
      dtype: Dtype of the kernel.
    """
    longer, shorter = max(shape), min(shape)
    drawn = jax.random.normal(key, (shorter, longer), dtype)

    def one(index: jax.Array, done: jax.Array) -> jax.Array:  # rows that are not done yet are 0
        row = drawn[index]
        for _ in range(2):
            row -= (done @ row) @ done
        return done.at[index].set(row / jnp.sqrt(jnp.square(row).sum()))

    rows = jax.lax.fori_loop(0, shorter, one, jnp.zeros_like(drawn))
    return rows if shape == rows.shape else rows.T


def reward_deviation(variables: PyTree) -> jax.Array:
    """Return the deviation of discounted returns that the variables of an `ActorCritic` hold; 1 if they hold none."""
    found = variables.get("running", {}).get("returns")
    return jnp.float32(1) if found is None else jnp.sqrt(found["var"][0] + SMALLEST_VARIANCE)


def _flat(obs: PyTree) -> jax.Array:
    """Return all numbers of an observation, float32 `[B, F]`; images are divided by 255."""
    rows = [
        leaf.reshape(leaf.shape[0], -1).astype(jnp.float32) / (255 if is_image(leaf.dtype, leaf.shape[1:]) else 1)
        for leaf in jax.tree.leaves(obs)
    ]
    return jnp.concatenate(rows, axis=-1)
