"""Robots in simulated physics: what the environments of Brax and of MuJoCo Playground have in common."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qlax.errors import UserError
from qlax.types import PyTree, Step, is_key, strong

OWN_CLOCK = "_steps"  # where tasks of Playground count the steps that they end after by themselves


class RobotState(NamedTuple):
    """State of `Robot`."""

    suite: Any  # state of the suite's environment, with `obs`, `reward`, `done`, `metrics` and `info`
    steps: jax.Array  # int32, number of actions taken in this episode


class Robot:
    """One environment of Brax or MuJoCo Playground, whose actions are float32 `[D]`, each from -1 to 1.

    Each action is taken for `action_repeat` steps of the suite, whose rewards are added up. If the suite's observation
    is a dict, its entry `state` is shown, and what only a critic may see, such as `privileged_state`, is not.

    If the physics breaks down, so that a reward or an observation is not a finite number, the episode is terminated: it
    keeps its last finite observation, the action's reward is 0, and `metrics["physics_failed"]` is 1. At the end of any
    other episode the metric is 0.

    A reset costs about as much as a step, and episodes that reach the time limit end together, so two copies share a
    new episode (`reset_ratio`).

    Args:
      env: Environment of the suite, without wrappers.
      episode_length: Time limit in steps of the suite.
      action_repeat: Number of steps of the suite for each action.
    """

    reset_ratio = 2

    def __init__(self, env: Any, episode_length: int, action_repeat: int):
        self._env, self._repeat = env, action_repeat
        self.time_limit = -(-episode_length // action_repeat)
        ones = np.ones(int(env.action_size), np.float32)
        self.action_bounds = -ones, ones
        self.fps = float(1 / (env.dt * action_repeat))  # as fast as the robot itself

    def reset(self, key: jax.Array) -> tuple[RobotState, Step]:
        """See `qlax.Env`."""
        suite, no = strong(self._env.reset(key)), jnp.bool_(False)
        metrics = {"physics_failed": jnp.float32(jnp.nan)}
        return RobotState(suite, jnp.int32(0)), Step(_shown(suite.obs), None, jnp.float32(0), no, no, metrics)

    def step(self, key: jax.Array, state: RobotState, action: jax.Array) -> tuple[RobotState, Step]:
        """See `qlax.Env`."""
        del key  # the state holds a key, if the task needs one
        first = self._once(state.suite, action)

        def again(taken: Any, _: None) -> tuple[Any, None]:
            suite, reward, has_ended, _ = taken
            further = self._once(suite, action)
            further = (further[0], reward + further[1], *further[2:])
            return jax.tree.map(lambda old, new: jnp.where(has_ended, old, new), taken, further), None

        (suite, reward, done, failed), _ = jax.lax.scan(again, first, length=self._repeat - 1)
        steps = state.steps + 1
        truncated = steps >= self.time_limit
        if OWN_CLOCK in suite.info:  # the task counts the time limit as the end of the task
            done = failed | (done & ~truncated)
        metrics = {"physics_failed": jnp.where(done | truncated, failed.astype(jnp.float32), jnp.nan)}
        return RobotState(suite, steps), Step(_shown(suite.obs), None, reward, done, truncated & ~done, metrics)

    def _once(self, before: Any, action: jax.Array) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
        """Take one step of the suite; return its state, the reward, and whether the task ended or the physics failed.

        The suites write into the dicts of the state that they are given, so they get dicts of their own.
        """
        after = self._env.step(jax.tree.map(lambda x: x, before), action)
        reward = jnp.asarray(after.reward, jnp.float32)
        failed = ~jnp.isfinite(reward)
        for leaf in jax.tree.leaves(after.obs):
            failed |= ~jnp.isfinite(leaf).all()
        obs = jax.tree.map(lambda new, old: jnp.where(failed, old, new), after.obs, before.obs)
        done = failed | jnp.asarray(after.done).astype(bool)
        # A step must not change the types of a state, of which some tasks set a part to Python's numbers.
        after = after.replace(obs=obs, reward=reward, done=done.astype(jnp.float32))
        return _as_before(after, before), jnp.where(failed, 0.0, reward), done, failed


def _shown(obs: PyTree) -> PyTree:
    """Return the observation that an agent may see.

    Raises:
      UserError: The observation is a dict without `state`, as of pictures.
    """
    if not isinstance(obs, Mapping):
        return obs
    if "state" not in obs:
        raise UserError(f"the observation has {', '.join(map(str, obs))} and no 'state'; pictures are not supported")
    return obs["state"]


def _as_before(after: PyTree, before: PyTree) -> PyTree:
    """Return a state after a step with the types that it had before the step."""

    def convert(new: Any, old: Any) -> jax.Array:
        new, old = jnp.asarray(new), jnp.asarray(old)
        return new if is_key(new) else jax.lax.convert_element_type(new, old.dtype)

    return jax.tree.map(convert, after, before)
