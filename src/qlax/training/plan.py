"""What a configuration means: its environments, network and the functions that a run compiles."""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qlax import pqn
from qlax.config.settings import FIELDS, Config, fields_where
from qlax.envs import build
from qlax.envs.vec import VecState
from qlax.errors import UserError, nearest
from qlax.mixing import INDEPENDENT, VDN
from qlax.networks import qnetwork
from qlax.play import evaluation, host
from qlax.training import guard
from qlax.training.placement import DATA, Placement, everywhere
from qlax.types import PyTree, Step

NETWORK_FIELDS = [name for name in fields_where(group="network") if name != "network"]  # of qlax's own
MIXINGS = {"sum": VDN, "none": INDEPENDENT}
PLUGINS = ("optimizer", "explore", "loss", "returns", "mixing")


class Intervals(NamedTuple):
    """In updates; the first divides the others."""

    log: int
    evaluation: int
    checkpoint: int


class Program:
    """Everything of a run that is decided before it begins; checks it all, compiles and writes nothing.

    Attributes:
      on_host: whether the environments live on the host.
      placement: of the runs on the devices.
      where: of each part of the state of all runs, its sharding.
      shapes: of the state of all runs, `[R, ...]`.
      part: shapes of the state of one run as one device has it, with its part of the environments.
      variables: shapes of those of the network, of all runs.
      network: that of all runs.
    """

    def __init__(self, config: Config, plugins: dict[str, Any]):
        for name in plugins:
            if name not in PLUGINS:
                raise UserError(f"unknown plugin {name!r}{nearest(name, PLUGINS)}; plugins: {', '.join(PLUGINS)}")
        self.config = config
        self.plugins = {name: _where(plugin) for name, plugin in plugins.items()}
        built = build.build(config)
        self.make_envs, self.on_host = built.make_envs, built.make_envs is not None
        env, step, config = built.env, built.step, built.config
        most_devices = config.devices
        if not all(leaf.size for leaf in jax.tree.leaves((built.world, step))):
            # XLA of JAX 0.11 ends the process where arrays without elements are mapped over devices.
            if jax.process_count() > 1:
                raise UserError(f"{config.env} has arrays without elements, and trains in one process only")
            most_devices = 1
        observation = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[2:], x.dtype), step.obs)
        if config.network is None:
            config = config.derive(encoder=qnetwork.default_encoder(observation))
            encoder = qnetwork.checked_encoder(config.encoder, observation)
            config = config.derive(hidden=qnetwork.HIDDEN[encoder])
            self.description = {name: getattr(config, name) for name in NETWORK_FIELDS}
            self.description["hidden"] = list(self.description["hidden"])
        else:
            for name in NETWORK_FIELDS:
                if getattr(config, name) != FIELDS[name].default:
                    raise UserError(f"{name} is for qlax's own network; it has no effect on {config.network!r}")
            self.description = {"network": config.network}
        network = qnetwork.build(self.description, env.num_actions)
        with self._contract():
            has_statistics = config.network is not None and len(_collections(network, step)) > 1
        self.placement = self._placed(config, most_devices, network.recurrent, has_statistics)
        num_envs = config.num_envs // self.placement.parts  # of a run on a device
        self._axis_name = axis_name = DATA if self.placement.parts > 1 else None
        if axis_name is not None:
            network = qnetwork.build(self.description, env.num_actions, axis_name)
        built = built._replace(config=config).against_itself(network)
        env = built.env
        self.vec: Any = built.copies(num_envs)
        self.config = config = config.with_intervals(getattr(env, "time_limit", None), self.on_host)
        if config.population != "none" and config.eval_interval >= config.num_updates:  # type: ignore[operator]
            raise UserError(
                f"population={config.population}: nothing would be exchanged, as eval_interval={config.eval_interval} "
                f"and the run has {config.num_updates} updates; say a lower eval_interval, or train longer"
            )
        sizes = {name: getattr(config, name) for name in pqn.Shape._fields} | {"num_envs": num_envs}
        if "mixing" in plugins and config.mixing != FIELDS["mixing"].default:
            raise UserError(f"mixing={config.mixing} and the plugin mixing exclude each other; leave one out")
        mixing = {"mixing": MIXINGS[config.mixing]}
        self.algorithm = pqn.make(self.vec, network, pqn.Shape(**sizes), axis_name=axis_name, **(mixing | plugins))
        self.network = network
        self._share = build.shared_at(env, config.num_updates)
        self._learn, self._measure = guard.make(self.algorithm, network, axis_name)
        self.host_functions = host.DeviceFunctions(self.algorithm, self._learn, config.num_envs, config.num_steps)
        # jit: traced once for all that is made of it.
        self._rollout = jax.jit(self.host_functions.standing_still if self.on_host else self.algorithm.rollout)
        dealt: Any = self.placement.runs
        split: Any = self.placement.split
        of_env = () if self.on_host else VecState(copies=split, shared=dealt)
        self.where = pqn.TrainState(dealt, dealt, dealt, of_env, split, split, dealt, dealt, dealt)
        self.update = jax.vmap(self._update)
        self.score: Callable[[float], float] | None = getattr(env, "score", None)
        self.intervals = Intervals(config.log_interval, config.eval_interval, config.checkpoint_interval)  # type: ignore[arg-type]
        if not self.on_host:
            # One fresh episode a step has to do: nobody looks at what follows the first.
            episodes = -(-config.eval_episodes // self.placement.parts)
            played: Any = built._replace(env=getattr(env, "evaluated", env)).copies(episodes, reset_ratio=episodes)
            self._evaluate = evaluation.make(self.algorithm, played, config.eval_max_steps)  # type: ignore[arg-type]
        runs = config.members
        self.agent_info = {
            "env": config.env,
            "env_options": config.env_options,
            "wrappers": list(config.wrappers),
            "network": self.description,
            "num_actions": int(env.num_actions),
            "obs": [[str(leaf.dtype), list(leaf.shape)] for leaf in jax.tree.leaves(observation)],
            "obs_paths": [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(observation)],
        }
        self.seeds = np.array([run["seed"] for run in runs], np.uint32)
        self.hyper = pqn.Hyper(**{name: _floats(run[name] for run in runs) for name in pqn.Hyper._fields})
        with self._contract():
            self.shapes = self._shapes(step)
            self.part = jax.tree.map(
                lambda x, sharding: jax.ShapeDtypeStruct(sharding.shard_shape(x.shape)[1:], x.dtype),
                self.shapes,
                everywhere(self.where, self.shapes),
            )
            self._sums = self._measures()
        self.variables = {"params": self.shapes.params, **self.shapes.stats}

    def _placed(self, config: Config, most_devices: int | None, recurrent: bool, has_statistics: bool) -> Placement:
        """Where the runs of this configuration are computed.

        Args:
          config: of the runs.
          most_devices: of each process; None: all.
          recurrent: whether the network is.
          has_statistics: of the user's own, which it does not know to share with other devices.

        Raises:
          UserError: in several processes, and they cannot share the work.
        """
        segments = config.num_envs * (1 if recurrent else config.num_steps)

        def splits(parts: int) -> bool:
            if has_statistics or segments % config.num_minibatches:
                return False
            sizes = (config.num_envs // (config.reset_ratio or 1), segments // config.num_minibatches)
            return config.num_envs % parts == 0 and all(size % parts == 0 for size in sizes)

        if not self.on_host:
            return Placement(config.num_members, splits, most_devices, config.deterministic)
        if jax.process_count() > 1:
            raise UserError(
                f"the environments of {config.env} live on the host, and cannot be split over processes; "
                "train seeds or games in jobs of their own: qlax sweep, with --on ray"
            )
        return Placement(1, devices=1)

    def _shapes(self, step: Step) -> pqn.TrainState:
        """Of the state of all runs, whose environments show `step` first."""
        runs = (self.seeds, self.hyper)
        if not self.on_host:
            where = self.placement.runs
            return jax.eval_shape(self.placement.spread(self.start, (where, where, where), self.where), *runs, ())
        init = self.algorithm.init
        return jax.eval_shape(
            jax.vmap(lambda seed, hyper, step: init(jax.random.key(seed), hyper, step), (0, 0, None)), *runs, step
        )

    def _measures(self) -> dict[str, pqn.Mean]:
        """Shapes of what an update of all runs measures."""

        def measured(state):
            return jax.vmap(lambda one: self._measure(*self._rollout(self._share(one)))[1])(state)

        if self.on_host:
            return jax.eval_shape(measured, self.shapes)
        return jax.eval_shape(self.placement.spread(measured, (self.where,), self.placement.runs), self.shapes)

    def _own(self, key: jax.Array) -> jax.Array:
        """The key of this device's part of the environments."""
        return key if self._axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(self._axis_name))

    @contextmanager
    def _contract(self) -> Iterator[None]:
        """Whatever goes wrong within is said of the network or the plug-ins, where they are the user's."""
        try:
            yield
        except Exception as error:
            if self.config.network is None and not self.plugins:
                raise
            network, plugins = self.config.network, " and ".join(self.plugins)
            what = f"network {network!r}" if network is not None else f"plugin {plugins}"
            where = "qlax.Network" if network is not None else "qlax.pqn.make"
            first_line = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"{what} breaks its contract, see {where}: {first_line}") from error

    def start(self, seeds: jax.Array, hyper: pqn.Hyper, variables: PyTree) -> pqn.TrainState:
        """States of runs before the first update.

        Args:
          seeds: `[R]` uint32.
          hyper: each `[R]`.
          variables: of the network, `[R, ...]`; () for new ones.
        """

        def one(seed, hyper, variables):
            key_env, key_init, _ = _keys(seed)
            env_state, step = self.vec.reset(self._own(key_env))
            return self.algorithm.init(key_init, hyper, step, env_state, variables)

        return jax.vmap(one)(seeds, hyper, variables)

    def new_record(self) -> guard.Record:
        """Of all runs, `[R, ...]`, before the first update."""
        return guard.empty(self._sums, len(self.seeds))

    def _update(self, state: pqn.TrainState, seen: guard.Record) -> tuple[pqn.TrainState, guard.Record]:
        """One update of one run."""
        state, rollout = self._rollout(self._share(state))
        return self._learn(state, seen, rollout)

    def chunk(
        self, state: pqn.TrainState, seen: guard.Record, num_updates: jax.Array, fresh: jax.Array
    ) -> tuple[pqn.TrainState, guard.Record]:
        """So many updates of all runs.

        The number is not static, so chunks of any length are the same program: one compilation, and the same bits.

        Args:
          state: of the runs, `[R, ...]`.
          seen: what was measured so far, `[R, ...]`.
          num_updates: int32.
          fresh: bool, whether a new line of metrics begins.
        """
        carry = (state, guard.begun(seen, fresh))
        return jax.lax.fori_loop(0, num_updates, lambda _, carry: self.update(*carry), carry)

    def evaluate(self, state: pqn.TrainState, seeds: jax.Array) -> dict[str, jax.Array]:
        """Greedy episodes of runs given by state and seed, `[R, E]`; some more where the devices do not divide E.

        The same worlds whenever the same number of updates is done.
        """

        def one(state, seed):
            _, _, key = _keys(seed)
            return self._evaluate(self._own(jax.random.fold_in(key, state.updates)), state)

        return jax.vmap(one)(state, seeds)


def _floats(values: Iterable[float]) -> jax.Array:
    return jnp.array(list(values), jnp.float32)


def _where(plugin: Any) -> str:
    """Where a plug-in was defined: what a checkpoint remembers of it."""
    if isinstance(plugin, tuple):
        return ", ".join(_where(part) for part in plugin)
    if isinstance(plugin, functools.partial):
        return f"{_where(plugin.func)} with {plugin.args} {plugin.keywords}"
    return f"{plugin.__module__}.{getattr(plugin, '__qualname__', type(plugin).__qualname__)}"


def _keys(seed: jax.Array) -> jax.Array:
    """For the environments, for the learner and for the evaluation."""
    return jax.random.split(jax.random.key(seed), 3)


def _collections(network: Any, step: Step) -> list[str]:
    """Of the network's variables, for what the environments show first."""
    n, m = jax.tree.leaves(step.obs)[0].shape[:2]
    obs = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, n * m, *x.shape[2:]), x.dtype), step.obs)

    def init(obs):
        first = jnp.ones((1, n * m), bool)
        return network.init(jax.random.key(0), network.initial_memory(n * m), obs, first, False)

    return list(jax.eval_shape(init, obs))
