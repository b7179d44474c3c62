"""Plan of a run: environments, network, placement and algorithm, decided before anything is compiled."""

import functools
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qlax import pqn, pqn_continuous
from qlax.config.intervals import with_intervals
from qlax.config.settings import FIELDS, Config, fields_where
from qlax.envs import build
from qlax.envs.build import Built
from qlax.envs.vec import Vec, VecState
from qlax.errors import UserError, naming, nearest
from qlax.learning import gradients
from qlax.learning.mixing import INDEPENDENT, MEAN, VDN
from qlax.learning.returns import q_lambda, q_lambda_at_once
from qlax.networks import qnetwork
from qlax.networks.names import ENCODERS, HEADS
from qlax.playing import host
from qlax.pqn import PQN, Rollout, TrainState
from qlax.training import contracts, guard, vector
from qlax.training.guard import Learn, Measure
from qlax.training.placement import GPU_OPTIONS, Placement
from qlax.types import HostEnv, Network, PyTree, Step

NETWORK_FIELDS = [name for name in fields_where(group="network") if name != "network"]  # for qlax's own network
MIXINGS = {"sum": VDN, "mean": MEAN, "none": INDEPENDENT}
PAGES: dict[str, Any] = {"pqn": pqn, "pqn-continuous": pqn_continuous}
PLUGINS = ("optimizer", "explore", "loss", "returns", "mixing")

Act = Callable[[TrainState], tuple[TrainState, Rollout]]


@dataclass(frozen=True, eq=False)
class Plan:
    """Decisions about a run of R agents, each with N environments, of which n are on one device.

    Attributes:
      config: All settings, derived ones included.
      plugins: Module and name of every part of the algorithm that is the user's own, as checkpoints record it.
      env: Environment to train in: an `Env`, or a `HostEnv` that is already closed.
      make_envs: Function that makes a given number of environments on the host; None for an `Env`.
      vec: The n copies to train in; None on the host.
      played: The copies on each device in which agents are evaluated; None on the host.
      network: Network of the agents.
      description: Description from which a saved agent builds its network again.
      placement: Placement of the agents on the devices.
      algorithm: Functions of one agent with n environments.
      rollout: Function of one agent, `state -> state, Rollout [T, n, ...]`. On the host it is only traced.
      learn: Function that learns from a rollout, guarded against divergence and recorded, see `qlax.training.guard`.
      seeds: Random seeds, `[R]` uint32.
      hyper: The algorithm's `Hyper`, float32 arrays `[R]`.
      shapes: Shapes of the state of all agents, `[R, ...]`.
      where: Sharding of each part of the state.
      sums: Shapes of the measurements of an update, `[R]` each.
    """

    config: Config
    plugins: dict[str, str]
    env: Any
    make_envs: Callable[[int], HostEnv] | None
    vec: Vec | None
    played: Vec | None
    network: Network
    description: dict[str, Any]
    placement: Placement
    algorithm: PQN
    rollout: Act
    learn: Learn
    seeds: np.ndarray
    hyper: Any
    shapes: TrainState
    where: TrainState
    sums: dict[str, pqn.Mean]

    @property
    def agent_info(self) -> dict[str, Any]:
        """Description saved with the weights of every agent, so that it acts and plays without the run."""
        observation = jax.tree_util.tree_leaves_with_path(self.shapes.step.obs)  # [R, N, M, ...]
        described = getattr(self.env, "described_spaces", None)
        dimensions = getattr(self.env, "action_dimensions", None)
        return {
            "env": self.config.env,
            "env_options": self.config.env_options,
            "wrappers": list(self.config.wrappers),
            "network": self.description,
            "num_actions": _sizes(self.env)[0],
            **({} if dimensions is None else {"action_dimensions": int(dimensions)}),
            "obs": [[str(leaf.dtype), list(leaf.shape[3:])] for _, leaf in observation],
            "obs_paths": [jax.tree_util.keystr(path) for path, _ in observation],
            **({} if described is None else {"spaces": described}),
        }

    @property
    def advice(self) -> list[str]:
        """Lines about settings that may give wrong values, to print when training begins."""
        limit = getattr(self.env, "time_limit", None)
        shows_time = any("TimeAwareObservation" in name for name in self.config.wrappers)  # Gymnasium's
        if limit is None or self.config.time_limit_is_terminal or not (self.network.recurrent or shows_time):
            return []
        knows = "the network has a memory" if self.network.recurrent else "observations show the time"
        seen = "histories" if self.network.recurrent else "observations"
        return [
            f"{knows}, and episodes are cut after {limit:,} steps: values at the limit come from {seen} that are never "
            "trained, and may grow too large; --time-limit-is-terminal avoids this"
        ]

    def precision(self) -> AbstractContextManager[None]:
        """Set the precision of matrix products in programs that are traced within the context."""
        asked = self.config.matmul_precision
        return nullcontext() if asked == "default" else jax.default_matmul_precision(asked)

    def new_record(self) -> guard.Record:
        """Return the empty record of all agents, `[R, ...]`, for the time before the first update."""
        return guard.empty(self.sums, len(self.seeds))


