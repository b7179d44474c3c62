"""The memory that `qlax.training.memory` expects, and what XLA reserves: `python benchmarks/memory.py`.

For every configuration the program of a chunk of updates is compiled, not run: XLA's number is that of its arguments,
results and temporary arrays. The estimate is without the snapshot for a checkpoint, which is not of that program. The
record is `benchmarks/results/memory.json`, on a GPU `memory-gpu.json`.
"""

import json

import jax
import jax.numpy as jnp
from records import RESULTS, circumstances

from qlax.config.configure import configure
from qlax.training import memory
from qlax.training.device_runs import DeviceRuns
from qlax.training.plan import make
from qlax.types import Step

CARTPOLE = {"num_envs": 1024, "num_steps": 64, "num_minibatches": 8}
IMAGES = {"env": "memory:Images", "num_envs": 32, "num_steps": 32, "num_minibatches": 8, "eval_episodes": 8}
CONFIGURATIONS = {
    "CartPole, preset": {"target": "cartpole"},
    "CartPole, 4 seeds": {"target": "cartpole", "seeds": 4},
    "CartPole, 4,096 environments": {"target": "cartpole", **CARTPOLE, "num_envs": 4096},
    "CartPole, norm batch": {"target": "cartpole", **CARTPOLE, "norm": "batch"},
    "CartPole, norm none, dueling": {"target": "cartpole", **CARTPOLE, "norm": "none", "dueling": True},
    "CartPole, bfloat16": {"target": "cartpole", **CARTPOLE, "compute_dtype": "bfloat16"},
    "Breakout (MinAtar), preset": {"target": "minatar/breakout"},
    "Breakout (MinAtar), 1,024 environments": {"target": "minatar/breakout", "num_envs": 1024},
    "Asterix (MinAtar), 65,536 environments, 1 step": {
        "target": "minatar/asterix",
        "num_envs": 65536,
        "num_steps": 1,
        "num_minibatches": 512,
    },
    "MemoryChain, lstm": {"target": "memory-chain", "memory": "lstm"},
    "MemoryChain, gru, 512 environments": {"target": "memory-chain", "memory": "gru", "num_envs": 512},
    "MemoryChain, mingru, 512 environments": {"target": "memory-chain", "memory": "mingru", "num_envs": 512},
    "MemoryChain, lru, 512 environments": {"target": "memory-chain", "memory": "lru", "num_envs": 512},
    "MPE spread (3 members), 1,024 environments": {"target": "mpe/spread", "num_envs": 1024},
    "images, nature": {"target": None, **IMAGES, "encoder": "nature"},
    "images, nature, rollouts of 512 steps": {
        "target": None,
        **IMAGES,
        "encoder": "nature",
        "num_steps": 512,
        "num_minibatches": 128,
    },
    "images, impala": {"target": None, **IMAGES, "encoder": "impala"},
    "images, hadamax": {"target": None, **IMAGES, "encoder": "hadamax"},
}


class Images:
    """Observations like those of Atari, of nothing."""

    num_actions = 6
    time_limit = 100

    def reset(self, key):
        """A grey image."""
        del key
        return jnp.int32(0), self._show(jnp.int32(0), 0.0)

    def step(self, key, state, action):
        """A lighter one."""
        del key
        return state + 1, self._show(state + action, 1.0, state == self.time_limit - 1)

    def _show(self, brightness, reward, truncated=False):
        obs = jnp.full((84, 84, 4), brightness).astype(jnp.uint8)
        return Step(obs, None, jnp.float32(reward), jnp.bool_(False), jnp.bool_(truncated), {})


def main() -> None:
    """Compile, keep the record after each configuration and print it as a table."""
    platform = jax.default_backend()
    path = RESULTS / ("memory.json" if platform == "cpu" else f"memory-{platform}.json")
    print("| configuration | estimate, MiB | XLA, MiB | ratio | largest part |\n| --- | --- | --- | --- | --- |")
    rows = {}
    for name, settings in CONFIGURATIONS.items():
        row = rows[name] = measured(**settings)
        record = circumstances("python benchmarks/memory.py") | {"mebibytes": rows}
        path.write_text(json.dumps(record, indent=2) + "\n")
        numbers = f"{row['estimate']:.1f} | {row['xla']:.1f} | {row['ratio']:.2f}"
        print(f"| {name} | {numbers} | {row['largest']} |", flush=True)


def measured(target, **settings) -> dict:
    """Estimate and XLA's number for one device."""
    plan = make(configure(target, **settings), {})
    placement = plan.placement
    needs = memory.estimate(plan, placement.at_once, placement.groups)
    snapshot = memory.nbytes(memory.part_of(plan)) * len(plan.seeds) // placement.groups
    reserved = placement.compile(DeviceRuns(plan, ()).lowered_chunk()).memory_analysis()
    xla = reserved.argument_size_in_bytes + reserved.output_size_in_bytes + reserved.temp_size_in_bytes
    xla -= reserved.alias_size_in_bytes
    estimate = needs.bytes - snapshot
    return {
        "estimate": round(estimate / 2**20, 2),
        "xla": round(xla / 2**20, 2),
        "ratio": round(estimate / xla, 3),
        "largest": max(needs.parts, key=lambda part: part.bytes).what,
    }


if __name__ == "__main__":
    main()
