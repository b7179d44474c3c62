"""Memories: recurrent layers between the encoder and the head of a network.

"lstm" and "gru" apply a cell of Flax step by step. "mingru" and "lru" are linear in their memory, so all their matrix
products are computed for a whole segment at once, and only `linear_recurrence` depends on the order of steps.

All memories are Flax modules with the same interface. `CELLS[name](H)` makes a module. `initial(B)` returns its initial
memory, zeros, each leaf `[B, H]` float32. A call `(memory, x [L, B, I], first [L, B])` returns the output `[L, B, H]`
and the memory after the last step; where `first` is True an episode begins, and the memory is reset before the step.

Axes: L steps of a segment, B rows of a batch, then features: I inputs, H width of the memory.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from qlax.networks.layers import Dense, along_last
from qlax.networks.names import Memory
from qlax.types import PyTree


def linear_recurrence(decay: jax.Array, inputs: jax.Array, first: jax.Array, memory: jax.Array) -> jax.Array:
    """Compute `h_t = a_t h_{t-1} + b_t`, with `a_t = 0` where an episode begins.

    Steps are computed one after the other on a CPU, where a parallel scan took 2 to 5 times as long, as it passes over
    the whole segment several times. On other devices, a parallel scan is faster, as it needs fewer sequential steps.

    Args:
      decay: a, real or complex, `[L, B, H]` or a shape that broadcasts to it.
      inputs: b, real or complex, `[L, B, H]`.
      first: Bool `[L, B]`, True where an episode begins.
      memory: h before the first step, `[B, H]`.

    Returns:
      h, `[L, B, H]`.

    Source: Blelloch, "Prefix sums and their applications", 1990, section 1.4; with resets as in Lu et al.,
    "Structured state space models for in-context reinforcement learning", 2023, arXiv:2303.03982.
    """
    decay = jnp.where(first[:, :, None], 0, decay)
    memory = jnp.where(first[0][:, None], 0, memory)  # a nan or inf would survive a decay of 0, as 0 * nan is nan

    def sequential(decay, inputs, memory):
        def step(h, terms):
            a, b = terms
            h = a * h + b
            return h, h

        return jax.lax.scan(step, memory, (decay, inputs))[1]

    def parallel(decay, inputs, memory):
        def after(earlier, later):
            (a, b), (a_later, b_later) = earlier, later
            return a_later * a, a_later * b + b_later

        inputs = jnp.concatenate([(decay[0] * memory + inputs[0])[None], inputs[1:]])
        return jax.lax.associative_scan(after, (decay, inputs))[1]

    if len(inputs) == 1:  # a single step, as in acting, needs no loop
        return parallel(decay, inputs, memory)
    return jax.lax.platform_dependent(decay, inputs, memory, cpu=sequential, default=parallel)


class Stepped(nn.Module):
    """Recurrent cell of Flax, scanned over time; its parameters are named as those of the cell.

    Attributes:
      kind: Class of the cell, a subclass of `flax.linen.RNNCellBase`.
      features: Width of the memory, H.
    """

    kind: Callable[..., Any]
    features: int

    def initial(self, batch: int) -> PyTree:
        """Return the initial memory: the cell's carry, zeros."""
        return self.kind(self.features, parent=None).initialize_carry(jax.random.key(0), (batch, self.features))

    @nn.compact
    def __call__(self, memory: PyTree, x: jax.Array, first: jax.Array) -> tuple[jax.Array, PyTree]:
        """Return the output and the new memory, as the module describes."""
        cell = self.kind(self.features, recurrent_kernel_init=_orthogonal)
        nn.share_scope(self, cell)

        def step(cell, memory, inputs):
            x, first = inputs
            return cell(jax.tree.map(lambda m: jnp.where(first[:, None], 0.0, m), memory), x)

        scan = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
        memory, y = scan(cell, memory, (x, first))
        return y, memory


