"""Many copies of one environment: reset by itself, with the metrics of its episodes."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from qlax.errors import UserError
from qlax.types import Env, PyTree, Step, strong


class Copies(NamedTuple):
    """What every copy has of its own, `[N, ...]`."""

    env: PyTree
    overdue: jax.Array  # bool: the final observation of a cut episode was shown, the next step resets
    episode_return: jax.Array  # float32, of the raw rewards so far
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
      reset_ratio: a step in which a copy ended makes `num_envs / reset_ratio` fresh episodes and deals them
        to the copies that ended, which share one where more have; 1 makes one for every copy at every step.
        For environments whose reset is dear. None: what the environment asks for, as far as it divides
        `num_envs`; 1 if it asks for nothing.
      time_limit_is_terminal: a time limit counts as termination, as in most of the literature.

    Raises:
      UserError: `num_envs` or `reset_ratio` is not a whole number that fits.
    """

    def __init__(
        self, env: Env, num_envs: int, *, reset_ratio: int | None = None, time_limit_is_terminal: bool = False
    ):
        if not isinstance(num_envs, int) or num_envs < 1:
            raise UserError(f"num_envs={num_envs}: expected a whole number from 1")
        if reset_ratio is None:
            reset_ratio = math.gcd(getattr(env, "reset_ratio", 1), num_envs)
        if not isinstance(reset_ratio, int) or reset_ratio < 1 or num_envs % reset_ratio:
            raise UserError(f"reset_ratio={reset_ratio}: expected a divisor of num_envs={num_envs}")
        self.env = env
        self.num_envs = num_envs
        self.reset_ratio = reset_ratio
        self.time_limit_is_terminal = time_limit_is_terminal
        self.num_actions = env.num_actions
        self._shared = (env.shared,) if hasattr(env, "shared") else ()
        self.is_team = hasattr(env, "num_agents")
        self.num_agents: int = getattr(env, "num_agents", 1)

    def reset(self, key: jax.Array) -> tuple[VecState, Step]:
        """N new episodes."""
        env, step = jax.vmap(self.env.reset)(jax.random.split(key, self.num_envs))
        step, _ = self._with_axes(step)
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
        step, raw_reward = self._with_axes(step)

        acted = ~copies.overdue
        terminated = step.terminated & acted
        cut = step.truncated & ~step.terminated & acted
        if self.time_limit_is_terminal:
            terminated, cut = terminated | cut, jnp.zeros_like(cut)
        ended, renew = terminated | cut, terminated | copies.overdue
        reward = jnp.where(acted, step.reward, 0.0)
        episode_return = copies.episode_return + jnp.where(acted, raw_reward, 0.0)
        episode_length = copies.episode_length + acted.astype(jnp.float32)
        metrics = {"episode_return": episode_return, "episode_length": episode_length}
        metrics = {name: jnp.where(ended, value, jnp.nan) for name, value in metrics.items()}
        metrics |= {name: jnp.where(acted, value, jnp.nan) for name, value in step.metrics.items()}

        env, obs, legal = self._renewed(key_reset, renew, (env, step.obs, step.legal))
        running = ~renew
        copies = Copies(env, cut, jnp.where(running, episode_return, 0.0), jnp.where(running, episode_length, 0.0))
        step = Step(obs, legal, reward, terminated, state.copies.overdue, metrics)
        return strong((VecState(copies, shared), step))

    def _renewed(self, key: jax.Array, renew: jax.Array, shown: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
        """Environment state, observation and legal actions, those of a new episode in every copy to be renewed."""

        def fresh(num_fresh):
            env, step = jax.vmap(self.env.reset)(jax.random.split(key, num_fresh))
            step, _ = self._with_axes(step)
            return env, step.obs, step.legal

        def choose(new, old):
            return jax.tree.map(lambda new, old: _where(renew, new, old), new, old)

        if self.reset_ratio == 1:
            return choose(fresh(self.num_envs), shown)

        def deal(carry):
            num_fresh = self.num_envs // self.reset_ratio
            dealt = (jnp.cumsum(renew) - 1) % num_fresh  # the k-th copy to be renewed gets the k-th fresh episode
            new = strong(jax.tree.map(lambda x: x[dealt], fresh(num_fresh)))
            return choose(new, carry[0]), jnp.bool_(False)

        # A loop of one turn at most, as runs that are mapped side by side would take both sides of a `cond`.
        return jax.lax.while_loop(lambda carry: carry[1], deal, (strong(shown), renew.any()))[0]

    def _with_axes(self, step: Step) -> tuple[Step, jax.Array]:
        """Steps of single agents get the axis M, the dtypes are those of `Step`; and the raw reward."""
        obs, legal = step.obs, step.legal
        if not self.is_team:
            obs, legal = jax.tree.map(lambda x: x[:, None], (obs, legal))
        reward, metrics = jax.tree.map(lambda x: x.astype(jnp.float32), (step.reward, step.metrics))
        raw_reward = metrics.get("raw_reward", reward)
        metrics = {name: value for name, value in metrics.items() if name != "raw_reward"}
        return Step(obs, legal, reward, step.terminated.astype(bool), step.truncated.astype(bool), metrics), raw_reward


def _where(condition: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    """`condition [N]` chooses between rows of `[N, ...]`, random keys included."""
    return jnp.where(condition.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