def make(config: Config, plugins: dict[str, Any]) -> Plan:
    """Plan a run and check it; nothing is compiled or written.

    Args:
      config: Settings of the run.
      plugins: The user's own parts of the algorithm, by their names as arguments of `qlax.pqn.make`.

    Raises:
      UserError: Settings do not fit, or the user's environment, network or parts break their contract.
      HostError: Environments on the host crashed or hang.
    """
    sources = _sources(config, plugins)
    built = build.build(config)
    config, description = _described(built.config, built.step, built.env)
    sizes = _sizes(built.env)
    network = qnetwork.build(description, *sizes)
    with contract(config, sources):
        if config.network is not None:
            contracts.check_network(config.network, network, built.step, *sizes)
        statistics_of_its_own = config.network is not None and len(_collections(network, built.step)) > 1
    placement = _placement(config, built, network.recurrent, statistics_of_its_own)
    if placement.axis_name is not None:
        network = qnetwork.build(description, *sizes, placement.axis_name)
    built = built.against_itself(network)
    config = with_intervals(config, getattr(built.env, "time_limit", None), built.make_envs is not None)
    _check_population(config)
    vec = built.copies(config.num_envs // placement.parts)
    episodes = -(
        -config.eval_episodes // placement.parts
    )  # only one new episode is made per step: the first of each counts
    algorithm = _algorithm(config, vec, network, placement, plugins)
    rollout = _rollout(algorithm, vec, config, build.shared_at(built.env, config.num_updates))
    seeds = np.array([agent["seed"] for agent in config.members], np.uint32)
    page = PAGES[config.algorithm]
    names = page.Hyper._fields
    hyper = page.Hyper(**{name: jnp.array([agent[name] for agent in config.members], jnp.float32) for name in names})
    where = _where(placement, built)
    with contract(config, sources):
        # The value of a continuous action is that of a single one.
        contracts.check_parts(plugins, built.step, *(sizes if page is pqn else (1, None)), config.num_steps)
        shapes = _shapes(algorithm, built, seeds, hyper)
        learned = shapes.params, shapes.opt_state
        of_one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), learned)
        optimizer = plugins.get("optimizer", gradients.OPTIMIZERS[config.optimizer])
        form = vector.chosen(placement.platform, optimizer, *of_one) if page is pqn else vector.USUAL
        is_usual = form is vector.USUAL
        learner = algorithm if is_usual else _algorithm(config, vec, form.network(network), placement, plugins)
        learn, measure = guard.make(learner, network, placement.axis_name, form)
        sums = _sums(rollout, measure, shapes, None if vec is None else placement, where)
    return Plan(
        config=config,
        plugins=sources,
        env=built.env,
        make_envs=built.make_envs,
        vec=vec,
        played=built.evaluated.copies(episodes, reset_ratio=episodes),
        network=network,
        description=description,
        placement=placement,
        algorithm=algorithm,
        rollout=rollout,
        learn=learn,
        seeds=seeds,
        hyper=hyper,
        shapes=shapes,
        where=where,
        sums=sums,
    )


def variables_of(state: TrainState) -> PyTree:
    """Return the variables of the network, as `Network.apply` takes them."""
    return {"params": state.params, **state.stats}


