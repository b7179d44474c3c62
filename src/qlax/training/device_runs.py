"""Agents whose environments are in JAX: all of them in one program, spread over the devices.

`DeviceRuns` and `qlax.training.host_runs.HostRuns` give the loop the same: states with the axis R first, chunks of
updates, evaluations and copies.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qlax.play import evaluation
from qlax.pqn import Hyper, TrainState
from qlax.training import memory
from qlax.training.guard import Record, begun
from qlax.training.memory import Needs
from qlax.training.plan import Plan, variables_of
from qlax.types import PyTree


class Evaluation(NamedTuple):
    """Greedy episodes that were asked for.

    Attributes:
      wait: for what they came to, `[R, E]` each; None if the run was stopped meanwhile.
      returns: of them, on the devices, `[R, ...]`; None on the host.
    """

    wait: Callable[[], dict[str, np.ndarray] | None]
    returns: Any


class Functions(NamedTuple):
    """What is compiled of a plan: pure functions of the agents that a device computes side by side.

    Attributes:
      start: `(seeds, hyper, variables) -> state` before the first update; variables of the network, () for new ones.
      chunk: `(state, seen, num_updates, fresh) -> state, record` after so many updates, int32; the sums of the record
        begin at zero if `fresh`, bool.
      evaluate: `(state, seeds) -> metrics [R, E]` of greedy episodes; some more where the devices do not divide E. The
        same worlds whenever the same number of updates is done.
    """

    start: Callable[[jax.Array, Hyper, PyTree], TrainState]
    chunk: Callable[[TrainState, Record, jax.Array, jax.Array], tuple[TrainState, Record]]
    evaluate: Callable[[TrainState, jax.Array], dict[str, jax.Array]]


def functions(plan: Plan) -> Functions:
    """Make the functions that a device computes, for environments in JAX."""
    vec: Any = plan.vec
    axis_name = plan.placement.axis_name
    play = evaluation.in_jax(plan.algorithm, plan.played, plan.config.eval_max_steps)  # type: ignore[arg-type]

    def keys(seed: jax.Array) -> jax.Array:
        """For the environments, for the learner and for the evaluation."""
        return jax.random.split(jax.random.key(seed), 3)

    def own(key: jax.Array) -> jax.Array:
        """The key of this device's part of the environments."""
        return key if axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(axis_name))

    def start(seeds: jax.Array, hyper: Hyper, variables: PyTree) -> TrainState:
        def of_one(seed, hyper, variables):
            key_env, key_init, _ = keys(seed)
            world, step = vec.reset(own(key_env))
            return plan.algorithm.init(key_init, hyper, step, world, variables)

        return jax.vmap(of_one)(seeds, hyper, variables)

    def update(state: TrainState, record: Record) -> tuple[TrainState, Record]:
        state, rollout = plan.rollout(state)
        return plan.learn(state, record, rollout)

    def chunk(state: TrainState, seen: Record, num_updates: jax.Array, fresh: jax.Array) -> tuple[TrainState, Record]:
        # The number is not static, so chunks of any length are the same program: one compilation, and the same bits.
        carry = (state, begun(seen, fresh))
        return jax.lax.fori_loop(0, num_updates, lambda _, carry: jax.vmap(update)(*carry), carry)

    def evaluate(state: TrainState, seeds: jax.Array) -> dict[str, jax.Array]:
        def of_one(state, seed):
            _, _, key = keys(seed)
            return play(own(jax.random.fold_in(key, state.updates)), state)

        return jax.vmap(of_one)(state, seeds)

    return Functions(start, chunk, evaluate)


