"""Environments of a run, from its settings: in JAX, or on the host."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qlax import envs, pqn
from qlax.config.settings import FIELDS, Config
from qlax.envs.vec import Vec
from qlax.envs.worker import Worker
from qlax.envs.wrappers import is_named
from qlax.errors import UserError
from qlax.types import HostEnv, Network, PyTree, Step, strong


class Built(NamedTuple):
    """What is trained or played in.

    Attributes:
      config: the settings, with those that the environment decides.
      env: an `Env` within its wrappers; of those on the host a `HostEnv` that is closed again.
      world: shapes of the state of all environments, `[N, ...]`; () on the host, which keeps it to itself.
      step: shapes of their first steps, `[N, M, ...]`.
      make_envs: makes so many environments on the host; None for an `Env`.
    """

    config: Config
    env: Any
    world: PyTree
    step: Step
    make_envs: Callable[[int], HostEnv] | None

    def copies(self, num_envs: int, reset_ratio: int | None = None) -> Vec | None:
        """So many copies of an `Env`, with the settings' `reset_ratio` unless another is given; None on the host."""
        if self.make_envs is not None:
            return None
        ratio = reset_ratio or self.config.reset_ratio
        return Vec(self.env, num_envs, reset_ratio=ratio, time_limit_is_terminal=self.config.time_limit_is_terminal)

    @property
    def evaluated(self) -> "Built":
        """The same, where agents are evaluated."""
        return self._replace(env=getattr(self.env, "evaluated", self.env))

    def against_itself(self, network: Network) -> "Built":
        """The same, where the environment asks for it with the learner's network as the opponent.

        Raises:
          UserError: such an environment is wrapped.
        """
        if not hasattr(self.env, "with_network"):
            return self
        config = self.config
        if config.wrappers:
            wrappers = ", ".join(config.wrappers)
            raise UserError(f"wrappers={wrappers}: {config.env} plays against itself, and would not be wrapped there")
        return _of_env(config, self.env.with_network(network))


def build(config: Config) -> Built:
    """Make what these settings name, and look at the first steps; nothing is compiled.

    Raises:
      UserError: unknown, not installed, it breaks its contract, or a setting is not for this kind of environment.
      HostError: environments on the host crashed or hang.
    """
    make, on_host = envs.maker(config.env)
    here = "on the host" if on_host else "in JAX"
    for name, field in FIELDS.items():
        if field.metadata["world"] not in (None, here) and getattr(config, name) != field.default:
            raise UserError(f"{name} is for environments {field.metadata['world']}; {config.env} runs {here}")
    if on_host:
        return _of_host(config, make)
    return _of_env(config, envs.wrap(make(**config.env_options), config.wrappers))


def _of_env(config: Config, env: Any) -> Built:
    built = Built(config, env, (), (), None)  # type: ignore[arg-type]
    copies: Any = built.copies(config.num_envs)
    world, step = jax.eval_shape(copies.reset, jax.random.key(0))
    return built._replace(config=config.derive(reset_ratio=copies.reset_ratio), world=world, step=step)


def _of_host(config: Config, make: Callable[..., HostEnv]) -> Built:
    for name in ("num_envs", "wrappers"):
        if name in config.env_options:
            raise UserError(f"{name} is no option of the environment but a setting: --{name.replace('_', '-')}")
    options = dict(config.env_options)
    for name in config.wrappers:
        if is_named(name) or not config.env.startswith("gymnasium/"):
            where = "" if is_named(name) else " and of gymnasium"
            raise UserError(f"wrapper {name} is for environments in JAX{where}, and {config.env} lives on the host")
        options["wrappers"] = config.wrappers

    def make_envs(num_envs: int) -> HostEnv:
        return make(num_envs=num_envs, **options)

    worker = Worker(config.env, make_envs, 2, device=jax.devices()[0], timeout=config.host_timeout)
    try:
        worker.check()
        step, _ = worker.result()
    finally:
        worker.close()
    step = jax.tree.map(lambda x: jax.ShapeDtypeStruct((config.num_envs, *x.shape[1:]), x.dtype), step)
    return Built(config, worker.env, (), step, make_envs)


def shared_at(env: Any, num_updates: int) -> Callable[[pqn.TrainState], pqn.TrainState]:
    """Before an update: what the copies share becomes what the environment wants it to be by then."""
    if not (hasattr(env, "shared_at") or hasattr(env, "shared_after")):
        return lambda state: state

    def share(state: pqn.TrainState) -> pqn.TrainState:
        progress, variables = state.updates.astype(jnp.float32) / num_updates, {"params": state.params, **state.stats}
        shared = shared_by(env, state.env.shared, progress, variables)
        return state._replace(env=state.env._replace(shared=shared))

    return share


def shared_by(env: Any, shared: tuple[PyTree, ...], progress: jax.Array, variables: PyTree) -> tuple[PyTree, ...]:
    """What the copies share when this fraction of training is done: the last arguments of `step`.

    Args:
      env: that they are copies of.
      shared: before.
      progress: float32 scalar.
      variables: of the learner's network.
    """
    if hasattr(env, "shared_at"):
        shared = (env.shared_at(progress),)
    elif hasattr(env, "shared_after"):
        shared = (env.shared_after(*shared, progress, variables),)
    return strong(shared)
