"""Measure how well environments on the host and the learner overlap: `python benchmarks/host.py speed [target...]`.

The script measures three speeds in steps per second, which take turns, and keeps the best of each: the environments
alone, under random actions and not split into groups; the learner alone, with environments that stand still; and the
whole loop. If the two sides did not overlap at all, as on a CPU all of whose cores both sides need, the whole loop
would reach 1 / (1 / environments + 1 / learner). Beside a GPU, the slower side is the bound. The record is
`benchmarks/results/host.json`, on a GPU `host-gpu.json`; results that are not measured anew are kept.
"""

import argparse
import dataclasses
import json
import sys
import time

import jax
import numpy as np
from records import RESULTS, circumstances

from qlax.config.configure import configure
from qlax.training.host_runs import HostRuns
from qlax.training.plan import make

TARGETS = {  # few, because one update of Atari takes some seconds on a CPU
    "atari/Pong": ("atari/Pong", {}),
    "atari/Pong, overlapping": ("atari/Pong", {"overlap": True}),
    "lunarlander": ("lunarlander", {}),
    "gymnasium/CartPole-v1": (
        "gymnasium/CartPole-v1",
        {"num_envs": 32, "num_steps": 32, "num_minibatches": 8, "num_epochs": 4},
    ),
}
ROUNDS, SECONDS = 3, 10


class Still:
    """Environments on the host that return their first steps forever."""

    def __init__(self, env):
        self._env = env
        self.num_actions, self.num_envs = env.num_actions, env.num_envs

    def reset(self, seed):
        """See `qlax.HostEnv`."""
        self._step = self._env.reset(seed)
        return self._step

    def step(self, action):
        """See `qlax.HostEnv`."""
        del action
        return self._step

    def close(self):
        """See `qlax.HostEnv`."""
        self._env.close()


def speed(targets: list[str]) -> None:
    """Measure the given targets, or all of them; keep the record and print it as a table."""
    platform = jax.default_backend()
    path = RESULTS / ("host.json" if platform == "cpu" else f"host-{platform}.json")
    record = json.loads(path.read_text()) if path.exists() else {}
    for name in targets or TARGETS:
        target, overrides = TARGETS[name]
        record[name] = circumstances(f"python benchmarks/host.py speed {name!r}") | measure(target, **overrides)
        path.write_text(json.dumps(record, indent=2) + "\n")
    print("| target | environments | learner | whole loop | of 1/(1/e + 1/l) | of the slower side | waits |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for target, row in record.items():
        e, l, whole = row["environments"], row["learner"], row["whole"]
        shares = f"{whole * (1 / e + 1 / l):.0%} | {whole / min(e, l):.0%}"
        waits = " %, ".join(f"{100 * share:.0f}" for share in row["waits"].values())
        print(f"| `{target}` | {e:,.0f} | {l:,.0f} | {whole:,.0f} | {shares} | {waits} % |")


def measure(target: str, **overrides) -> dict:
    """Measure the speeds of the environments, the learner and the whole loop, and the shares of time that it waits."""
    plan = make(configure(target, **overrides), {})
    whole = HostRuns(plan, (), lambda: False)
    whole.compile()
    make_envs = plan.make_envs
    still = dataclasses.replace(plan, make_envs=lambda num_envs: Still(make_envs(num_envs)))
    learner = HostRuns(still, (), lambda: False)
    learner._compiled = whole._compiled
    states, record = {}, plan.new_record()
    for runs in (learner, whole):
        states[runs], record = runs.begin(None, record)
    for runs in states:  # one update to warm up
        states[runs], _ = runs.chunk(states[runs], record, 1, True)
    envs = make_envs(plan.config.num_envs)
    envs.reset(0)
    random = np.random.default_rng(0)

    def step_all():
        envs.step(random.integers(0, envs.num_actions, envs.num_envs).astype(np.int32))
        return envs.num_envs

    def update(runs):
        states[runs], _ = runs.chunk(states[runs], record, 1, True)
        return plan.config.steps_per_update

    for _ in range(50):
        step_all()
    best = {"environments": 0.0, "learner": 0.0, "whole": 0.0}
    waited_before, spent = whole.waited, 0.0
    for _ in range(ROUNDS):
        for name, work in (
            ("environments", step_all),
            ("learner", lambda: update(learner)),
            ("whole", lambda: update(whole)),
        ):
            steps, begun = 0, time.perf_counter()
            while (seconds := time.perf_counter() - begun) < SECONDS:
                steps += work()
            seconds = time.perf_counter() - begun
            best[name] = max(best[name], steps / seconds)
            spent += seconds if name == "whole" else 0.0
        print(target, best, file=sys.stderr)
    waits = {name: (seconds - waited_before[name]) / spent for name, seconds in whole.waited.items()}
    for closable in (whole, learner, envs):
        closable.close()
    return {name: round(value, 1) for name, value in best.items()} | {"waits": waits}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("speed").add_argument("targets", nargs="*", help="targets to measure (default all)")
    speed(parser.parse_args().targets)
