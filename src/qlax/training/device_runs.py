"""The runs of a program where their environments live: compiled whole on devices, or with a loop on the host.

Both give the trainer the same: states with the axis R first, chunks of updates, evaluations and copies.
"""

import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qlax.envs.worker import Worker
from qlax.play import host
from qlax.pqn import TrainState
from qlax.training import processes
from qlax.training.guard import Record, begun
from qlax.training.placement import compiler_options
from qlax.training.plan import Program
from qlax.types import PyTree


class Evaluation(NamedTuple):
    """Greedy episodes that were asked for.

    Attributes:
      wait: for what they came to, `[R, E]` each; None if the run was stopped meanwhile.
      returns: of them, on the devices, `[R, ...]`; None on the host.
    """

    wait: Callable[[], dict[str, np.ndarray] | None]
    returns: Any


class DeviceRuns:
    """All runs in one program; calls return before the device has done what they ask for.

    Args:
      program: what they compute.
      initial: variables of the network to begin with, `[R, ...]`; () for new ones.

    Attributes:
      num_devices: used.
      waited: nothing.
    """

    asynchronous = True

    def __init__(self, program: Program, initial: PyTree):
        self._program, self._initial = program, initial
        self._placement = program.placement
        self.num_devices = self._placement.num_devices
        self.waited: dict[str, float] = {}
        self._together = jax.jit(lambda tree: tree, out_shardings=self._placement.whole)

    def __str__(self) -> str:
        return str(self._placement)

    def compile(self) -> None:
        """Everything, for as many runs at once as the memory holds."""
        self._compile()
        while not self._placement.fit(self._chunk):
            self._compile()

    def begin(self, restored: TrainState | None) -> TrainState:
        """The state before the first update, or the one that was saved."""
        program, placement = self._program, self._placement
        if restored is not None:
            return placement.put(restored, program.where)
        return self._start(*placement.put((program.seeds, program.hyper, self._initial), placement.runs))

    def record(self, saved: Record) -> Record:
        """Where `chunk` wants it."""
        return self._placement.put(saved, self._placement.runs)

    def gathered(self, tree: PyTree) -> PyTree:
        """The same of all runs where this process can read it, asked for before a chunk takes its memory."""
        return self._together(tree) if processes.are_several() else tree

    def votes(self, *values: int) -> Callable[[], np.ndarray]:
        """What every process says at this point of the run, `[processes, values]`, once it is waited for."""
        n, here = self.num_devices, np.array([values], np.int32)
        if not processes.are_several():
            return lambda: here
        each = jax.make_array_from_callback((n, len(values)), self._placement.each, lambda _: here)
        dispatched = self._together(each)
        return lambda: np.asarray(dispatched)[:: n // jax.process_count()]

    def chunk(self, state: TrainState, record: Record, num_updates: int, fresh: bool) -> tuple[TrainState, Record]:
        """So many updates; takes the memory of `state`. The sums of `record` begin at zero if `fresh`."""
        return self._chunk(state, record, num_updates, fresh)

    def evaluate(self, state: TrainState) -> Evaluation:
        """Greedy episodes, asked for before `state` is taken by the next chunk."""
        evaluation = self._evaluate(state, self._seeds)
        dispatched = self.gathered(evaluation)
        episodes = self._program.config.eval_episodes
        return Evaluation(
            lambda: jax.tree.map(lambda x: x[:, :episodes], jax.device_get(dispatched)), evaluation["episode_return"]
        )

    def variables(self, state: TrainState) -> PyTree:
        """The network's, in memory that no chunk takes."""
        return self.gathered(self._variables(state))

    def copy(self, state: TrainState) -> TrainState:
        """A snapshot."""
        return self.gathered(self._copy(state))

    def close(self) -> None:
        """Nothing to give back."""

    def _compile(self) -> None:
        """At the same time: XLA is on one core most of the time."""
        program, placement = self._program, self._placement
        state, runs = program.where, placement.runs
        self._seeds = placement.put(program.seeds, runs)
        with _pool() as pool:

            def compiled(function, *shapes, **options):
                return pool.submit(placement.compile, placement.lower(function, *shapes, **options))

            of_state = {"arguments": (state,)}
            chunk = pool.submit(placement.compile, self.lowered_chunk())
            evaluate = compiled(
                program.evaluate, program.shapes, program.seeds, arguments=(state, runs), result=placement.split
            )
            start = compiled(program.start, program.seeds, program.hyper, self._initial, result=state)
            copy = compiled(lambda state: jax.tree.map(jnp.copy, state), program.shapes, **of_state, result=state)
            variables = compiled(lambda state: jax.tree.map(jnp.copy, variables_of(state)), program.shapes, **of_state)
            futures = (start, chunk, evaluate, copy, variables)
            self._start, self._chunk, self._evaluate, self._copy, self._variables = (f.result() for f in futures)

    def lowered_chunk(self) -> Any:
        """What `chunk` computes, traced."""
        program, both = self._program, (self._program.where, self._placement.runs)
        return self._placement.lower(
            program.chunk,
            program.shapes,
            program.new_record(),
            arguments=both,
            result=both,
            shared=(0, False),
            donate=True,
        )


class HostRuns:
    """Runs that take turns, a chunk each: every run has environments of its own, and all share the evaluation's.

    Args:
      program: what they compute.
      initial: variables of the network to begin with, `[R, ...]`; () for new ones.
      stopped: whether the run is to be stopped.

    Attributes:
      num_devices: used.
      waited: seconds the loop waited for the environments and for the device.
    """

    asynchronous = False
    num_devices = 1

    def __init__(self, program: Program, initial: PyTree, stopped: Callable[[], bool]):
        self._program, self._initial, self._stopped = program, initial, stopped
        self._compiled: Any = None
        self._act_in_evaluation: Any = None
        self._workers: list[list[Worker]] = []
        self._evaluator: Worker | None = None
        self._acting: dict[int, TrainState] = {}  # where collecting and learning overlap, what acts next
        self._waits = host.Waits()

    def __str__(self) -> str:
        return "in turns, as their environments live on the host" if len(self._program.seeds) > 1 else ""

    @property
    def waited(self) -> dict[str, float]:
        """Seconds the loop waited, by the names of the summary."""
        return {f"waited_for_{name}_seconds": seconds for name, seconds in self._waits.seconds.items()}

    def compile(self) -> None:
        """Everything, at the same time."""
        functions, config = self._program.host_functions, self._program.config
        state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), self._program.shapes)
        key, parts = jax.eval_shape(functions.begin, state)
        parameters = host.frozen(state)
        _, decision = jax.eval_shape(functions.act, parameters, parts[0])
        before = parameters._replace(step=parts[0].step)
        seen = jax.eval_shape(
            lambda *of_step: self._program.algorithm.observe(*of_step)[1], before, decision, (), before.step
        )
        rows = config.eval_episodes
        in_evaluation = parts[0]._replace(
            step=jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), parts[0].step),
            memory=jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), parts[0].memory),
        )
        options = compiler_options(jax.default_backend(), config.deterministic)
        with _pool() as pool:

            def compiled(function, *arguments):
                return pool.submit(jax.jit(function).lower(*arguments).compile, options)

            record = jax.tree.map(lambda x: x[0], self._program.new_record())
            learn = compiled(functions.learn, state, record, key, parts, [seen] * (config.num_steps * len(parts)))
            act = compiled(functions.act, parameters, parts[0])
            act_in_evaluation = compiled(functions.act, parameters, in_evaluation)
            begin = compiled(functions.begin, state)
            named = {"begin": begin, "act": act, "learn": learn}
            if config.overlap:
                named["go_on"] = compiled(functions.go_on, state, key, parts)
            self._compiled = types.SimpleNamespace(**{name: future.result() for name, future in named.items()})
            self._act_in_evaluation = act_in_evaluation.result()

    def begin(self, restored: TrainState | None) -> TrainState:
        """The state before the first update, or the one that was saved with new episodes in place of its own."""
        program, config = self._program, self._program.config
        parts = host.sizes(config.num_envs)
        self._workers = [[self._worker(size) for size in parts] for _ in program.seeds]
        self._evaluator = self._worker(config.eval_episodes)
        states = []
        for run, (seed, workers) in enumerate(zip(program.seeds, self._workers, strict=True)):
            updates = 0 if restored is None else int(restored.updates[run])
            for index, worker in enumerate(workers):
                worker.reset(_seed(seed, updates, index))
            steps = [worker.result()[0] for worker in workers]
            step = jax.tree.map(lambda *x: jnp.concatenate(x), *steps)
            if restored is None:
                hyper, variables = jax.tree.map(lambda x, run=run: x[run], (program.hyper, self._initial))
                states.append(jax.jit(program.algorithm.init)(jax.random.key(seed), hyper, step, (), variables))
            else:
                state = jax.tree.map(lambda x, run=run: x[run], restored)
                memory = jax.tree.map(jnp.zeros_like, state.memory)
                states.append(state._replace(step=host.first_steps(step), memory=memory))
        return _together(states)

    def record(self, saved: Record) -> Record:
        """Where `chunk` wants it."""
        return jax.device_put(saved)

    def gathered(self, tree: PyTree) -> PyTree:
        """The same: nothing takes its memory."""
        return tree

    def votes(self, *values: int) -> Callable[[], np.ndarray]:
        """What this process says, as there is no other."""
        return lambda: np.array([values])

    def chunk(self, state: TrainState, record: Record, num_updates: int, fresh: bool) -> tuple[TrainState, Record]:
        """So many updates of every run; the sums of `record` begin at zero if `fresh`.

        Raises:
          HostError: environments crashed or hang; `state` is still there.
        """
        program, compiled, num_steps = self._program, self._compiled, self._program.config.num_steps
        states, records = [], []
        for run, workers in enumerate(self._workers):
            one, seen_of_one = jax.tree.map(lambda x, run=run: x[run], (state, begun(record, fresh)))
            acting = self._acting.get(run, one)  # whose parameters the rollout is collected with
            for _ in range(num_updates):
                key, parts, seen = host.collect(compiled, program.algorithm, num_steps, workers, acting, self._waits)
                if program.config.overlap:
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
        program = self._program

        def play() -> dict[str, np.ndarray] | None:
            played = []
            for run, seed in enumerate(program.seeds):
                one = jax.tree.map(lambda x, run=run: x[run], state)
                episodes = _seed(seed, int(one.updates), len(host.sizes(program.config.num_envs)))
                max_steps = program.config.eval_max_steps
                assert self._evaluator is not None
                assert max_steps is not None
                metrics = host.evaluate(
                    self._act_in_evaluation, self._evaluator, one, episodes, max_steps, self._stopped
                )
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

    def _worker(self, num_envs: int) -> Worker:
        config = self._program.config
        return Worker(
            config.env,
            self._program.make_envs,  # type: ignore[arg-type]
            num_envs,
            device=jax.devices()[0],
            timeout=config.host_timeout,
            time_limit_is_terminal=config.time_limit_is_terminal,
        )


def _seed(seed: int, updates: int, part: int) -> int:
    """Of the environments of a part; those of other runs, parts and points of training are independent."""
    return int(np.random.SeedSequence([int(seed), updates, part]).generate_state(1)[0] >> 2)


def variables_of(state: TrainState) -> PyTree:
    """The network's variables, as it takes them."""
    return {"params": state.params, **state.stats}


@contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    """Threads to compile on; who leaves in a hurry does not wait for them."""
    pool = ThreadPoolExecutor()
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _together(trees: list[Any]) -> Any:
    """Of every run, `[R, ...]`."""
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)
