"""Agents whose environments live on the host: they take turns, a chunk each.

`HostRuns` gives the loop the same as `qlax.training.device_runs.DeviceRuns`.
"""

import functools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qlax.envs.worker import Worker
from qlax.play import evaluation, host
from qlax.play.host import Part
from qlax.pqn import TrainState, Transition
from qlax.training import memory
from qlax.training.device_runs import Evaluation, compile_together
from qlax.training.guard import Learn, Record, begun
from qlax.training.memory import Needs
from qlax.training.plan import Plan, variables_of
from qlax.types import PyTree


def learn(
    guarded: Learn, state: TrainState, record: Record, key: jax.Array, parts: list[Part], seen: list[Transition]
) -> tuple[TrainState, Record]:
    """Learn from a rollout that was collected.

    Args:
      guarded: learning of the plan.
      state: whose parameters learn, and where the rollout began.
      record: of this agent.
      key: that learning goes on with.
      parts: after the rollout.
      seen: by all parts, in order of time and then part.
    """
    return guarded(host.join(state, key, parts), record, host.stack(state, seen))


def go_on(state: TrainState, key: jax.Array, parts: list[Part]) -> tuple[jax.Array, TrainState]:
    """A key to learn with, and the state from which the next rollout begins meanwhile."""
    key, key_next = jax.random.split(key)
    return key, host.join(state, key_next, parts)


