"""Training of agents whose environments run on the host: agents take turns, one chunk each.

`HostRuns` has the same interface for the training loop as `qlax.training.device_runs.DeviceRuns`.
"""

import functools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qlax.envs.worker import Worker
from qlax.playing import evaluation, host
from qlax.playing.host import Part
from qlax.pqn import TrainState, Transition
from qlax.training import memory
from qlax.training.device_runs import Evaluation, compile_together
from qlax.training.guard import Learn, Record, with_fresh_sums
from qlax.training.memory import Needs
from qlax.training.plan import Plan, variables_of
from qlax.types import PyTree


def learn(
    guarded: Learn, state: TrainState, record: Record, key: jax.Array, parts: list[Part], seen: list[Transition]
) -> tuple[TrainState, Record]:
    """Learn from a collected rollout.

    Args:
      guarded: Learning function of the plan, which leaves an agent unchanged once it has diverged.
      state: State at the beginning of the rollout, whose parameters are trained.
      record: Measurements of this agent so far.
      key: Random key of learning.
      parts: The groups of environments that take turns, after the rollout.
      seen: Transitions of all parts, ordered by time and then by part.
    """
    # With an axis for this one agent, XLA keeps the layout of `qlax.networks.layers`, which is faster on a CPU.
    alone = jax.tree.map(lambda x: x[None], (host.join(state, key, parts), record, host.stack(state, seen)))
    return jax.tree.map(lambda x: x[0], jax.vmap(guarded)(*alone))


def start_next(state: TrainState, key: jax.Array, parts: list[Part]) -> tuple[jax.Array, TrainState]:
    """Return the key of learning, and the state with which the next rollout begins while learning is in progress."""
    key, key_next = jax.random.split(key)
    return key, host.join(state, key_next, parts)


