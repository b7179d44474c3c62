"""Memories against loops in NumPy, and properties that all memories share."""

import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest

from qlax.networks.memories import CELLS, LRU, MinGRU, linear_recurrence

L, B, H = 6, 2, 5


@pytest.fixture(autouse=True, scope="module")
def strict_and_quick():
    with probes.strict_and_quick():
        yield


@pytest.fixture(params=["cpu", "default"])
def branch(request, monkeypatch):
    """Run one branch of the memories, whatever the device is."""
    choose_branch(monkeypatch, request.param)


def choose_branch(monkeypatch, name):
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *arguments, **branches: branches[name](*arguments))


def noise(*shape, seed=0, dtype=np.float32):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=shape)
    return (x + 1j * generator.normal(size=shape) if dtype == np.complex64 else x).astype(dtype)


def resets(length, seed=0):
    """Return `first [L, B]`: random beginnings of episodes, one of them in the first step and one in the last."""
    first = np.random.default_rng(seed).random((length, B)) < 0.3
    first[0, 0] = first[-1, 1] = True
    return first


def close(x, y):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), x, y)


def disturbed(variables):
    """Add noise to all parameters, so that none is 0."""
    leaves, structure = jax.tree.flatten(variables)
    leaves = [leaf + 0.1 * noise(*leaf.shape, seed=seed) for seed, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, leaves)


def initial(module, width=H):
    """Return variables with noise for inputs `[L, B, width]`."""
    arguments = module.initial(B), jnp.zeros((L, B, width)), jnp.zeros((L, B), bool)
    return disturbed(jax.jit(module.init)(jax.random.key(0), *arguments))


# linear_recurrence


@pytest.mark.usefixtures("branch")
@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@pytest.mark.parametrize("length", [1, 7])
def test_the_recurrence_equals_a_loop(dtype, length):
    decay, inputs = (noise(length, B, H, seed=seed, dtype=dtype) for seed in (1, 2))
    first, memory = resets(length), noise(B, H, seed=3, dtype=dtype)
    expected, h = [], memory.copy()
    for t in range(length):
        for row in range(B):
            h[row] = inputs[t, row] if first[t, row] else decay[t, row] * h[row] + inputs[t, row]
        expected.append(h.copy())
    close(linear_recurrence(decay, inputs, first, memory), np.stack(expected))


@pytest.mark.usefixtures("branch")
@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_its_gradients_equal_those_of_a_loop(dtype):
    decay, inputs, weight = (noise(7, B, H, seed=seed, dtype=dtype) for seed in (1, 2, 4))
    first, memory = resets(7), noise(B, H, seed=3, dtype=dtype)

    def loop(decay, inputs, first, memory):
        def step(h, terms):
            decay, inputs, first = terms
            h = jnp.where(first[:, None], inputs, decay * h + inputs)
            return h, h

        return jax.lax.scan(step, memory, (decay, inputs, first))[1]

    def gradients(recurrence):
        def loss(decay, inputs, memory):
            return (weight * recurrence(decay, inputs, first, memory)).real.sum()

        return jax.jit(jax.grad(loss, (0, 1, 2)))(decay, inputs, memory)

    close(gradients(linear_recurrence), gradients(loop))


# The stepped memories against the cells of Flax


class CellOfFlax(nn.Module):
    """Cell of Flax, scanned over time, with gradients computed by JAX."""

    kind: Any

    @nn.compact
    def __call__(self, memory, x, first):
        cell = self.kind(H)
        nn.share_scope(self, cell)

        def step(cell, memory, terms):
            x, first = terms
            return cell(jax.tree.map(lambda m: jnp.where(first[:, None], 0, m), memory), x)

        memory, y = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})(cell, memory, (x, first))
        return y, memory


