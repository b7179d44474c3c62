"""Survey of environments: their sizes, checks of their contract, and their speed."""

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qlax.envs import maker, reported
from qlax.envs.check.common import action_axes, dimensions_of, random_action
from qlax.envs.check.env import check_env
from qlax.envs.vec import Vec
from qlax.switches import usual_switches
from qlax.types import PyTree

NUM_ENVS, NUM_STEPS = 128, 32  # for the speed in JAX: number of copies, and steps per call of the device
NUM_ENVS_ON_HOST = 8
CHECKED_STEPS = 100


class Sizes(NamedTuple):
    """Sizes of an environment's actions and observations, which its network has to fit."""

    actions: str  # number of actions; "D x A" for D dimensions of A values, "[D]" for D continuous ones
    num_agents: int | None  # None for a single agent
    observation: str  # dtype and shape of every array of one member's observation
    time_limit: int | None  # in steps; None if there is none


@usual_switches()
def sizes(env_id: str) -> Sizes:
    """Return the sizes of an environment; one in JAX is only traced, one on the host is reset.

    Raises:
      UserError: The environment cannot be made, see `qlax.make`.
    """
    with reported(f"{env_id} cannot be reset"), _opened(env_id, num_envs=1) as env:
        if hasattr(env, "num_envs"):
            obs = jax.tree.map(lambda x: np.asarray(x)[0], env.reset(0).obs)
        else:
            obs = jax.eval_shape(env.reset, jax.random.key(0))[1].obs
        num_agents = getattr(env, "num_agents", None)
        return Sizes(_actions_as_text(env), num_agents, _as_text(obs, num_agents), getattr(env, "time_limit", None))


@usual_switches()
def check(env_id: str, seconds: float = 1.0) -> float:
    """Check the contract of an environment, see `qlax.check_env`, and measure its speed.

    Args:
      env_id: Name of the environment, suite/name or module:Name.
      seconds: Wall-clock time over which random legal actions are measured, after compilation.

    Returns:
      Steps per second, summed over 128 copies in JAX or 8 environments on the host.

    Raises:
      UserError: The environment cannot be made or breaks its contract; the message says how.
    """
    with reported(f"{env_id} cannot be played in"), _opened(env_id, NUM_ENVS_ON_HOST) as env:
        check_env(env, CHECKED_STEPS)
        return _speed_on_host(env, seconds) if hasattr(env, "num_envs") else _speed(env, seconds)


@contextlib.contextmanager
def _opened(env_id: str, num_envs: int) -> Iterator[Any]:
    """Make an `Env`, or a `HostEnv` with `num_envs` environments; close the latter afterwards."""
    make, on_host = maker(env_id)
    env = make(num_envs=num_envs) if on_host else make()
    with contextlib.closing(env) if on_host else contextlib.nullcontext():
        yield env


def _actions_as_text(env: Any) -> str:
    if getattr(env, "action_bounds", None) is not None:
        return f"[{dimensions_of(env)}]"
    return f"{dimensions_of(env)} x {env.num_actions}" if hasattr(env, "action_dimensions") else f"{env.num_actions}"


def _as_text(obs: PyTree, num_agents: int | None) -> str:
    """Return name, dtype and shape of every array of one member's observation, as "float32[4]"."""
    parts = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(obs):
        shape = leaf.shape if num_agents is None else leaf.shape[1:]
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        parts.append(f"{name} {leaf.dtype}[{','.join(map(str, shape))}]".strip())
    return ", ".join(parts)


def _speed(env: Any, seconds: float) -> float:
    """Measure the steps per second of many copies of an `Env`."""
    vec = Vec(env, NUM_ENVS)

    @jax.jit
    def play(state, step, key):
        def one(carry, key):
            state, step = carry
            key_action, key_step = jax.random.split(key)
            axes = (NUM_ENVS, *action_axes(env))
            if getattr(env, "action_bounds", None) is not None:
                action = jax.random.uniform(key_action, axes, jnp.float32, *map(jnp.asarray, env.action_bounds))
            else:
                shape = (NUM_ENVS, math.prod(axes[1:]), env.num_actions)
                logits = jnp.zeros(shape) if step.legal is None else jnp.where(step.legal, 0.0, -jnp.inf)
                action = jax.random.categorical(key_action, logits).astype(jnp.int32)
            return vec.step(key_step, state, action), None

        return jax.lax.scan(one, (state, step), jax.random.split(key, NUM_STEPS))[0]

    state, step = jax.block_until_ready(play(*jax.jit(vec.reset)(jax.random.key(0)), jax.random.key(1)))
    begin, calls = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - begin) < seconds:
        calls += 1
        state, step = jax.block_until_ready(play(state, step, jax.random.key(calls)))
    return calls * NUM_STEPS * NUM_ENVS / elapsed


def _speed_on_host(env: Any, seconds: float) -> float:
    """Measure the steps per second of a `HostEnv`, summed over its environments."""
    random, step, calls = np.random.default_rng(0), env.reset(0), 0
    begin = time.perf_counter()
    while (elapsed := time.perf_counter() - begin) < seconds:
        calls += 1
        step = env.step(random_action(env, step.legal, random, (env.num_envs,)))
    return calls * env.num_envs / elapsed