class HostRuns:
    """Agents that take turns: each has environments of its own, and all share those of the evaluation.

    Args:
      plan: of the run.
      initial: variables of the network to begin with, `[R, ...]`; () for new ones.
      stopped: whether the run is to be stopped.

    Attributes:
      waited: seconds the loop waited for the environments and for the device.
    """

    asynchronous = False

    def __init__(self, plan: Plan, initial: PyTree, stopped: Callable[[], bool]):
        self._plan, self._initial, self._stopped = plan, initial, stopped
        self._compiled: Any = None
        self._workers: list[list[Worker]] = []
        self._evaluator: Worker | None = None
        self._acting: dict[int, TrainState] = {}  # where collecting and learning overlap, what acts next
        self._waits = host.Waits()

    def __str__(self) -> str:
        return "in turns, as their environments live on the host" if len(self._plan.seeds) > 1 else ""

    @property
    def waited(self) -> dict[str, float]:
        """Seconds the loop waited, by the names of the summary."""
        return {f"waited_for_{name}_seconds": seconds for name, seconds in self._waits.seconds.items()}

    def compile(self) -> None:
        """Compile everything, at the same time."""
        self._compiled = SimpleNamespace(**compile_together(self._lowered(), self._plan.placement.compile))

    def needs(self) -> Needs:
        """The memory that the compiled programs need, and what lies beside them."""
        return memory.of_host(self._plan, vars(self._compiled))

    def compile_fewer(self, there: int) -> bool:
        """Nothing: the agents take turns already."""
        return False

    def begin(self, restored: TrainState | None, record: Record) -> tuple[TrainState, Record]:
        """The state before the first update, or the saved one with new episodes; and the record for `chunk`."""
        plan, config = self._plan, self._plan.config
        parts = host.sizes(config.num_envs)
        self._workers = [[self._worker(size) for size in parts] for _ in plan.seeds]
        self._evaluator = self._worker(config.eval_episodes)
        states = []
        for run, (seed, workers) in enumerate(zip(plan.seeds, self._workers, strict=True)):
            updates = 0 if restored is None else int(restored.updates[run])
            for index, worker in enumerate(workers):
                worker.reset(_seed(seed, updates, index))
            steps = [worker.result()[0] for worker in workers]
            step = jax.tree.map(lambda *x: jnp.concatenate(x), *steps)
            if restored is None:
                hyper, variables = jax.tree.map(lambda x, run=run: x[run], (plan.hyper, self._initial))
                states.append(jax.jit(plan.algorithm.init)(jax.random.key(seed), hyper, step, (), variables))
            else:
                state = jax.tree.map(lambda x, run=run: x[run], restored)
                forgotten = jax.tree.map(jnp.zeros_like, state.memory)
                states.append(state._replace(step=host.first_steps(step), memory=forgotten))
        return _together(states), jax.device_put(record)

    def chunk(self, state: TrainState, record: Record, num_updates: int, fresh: bool) -> tuple[TrainState, Record]:
        """So many updates of every run; the sums of `record` begin at zero if `fresh`.

        Raises:
          HostError: environments crashed or hang; `state` is still there.
        """
        plan, compiled, num_steps = self._plan, self._compiled, self._plan.config.num_steps
        states, records = [], []
        for run, workers in enumerate(self._workers):
            one, seen_of_one = jax.tree.map(lambda x, run=run: x[run], (state, begun(record, fresh)))
            acting = self._acting.get(run, one)  # whose parameters the rollout is collected with
            for _ in range(num_updates):
                key, parts, seen = host.collect(compiled, plan.algorithm, num_steps, workers, acting, self._waits)
                if plan.config.overlap:
                    key, acting = compiled.go_on(one, key, parts)
                    self._acting[run] = acting
                one, seen_of_one = compiled.learn(one, seen_of_one, key, parts, seen)
                acting = self._acting.get(run, one)
            states.append(one)
            records.append(seen_of_one)
        records = self._waits.until("device", lambda: jax.block_until_ready(records))
        return _together(states), _together(records)

    def evaluate(self, state: TrainState) -> Evaluation:
        """Greedy episodes, played when they are waited for; None if the run was stopped meanwhile."""
        plan = self._plan

        def play() -> dict[str, np.ndarray] | None:
            played = []
            for run, seed in enumerate(plan.seeds):
                one = jax.tree.map(lambda x, run=run: x[run], state)
                episodes = _seed(seed, int(one.updates), len(host.sizes(plan.config.num_envs)))
                max_steps = plan.config.eval_max_steps
                assert self._evaluator is not None
                assert max_steps is not None
                act = self._compiled.act_in_evaluation
                metrics = evaluation.on_host(act, self._evaluator, one, episodes, max_steps, self._stopped)
                if metrics is None:
                    return None
                played.append(metrics)
            return {name: np.stack([metrics[name] for metrics in played]) for name in played[0]}

        return Evaluation(play, None)

    def variables(self, state: TrainState) -> PyTree:
        """The network's."""
        return variables_of(state)

    def copy(self, state: TrainState) -> TrainState:
        """Nothing takes its memory."""
        return state

    def close(self) -> None:
        """Close all environments."""
        for worker in [worker for workers in self._workers for worker in workers]:
            worker.close()
        if self._evaluator is not None:
            self._evaluator.close()

    def _lowered(self) -> Iterator[tuple[str, Any]]:
        """Everything traced, by name; first what takes longest to compile."""
        plan, config = self._plan, self._plan.config
        state, record = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (plan.shapes, plan.new_record())
        )
        act = functools.partial(host.act, plan.algorithm)
        key, parts = jax.eval_shape(host.begin, state)
        parameters = host.frozen(state)
        _, decision = jax.eval_shape(act, parameters, parts[0])
        before = parameters._replace(step=parts[0].step)
        seen = jax.eval_shape(lambda *of_step: plan.algorithm.observe(*of_step)[1], before, decision, (), before.step)
        step, remembered = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((config.eval_episodes, *x.shape[1:]), x.dtype),
            (parts[0].step, parts[0].memory),
        )
        collected = (key, parts, [seen] * (config.num_steps * len(parts)))
        yield "learn", jax.jit(functools.partial(learn, plan.learn)).lower(state, record, *collected)
        yield "act", jax.jit(act).lower(parameters, parts[0])
        yield "act_in_evaluation", jax.jit(act).lower(parameters, parts[0]._replace(step=step, memory=remembered))
        yield "begin", jax.jit(host.begin).lower(state)
        if config.overlap:
            yield "go_on", jax.jit(go_on).lower(state, key, parts)

    def _worker(self, num_envs: int) -> Worker:
        config = self._plan.config
        return Worker(
            config.env,
            self._plan.make_envs,  # type: ignore[arg-type]
            num_envs,
            device=jax.devices()[0],
            timeout=config.host_timeout,
            time_limit_is_terminal=config.time_limit_is_terminal,
        )


def _seed(seed: int, updates: int, part: int) -> int:
    """Of the environments of a part; those of other runs, parts and points of training are independent."""
    return int(np.random.SeedSequence([int(seed), updates, part]).generate_state(1)[0] >> 2)


def _together(trees: list[Any]) -> Any:
    """Of every run, `[R, ...]`."""
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)
