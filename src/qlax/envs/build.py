"""Make the environments of a run from its settings, in JAX or on the host."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qlax import envs, pqn
from qlax.config.environments import is_own
from qlax.config.settings import FIELDS, Config
from qlax.envs.bins import with_bins
from qlax.envs.vec import Vec
from qlax.envs.worker import Worker
from qlax.envs.wrappers import is_named
from qlax.errors import UserError, naming
from qlax.types import HostEnv, Network, PyTree, Step, strong


class Built(NamedTuple):
    """Environment to train or play in, with the shapes of its arrays.

    Attributes:
      config: The settings, completed by those that depend on the environment.
      env: The wrapped `Env`; or a `HostEnv` that is already closed, for its attributes.
      world: Shapes of the state of all N environments, `[N, ...]`; () on the host, where the state is hidden.
      step: Shapes of the first steps, `[N, M, ...]`.
      make_envs: Constructor of a `HostEnv` from its number of environments; None for an `Env`.
    """

    config: Config
    env: Any
    world: PyTree
    step: Step
    make_envs: Callable[[int], HostEnv] | None

    def copies(self, num_envs: int, reset_ratio: int | None = None) -> Vec | None:
        """Return a `Vec` of `num_envs` copies; None on the host.

        Args:
          num_envs: Number of copies.
          reset_ratio: See `Vec`; None for that of the settings.
        """
        if self.make_envs is not None:
            return None
        ratio = reset_ratio or self.config.reset_ratio
        return Vec(self.env, num_envs, reset_ratio=ratio, time_limit_is_terminal=self.config.time_limit_is_terminal)

    @property
    def evaluated(self) -> "Built":
        """The environment in which agents are evaluated."""
        return self._replace(env=getattr(self.env, "evaluated", self.env))

    def against_itself(self, network: Network) -> "Built":
        """Give the learner's network to an environment in which the agent plays against a copy of itself.

        Other environments are returned unchanged.

        Raises:
          UserError: The environment plays against itself and has wrappers.
        """
        if not hasattr(self.env, "with_network"):
            return self
        config = self.config
        if config.wrappers:
            wrappers = ", ".join(config.wrappers)
            found = f"wrappers={wrappers}: {config.env} plays against itself"
            raise UserError(f"{found}, and the opponent would see unwrapped observations; leave wrappers out")
        with naming(f"environment {config.env!r} breaks its contract"):
            return _build_in_jax(config, self.env.with_network(network))


def build(config: Config) -> Built:
    """Make the environment that the settings name, and find the shapes of its first steps; nothing is compiled.

    Raises:
      UserError: The environment is unknown, not installed or breaks its contract, or a setting is not for this kind of
        environment.
      HostError: An environment on the host crashed or hangs.
    """
    config = dataclasses.replace(config, env=envs.spelled(config.env))
    make, on_host = envs.maker(config.env)
    here = "on the host" if on_host else "in JAX"
    for name, field in FIELDS.items():
        if field.metadata["world"] not in (None, here) and getattr(config, name) != field.default:
            raise UserError(f"{name} is for environments {field.metadata['world']}; {config.env} runs {here}")
    if on_host:
        return _build_on_host(config, make)
    own = make(**copy.deepcopy(config.env_options))
    env = envs.wrap(with_bins(own, config.bins, config.env, config.algorithm), config.wrappers)
    if is_own(config.env):
        return _build_in_jax(config, env)
    with envs.reported(f"{config.env} cannot be reset"):
        return _build_in_jax(config, env)


def _build_in_jax(config: Config, env: Any) -> Built:
    built = Built(config, env, (), (), None)  # type: ignore[arg-type]
    copies: Any = built.copies(config.num_envs)
    world, step = jax.eval_shape(copies.reset, jax.random.key(0))
    return built._replace(config=config.derive(reset_ratio=copies.reset_ratio), world=world, step=step)


def _build_on_host(config: Config, make: Callable[..., HostEnv]) -> Built:
    for name in ("num_envs", "wrappers"):
        if name in config.env_options:
            raise UserError(f"{name} is a setting, not an option of the environment; use --{name.replace('_', '-')}")
    options = dict(config.env_options)
    for name in config.wrappers:
        if is_named(name) or not config.env.startswith("gymnasium/"):
            where = "" if is_named(name) else " and of gymnasium"
            raise UserError(f"wrapper {name} is for environments in JAX{where}, but {config.env} runs on the host")
        options["wrappers"] = config.wrappers

    def make_envs(num_envs: int) -> HostEnv:
        env = make(num_envs=num_envs, **copy.deepcopy(options))  # an environment may change its lists
        return with_bins(env, config.bins, config.env, config.algorithm)

    worker = Worker(config.env, make_envs, 2, device=jax.devices()[0], timeout=config.host_timeout)
    try:
        worker.check()
        step, _ = worker.result()
    finally:
        worker.close()
    step = jax.tree.map(lambda x: jax.ShapeDtypeStruct((config.num_envs, *x.shape[1:]), x.dtype), step)
    return Built(config, worker.env, (), step, make_envs)


def shared_at(env: Any, num_updates: int) -> Callable[[pqn.TrainState], pqn.TrainState]:
    """Return the function that brings `shared` up to date before an update.

    Args:
      env: The environment.
      num_updates: Number of updates of the whole run.

    Returns:
      Function from the state before an update to the state with `shared` for this part of the run; the identity if the
      environment's `shared` never changes.
    """
    if not (hasattr(env, "shared_at") or hasattr(env, "shared_after")):
        return lambda state: state

    def share(state: pqn.TrainState) -> pqn.TrainState:
        progress, variables = state.updates.astype(jnp.float32) / num_updates, {"params": state.params, **state.stats}
        shared = shared_by(env, state.env.shared, progress, variables)
        return state._replace(env=state.env._replace(shared=shared))

    return share


def shared_by(env: Any, shared: tuple[PyTree, ...], progress: jax.Array, variables: PyTree) -> tuple[PyTree, ...]:
    """Return what all copies share after a fraction of the training.

    Args:
      env: The environment.
      shared: The last arguments of `step` so far: one value, or none for an environment without `shared`.
      progress: Fraction of the training that is done, a float32 scalar.
      variables: Variables of the learner's network.

    Returns:
      The new last arguments of `step`.
    """
    if hasattr(env, "shared_at"):
        shared = (env.shared_at(progress),)
    elif hasattr(env, "shared_after"):
        shared = (env.shared_after(*shared, progress, variables),)
    return strong(shared)
