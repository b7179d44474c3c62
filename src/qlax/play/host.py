"""Acting in environments on the host: a Python loop over the algorithm's own `act` and `observe`.

The environments of a run are in two halves, which take turns: while one steps, on a thread of its own, the device
thinks for the other. Observations go to the device once, in their own dtype, from that thread; actions come back; what
was seen is stacked on the device.

Axes as in `qlax.pqn`; n environments of a half.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qlax.envs.worker import Worker
from qlax.pqn import PQN, Decision, Rollout, TrainState, Transition
from qlax.types import PyTree, Step


class Part(NamedTuple):
    """What half of a run's environments have of their own in its state."""

    key: jax.Array
    step: Step  # [n, ...]
    memory: PyTree  # [n, M, ...]


class Waits:
    """Seconds the loop waited, by what for."""

    def __init__(self) -> None:
        self.seconds = {"environments": 0.0, "device": 0.0}

    def until(self, name: str, wait: Callable[[], Any]) -> Any:
        """What `wait` returns, its time counted as this."""
        begun = time.perf_counter()
        result = wait()
        self.seconds[name] += time.perf_counter() - begun
        return result


def sizes(num_envs: int) -> tuple[int, ...]:
    """Of the parts that take turns: two halves, if there are two."""
    return (num_envs,) if num_envs % 2 else (num_envs // 2,) * 2


def begin(state: TrainState) -> tuple[jax.Array, list[Part]]:
    """Split the state of a run into the key that learning goes on with, and its parts."""
    parts = sizes(len(state.step.reward))
    key, *keys = jax.random.split(state.key, len(parts) + 1)

    def rows(tree, index):
        return jax.tree.map(lambda x: x[index * parts[0] : (index + 1) * parts[0]], tree)

    return key, [Part(k, rows(state.step, i), rows(state.memory, i)) for i, k in enumerate(keys)]


def act(algorithm: PQN, state: TrainState, part: Part) -> tuple[Part, Decision]:
    """`algorithm.act` for a part; of the state only what acting reads."""
    acted, decision = algorithm.act(state._replace(key=part.key, step=part.step, memory=part.memory))
    return part._replace(key=acted.key, memory=acted.memory), decision


def join(state: TrainState, key: jax.Array, parts: list[Part]) -> TrainState:
    """Replace the key of the state, and what its parts have become."""
    step, memory = jax.tree.map(lambda *pieces: jnp.concatenate(pieces), *((p.step, p.memory) for p in parts))
    return state._replace(key=key, step=step, memory=memory)


def stack(state: TrainState, seen: list[Transition]) -> Rollout:
    """The rollout that began at `state`, of what all parts saw, in order of time and then part."""
    num_envs = len(state.step.reward)

    def stacked(*pieces):  # in one copy: rollouts of images are large
        return jnp.concatenate(pieces).reshape(-1, num_envs, *pieces[0].shape[1:])

    return Rollout(state.memory, jax.tree.map(stacked, *seen))


def standing_still(algorithm: PQN, num_steps: int, state: TrainState) -> tuple[TrainState, Rollout]:
    """A rollout in which every step shows the same: to trace what an update calls."""
    key, parts = begin(state)
    seen = []
    for part in parts:
        part, decision = act(algorithm, state, part)
        seen.append(algorithm.observe(state._replace(step=part.step), decision, (), part.step)[1])
    return join(state, key, parts), stack(state, seen * num_steps)


def frozen(state: TrainState) -> TrainState:
    """What stays the same during a rollout, without what acting does not read: it is passed at every step."""
    return state._replace(opt_state=(), step=(), memory=(), key=())  # type: ignore[arg-type]


def collect(
    compiled: Any, algorithm: PQN, num_steps: int, workers: list[Worker], state: TrainState, waits: Waits
) -> tuple[jax.Array, list[Part], list[Transition]]:
    """Collect a rollout from the latest steps in `state`, whose parameters act.

    Args:
      compiled: has `begin` and `act` of this module, the latter of the algorithm.
      algorithm: that of the run.
      num_steps: T.
      workers: of the parts; no step is in progress.
      state: before the rollout.
      waits: where to count seconds.

    Returns:
      What `join` and `stack` take: the key, the parts after the rollout, and what they saw.
    """
    key, parts = compiled.begin(state)
    parameters = frozen(state)

    def act(index: int) -> Decision:
        parts[index], decision = compiled.act(parameters, parts[index])
        workers[index].step(waits.until("device", lambda: np.asarray(decision.action)))
        return decision

    decisions = [act(index) for index in range(len(parts))]
    seen: list[Transition] = []
    for t in range(num_steps):
        for index, worker in enumerate(workers):
            step, _ = waits.until("environments", worker.result)
            before = parameters._replace(step=parts[index].step)
            seen.append(algorithm.observe(before, decisions[index], (), step)[1])
            parts[index] = parts[index]._replace(step=step)
            if t + 1 < num_steps:
                decisions[index] = act(index)
    return key, parts, seen


def first_steps(step: Step) -> Step:
    """Steps of new episodes as the learner wants them: whatever it remembers is of another one."""
    return step._replace(terminated=jnp.ones_like(step.terminated))