class MinGRU(nn.Module):
    """Minimal GRU, whose gate and candidate depend only on the input, so that it is linear in its memory.

    `z_t = sigmoid(W_z x_t)`, `h_t = (1 - z_t) h_{t-1} + z_t W_h x_t`; the output is h after a gated linear unit.

    Attributes:
      features: Width of the memory, H.

    Source: Feng et al., "Were RNNs all we needed?", 2024, arXiv:2410.01201, section 3.1, without the logarithms.
    """

    features: int

    def initial(self, batch: int) -> jax.Array:
        """Return the initial memory: h, zeros."""
        return jnp.zeros((batch, self.features))

    @nn.compact
    def __call__(self, memory: jax.Array, x: jax.Array, first: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the output and the new memory, as the module describes."""
        gate, candidate = jnp.split(_dense(2 * self.features, x), 2, axis=-1)
        z = nn.sigmoid(gate)
        h = linear_recurrence(1 - z, z * candidate, first, memory)
        return _gated(self.features, h), h[-1]


class LRU(nn.Module):
    """Linear recurrent unit, in which every complex feature rotates and decays at its own learned rate.

    `h_t = lambda h_{t-1} + gamma B x_t` is complex, `y_t = Re(C h_t) + D x_t`; the output is y after a gated linear
    unit. `|lambda| = exp(-exp(nu_log))` is always below 1. The norm of the paper's block is left out, as x is already
    normalised, and so is the skip connection, as there is only one block and D passes x on.

    Attributes:
      features: Width of the memory, H, which is also the width of the input.
      moduli: Smallest and largest initial `|lambda|`; the memory lasts for about `1 / (1 - |lambda|)` steps.

    Source: Orvieto et al., "Resurrecting recurrent neural networks for long sequences", 2023, arXiv:2303.06349,
    section 3 and appendix A. The paper's `|lambda|` begin between 0 and 1, or in a range as narrow as this one for
    tasks that need a long memory.
    """

    features: int
    moduli: tuple[float, float] = (0.9, 0.999)

    def initial(self, batch: int) -> tuple[jax.Array, jax.Array]:
        """Return the initial memory: real and imaginary part of h, zeros."""
        return jnp.zeros((batch, self.features)), jnp.zeros((batch, self.features))

    @nn.compact
    def __call__(self, memory: PyTree, x: jax.Array, first: jax.Array) -> tuple[jax.Array, PyTree]:
        """Return the output and the new memory, as the module describes."""
        H, normal = self.features, nn.initializers.normal
        nu_log = self.param("nu_log", _ring, self.moduli, H)
        theta_log = self.param("theta_log", lambda key: jnp.log(math.tau * (1 - jax.random.uniform(key, (H,)))))
        modulus, angle = jnp.exp(-jnp.exp(nu_log)), jnp.exp(theta_log)
        gamma_log = self.param(
            "gamma_log", lambda _: jnp.log(1 - jnp.square(modulus)) / 2
        )  # makes h about as large as B x
        D = self.param("D", normal(1.0), (H,))
        decay = jax.lax.complex(modulus * jnp.cos(angle), modulus * jnp.sin(angle))
        gamma = along_last(jnp.exp(gamma_log), x)
        # B and C are one real matrix product each, with the real and imaginary parts side by side.
        real, imaginary = jnp.split(_dense(2 * H, x, normal((2 * H) ** -0.5)), 2, axis=-1)
        inputs = jax.lax.complex(gamma * real, gamma * imaginary)
        h = linear_recurrence(along_last(decay, x), inputs, first, jax.lax.complex(*memory))
        y = _dense(H, jnp.concatenate([h.real, h.imag], axis=-1), normal(H**-0.5)) + along_last(D, x) * x
        return _gated(H, y), (h[-1].real, h[-1].imag)


CELLS: dict[Memory, Callable[..., Any]] = {  # constructors of all memories except "none"
    "lstm": functools.partial(Stepped, nn.OptimizedLSTMCell),
    "gru": functools.partial(Stepped, nn.GRUCell),
    "mingru": MinGRU,
    "lru": LRU,
}


def _dense(features: int, x: jax.Array, *kernel_init: Any) -> jax.Array:
    """Apply a new dense layer of the calling module to `x [L, B, I]`; return `[L, B, features]`."""
    return Dense(features, *kernel_init)(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:2], -1)


def _gated(features: int, h: jax.Array) -> jax.Array:
    """Apply GELU and a gated linear unit, as both the recurrence before and the network's head after are linear.

    Source: Dauphin et al., 2016, arXiv:1612.08083; used after a linear recurrence by Gu et al., 2021, arXiv:2111.00396.
    """
    value, gate = jnp.split(_dense(2 * features, nn.gelu(h)), 2, axis=-1)
    return value * nn.sigmoid(gate)


def _ring(key: jax.Array, moduli: tuple[float, float], features: int) -> jax.Array:
    """Draw `nu_log` such that lambda is uniform on the complex ring between two moduli."""
    low, high = moduli
    return jnp.log(-jnp.log(jax.random.uniform(key, (features,), minval=low**2, maxval=high**2)) / 2)


def _orthogonal(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
    """Apply Flax's orthogonal initialiser, to one agent after the other under `vmap`.

    jaxlib 0.10 factorises a batch of matrices on the same threads that wait for the result, so that two batches at
    once can wait for each other for ever.
    """
    initialize = nn.initializers.orthogonal()
    return jax.custom_batching.sequential_vmap(lambda key: initialize(key, shape, dtype))(key)
