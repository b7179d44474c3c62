"""Memories: what lies between encoder and head of a recurrent network.

"lstm" and "gru" step a cell of Flax from one observation to the next. "mingru" and "lru" are linear in what they
remember: all their products are taken of a whole segment at once, and the rest is `linear_recurrence`.

All are Flax modules with one interface. `CELLS[name](H)` makes one, `initial(B)` its memory at the beginning: zeros,
each leaf `[B, H]` float32. A call `(memory, x [L, B, I], first [L, B])` returns the output `[L, B, H]` and the memory
after the last step; where `first` is True an episode begins, and what was remembered is forgotten before.

Axes: L steps of a segment, B rows of a batch, then features: I inputs, H as wide as the memory.
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
    """`h_t = a_t h_{t-1} + b_t`, with `a_t = 0` where an episode begins; real or complex.

    Steps are taken one after the other on a CPU, where a parallel scan took 2 to 5 times as long, as it
    goes over the whole segment several times. Elsewhere it is the number of steps in sequence that costs time.

    Args:
      decay: a, `[L, B, H]` or what broadcasts to it.
      inputs: b, `[L, B, H]`.
      first: `[L, B]` bool.
      memory: h before the first step, `[B, H]`.

    Returns:
      h, `[L, B, H]`.

    Source: Blelloch, "Prefix sums and their applications", 1990, section 1.4; with resets as in Lu et al.,
    "Structured state space models for in-context reinforcement learning", 2023, arXiv:2303.03982.
    """
    decay = jnp.where(first[:, :, None], 0, decay)
    memory = jnp.where(first[0][:, None], 0, memory)  # what is not finite must not survive: 0 * nan is nan

    def in_turn(decay, inputs, memory):
        def step(h, terms):
            a, b = terms
            h = a * h + b
            return h, h

        return jax.lax.scan(step, memory, (decay, inputs))[1]

    def at_once(decay, inputs, memory):
        def after(earlier, later):
            (a, b), (a_later, b_later) = earlier, later
            return a_later * a, a_later * b + b_later

        inputs = jnp.concatenate([(decay[0] * memory + inputs[0])[None], inputs[1:]])
        return jax.lax.associative_scan(after, (decay, inputs))[1]

    if len(inputs) == 1:  # acting: neither needs a loop
        return at_once(decay, inputs, memory)
    return jax.lax.platform_dependent(decay, inputs, memory, cpu=in_turn, default=at_once)


class Stepped(nn.Module):
    """A cell of Flax, scanned over time; its parameters are the cell's.

    Attributes:
      kind: of cell, a subclass of `flax.linen.RNNCellBase`.
      features: H.
    """

    kind: Callable[..., Any]
    features: int

    def initial(self, batch: int) -> PyTree:
        """Zeros."""
        return self.kind(self.features, parent=None).initialize_carry(jax.random.key(0), (batch, self.features))

    @nn.compact
    def __call__(self, memory: PyTree, x: jax.Array, first: jax.Array) -> tuple[jax.Array, PyTree]:
        """See the module."""
        cell = self.kind(self.features, recurrent_kernel_init=_orthogonal)
        nn.share_scope(self, cell)

        def step(cell, memory, inputs):
            x, first = inputs
            return cell(jax.tree.map(lambda m: jnp.where(first[:, None], 0.0, m), memory), x)

        scan = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
        memory, y = scan(cell, memory, (x, first))
        return y, memory


class MinGRU(nn.Module):
    """A GRU whose gate and candidate see the input alone, which makes it linear in what it remembers.

    `z_t = sigmoid(W_z x_t)`, `h_t = (1 - z_t) h_{t-1} + z_t W_h x_t`; the output is h through a gated linear unit.

    Attributes:
      features: H.

    Source: Feng et al., "Were RNNs all we needed?", 2024, arXiv:2410.01201, section 3.1, without the logarithms.
    """

    features: int

    def initial(self, batch: int) -> jax.Array:
        """Zeros: h."""
        return jnp.zeros((batch, self.features))

    @nn.compact
    def __call__(self, memory: jax.Array, x: jax.Array, first: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See the module."""
        gate, candidate = jnp.split(_dense(2 * self.features, x), 2, axis=-1)
        z = nn.sigmoid(gate)
        h = linear_recurrence(1 - z, z * candidate, first, memory)
        return _gated(self.features, h), h[-1]


