"""Measure how fast environments step under a random policy: `python benchmarks/environments.py [environment...]`.

The script measures the steps per second in `Vec`, which deals out new episodes as in training, and with the suite's own
function, which resets every copy at every step and keeps only the resets that are needed. Both are timed for some
seconds, `Vec` after every copy has finished an episode. The mean return is that of these first episodes. Legal actions
are drawn uniformly.

The record is `benchmarks/results/environments.json`, on a GPU `environments-gpu.json`; results that are not measured
anew are kept.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from records import RESULTS, circumstances

from qlax.envs import make
from qlax.envs.vec import Vec

ENVIRONMENTS = (
    "jaxmarl/overcooked/cramped_room",
    "jaxmarl/smax/3m",
    "jaxmarl/smax/2s3z",
    "jaxmarl/hanabi",
    "jaxmarl/mpe/simple_spread",
    "craftax/Craftax-Classic-Symbolic-v1",
    "craftax/Craftax-Symbolic-v1",
)
NUM_ENVS, NUM_STEPS, SECONDS = 128, 16, 5
LONGEST = 60  # maximum seconds to wait until the last copy has finished an episode


def main(names: list[str]) -> None:
    """Measure the named environments, or all of them; keep the record and print it as a table."""
    platform = jax.default_backend()
    path = RESULTS / ("environments.json" if platform == "cpu" else f"environments-{platform}.json")
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in names or ENVIRONMENTS:
        record[name] = circumstances(f"python benchmarks/environments.py {name}") | measure(name)
        path.write_text(json.dumps(record, indent=2) + "\n")
    print("| environment | steps/s in `Vec` | steps/s by the suite's own resets | ratio | mean return |")
    print("| --- | --- | --- | --- | --- |")
    for name, row in record.items():
        ours, theirs = row["vec"]["steps_per_second"], row["suite"]["steps_per_second"]
        speeds = f"{ours:,.0f} | {theirs:,.0f} | {ours / theirs:.1f}"
        print(f"| `{name}` | {speeds} | {row['vec']['mean_return']:.4g} |")


def measure(name: str) -> dict:
    """Measure the steps per second and the seconds of compilation of `Vec` and of the suite."""
    env = make(name)
    vec = Vec(env, NUM_ENVS)
    state, step = jax.jit(vec.reset)(jax.random.key(0))
    ours = timed(lambda key, carry, action: vec.step(key, carry[0], action), (state, step), env.num_actions)
    print(name, ours, file=sys.stderr)
    theirs = timed(*of_suite(name, env, step), env.num_actions)
    del theirs["episodes"], theirs["mean_return"]  # the suite's step does not tell them
    print(name, theirs, file=sys.stderr)
    return {"num_envs": NUM_ENVS, "vec": ours, "suite": theirs}


def of_suite(name: str, env: Any, like: Any) -> tuple[Callable[..., Any], Any]:
    """Return a step of all copies with the suite's own resets, `(key, carry, action) -> carry`, and the first carry."""
    raw = env._env
    like = like._replace(metrics={"episode_return": jnp.zeros(NUM_ENVS)})
    if name.startswith("craftax/"):
        from craftax.craftax_env import make_craftax_env_from_name

        raw = make_craftax_env_from_name(name.partition("/")[2], auto_reset=True)

    def one(key, state, action):
        if name.startswith("craftax/"):
            obs, state, *_ = raw.step(key, state, action[0], env._params)
        else:
            obs, state, *_ = raw.step(key, state, dict(zip(raw.agents, action, strict=True)))
        return state, obs

    def legal(state):
        return None if like.legal is None else jax.vmap(env._legal_actions)(state)

    def step(key, carry, action):
        state, obs = jax.vmap(one)(jax.random.split(key, NUM_ENVS), carry[0], action)
        seen = sum(leaf.sum(dtype=jnp.float32) for leaf in jax.tree.leaves(obs))
        return state, like._replace(legal=legal(state), reward=like.reward + 0 * seen)

    state = jax.jit(jax.vmap(raw.reset))(jax.random.split(jax.random.key(1), NUM_ENVS))[1]
    return step, (state, like._replace(legal=legal(state)))


def timed(step: Callable[..., Any], carry: Any, num_actions: int) -> dict:
    """Measure the steps per second under random legal actions; the second part of each `carry` is a `Step`."""

    @jax.jit
    def rollout(carry, returns, key):
        def one(carry, key):
            carry, returns = carry
            key_action, key_step = jax.random.split(key)
            obs, legal = carry[1].obs, carry[1].legal
            shape = (*jax.tree.leaves(obs)[0].shape[:2], num_actions)
            logits = jnp.zeros(shape) if legal is None else jnp.where(legal, 0.0, -jnp.inf)
            carry = step(key_step, carry, jax.random.categorical(key_action, logits).astype(jnp.int32))
            seen = carry[1].obs.sum(dtype=jnp.float32) + carry[1].reward.sum()
            return (carry, jnp.where(jnp.isnan(returns), carry[1].metrics["episode_return"], returns)), seen

        (carry, returns), seen = jax.lax.scan(one, (carry, returns), jax.random.split(key, NUM_STEPS))
        return carry, returns, seen.sum()

    start, key = time.perf_counter(), jax.random.key(2)
    returns = jnp.full(NUM_ENVS, jnp.nan)
    carry, returns, _ = jax.block_until_ready(rollout(carry, returns, key))
    # A second time, because JAX compiles again if the first carry had weak types.
    carry, returns, _ = jax.block_until_ready(rollout(carry, returns, key))
    compiled = time.perf_counter()
    while jnp.isnan(returns).any() and time.perf_counter() - compiled < LONGEST:
        key = jax.random.fold_in(key, 0)
        carry, returns, _ = rollout(carry, returns, key)
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < SECONDS:
        key, count = jax.random.fold_in(key, 0), count + 1
        carry, returns, _ = jax.block_until_ready(rollout(carry, returns, key))
    seconds = time.perf_counter() - begun
    return {
        "steps_per_second": round(count * NUM_ENVS * NUM_STEPS / seconds, 1),
        "compile_seconds": round(compiled - start, 1),
        "episodes": int((~jnp.isnan(returns)).sum()),
        "mean_return": round(float(jnp.nanmean(returns)), 3),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