class DeviceRuns:
    """All agents in one program; calls return before the device has done what they ask for.

    Args:
      plan: of the run.
      initial: variables of the network to begin with, `[R, ...]`; () for new ones.

    Attributes:
      waited: nothing.
    """

    asynchronous = True

    def __init__(self, plan: Plan, initial: PyTree):
        self._plan, self._initial, self._functions = plan, initial, functions(plan)
        self._placement = plan.placement
        self.waited: dict[str, float] = {}
        self._compiled: dict[str, Callable[..., Any]] = {}

    def __str__(self) -> str:
        return str(self._placement)

    def compile(self) -> None:
        """Compile everything."""
        self._seeds = self._placement.put(self._plan.seeds, self._placement.runs)
        self._compiled = compile_together(self._lowered(), self._placement.compile)

    def needs(self) -> Needs:
        """The memory that the compiled programs need, and what lies beside them."""
        return memory.of_device(self._plan, self._placement, self._compiled)

    def compile_fewer(self, there: int) -> bool:
        """Compile for so few agents at once that this memory may hold them; False where there cannot be fewer."""
        if self._placement.at_once == 1:
            return False
        self._placement = self._placement.taking_turns(memory.fewer_at_once(self._placement, self.needs(), there))
        self.compile()
        return True

    def begin(self, restored: TrainState | None, record: Record) -> tuple[TrainState, Record]:
        """The state before the first update, or the one that was saved; and the record where `chunk` wants it."""
        plan, placement = self._plan, self._placement
        record = placement.put(record, placement.runs)
        if restored is not None:
            return placement.put(restored, plan.where), record
        return self._compiled["start"](*placement.put((plan.seeds, plan.hyper, self._initial), placement.runs)), record

    def chunk(self, state: TrainState, record: Record, num_updates: int, fresh: bool) -> tuple[TrainState, Record]:
        """So many updates; takes the memory of `state`. The sums of `record` begin at zero if `fresh`."""
        return self._compiled["chunk"](state, record, num_updates, fresh)

    def evaluate(self, state: TrainState) -> Evaluation:
        """Greedy episodes, asked for before `state` is taken by the next chunk."""
        metrics = self._compiled["evaluate"](state, self._seeds)
        dispatched = self._placement.gathered(metrics)
        episodes = self._plan.config.eval_episodes
        return Evaluation(
            lambda: jax.tree.map(lambda x: x[:, :episodes], jax.device_get(dispatched)), metrics["episode_return"]
        )

    def variables(self, state: TrainState) -> PyTree:
        """The network's, in memory that no chunk takes."""
        return self._placement.gathered(self._compiled["variables"](state))

    def copy(self, state: TrainState) -> TrainState:
        """A snapshot."""
        return self._placement.gathered(self._compiled["copy"](state))

    def close(self) -> None:
        """Nothing to give back."""

    def lowered_chunk(self) -> Any:
        """What `chunk` computes, traced."""
        plan, both = self._plan, (self._plan.where, self._placement.runs)
        return self._placement.lower(
            self._functions.chunk,
            plan.shapes,
            plan.new_record(),
            arguments=both,
            result=both,
            shared=(0, False),
            donate=True,
        )

    def _lowered(self) -> Iterator[tuple[str, Any]]:
        """Everything traced, by name; first what takes longest to compile."""
        plan, placement = self._plan, self._placement
        where, runs, lower = plan.where, placement.runs, placement.lower
        yield "chunk", self.lowered_chunk()
        yield (
            "evaluate",
            lower(self._functions.evaluate, plan.shapes, plan.seeds, arguments=(where, runs), result=placement.split),
        )
        yield "start", lower(self._functions.start, plan.seeds, plan.hyper, self._initial, result=where)
        yield "copy", lower(_copied, plan.shapes, arguments=(where,), result=where)
        yield "variables", lower(lambda state: _copied(variables_of(state)), plan.shapes, arguments=(where,))


def compile_together(lowered: Iterator[tuple[str, Any]], compile: Callable[[Any], Any]) -> dict[str, Any]:
    """Compile what is traced one after the other, at the same time: XLA is on one core most of the time.

    Args:
      lowered: by name.
      compile: what to call with each.
    """
    pool = ThreadPoolExecutor()
    try:
        futures = {name: pool.submit(compile, each) for name, each in lowered}
        return {name: future.result() for name, future in futures.items()}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # who leaves in a hurry does not wait


def _copied(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.copy, tree)