def _sources(config: Config, plugins: dict[str, Any]) -> dict[str, str]:
    """Return module and name of every part of the algorithm that is the user's own."""
    for name in plugins:
        if name not in PLUGINS:
            raise UserError(
                f"unknown part of the algorithm {name!r}{nearest(name, PLUGINS)}; expected one of {', '.join(PLUGINS)}"
            )
    if "explore" in plugins and config.algorithm != "pqn":
        raise UserError(f"explore is for algorithm=pqn, but algorithm={config.algorithm}; leave one out")
    for name, own in (("mixing", "a qlax.Mixing"), ("optimizer", "an optimiser of your own")):
        if name in plugins and getattr(config, name) != FIELDS[name].default:
            raise UserError(f"{name}={getattr(config, name)} and {own} cannot be combined; leave one out")
    return {name: _source(plugin) for name, plugin in plugins.items()}


def _source(plugin: Any) -> str:
    if isinstance(plugin, tuple):
        return ", ".join(_source(part) for part in plugin)
    if isinstance(plugin, functools.partial):
        return f"{_source(plugin.func)} with {plugin.args} {plugin.keywords}"
    return f"{plugin.__module__}.{getattr(plugin, '__qualname__', type(plugin).__qualname__)}"


def _described(config: Config, step: Step, env: Any) -> tuple[Config, dict[str, Any]]:
    """Choose encoder and widths that fit the observations of `step`, unless they were given.

    Returns:
      The settings with the choice, and the description from which the network is built."""
    if config.network is not None:
        for name in NETWORK_FIELDS:
            if getattr(config, name) != FIELDS[name].default:
                raise UserError(f"{name} is for qlax's own network; it has no effect on {config.network!r}")
        return config, {"network": config.network}
    observation = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[2:], x.dtype), step.obs)
    if config.algorithm != "pqn":
        qnetwork.default_encoder(observation)
        return _described_actor(config, env)
    config = config.derive(input_norm="none")
    config = config.derive(encoder=qnetwork.default_encoder(observation))
    config = config.derive(hidden=ENCODERS[qnetwork.checked_encoder(config.encoder, observation)].hidden)
    others = {f"head_{part}" for head, parts in HEADS.items() if head != config.head for part in parts}
    description = {name: getattr(config, name) for name in NETWORK_FIELDS if name not in others}
    return config, description | {"hidden": list(description["hidden"])}


def _described_actor(config: Config, env: Any) -> tuple[Config, dict[str, Any]]:
    """Return the settings with the widths chosen, and the description of the network, as `_described`."""
    config = config.derive(encoder="mlp", hidden=ENCODERS["mlp"].hidden, input_norm="running")
    config = config.derive(critic_hidden=config.hidden)
    low, high = (bound.tolist() for bound in env.action_bounds)
    names = ("critics", "norm", "input_norm", "reward_norm", "compute_dtype")
    widths = {name: list(getattr(config, name)) for name in ("hidden", "critic_hidden")}
    return config, {"low": low, "high": high, **widths, **{name: getattr(config, name) for name in names}}


def _sizes(env: Any) -> tuple[int, int | None]:
    """Return the number of actions, 0 if they are continuous, and that of their dimensions, if they have some."""
    return int(getattr(env, "num_actions", None) or 0), getattr(env, "action_dimensions", None)


