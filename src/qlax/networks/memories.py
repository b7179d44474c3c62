"""Memories: recurrent layers between the encoder and the head of a network.

"lstm" and "gru" multiply their own output by a kernel at every step, and their input by another for a whole segment at
once. "mingru" and "lru" are linear in their memory, so all their matrix products are computed for a whole segment at
once, and only `linear_recurrence` depends on the order of steps.

All memories are Flax modules with the same interface. `CELLS[name](H)` makes a module. `initial(B)` returns its initial
memory, zeros, each leaf `[B, H]` float32. A call `(memory, x [L, B, I], first [L, B])` returns the output `[L, B, H]`
and the memory after the last step; where `first` is True an episode begins, and the memory is reset before the step.

Axes: L steps of a segment, B rows of a batch, then features: I inputs, H width of the memory, G gates.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from qlax.learning.gradients import sum_of_rows
from qlax.networks.layers import Dense, Initializer, along_last, dense
from qlax.networks.names import Memory
from qlax.types import PyTree

Memories = tuple[jax.Array, ...]  # arrays [B, H] of a memory, the last of which is its output h
Cell = Callable[[Memories, jax.Array, jax.Array], Memories]


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def stepped(
    cell: Cell, kernel: jax.Array, bias: jax.Array, x: jax.Array, first: jax.Array, memory: Memories
) -> tuple[jax.Array, Memories]:
    """Apply a cell step by step to its own previous output h, of which it is given `h_{t-1} kernel + bias`.

    At every step, JAX's own gradient would add to the gradient of the kernel, and on a CPU transpose the kernel. Here
    the kernel is transposed once, and its gradient is one product after all steps.

    Args:
      cell: Function of the memory, x and the products of one step that returns the next memory, row by row.
      kernel: Recurrent kernels of all gates side by side, `[H, G * H]`.
      bias: Biases of all gates, `[G * H]`.
      x: Products with the input, `[L, B, G * H]`.
      first: Bool `[L, B]`, True where an episode begins.
      memory: Memory before the first step, a tuple of arrays `[B, H]` whose last one is h.

    Returns:
      h, `[L, B, H]`, and the memory after the last step.
    """
    return _stepped_forward(cell, kernel, bias, x, first, memory)[0]


def _stepped_forward(cell, kernel, bias, x, first, memory):
    def step(memory, terms):
        x, first = terms
        memory = _forgotten(memory, first)
        products = memory[-1] @ kernel + bias[None]
        after = cell(memory, x, products)
        return after, (after[-1], memory, products)

    memory, (y, memories, products) = jax.lax.scan(step, memory, (x, first))
    return (y, memory), (kernel, x, first, memories, products)


def _stepped_backward(cell, saved, upstream):
    kernel, x, first, memories, products = saved
    of_y, of_memory = upstream
    turned = kernel.T

    def step(upstream, terms):
        of_y, x, first, memory, products = terms
        *others, h = upstream
        _, downstream = jax.vjp(cell, memory, x, products)
        (*others, h), x, products = downstream((*others, h + of_y))
        return _forgotten((*others, h + products @ turned), first), (x, products)

    of_memory, (x, products) = jax.lax.scan(step, of_memory, (of_y, x, first, memories, products), reverse=True)
    h, gates = (rows.reshape(-1, rows.shape[-1]) for rows in (memories[-1], products))
    return h.T @ gates, sum_of_rows(gates), x, None, of_memory


stepped.defvjp(_stepped_forward, _stepped_backward)


class GRU(nn.Module):
    """Gated recurrent unit, with the arithmetic and the parameters of `flax.linen.GRUCell`.

    `r_t = sigmoid(W_r x_t + U_r h_{t-1})`, `z_t` likewise, `n_t = tanh(W_n x_t + r_t U_n h_{t-1})`,
    `h_t = (1 - z_t) n_t + z_t h_{t-1}`; the output is h.

    Attributes:
      features: Width of the memory, H.

    Source: Cho et al., 2014, arXiv:1406.1078, with r applied after the product, as in Flax.
    """

    features: int

    def initial(self, batch: int) -> jax.Array:
        """Return the initial memory: h, zeros."""
        return jnp.zeros((batch, self.features))

    @nn.compact
    def __call__(self, memory: jax.Array, x: jax.Array, first: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the output and the new memory, as the module describes."""
        x = _of_input([_Gate(self.features, name=name) for name in ("ir", "iz", "in")], x)
        gates = [_Gate(self.features, _orthogonal, has_bias=name == "hn", name=name) for name in ("hr", "hz", "hn")]
        y, (memory,) = stepped(_gru, *_side_by_side(gates, self.features), x, first, (memory,))
        return y, memory