class LRU(nn.Module):
    """Linear recurrent unit: every feature turns and fades at a rate of its own, whatever the input.

    `h_t = lambda h_{t-1} + gamma B x_t` is complex, `y_t = Re(C h_t) + D x_t`; the output is y through a gated linear
    unit. As `|lambda| = exp(-exp(nu_log))`, it stays below 1 whatever is learned. Of the paper's block the norm is left
    out, as x was normalised before, and the skip connection, as there is but one block and D lets x pass.

    Attributes:
      features: H, as wide as the input.
      moduli: smallest and largest `|lambda|` at the start; it remembers for some `1 / (1 - |lambda|)` steps.

    Source: Orvieto et al., "Resurrecting recurrent neural networks for long sequences", 2023, arXiv:2303.06349,
    section 3 and appendix A. Its ring is from 0 to 1, and as narrow as this one for tasks that need a long memory.
    """

    features: int
    moduli: tuple[float, float] = (0.9, 0.999)

    def initial(self, batch: int) -> tuple[jax.Array, jax.Array]:
        """Zeros: real and imaginary part of h."""
        return jnp.zeros((batch, self.features)), jnp.zeros((batch, self.features))

    @nn.compact
    def __call__(self, memory: PyTree, x: jax.Array, first: jax.Array) -> tuple[jax.Array, PyTree]:
        """See the module."""
        H, normal = self.features, nn.initializers.normal
        nu_log = self.param("nu_log", _ring, self.moduli, H)
        theta_log = self.param("theta_log", lambda key: jnp.log(math.tau * (1 - jax.random.uniform(key, (H,)))))
        modulus, angle = jnp.exp(-jnp.exp(nu_log)), jnp.exp(theta_log)
        gamma_log = self.param("gamma_log", lambda _: jnp.log(1 - jnp.square(modulus)) / 2)  # h as large as B x
        D = self.param("D", normal(1.0), (H,))
        decay = jax.lax.complex(modulus * jnp.cos(angle), modulus * jnp.sin(angle))
        gamma = along_last(jnp.exp(gamma_log), x)
        # One real product each for B and C, with real and imaginary part side by side.
        real, imaginary = jnp.split(_dense(2 * H, x, normal((2 * H) ** -0.5)), 2, axis=-1)
        inputs = jax.lax.complex(gamma * real, gamma * imaginary)
        h = linear_recurrence(along_last(decay, x), inputs, first, jax.lax.complex(*memory))
        y = _dense(H, jnp.concatenate([h.real, h.imag], axis=-1), normal(H**-0.5)) + along_last(D, x) * x
        return _gated(H, y), (h[-1].real, h[-1].imag)


CELLS: dict[Memory, Callable[..., Any]] = {  # of all names but "none"
    "lstm": functools.partial(Stepped, nn.OptimizedLSTMCell),
    "gru": functools.partial(Stepped, nn.GRUCell),
    "mingru": MinGRU,
    "lru": LRU,
}


def _dense(features: int, x: jax.Array, *kernel_init: Any) -> jax.Array:
    """A layer of the module that calls it: `[L, B, I]` -> `[L, B, features]`."""
    return Dense(features, *kernel_init)(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:2], -1)


def _gated(features: int, h: jax.Array) -> jax.Array:
    """Gelu and a gated linear unit: the head behind is linear, and so was all that h went through.

    Dauphin et al., 2016, arXiv:1612.08083; in this place as in Gu et al., 2021, arXiv:2111.00396.
    """
    value, gate = jnp.split(_dense(2 * features, nn.gelu(h)), 2, axis=-1)
    return value * nn.sigmoid(gate)


def _ring(key: jax.Array, moduli: tuple[float, float], features: int) -> jax.Array:
    """`nu_log` of lambdas that are uniform on the complex ring between two moduli."""
    low, high = moduli
    return jnp.log(-jnp.log(jax.random.uniform(key, (features,), minval=low**2, maxval=high**2)) / 2)


def _orthogonal(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
    """Flax's orthogonal initialiser, of runs side by side one after the other.

    jaxlib 0.10 factorises a batch of matrices on the threads that wait for it: two such batches at once
    wait for ever where there are two threads.
    """
    initialize = nn.initializers.orthogonal()
    return jax.custom_batching.sequential_vmap(lambda key: initialize(key, shape, dtype))(key)
