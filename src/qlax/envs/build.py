"""From the settings of a run to its environments."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from qlax import envs, pqn
from qlax.config.settings import Config
from qlax.envs.worker import Worker
from qlax.envs.wrappers import is_named
from qlax.errors import UserError
from qlax.types import HostEnv, PyTree, Step, strong


def host_maker(config: Config) -> Callable[[int], HostEnv]:
    """Makes so many environments of a run on the host; refuses what only environments in JAX have."""
    if config.reset_ratio is not None:
        raise UserError(f"reset_ratio is for environments in JAX; those of {config.env} reset themselves")
    for name in ("num_envs", "wrappers"):
        if name in config.env_options:
            raise UserError(f"{name} is no option of the environment but a setting: --{name.replace('_', '-')}")
    options = dict(config.env_options)
    for name in config.wrappers:
        if is_named(name) or not config.env.startswith("gymnasium/"):
            where = "" if is_named(name) else " and of gymnasium"
            raise UserError(f"wrapper {name} is for environments in JAX{where}, and {config.env} lives on the host")
        options["wrappers"] = config.wrappers
    return lambda num_envs: envs.make(config.env, num_envs=num_envs, **options)


def against_itself(env: Any, network: Any, config: Config) -> Any:
    """The environment that plays with the learner's network.

    Raises:
      UserError: it is wrapped.
    """
    if config.wrappers:
        wrappers = ", ".join(config.wrappers)
        raise UserError(f"wrappers={wrappers}: {config.env} plays against itself, and would not be wrapped there")
    return env.with_network(network)


def examined(config: Config, make_envs: Callable[[int], HostEnv]) -> tuple[HostEnv, Step]:
    """Of environments on the host: some of them, closed, and shapes of the first steps of all, `[N, M, ...]`."""
    worker = Worker(config.env, make_envs, 2, device=jax.devices()[0], timeout=config.host_timeout)
    try:
        worker.check()
        step, _ = worker.result()
    finally:
        worker.close()
    return worker.env, jax.tree.map(lambda x: jax.ShapeDtypeStruct((config.num_envs, *x.shape[1:]), x.dtype), step)


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
