"""Parts of an update that the algorithms share: schedules, rollouts, minibatches and sums over devices.

Axes as in `qlax.pqn`: T steps, N environments on a device; S minibatches of an epoch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.lax import axis_index, axis_size

from qlax.errors import UserError
from qlax.types import Network, PyTree, Step, strong


def check_sizes(env: Any, num_envs: int, num_steps: int, num_minibatches: int, segments: int) -> None:
    """Check that an environment and the minibatches have the sizes of a shape.

    Args:
      env: A `Vec`, or None if the environments are on the host.
      num_envs: Number of environments, N.
      num_steps: Number of steps, T.
      num_minibatches: Number of minibatches, S.
      segments: Number of segments that are trained on.

    Raises:
      UserError: They do not.
    """
    if getattr(env, "num_envs", num_envs) != num_envs:
        found = f"num_envs is {num_envs} in the shape, but env has {env.num_envs} environments"
        raise UserError(f"{found}; expected the same")
    if segments % num_minibatches:
        what = f"the {segments} segments of {num_steps} steps x {num_envs} environments"
        raise UserError(f"num_minibatches={num_minibatches} does not divide {what}")


def total(tree: PyTree, axis_name: str | None) -> PyTree:
    """Sum over the devices, in one array, as every sum over devices has to wait for all of them."""
    if axis_name is None:
        return tree
    flat, unravel = ravel_pytree(tree)
    return unravel(jax.lax.psum(flat, axis_name))


def scheduled(done: jax.Array, num_updates: int, start: Any, end: Any, fraction: Any) -> Any:
    """Return a value that moves linearly from `start` to `end` over a fraction of all updates.

    Args:
      done: Number of updates so far.
      num_updates: Number of all updates.
      start: First value.
      end: Last value.
      fraction: Fraction of all updates; 0 for the last value throughout.
    """
    progress = jnp.where(fraction > 0, done / jnp.maximum(fraction * num_updates, 1e-6), 1.0)
    return start + jnp.minimum(progress, 1.0) * (end - start)


def spread(largest: Any, begin: int | jax.Array, number: int, num_envs: int, axis_name: str | None) -> jax.Array:
    """Return factors of environments, from `1 / largest` to `largest`, float32 `[number]`; their geometric mean is 1.

    Args:
      largest: Factor of the last of all environments.
      begin: Number of the first environment among those of this device.
      number: Number of environments.
      num_envs: Number of environments on each device, N.
      axis_name: See `qlax.pqn.make`.
    """
    part, parts = (0, 1) if axis_name is None else (axis_index(axis_name), axis_size(axis_name))
    place = (begin + part * num_envs + jnp.arange(number) + 0.5) / (num_envs * parts)
    return largest ** (2 * place - 1)


def begun(
    network: Network, first: Callable[..., PyTree], key: jax.Array, hyper: Any, step: Step, env: PyTree, given: PyTree
) -> tuple[Any, ...]:
    """Return the fields of the first `qlax.pqn.TrainState`.

    Args:
      network: Network of the agent.
      first: Function from hyper-parameters and parameters to the first state of the optimiser.
      key: Random key.
      hyper: Hyper-parameters.
      step: First steps of the environments.
      env: State of the environments.
      given: Variables of the network; None for new ones.
    """
    n, m = jax.tree.leaves(step.obs)[0].shape[:2]
    obs = jax.tree.map(lambda x: x.reshape(1, n * m, *x.shape[2:]), step.obs)
    memory = network.initial_memory(n * m)
    key, key_network = jax.random.split(key)
    stats = dict(given or network.init(key_network, memory, obs, jnp.ones((1, n * m), bool), False))
    params = stats.pop("params")
    hyper = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), hyper)
    opt_state = first(hyper, params)
    step = step._replace(terminated=jnp.ones(n, bool))  # so that an episode begins, and the memory is reset
    memory = jax.tree.map(lambda x: x.reshape(n, m, *x.shape[1:]), memory)
    return strong((params, stats, opt_state, env, step, memory, hyper, key, jnp.int32(0)))


def acting_keys(key: jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the key of the next state, and the keys of this device for exploring and for the environments."""
    key, key_now = jax.random.split(key)
    key_now = key_now if axis_name is None else jax.random.fold_in(key_now, axis_index(axis_name))
    key_explore, key_env = jax.random.split(key_now)
    return key, key_explore, key_env


def roll(act: Callable[..., Any], observe: Callable[..., Any], env: Any, num_steps: int, state: Any) -> Any:
    """Act for T steps; return the state and the stacked transitions."""

    def one(state: Any, _: None) -> Any:
        state, decision = act(state)
        return observe(state, decision, *env.step(decision.key, state.env, decision.action))

    return jax.lax.scan(one, state, length=num_steps)


def passes(
    minibatch: Callable[..., Any], carry: PyTree, key: jax.Array, num_epochs: int, segments: int, num_minibatches: int
) -> tuple[PyTree, jax.Array]:
    """Learn from all segments in random order, once in every epoch.

    Args:
      minibatch: Function from what is learned and the numbers of segments to what is learned and measurements.
      carry: What is learned.
      key: Random key of the orders.
      num_epochs: Number of epochs.
      segments: Number of segments.
      num_minibatches: Number of minibatches, S, in each of which the segments are shared out.

    Returns:
      What was learned, and the measurements `[epochs, S, ...]`.
    """

    def epoch(carry: PyTree, key: jax.Array) -> PyTree:
        return jax.lax.scan(minibatch, carry, jax.random.permutation(key, segments).reshape(num_minibatches, -1))

    return jax.lax.scan(epoch, carry, jax.random.split(key, num_epochs))