@pytest.mark.parametrize(("name", "kind"), [("gru", nn.GRUCell), ("lstm", nn.OptimizedLSTMCell)])
def test_a_stepped_memory_equals_the_cell_of_flax_and_so_do_its_gradients(name, kind):
    ours, theirs = CELLS[name](H), CellOfFlax(kind)
    x, first, memory = noise(L, B, 3), resets(L), jax.tree.map(lambda m: noise(*m.shape, seed=5), ours.initial(B))
    with jax.numpy_rank_promotion("allow"):  # Flax's cells promote ranks
        variables, expected = (jax.jit(module.init)(jax.random.key(0), memory, x, first) for module in (ours, theirs))
        jax.tree.map(np.testing.assert_array_equal, variables, expected)  # the initial parameters are the same, too

        def loss(module, *arguments):
            y, after = module.apply(*arguments, first)
            return (noise(L, B, H, seed=6) * y).sum() + sum(jnp.sin(m).sum() for m in jax.tree.leaves(after)), y

        gradients = (
            jax.jit(jax.grad(functools.partial(loss, module), (0, 1, 2), has_aux=True)) for module in (ours, theirs)
        )
        close(*(gradient(disturbed(variables), memory, x) for gradient in gradients))


# The parallel memories against their formulas


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gelu(x):
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


def dense(params, x):
    return x @ params["kernel"] + params["bias"]


def gated(params, x):
    value, gate = np.split(dense(params, gelu(x)), 2)
    return value * sigmoid(gate)


def mingru_step(params, h, x):
    gate, candidate = np.split(dense(params["Dense_0"], x), 2)
    h = (1 - sigmoid(gate)) * h + sigmoid(gate) * candidate
    return gated(params["Dense_1"], h), h


def lru_step(params, memory, x):
    eigenvalue = np.exp(-np.exp(params["nu_log"]) + 1j * np.exp(params["theta_log"]))
    B_x = dense(params["Dense_0"], x)
    h = eigenvalue * (memory[0] + 1j * memory[1]) + np.exp(params["gamma_log"]) * (B_x[:H] + 1j * B_x[H:])
    C = params["Dense_1"]["kernel"][:H] - 1j * params["Dense_1"]["kernel"][H:]
    y = (h @ C).real + params["Dense_1"]["bias"] + params["D"] * x
    return gated(params["Dense_2"], y), np.stack([h.real, h.imag])


@pytest.mark.usefixtures("branch")
@pytest.mark.parametrize(("module", "step"), [(MinGRU(H), mingru_step), (LRU(H), lru_step)], ids=["mingru", "lru"])
def test_a_parallel_memory_equals_its_formula_step_by_step(module, step):
    variables, x, first = initial(module), noise(L, B, H), resets(L)
    memory = jax.tree.map(lambda m: noise(*m.shape, seed=5), module.initial(B))
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), variables["params"])
    y, after = jax.jit(module.apply)(variables, memory, x, first)
    for row in range(B):
        remembered = np.array(memory)[..., row, :]
        for t in range(L):
            expected, remembered = step(params, remembered * (1 - first[t, row]), x[t, row])
            close(y[t, row], expected)
        close(np.array(after)[..., row, :], remembered)


def test_an_lru_begins_on_the_ring_with_variance_kept():
    width = 400
    module = LRU(width)
    arguments = jax.random.key(0), module.initial(1), jnp.zeros((1, 1, width)), jnp.zeros((1, 1), bool)
    params = jax.jit(module.init)(*arguments)["params"]
    modulus, angle = np.exp(-np.exp(params["nu_log"])), np.exp(params["theta_log"])
    assert 0.9 <= modulus.min() < 0.905
    assert 0.994 < modulus.max() <= 0.999
    assert np.mean(modulus**2) == pytest.approx((0.9**2 + 0.999**2) / 2, abs=0.01)  # uniform on the ring
    assert np.mean(angle) == pytest.approx(np.pi, abs=0.3)
    close(np.exp(params["gamma_log"]), np.sqrt(1 - modulus**2))
    assert np.std(params["Dense_0"]["kernel"]) == pytest.approx((2 * width) ** -0.5, rel=0.01)
    assert np.std(params["Dense_1"]["kernel"]) == pytest.approx(width**-0.5, rel=0.01)


@pytest.mark.parametrize("name", ["mingru", "lru"])
def test_acting_needs_no_loop(name):
    module = CELLS[name](H)
    variables = initial(module)

    def loops(length):
        arguments = module.initial(B), jnp.zeros((length, B, H)), jnp.zeros((length, B), bool)
        return re.findall("scan|while", str(jax.make_jaxpr(module.apply)(variables, *arguments)))

    assert loops(2)
    assert not loops(1)


