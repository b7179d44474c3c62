"""How fast environments step under a random policy: `python benchmarks/environments.py [environment...]`.

Steps a second and the mean return in `Vec`, which deals fresh episodes as training does; and steps a second of the
suite's own function that resets every copy at every step and keeps what is wanted. Both are compiled once, run once,
and timed for some seconds; legal actions are drawn uniformly. The record is `benchmarks/results/environments.json`.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from scores import RESULTS, circumstances

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


def main(names: list[str]) -> None:
    """Measure, keep the record and print it as a table."""
    record: dict[str, Any] = circumstances("python " + " ".join(sys.argv))
    record |= {"num_envs": NUM_ENVS, "environments": [measure(name) for name in names or ENVIRONMENTS]}
    (RESULTS / "environments.json").write_text(json.dumps(record, indent=2) + "\n")
    print("| environment | steps/s in `Vec` | steps/s by the suite's own resets | ratio | mean return |")
    print("| --- | --- | --- | --- | --- |")
    for row in record["environments"]:
        ours, theirs = row["vec"]["steps_per_second"], row["suite"]["steps_per_second"]
        speeds = f"{ours:,.0f} | {theirs:,.0f} | {ours / theirs:.1f}"
        print(f"| `{row['environment']}` | {speeds} | {row['vec']['mean_return']:.4g} |")


def measure(name: str) -> dict:
    """Steps a second and seconds of compilation, of `Vec` and of the suite."""
    env = make(name)
    vec = Vec(env, NUM_ENVS)
    state, step = jax.jit(vec.reset)(jax.random.key(0))
    ours = timed(lambda key, carry, action: vec.step(key, carry[0], action), (state, step), env.num_actions)
    print(name, ours, file=sys.stderr)
    theirs = timed(*of_suite(name, env, step), env.num_actions)
    print(name, theirs, file=sys.stderr)
    return {"environment": name, "vec": ours, "suite": theirs}


def of_suite(name: str, env: Any, like: Any) -> tuple[Callable[..., Any], Any]:
    """A step of all copies by the suite's own auto-reset, `(key, carry, action) -> carry`, and the first carry."""
    raw = env._env
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
    """Steps a second of random legal actions; `carry` is what `step` gives, its second part a `Step`."""

    @jax.jit
    def rollout(carry, key):
        def one(carry, key):
            key_action, key_step = jax.random.split(key)
            obs, legal = carry[1].obs, carry[1].legal
            shape = (*jax.tree.leaves(obs)[0].shape[:2], num_actions)
            logits = jnp.zeros(shape) if legal is None else jnp.where(legal, 0.0, -jnp.inf)
            carry = step(key_step, carry, jax.random.categorical(key_action, logits).astype(jnp.int32))
            seen = carry[1].obs.sum(dtype=jnp.float32) + carry[1].reward.sum()
            returns = carry[1].metrics["episode_return"]
            return carry, jnp.stack([seen, jnp.nansum(returns), (~jnp.isnan(returns)).sum()])

        carry, seen = jax.lax.scan(one, carry, jax.random.split(key, NUM_STEPS))
        return carry, seen.sum(0)

    start = time.perf_counter()
    carry, _ = jax.block_until_ready(rollout(carry, jax.random.key(2)))
    carry, _ = jax.block_until_ready(rollout(carry, jax.random.key(3)))  # weak types compile anew
    compiled, count, total, episodes = time.perf_counter(), 0, 0.0, 0.0
    while time.perf_counter() - compiled < SECONDS:
        carry, (_, of_rollout, ended) = jax.block_until_ready(rollout(carry, jax.random.key(4 + count)))
        count, total, episodes = count + 1, total + float(of_rollout), episodes + float(ended)
    seconds = time.perf_counter() - compiled
    return {
        "steps_per_second": round(count * NUM_ENVS * NUM_STEPS / seconds, 1),
        "compile_seconds": round(compiled - start, 1),
        "episodes": episodes,
        "mean_return": round(total / episodes, 3) if episodes else None,  # the suite's own resets do not tell
    }


if __name__ == "__main__":
    main(sys.argv[1:])
