"""Training of agents whose environments are in JAX: all agents in one program, spread over the devices.

`DeviceRuns` and `qlax.training.host_runs.HostRuns` have the same interface for the training loop: states with the axis
R first, chunks of updates, evaluations and copies.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qlax.playing import evaluation
from qlax.pqn import Hyper, TrainState
from qlax.training import memory
from qlax.training.guard import Record, with_fresh_sums
from qlax.training.memory import Needs
from qlax.training.placement import everywhere
from qlax.training.plan import Plan, variables_of
from qlax.types import PyTree


class Evaluation(NamedTuple):
    """Evaluation that was started.

    Attributes:
      wait: Function that waits for the greedy episodes and returns their metrics, `[R, E]` each; None if the run was
        stopped in the meantime.
      returns: Returns of the episodes, `[R, ...]` on the devices; None for environments on the host.
    """

    wait: Callable[[], dict[str, np.ndarray] | None]
    returns: Any


class Functions(NamedTuple):
    """Functions of a plan that are compiled: pure functions of the agents that a device computes side by side.

    Attributes:
      start: `(seeds, hyper, variables) -> state` before the first update. `variables` are the network's initial
        variables; () for random ones.
      chunk: `(state, record, num_updates, fresh) -> state, record` after `num_updates` (int32) updates. The sums of
        the record begin at zero if `fresh` (bool).
      evaluate: `(state, seeds) -> metrics` of greedy episodes, `[R, E]` each; E is rounded up to a multiple of the
        devices that share an agent. The episodes depend only on the seed and the number of updates.
    """

    start: Callable[[jax.Array, Hyper, PyTree], TrainState]
    chunk: Callable[[TrainState, Record, jax.Array, jax.Array], tuple[TrainState, Record]]
    evaluate: Callable[[TrainState, jax.Array], dict[str, jax.Array]]


def functions(plan: Plan) -> Functions:
    """Make the functions that are compiled for environments in JAX."""
    vec: Any = plan.vec
    axis_name = plan.placement.axis_name
    play = evaluation.in_jax(plan.algorithm, plan.played, plan.config.eval_max_steps, plan.config.eval_epsilon)  # type: ignore[arg-type]

    def keys(seed: jax.Array) -> jax.Array:
        """Return the random keys of the environments, of learning and of evaluation."""
        return jax.random.split(jax.random.key(seed), 3)

    def own_key(key: jax.Array) -> jax.Array:
        """Return the random key of the environments on this device."""
        return key if axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(axis_name))

    def start(seeds: jax.Array, hyper: Hyper, variables: PyTree) -> TrainState:
        def start_agent(seed, hyper, variables):
            key_env, key_init, _ = keys(seed)
            world, step = vec.reset(own_key(key_env))
            return plan.algorithm.init(key_init, hyper, step, world, variables)

        return jax.vmap(start_agent)(seeds, hyper, variables)

    def update(state: TrainState, record: Record) -> tuple[TrainState, Record]:
        state, rollout = plan.rollout(state)
        return plan.learn(state, record, rollout)

    def chunk(state: TrainState, record: Record, num_updates: jax.Array, fresh: jax.Array) -> tuple[TrainState, Record]:
        # The number of updates is traced, so that chunks of any length share one program and give the same bits.
        carry = (state, with_fresh_sums(record, fresh))
        return jax.lax.fori_loop(0, num_updates, lambda _, carry: jax.vmap(update)(*carry), carry)

    def evaluate(state: TrainState, seeds: jax.Array) -> dict[str, jax.Array]:
        def evaluate_agent(state, seed):
            _, _, key = keys(seed)
            return play(own_key(jax.random.fold_in(key, state.updates)), state)

        return jax.vmap(evaluate_agent)(state, seeds)

    return Functions(start, chunk, evaluate)


class DeviceRuns:
    """All agents in one program; methods return before the device has finished its computation.

    Args:
      plan: Plan of the run.
      initial: Initial variables of the network, `[R, ...]`; () for random ones.

    Attributes:
      waited: Empty; only environments on the host make the loop wait.
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
        """Compile all programs."""
        self._seeds = self._placement.put(self._plan.seeds, self._placement.runs)
        self._compiled = compile_together(self._lowered(), self._placement.compile)

    def needs(self) -> Needs:
        """Return the memory that the compiled programs and the arrays beside them need."""
        return memory.of_device(self._plan, self._placement, self._compiled)

    def compile_fewer(self, available: int) -> bool:
        """Compile again for fewer agents at a time, so that they may fit into `available` bytes of memory.

        Returns:
          False if the programs already compute one agent at a time, so that nothing was compiled.
        """
        if self._placement.at_once == 1:
            return False
        self._placement = self._placement.taking_turns(memory.fewer_at_once(self._placement, self.needs(), available))
        self.compile()
        return True

    def begin(self, restored: TrainState | None, record: Record) -> tuple[TrainState, Record]:
        """Return the initial state, or the restored one, and the record, both placed on the devices."""
        plan, placement = self._plan, self._placement
        record = placement.put(record, placement.runs)
        if restored is not None:
            return placement.put(restored, plan.where), record
        return self._compiled["start"](*placement.put((plan.seeds, plan.hyper, self._initial), placement.runs)), record

    def chunk(self, state: TrainState, record: Record, num_updates: int, fresh: bool) -> tuple[TrainState, Record]:
        """Compute `num_updates` updates; the memory of `state` is reused. Sums of `record` begin at zero if `fresh`."""
        return self._compiled["chunk"](state, record, num_updates, fresh)

    def evaluate(self, state: TrainState) -> Evaluation:
        """Start an evaluation; it must be started before the next chunk reuses the memory of `state`."""
        metrics = self._compiled["evaluate"](state, self._seeds)
        dispatched = self._placement.gathered(metrics)
        episodes = self._plan.config.eval_episodes
        return Evaluation(
            lambda: jax.tree.map(lambda x: x[:, :episodes], jax.device_get(dispatched)), metrics["episode_return"]
        )

    def variables(self, state: TrainState) -> PyTree:
        """Return a copy of the network's variables, whose memory no chunk reuses."""
        return self._placement.gathered(self._compiled["variables"](variables_of(state)))

    def copy(self, state: TrainState) -> TrainState:
        """Return a copy of the state, whose memory no chunk reuses."""
        return self._placement.gathered(self._compiled["copy"](state))

    def close(self) -> None:
        """Do nothing; environments in JAX need not be closed."""

    def lowered_chunk(self) -> Any:
        """Trace the program of `chunk`."""
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
        """Lower all programs; yield each with its name, those that take longest to compile first."""
        plan, placement = self._plan, self._placement
        where, runs, lower = plan.where, placement.runs, placement.lower
        yield "chunk", self.lowered_chunk()
        yield (
            "evaluate",
            lower(self._functions.evaluate, plan.shapes, plan.seeds, arguments=(where, runs), result=placement.split),
        )
        yield "start", lower(self._functions.start, plan.seeds, plan.hyper, self._initial, result=where)
        shapes = placement.placed(plan.shapes, where)
        yield "copy", jax.jit(_copied, out_shardings=everywhere(where, shapes)).lower(shapes)
        yield "variables", jax.jit(_copied, out_shardings=placement.runs).lower(variables_of(shapes))


def compile_together(lowered: Iterator[tuple[str, Any]], compile: Callable[[Any], Any]) -> dict[str, Any]:
    """Compile programs in parallel while further ones are traced, because XLA mostly uses a single core.

    Args:
      lowered: Names and lowered programs.
      compile: Function that compiles a lowered program.

    Returns:
      Compiled programs by name.
    """
    pool = ThreadPoolExecutor()
    try:
        futures = {name: pool.submit(compile, program) for name, program in lowered}
        return {name: future.result() for name, future in futures.items()}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # do not wait, so that Ctrl-C ends at once


def _copied(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.copy, tree)