# All memories


@pytest.fixture(scope="module", params=[*CELLS, "mingru at once", "lru at once"])
def remembering(request):
    """Return a function of memory, x and first, its initial memory, another memory, and six steps of inputs."""
    name, *at_once = request.param.split(maxsplit=1)
    module, x = CELLS[name](H), noise(L, B, H)
    variables, fresh = initial(module), module.initial(B)
    with pytest.MonkeyPatch.context() as monkeypatch:
        if at_once:
            choose_branch(monkeypatch, "default")
        yield jax.jit(lambda *inputs: module.apply(variables, *inputs)), fresh, jax.tree.map(jnp.ones_like, fresh), x


def test_the_initial_memory_is_zeros_and_keeps_its_kind(remembering):
    run, fresh, _, x = remembering
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, np.zeros((B, H), np.float32), strict=True), fresh)
    kinds = lambda tree: jax.tree.map(lambda m: (m.shape, m.dtype, m.weak_type), tree)  # noqa: E731
    y, after = run(fresh, x, np.zeros((L, B), bool))
    assert kinds(after) == kinds(fresh)
    assert kinds(y) == ((L, B, H), jnp.float32, False)


def test_one_call_over_a_segment_equals_one_call_a_step(remembering):
    run, _, memory, x = remembering
    first = resets(L)
    y, after = run(memory, x, first)
    for t in range(L):
        y_t, memory = run(memory, x[t : t + 1], first[t : t + 1])
        close(y_t[0], y[t])
    close(memory, after)


def test_an_episode_that_begins_forgets_what_was_before(remembering):
    run, fresh, old, x = remembering
    expected = run(fresh, x, np.zeros((L, B), bool))
    first = np.zeros((L, B), bool)
    first[0] = True
    for memory in (fresh, old, jax.tree.map(lambda m: m * jnp.nan, old)):
        close(run(memory, x, first), expected)


def test_a_reset_in_the_middle_makes_two_sequences_of_one(remembering):
    run, fresh, old, x = remembering
    nothing, first = np.zeros((L, B), bool), np.zeros((L, B), bool)
    first[3, 0] = True
    whole, memory_whole = run(old, x, nothing)
    after, _ = run(fresh, np.roll(x, -3, axis=0), nothing)
    y, memory = run(old, x, first)
    close(y[:, 0], np.concatenate([whole[:3], after[:3]])[:, 0])
    close(y[:, 1], whole[:, 1])
    close(jax.tree.map(lambda m: m[1], memory), jax.tree.map(lambda m: m[1], memory_whole))
    assert np.abs(whole[3:, 0] - y[3:, 0]).max() > 1e-3  # the memory changes the result


def test_nothing_before_a_reset_has_a_gradient_after_it_nor_has_another_row(remembering):
    run, _, old, x = remembering
    first = np.zeros((L, B), bool)
    first[3, 0] = True

    def later(old, x):  # outputs of row 0 from the reset on
        y, memory = run(old, x, first)
        return y[3:, 0].sum() + sum(m[0].sum() for m in jax.tree.leaves(memory))

    by_memory, by_x = jax.grad(later, (0, 1))(old, jnp.asarray(x))
    jax.tree.map(lambda gradient: np.testing.assert_array_equal(gradient, 0), by_memory)
    np.testing.assert_array_equal(by_x[:3], 0)
    np.testing.assert_array_equal(by_x[:, 1], 0)
    assert (np.abs(by_x[3:, 0]).max(-1) > 0).all()


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_memories_of_runs_side_by_side_are_initialised_one_by_one(name):
    """A batched QR factorisation can block two threads of jaxlib 0.10 forever."""
    module = CELLS[name](4)
    inputs = module.initial(1), jnp.zeros((1, 1, 3)), jnp.ones((1, 1), bool)
    keys = jax.random.split(jax.random.key(0), 5)
    side_by_side = jax.vmap(lambda key: module.init(key, *inputs))
    assert set(re.findall(r"f32\[([\d,]+)\] = qr\[", str(jax.make_jaxpr(side_by_side)(keys)))) == {"4,4"}
    kernels, alone = side_by_side(keys), module.init(keys[3], *inputs)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x[3], y, rtol=1e-5), kernels, alone)
