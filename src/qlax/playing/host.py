"""Rollouts in environments on the host: a Python loop over the algorithm's `act` and `observe`.

The environments of a run are split into two halves, which take turns: while one half steps on a thread of its own,
the device chooses actions for the other. Each observation is copied to the device once, in its own dtype, and
transitions are stacked there; only actions are copied back.

Axes as in `qlax.pqn`; n environments in a half.
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
    """Training state of one half of the environments."""

    begin: jax.Array  # int32, number of its first environment among all
    key: jax.Array  # random key for acting
    step: Step  # [n, ...]
    memory: PyTree  # [n, M, ...]


class Waits:
    """Seconds that the loop has waited, for the environments and for the device."""

    def __init__(self) -> None:
        self.seconds = {"environments": 0.0, "device": 0.0}

    def until(self, name: str, wait: Callable[[], Any]) -> Any:
        """Call `wait` and return its result; add the time it took to the seconds called `name`."""
        begun = time.perf_counter()
        result = wait()
        self.seconds[name] += time.perf_counter() - begun
        return result


def sizes(num_envs: int) -> tuple[int, ...]:
    """Return the numbers of environments in the parts that take turns: two halves, or one part if N is odd."""
    return (num_envs,) if num_envs % 2 else (num_envs // 2,) * 2


def begin(state: TrainState) -> tuple[jax.Array, list[Part]]:
    """Split a training state into the random key for learning and the parts of the environments."""
    parts = sizes(len(state.step.reward))
    key, *keys = jax.random.split(state.key, len(parts) + 1)

    def rows(tree, index):
        return jax.tree.map(lambda x: x[index * parts[0] : (index + 1) * parts[0]], tree)

    return key, [
        Part(jnp.int32(i * parts[0]), k, rows(state.step, i), rows(state.memory, i)) for i, k in enumerate(keys)
    ]


def act(algorithm: PQN, state: TrainState, part: Part) -> tuple[Part, Decision]:
    """Choose actions for one part; `state` may be the result of `frozen`."""
    acted, decision = algorithm.act(state._replace(key=part.key, step=part.step, memory=part.memory), part.begin)
    return part._replace(key=acted.key, memory=acted.memory), decision


def join(state: TrainState, key: jax.Array, parts: list[Part]) -> TrainState:
    """Return the training state with the new key, and the steps and memories of all parts."""
    step, memory = jax.tree.map(lambda *pieces: jnp.concatenate(pieces), *((p.step, p.memory) for p in parts))
    return state._replace(key=key, step=step, memory=memory)


def stack(state: TrainState, seen: list[Transition]) -> Rollout:
    """Stack transitions into a rollout.

    Args:
      state: State before the rollout.
      seen: Transitions of the parts, ordered by time and then by part.
    """
    num_envs = len(state.step.reward)

    def stacked(*pieces):  # copies only once, as rollouts of images are large
        return jnp.concatenate(pieces).reshape(-1, num_envs, *pieces[0].shape[1:])

    return Rollout(state.memory, jax.tree.map(stacked, *seen))


def standing_still(algorithm: PQN, num_steps: int, state: TrainState) -> tuple[TrainState, Rollout]:
    """Return a rollout that repeats the latest step, to trace an update without stepping the environments."""
    key, parts = begin(state)
    seen = []
    for part in parts:
        part, decision = act(algorithm, state, part)
        seen.append(algorithm.observe(state._replace(step=part.step), decision, (), part.step)[1])
    return join(state, key, parts), stack(state, seen * num_steps)


def frozen(state: TrainState) -> TrainState:
    """Return the part of the state that `act` reads and a rollout does not change, as it is passed at every step."""
    return state._replace(opt_state=(), step=(), memory=(), key=())  # type: ignore[arg-type]


def collect(
    compiled: Any, algorithm: PQN, num_steps: int, workers: list[Worker], state: TrainState, waits: Waits
) -> tuple[jax.Array, list[Part], list[Transition]]:
    """Step all environments T times, with actions chosen by the parameters in `state`.

    Args:
      compiled: Object with the compiled functions `begin` and `act` of this module, `act` for `algorithm`.
      algorithm: Algorithm of the run.
      num_steps: Number of steps, T.
      workers: Workers of the parts, none with a step in progress.
      state: State before the rollout.
      waits: Counter to which the time spent waiting is added.

    Returns:
      The key and the parts after the rollout, for `join`, and the transitions, for `stack`.
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
    """Mark steps as the first of new episodes, so that the learner resets its memory."""
    return step._replace(terminated=jnp.ones_like(step.terminated))
