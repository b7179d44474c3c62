"""Measure how fast robots step under random actions: `python benchmarks/robots.py [environment...]`.

An environment is suite/name, followed by its options, such as `brax/reacher,backend=spring`. For each, `Vec` steps its
copies in one compiled loop, as in training; the script measures the seconds of compilation and the steps per second
after that. It needs the extras `brax` and `playground`.

The record is `benchmarks/results/robots.json`, on a GPU `robots-gpu.json`; results that are not measured anew are kept.
It holds the load of the machine before and after each measurement, in processes that were ready to run.
"""

import json
import os
import sys
import time

import jax
import jax.numpy as jnp
from records import RESULTS, circumstances

from qlax.config.kinds import json_or_text
from qlax.envs import make
from qlax.envs.vec import Vec

ENVIRONMENTS = (
    "brax/inverted_pendulum,backend=generalized",
    "brax/inverted_pendulum,backend=spring",
    "brax/reacher,backend=generalized",
    "brax/reacher,backend=spring",
    "brax/hopper,backend=generalized",
    "brax/hopper,backend=spring",
    "playground/CartpoleBalance",
    "playground/ReacherEasy",
)
NUM_ENVS, NUM_STEPS, SECONDS = 64, 16, 5


def main(names: list[str]) -> None:
    """Measure the named environments, or all of them; keep the record and print it as a table."""
    platform = jax.default_backend()
    path = RESULTS / ("robots.json" if platform == "cpu" else f"robots-{platform}.json")
    record = json.loads(path.read_text()) if path.exists() else {}
    for name in names or ENVIRONMENTS:
        record[name] = circumstances(f"python benchmarks/robots.py {name}") | measure(name)
        print(name, record[name], file=sys.stderr, flush=True)
        path.write_text(json.dumps(record, indent=2) + "\n")
    print("| environment | steps/s | compilation, s | ready processes |")
    print("| --- | ---: | ---: | ---: |")
    for name, row in record.items():
        load = f"{row['load_before']:.0f} to {row['load_after']:.0f}"
        print(f"| `{name}` | {row['steps_per_second']:,.0f} | {row['compile_seconds']:.0f} | {load} |")


def measure(name: str) -> dict:
    """Measure the steps per second and the seconds of compilation of one environment."""
    load = os.getloadavg()[0]
    env_id, *words = name.split(",")
    pairs = [word.partition("=") for word in words]
    vec = Vec(make(env_id, **{option: json_or_text(value) for option, _, value in pairs}), NUM_ENVS)

    @jax.jit
    def rollout(state, key):
        def one(state, key):
            key_action, key_step = jax.random.split(key)
            low, high = map(jnp.asarray, vec.env.action_bounds)
            action = jax.random.uniform(key_action, (NUM_ENVS, 1, len(low)), jnp.float32, low, high)
            state, step = vec.step(key_step, state, action)
            return state, (step.reward.mean(), jnp.nansum(step.metrics["physics_failed"]))

        state, (reward, failed) = jax.lax.scan(one, state, jax.random.split(key, NUM_STEPS))
        return state, reward.mean(), failed.sum()

    begun = time.perf_counter()
    state, _ = jax.block_until_ready(jax.jit(vec.reset)(jax.random.key(0)))
    state, _, _ = jax.block_until_ready(rollout(state, jax.random.key(1)))
    compiled = time.perf_counter()
    calls, rewards, failures = 0, 0.0, 0.0
    while (seconds := time.perf_counter() - compiled) < SECONDS:
        calls += 1
        state, reward, failed = jax.block_until_ready(rollout(state, jax.random.key(calls)))
        rewards, failures = rewards + float(reward), failures + float(failed)
    return {
        "num_envs": NUM_ENVS,
        "steps_per_second": round(calls * NUM_ENVS * NUM_STEPS / seconds, 1),
        "compile_seconds": round(compiled - begun, 1),
        "mean_reward": round(rewards / calls, 4),
        "physics_failed": int(failures),
        "load_before": round(load, 1),
        "load_after": round(os.getloadavg()[0], 1),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
