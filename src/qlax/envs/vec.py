"""Many copies of one environment: reset by itself, with the metrics of its episodes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qlax.errors import UserError
from qlax.types import Env, PyTree, Step, strong


class Copies(NamedTuple):
    """What every copy has of its own, `[N, ...]`."""

    env: PyTree
    overdue: jax.Array  # bool: the final observation of a cut episode was shown, the next step resets
    episode_return: jax.Array  # float32, of the rewards so far
    episode_length: jax.Array  # float32, steps so far


class VecState(NamedTuple):
    """Everything the environments know between two steps."""

    copies: Copies
    shared: tuple[PyTree, ...]  # what all copies have in common and no reset wipes; empty where nothing is declared


class Vec:
    """N copies of an `Env` as one, with the axes N and M that `Step` promises.

    A copy that terminates is reset in the same step. At a time limit the final observation is shown,
    and the copy is reset in the next step, whose action is ignored and whose `truncated` is set: so
    the last transition of a cut episode can be learned from, and nothing is stored for it.

    Args:
      env: one environment.
      num_envs: copies, N.
      reset_ratio: a step makes `num_envs / reset_ratio` fresh episodes and deals them to the copies
        that ended, which share one where more have ended; 1 makes one for every copy. For environments
        whose reset is dear.
      time_limit_is_terminal: a time limit counts as termination, as in most of the literature.

    Raises:
      UserError: `num_envs` or `reset_ratio` is not a whole number that fits.
    """

    def __init__(self, env: Env, num_envs: int, *, reset_ratio: int = 1, time_limit_is_terminal: bool = False):
        if not isinstance(num_envs, int) or num_envs < 1:
            raise UserError(f"num_envs={num_envs}: expected a whole number from 1")
        if not isinstance(reset_ratio, int) or reset_ratio < 1 or num_envs % reset_ratio:
            raise UserError(f"reset_ratio={reset_ratio}: expected a divisor of num_envs={num_envs}")
        self.env = env
        self.num_envs = num_envs
        self.num_fresh = num_envs // reset_ratio
        self.time_limit_is_terminal = time_limit_is_terminal
        self.num_actions = env.num_actions
        self._shared = (env.shared,) if hasattr(env, "shared") else ()
        self.is_team = hasattr(env, "num_agents")
        self.num_agents: int = getattr(env, "num_agents", 1)

    def reset(self, key: jax.Array) -> tuple[VecState, Step]:
        """N new episodes."""
        env, step = jax.vmap(self.env.reset)(jax.random.split(key, self.num_envs))
        step = self._with_axes(step)
        zeros = jnp.zeros(self.num_envs)
        nothing = jnp.full(self.num_envs, jnp.nan)
        step = step._replace(metrics={"episode_return": nothing, "episode_length": nothing} | step.metrics)
        copies = Copies(env, zeros.astype(bool), zeros, zeros)
        return strong((VecState(copies, self._shared), step))

    def step(self, key: jax.Array, state: VecState, action: jax.Array) -> tuple[VecState, Step]:
        """One step of every copy; action `[N, M]` int32."""
        copies, shared = state
        key_step, key_reset = jax.random.split(key)
        keys = jax.random.split(key_step, self.num_envs)
        action = action if self.is_team else action[:, 0]
        env, step = jax.vmap(lambda *of_copy: self.env.step(*of_copy, *shared))(keys, copies.env, action)
        step = self._with_axes(step)

        acted = ~copies.overdue
        terminated = step.terminated & acted
        cut = step.truncated & ~step.terminated & acted
        if self.time_limit_is_terminal:
            terminated, cut = terminated | cut, jnp.zeros_like(cut)
        ended, renew = terminated | cut, terminated | copies.overdue
        reward = jnp.where(acted, step.reward, 0.0)
        episode_return = copies.episode_return + reward
        episode_length = copies.episode_length + acted.astype(jnp.float32)
        metrics = {"episode_return": episode_return, "episode_length": episode_length}
        metrics = {name: jnp.where(ended, value, jnp.nan) for name, value in metrics.items()}
        metrics |= {name: jnp.where(acted, value, jnp.nan) for name, value in step.metrics.items()}

        fresh = self._fresh(key_reset, renew)
        env, obs, legal = jax.tree.map(lambda new, old: _where(renew, new, old), fresh, (env, step.obs, step.legal))
        running = ~renew
        copies = Copies(env, cut, jnp.where(running, episode_return, 0.0), jnp.where(running, episode_length, 0.0))
        step = Step(obs, legal, reward, terminated, state.copies.overdue, metrics)
        return strong((VecState(copies, shared), step))

    def _fresh(self, key: jax.Array, renew: jax.Array) -> tuple[PyTree, PyTree, Any]:
        """Environment state, observation and legal actions of a new episode for every copy to be renewed."""
        env, step = jax.vmap(self.env.reset)(jax.random.split(key, self.num_fresh))
        step = self._with_axes(step)
        fresh = (env, step.obs, step.legal)
        if self.num_fresh == self.num_envs:
            return fresh
        deal = (jnp.cumsum(renew) - 1) % self.num_fresh  # the k-th copy to be renewed gets the k-th fresh episode
        return jax.tree.map(lambda x: x[deal], fresh)

    def _with_axes(self, step: Step) -> Step:
        """Steps of single agents get the axis M; the dtypes are those of `Step`."""
        obs, legal = step.obs, step.legal
        if not self.is_team:
            obs, legal = jax.tree.map(lambda x: x[:, None], (obs, legal))
        reward, metrics = jax.tree.map(lambda x: x.astype(jnp.float32), (step.reward, step.metrics))
        return Step(obs, legal, reward, step.terminated.astype(bool), step.truncated.astype(bool), metrics)


def _where(condition: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    """`condition [N]` chooses between rows of `[N, ...]`, random keys included."""
    return jnp.where(condition.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
