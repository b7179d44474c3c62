"""Environments on the host: a Python loop over the page's own `act`, `observe` and `learn`.

The environments of a run are in two halves, which take turns: while one steps, on a thread of its own, the device
thinks for the other. Observations go to the device once, in their own dtype, from that thread; actions come back; what
was seen is stacked on the device, where it is learned from.

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


class DeviceFunctions:
    """What a run on the host computes on the device.

    Args:
      algorithm: made without an environment.
      learn: from a rollout, and record what is measured.
      num_envs: N.
      num_steps: T.
    """

    def __init__(self, algorithm: PQN, learn: Callable[..., tuple[TrainState, Any]], num_envs: int, num_steps: int):
        self.algorithm, self._learn, self.num_envs, self.num_steps = algorithm, learn, num_envs, num_steps

    def begin(self, state: TrainState) -> tuple[jax.Array, list[Part]]:
        """The key that learning goes on with, and the state's parts."""
        parts = sizes(self.num_envs)
        key, *keys = jax.random.split(state.key, len(parts) + 1)

        def rows(tree, index):
            return jax.tree.map(lambda x: x[index * parts[0] : (index + 1) * parts[0]], tree)

        return key, [Part(k, rows(state.step, i), rows(state.memory, i)) for i, k in enumerate(keys)]

    def act(self, state: TrainState, part: Part) -> tuple[Part, Decision]:
        """`algorithm.act` for a part; of the state only what acting reads."""
        acted, decision = self.algorithm.act(state._replace(key=part.key, step=part.step, memory=part.memory))
        return part._replace(key=acted.key, memory=acted.memory), decision

    def learn(
        self, state: TrainState, record: Any, key: jax.Array, parts: list[Part], seen: list[Transition]
    ) -> tuple[TrainState, Any]:
        """Learn from what all parts saw, in order of time and then part."""
        return self._learn(_joined(state, key, parts), record, self._rollout(state, seen))

    def _rollout(self, state: TrainState, seen: list[Transition]) -> Rollout:
        def stacked(*pieces):  # in one copy: rollouts of images are large
            return jnp.concatenate(pieces).reshape(self.num_steps, self.num_envs, *pieces[0].shape[1:])

        return Rollout(state.memory, jax.tree.map(stacked, *seen))

    def go_on(self, state: TrainState, key: jax.Array, parts: list[Part]) -> tuple[jax.Array, TrainState]:
        """A key to learn with, and the state from which the next rollout begins meanwhile."""
        key, key_next = jax.random.split(key)
        return key, _joined(state, key_next, parts)

    def standing_still(self, state: TrainState) -> tuple[TrainState, Rollout]:
        """A rollout in which every step shows the same: to trace what an update calls."""
        key, parts = self.begin(state)
        seen = []
        for part in parts:
            part, decision = self.act(state, part)
            seen.append(self.algorithm.observe(state._replace(step=part.step), decision, (), part.step)[1])
        return _joined(state, key, parts), self._rollout(state, seen * self.num_steps)


def _joined(state: TrainState, key: jax.Array, parts: list[Part]) -> TrainState:
    """The state with what its parts have become."""
    step, memory = jax.tree.map(lambda *pieces: jnp.concatenate(pieces), *((p.step, p.memory) for p in parts))
    return state._replace(key=key, step=step, memory=memory)


def frozen(state: TrainState) -> TrainState:
    """What stays the same during a rollout, without what acting does not read: it is passed at every step."""
    return state._replace(opt_state=(), step=(), memory=(), key=())  # type: ignore[arg-type]


def collect(
    compiled: Any, algorithm: PQN, num_steps: int, workers: list[Worker], state: TrainState, waits: Waits
) -> tuple[jax.Array, list[Part], list[Transition]]:
    """A rollout from the latest steps in `state`: what `DeviceFunctions.learn` wants beside the state to be changed.

    Args:
      compiled: has `begin` and `act` of `DeviceFunctions`.
      algorithm: the page.
      num_steps: T.
      workers: of the parts; no step is under way.
      state: whose parameters act.
      waits: where to count seconds.
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


def evaluate(
    act: Callable[[TrainState, Part], tuple[Part, Decision]],
    worker: Worker,
    state: TrainState,
    seed: int,
    max_steps: int,
    stopped: Callable[[], bool],
    epsilon: float = 0.0,
) -> dict[str, np.ndarray] | None:
    """One episode in each of E environments, as `qlax.play.evaluation.make`: the first whole one of each.

    Args:
      act: of `DeviceFunctions`, for E environments.
      worker: of E environments.
      state: of the run; its memory is not touched.
      seed: of the episodes.
      max_steps: an episode this long is cut, and counts as it stands.
      stopped: whether the run is to be stopped, asked at every step: an evaluation may take minutes.
      epsilon: share of random actions; 0 is greedy.

    Returns:
      Metrics `[E]` as those of `qlax.play.evaluation.make`; None if it was stopped.
    """
    worker.reset(seed)
    step, metrics = worker.result()
    envs = len(metrics["raw_reward"])
    hyper = state.hyper._replace(epsilon_start=jnp.float32(epsilon), epsilon_end=jnp.float32(epsilon))
    memory = jax.tree.map(lambda m: jnp.zeros((envs, *m.shape[1:]), m.dtype), state.memory)
    part = Part(jax.random.key(seed), first_steps(step), memory)
    parameters = frozen(state)._replace(hyper=hyper)
    unfinished, steps = np.ones(envs, bool), 0
    records = {name: np.full(envs, np.nan, np.float32) for name in metrics if name != "raw_reward"}
    records["overestimation"] = np.full(envs, np.nan, np.float32)
    excess, discount = np.zeros(envs, np.float32), np.ones(envs, np.float32)
    gamma, reward_scale = np.float32(state.hyper.gamma), np.float32(state.hyper.reward_scale)
    so_far = {"episode_return": np.zeros(envs, np.float32), "episode_length": np.zeros(envs, np.float32)}
    while unfinished.any() and steps < max_steps:
        if stopped():
            return None
        part, decision = act(parameters, part)
        worker.step(np.asarray(decision.action))
        step, metrics = worker.result()
        if steps == 0:
            excess += np.asarray(decision.value).mean(-1)
        excess -= reward_scale * discount * np.asarray(step.reward)
        discount = np.where(step.terminated, 0, gamma * discount)
        part, steps = part._replace(step=step), steps + 1
        so_far["episode_return"] += metrics["raw_reward"]
        so_far["episode_length"] += 1
        ended = unfinished & ~np.isnan(metrics["episode_return"])
        seen = metrics | {"overestimation": excess}
        records = {name: np.where(ended, seen[name], record) for name, record in records.items()}
        unfinished &= ~ended
    records |= {name: np.where(unfinished, value, records[name]) for name, value in so_far.items()}
    return records | {"cut": unfinished.astype(np.float32)}


def first_steps(step: Step) -> Step:
    """Steps of new episodes as the learner wants them: whatever it remembers is of another one."""
    return step._replace(terminated=jnp.ones_like(step.terminated))