class LSTM(nn.Module):
    """Long short-term memory, with the arithmetic and the parameters of `flax.linen.LSTMCell`.

    `i_t = sigmoid(W_i x_t + U_i h_{t-1})`, `f_t` and `o_t` likewise, `g_t = tanh(W_g x_t + U_g h_{t-1})`,
    `c_t = f_t c_{t-1} + i_t g_t`, `h_t = o_t tanh(c_t)`; the output is h.

    Attributes:
      features: Width of the memory, H.

    Source: Hochreiter and Schmidhuber, 1997, doi:10.1162/neco.1997.9.8.1735, with the forget gate f of Gers et al.,
    2000, doi:10.1162/089976600300015015.
    """

    features: int

    def initial(self, batch: int) -> tuple[jax.Array, jax.Array]:
        """Return the initial memory: c and h, zeros."""
        return jnp.zeros((batch, self.features)), jnp.zeros((batch, self.features))

    @nn.compact
    def __call__(self, memory: Memories, x: jax.Array, first: jax.Array) -> tuple[jax.Array, Memories]:
        """Return the output and the new memory, as the module describes."""
        x = _of_input([_Gate(self.features, has_bias=False, name=name) for name in ("ii", "if", "ig", "io")], x)
        gates = [_Gate(self.features, _orthogonal, name=name) for name in ("hi", "hf", "hg", "ho")]
        return stepped(_lstm, *_side_by_side(gates, self.features), x, first, memory)


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
    "lstm": LSTM,
    "gru": GRU,
    "mingru": MinGRU,
    "lru": LRU,
}


class _Gate(nn.Module):
    """Parameters of a gate, with the names and the random numbers of `flax.linen.Dense`."""

    features: int
    kernel_init: Initializer = nn.initializers.lecun_normal()
    has_bias: bool = True

    @nn.compact
    def __call__(self, inputs: int) -> tuple[jax.Array, jax.Array]:
        """Return the kernel `[I, H]` and the bias `[H]`, zeros if the gate has none."""
        kernel = self.param("kernel", self.kernel_init, (inputs, self.features))
        if not self.has_bias:
            return kernel, jnp.zeros(self.features)
        return kernel, self.param("bias", nn.initializers.zeros_init(), (self.features,))


def _side_by_side(gates: list[_Gate], inputs: int) -> tuple[jax.Array, jax.Array]:
    """Return the kernels `[I, G * H]` and the biases `[G * H]` of G gates."""
    kernels, biases = zip(*(gate(inputs) for gate in gates), strict=True)
    return jnp.concatenate(kernels, axis=-1), jnp.concatenate(biases)


def _of_input(gates: list[_Gate], x: jax.Array) -> jax.Array:
    """Apply G gates to all steps of the input at once: `x [L, B, I]` to `[L, B, G * H]`."""
    kernel, bias = _side_by_side(gates, x.shape[-1])
    return dense(x.reshape(-1, x.shape[-1]), kernel, bias).reshape(*x.shape[:2], -1)


def _gru(memory: Memories, x: jax.Array, products: jax.Array) -> Memories:
    """Compute the next memory of a GRU, see `stepped`."""
    (h,), (x_r, x_z, x_n), (h_r, h_z, h_n) = memory, jnp.split(x, 3, axis=-1), jnp.split(products, 3, axis=-1)
    r, z = nn.sigmoid(x_r + h_r), nn.sigmoid(x_z + h_z)
    return ((1 - z) * jnp.tanh(x_n + r * h_n) + z * h,)


def _lstm(memory: Memories, x: jax.Array, products: jax.Array) -> Memories:
    """Compute the next memory of an LSTM, see `stepped`."""
    (c, _), (i, f, g, o) = memory, jnp.split(x + products, 4, axis=-1)
    c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
    return c, nn.sigmoid(o) * jnp.tanh(c)


def _forgotten(memory: Memories, first: jax.Array) -> Memories:
    """Set the memory to zero in the rows where an episode begins."""
    return tuple(jnp.where(first[:, None], 0, leaf) for leaf in memory)


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