def _placement(config: Config, built: Built, recurrent: bool, has_statistics: bool) -> Placement:
    """Return the placement of the agents on the devices.

    Args:
      config: Settings of the run.
      built: Environments of the run.
      recurrent: Whether the network has a memory.
      has_statistics: Whether the user's own network keeps statistics, which cannot be shared between devices.

    Raises:
      UserError: Several processes cannot share the work.
    """
    several = jax.process_count() > 1
    asked = tuple(name for name in GPU_OPTIONS if getattr(config, name))
    if built.make_envs is not None:
        if several:
            raise UserError(
                f"the environments of {config.env} run on the host and cannot be split over processes; train every "
                "seed or game in a job of its own: qlax sweep --on ray"
            )
        return Placement(1, devices=1, asked=asked)
    most_devices = config.devices
    if not all(leaf.size for leaf in jax.tree.leaves((built.world, built.step))):
        # XLA of JAX 0.11 ends the process where arrays without elements are mapped over devices.
        if several:
            raise UserError(
                f"{config.env} has arrays of size 0 in its state or observation, and trains in one process only: "
                "--num-processes 1"
            )
        most_devices = 1
    segments = config.num_envs * (1 if recurrent else config.num_steps)

    def splits(parts: int) -> bool:
        if has_statistics or segments % config.num_minibatches:
            return False
        sizes = (config.num_envs // (config.reset_ratio or 1), segments // config.num_minibatches)
        return config.num_envs % parts == 0 and all(size % parts == 0 for size in sizes)

    return Placement(config.num_members, splits, most_devices, asked)


def _check_population(config: Config) -> None:
    if config.population != "none" and config.eval_interval >= config.num_updates:  # type: ignore[operator]
        raise UserError(
            f"population={config.population}: agents are exchanged after evaluations during training, but "
            f"eval_interval={config.eval_interval} and the run has {config.num_updates} updates; choose a lower "
            "eval_interval, or train longer"
        )


def _algorithm(config: Config, vec: Vec | None, network: Network, placement: Placement, plugins: dict[str, Any]) -> PQN:
    sizes = {name: getattr(config, name) for name in pqn.Shape._fields}
    shape = pqn.Shape(**sizes | {"num_envs": config.num_envs // placement.parts})
    parts: dict[str, Any] = {
        "mixing": MIXINGS[config.mixing],
        "optimizer": gradients.OPTIMIZERS[config.optimizer],
        "returns": q_lambda_at_once if placement.platform == "gpu" else q_lambda,
    }
    parts |= {"greedy_target": config.greedy_target} if config.algorithm != "pqn" else {}
    return PAGES[config.algorithm].make(vec, network, shape, axis_name=placement.axis_name, **parts | plugins)


def _rollout(algorithm: PQN, vec: Vec | None, config: Config, share: Callable[[TrainState], TrainState]) -> Act:
    """Return the rollout of `Plan`; `jax.jit` has it traced only once for all its uses."""
    if vec is None:
        return jax.jit(functools.partial(host.standing_still, algorithm, config.num_steps))
    rollout = jax.jit(algorithm.rollout)
    return lambda state: rollout(share(state))


def _where(placement: Placement, built: Built) -> TrainState:
    """Return the sharding of each part of the state."""
    runs: Any = placement.runs
    split: Any = placement.split
    return TrainState(
        params=runs,
        stats=runs,
        opt_state=runs,
        env=built.world and VecState(copies=split, shared=runs),
        step=split,
        memory=split,
        updates=runs,
        key=runs,
        hyper=runs,
    )


def _shapes(algorithm: PQN, built: Built, seeds: np.ndarray, hyper: Any) -> TrainState:
    """Return the shapes of the state of all agents."""

    def of_one(seed, hyper, step, world):
        return algorithm.init(jax.random.key(seed), hyper, step, world)

    return jax.eval_shape(jax.vmap(of_one, (0, 0, None, None)), seeds, hyper, built.step, built.world)


def _sums(
    rollout: Act, measure: Measure, shapes: TrainState, placement: Placement | None, where: TrainState
) -> dict[str, pqn.Mean]:
    """Return the shapes of the measurements of an update, traced as the devices compute it."""
    measured = jax.vmap(lambda state: measure(*rollout(state))[1])
    if placement is not None:
        measured = placement.spread(measured, (where,), placement.runs)
    return jax.eval_shape(measured, shapes)


def contract(config: Config, sources: Iterable[str]) -> AbstractContextManager[None]:
    """Name the user's network, parts of the algorithm or environment in errors that come from their code.

    Args:
      config: Settings of the run.
      sources: Names of the parts of the algorithm that are the user's own.
    """
    names = [f"network {config.network!r}"] if config.network is not None else []
    names += [f"argument {name}" for name in sources]
    return naming(f"{' or '.join(names) or f'environment {config.env!r}'} breaks its contract")


def _collections(network: Network, step: Step) -> list[str]:
    """Return the names of the collections of the network's variables."""
    n, m = jax.tree.leaves(step.obs)[0].shape[:2]
    obs = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, n * m, *x.shape[2:]), x.dtype), step.obs)

    def init(obs):
        first = jnp.ones((1, n * m), bool)
        return network.init(jax.random.key(0), network.initial_memory(n * m), obs, first, False)

    return list(jax.eval_shape(init, obs))
