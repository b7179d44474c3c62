"""Measure the cost of the encoders of Atari's and of MinAtar's images: `python benchmarks/encoders.py`.

The script measures the milliseconds of a gradient step with a minibatch of 128 (within a scan, as in learning, with
RAdam and clipping) and of a forward pass of 64 observations (as in acting), and the seconds of compilation. Encoders
take turns, and the best of three rounds counts. "nature, own gradients" is `nature` with the gradients that JAX derives
for a convolution. The record is `benchmarks/results/encoders.json`, on a GPU `encoders-gpu.json`.
"""

import json
import time

import jax
import jax.numpy as jnp
import optax
from records import RESULTS, circumstances

from qlax import QNetwork, pqn
from qlax.networks import layers
from qlax.networks.names import ENCODERS
from qlax.training.placement import compiler_options

STEPS, ROUNDS = 4, 3


def main() -> None:
    """Measure all encoders, keep the record and print it as a table."""
    names = {"nature": "nature", "nature, own gradients": "nature", "impala": "impala", "hadamax": "hadamax"}
    names |= {"cnn": "cnn", "product": "product"}
    timed = {name: programs(encoder, own_gradients="own" in name) for name, encoder in names.items()}
    rows = {name: {"compile_seconds": compile_seconds} for name, (_, _, compile_seconds) in timed.items()}
    for _ in range(ROUNDS):
        for name, (gradient_steps, forward, _) in timed.items():
            for what, function, calls in (("gradient_step", gradient_steps, STEPS), ("forward", forward, 1)):
                begun = time.perf_counter()
                jax.block_until_ready(function())
                milliseconds = 1000 * (time.perf_counter() - begun) / calls
                rows[name][what] = min(milliseconds, rows[name].get(what, float("inf")))
    platform = jax.default_backend()
    path = RESULTS / ("encoders.json" if platform == "cpu" else f"encoders-{platform}.json")
    path.write_text(
        json.dumps(circumstances("python benchmarks/encoders.py") | {"milliseconds": rows}, indent=2) + "\n"
    )
    print("| encoder | gradient step, ms | forward pass, ms | compilation, s |\n| --- | --- | --- | --- |")
    for name, row in rows.items():
        print(f"| {name} | {row['gradient_step']:.3g} | {row['forward']:.3g} | {row['compile_seconds']:.1f} |")


def programs(encoder: str, own_gradients: bool):
    """Compile a scan of gradient steps and a forward pass; return both, and the seconds of compilation."""
    network = QNetwork(6, encoder=encoder, hidden=ENCODERS[encoder].hidden)
    ours = layers._convolution
    if own_gradients:
        layers._convolution = lambda x, kernel, stride: layers._convolved(x, kernel, (stride, stride))
    if encoder in ("cnn", "product"):
        images = jax.random.bernoulli(jax.random.key(0), 0.1, (1, 128, 10, 10, 4))
    else:
        images = jax.random.randint(jax.random.key(0), (1, 128, 84, 84, 4), 0, 256, jnp.uint8)
    first = jnp.zeros((1, 128), bool)
    params = jax.jit(lambda key: network.init(key, (), images[:, :1], first[:, :1], False))(jax.random.key(1))
    optimizer = pqn.radam(pqn.Hyper(), 1000)

    def step(carry, _):
        params, state = carry
        grads = jax.grad(lambda p: jnp.square(network.apply(p, (), images, first, True)[0]).mean())(params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    begun = time.perf_counter()
    steps = jax.jit(lambda carry: jax.lax.scan(step, carry, length=STEPS)[0])
    carry = (params, optimizer.init(params))
    options = compiler_options(jax.default_backend())
    steps = steps.lower(carry).compile(options)
    forward = jax.jit(lambda p, x: network.apply(p, (), x, first[:, :64], False)[0])
    forward = forward.lower(params, images[:, :64]).compile(options)
    compile_seconds = time.perf_counter() - begun
    layers._convolution = ours
    return lambda: steps(carry), lambda: forward(params, images[:, :64]), compile_seconds


if __name__ == "__main__":
    main()