class HostRuns:
    """Agents that take turns; each has its own training environments, and all share the evaluation environments.

    Args:
      plan: Plan of the run.
      initial: Initial variables of the network, `[R, ...]`; () for random ones.
      stopped: Function that returns True once the run must stop.
    """

    asynchronous = False

    def __init__(self, plan: Plan, initial: PyTree, stopped: Callable[[], bool]):
        self._plan, self._initial, self._stopped = plan, initial, stopped
        self._compiled: Any = None
        self._workers: list[list[Worker]] = []
        self._evaluator: Worker | None = None
        self._acting: dict[int, TrainState] = {}  # only with `overlap`: state that acts in the next rollout, by agent
        self._waits = host.Waits()

    def __str__(self) -> str:
        return "in turns, because their environments run on the host" if len(self._plan.seeds) > 1 else ""

    @property
    def waited(self) -> dict[str, float]:
        """Seconds that the loop waited for environments and for the device, by their keys in the summary."""
        return {f"waited_for_{name}_seconds": seconds for name, seconds in self._waits.seconds.items()}

    def compile(self) -> None:
        """Compile all programs in parallel."""
        self._compiled = SimpleNamespace(**compile_together(self._lowered(), self._plan.placement.compile))

    def needs(self) -> Needs:
        """Return the memory that the compiled programs and the arrays beside them need."""
        return memory.of_host(self._plan, vars(self._compiled))

    def compile_fewer(self, available: int) -> bool:
        """Return False, because the agents already take turns."""
        return False

    def begin(self, restored: TrainState | None, record: Record) -> tuple[TrainState, Record]:
        """Return the initial state, or the restored one with new episodes, and the record on the device."""
        plan, config = self._plan, self._plan.config
        parts = host.sizes(config.num_envs)
        self._workers = [[self._worker(size) for size in parts] for _ in plan.seeds]
        self._evaluator = self._worker(config.eval_episodes)
        states = []
        for agent, (seed, workers) in enumerate(zip(plan.seeds, self._workers, strict=True)):
            updates = 0 if restored is None else int(restored.updates[agent])
            for index, worker in enumerate(workers):
                worker.reset(_seed(seed, updates, index))
            steps = [worker.result()[0] for worker in workers]
            step = jax.tree.map(lambda *x: jnp.concatenate(x), *steps)
            if restored is None:
                hyper, variables = jax.tree.map(lambda x, agent=agent: x[agent], (plan.hyper, self._initial))
                states.append(jax.jit(plan.algorithm.init)(jax.random.key(seed), hyper, step, (), variables))
            else:
                state = jax.tree.map(lambda x, agent=agent: x[agent], restored)
                empty_memory = jax.tree.map(jnp.zeros_like, state.memory)
                states.append(state._replace(step=host.first_steps(step), memory=empty_memory))
        return _stacked(states), jax.device_put(record)

    def chunk(self, state: TrainState, record: Record, num_updates: int, fresh: bool) -> tuple[TrainState, Record]:
        """Compute `num_updates` updates of every agent; the sums of `record` begin at zero if `fresh`.

        Raises:
          HostError: Environments crashed or hang; `state` is still valid.
        """
        plan, compiled, num_steps = self._plan, self._compiled, self._plan.config.num_steps
        states, records = [], []
        for agent, workers in enumerate(self._workers):
            own, own_record = jax.tree.map(lambda x, agent=agent: x[agent], (state, with_fresh_sums(record, fresh)))
            acting = self._acting.get(agent, own)  # state whose parameters act in the rollout
            for _ in range(num_updates):
                key, parts, seen = host.collect(compiled, plan.algorithm, num_steps, workers, acting, self._waits)
                if plan.config.overlap:
                    key, acting = compiled.start_next(own, key, parts)
                    self._acting[agent] = acting
                own, own_record = compiled.learn(own, own_record, key, parts, seen)
                acting = self._acting.get(agent, own)
            states.append(own)
            records.append(own_record)
        records = self._waits.until("device", lambda: jax.block_until_ready(records))
        return _stacked(states), _stacked(records)

    def evaluate(self, state: TrainState) -> Evaluation:
        """Return an evaluation whose episodes are played when it is waited for."""
        plan = self._plan

        def play() -> dict[str, np.ndarray] | None:
            played = []
            for agent, seed in enumerate(plan.seeds):
                own = jax.tree.map(lambda x, agent=agent: x[agent], state)
                env_seed = _seed(seed, int(own.updates), len(host.sizes(plan.config.num_envs)))
                max_steps = plan.config.eval_max_steps
                assert self._evaluator is not None
                assert max_steps is not None
                act = self._compiled.act_in_evaluation
                metrics = evaluation.on_host(
                    act, self._evaluator, own, env_seed, max_steps, self._stopped, plan.config.eval_epsilon
                )
                if metrics is None:
                    return None
                played.append(metrics)
            return {name: np.stack([metrics[name] for metrics in played]) for name in played[0]}

        return Evaluation(play, None)

    def variables(self, state: TrainState) -> PyTree:
        """Return the network's variables."""
        return variables_of(state)

    def copy(self, state: TrainState) -> TrainState:
        """Return the state itself, because no chunk reuses its memory."""
        return state

    def close(self) -> None:
        """Close all environments."""
        for worker in [worker for workers in self._workers for worker in workers]:
            worker.close()
        if self._evaluator is not None:
            self._evaluator.close()

    def _lowered(self) -> Iterator[tuple[str, Any]]:
        """Lower all programs; yield each with its name, those that take longest to compile first."""
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
            yield "start_next", jax.jit(start_next).lower(state, key, parts)

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
    """Return the seed of one group of environments, a different one for every agent's seed, update and group."""
    return int(np.random.SeedSequence([int(seed), updates, part]).generate_state(1)[0] >> 2)


def _stacked(trees: list[Any]) -> Any:
    """Stack the trees of all agents to one tree of arrays `[R, ...]`."""
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)
