"""Many copies of one environment, reset automatically, with the returns and lengths of their episodes."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from qlax.envs.check.common import action_axes
from qlax.errors import UserError
from qlax.switches import usual_switches
from qlax.types import Env, PyTree, Step, strong


class Copies(NamedTuple):
    """State of every copy, each array `[N, ...]`."""

    env: PyTree  # state of the environment
    overdue: jax.Array  # bool, True after the final observation of a truncated episode: the next step resets
    episode_return: jax.Array  # float32, sum of the raw rewards so far
    episode_length: jax.Array  # float32, number of steps so far


class VecState(NamedTuple):
    """State of a `Vec` between two steps."""

    copies: Copies
    shared: tuple[PyTree, ...]  # the environment's `shared`, common to all copies and kept by resets; () if it has none


class Vec:
    """N copies of an `Env`, stepped together, with the axes N and M that `Step` documents.

    A copy that terminates is reset in the same step. A copy that reaches its time limit shows its final observation,
    and is reset in the next step, which ignores its action and sets `truncated`. So the last transition of a
    truncated episode can be learned from without storing an extra observation.

    Args:
      env: One environment.
      num_envs: Number of copies, N.
      reset_ratio: Number of copies that share one new episode, for environments whose reset is expensive. If any copy
        ended, a step makes `num_envs / reset_ratio` new episodes and deals them to the copies that ended; if more
        copies ended, several get the same episode. With 1, every step makes a new episode for every copy. None means
        the environment's own `reset_ratio`, or the largest divisor it shares with `num_envs`; 1 if it has none.
      time_limit_is_terminal: If True, a time limit counts as termination, as in most of the literature.

    Attributes:
      num_actions: Number of actions, A; of every dimension if an action has several. 0 if actions are continuous.
      num_agents: Number of members of a team, M; 1 for a single agent.
      is_team: Whether the environment has `num_agents`, and takes actions `[M]` instead of scalars.

    Raises:
      UserError: `num_envs` is not a positive whole number, or `reset_ratio` does not divide it.

    Example:
      ```python
      vec = qlax.Vec(qlax.make("gymnax/CartPole-v1"), num_envs=8)
      state, step = vec.reset(jax.random.key(0))
      state, step = vec.step(jax.random.key(1), state, jnp.zeros((8, 1), jnp.int32))
      ```
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
        self._is_continuous = getattr(env, "action_bounds", None) is not None
        self._action_axes = action_axes(env)
        self.num_actions: int = 0 if self._is_continuous else env.num_actions
        self._shared = (env.shared,) if hasattr(env, "shared") else ()
        self.is_team = hasattr(env, "num_agents")
        self.num_agents: int = getattr(env, "num_agents", 1)

    @usual_switches(returns_nan=True)
    def reset(self, key: jax.Array) -> tuple[VecState, Step]:
        """Begin N new episodes; return the state and the first steps.

        Args:
          key: Random key.
        """
        env, step = jax.vmap(self.env.reset)(jax.random.split(key, self.num_envs))
        step, _ = self._with_axes(step)
        zeros = jnp.zeros(self.num_envs)
        nothing = jnp.full(self.num_envs, jnp.nan)
        step = step._replace(metrics={"episode_return": nothing, "episode_length": nothing} | step.metrics)
        copies = Copies(env, zeros.astype(bool), zeros, zeros)
        return strong((VecState(copies, self._shared), step))

    @usual_switches(returns_nan=True)
    def step(self, key: jax.Array, state: VecState, action: jax.Array) -> tuple[VecState, Step]:
        """Step every copy with its action; return the state and the steps.

        Args:
          key: Random key.
          state: State that `reset` or the last step returned.
          action: int32 `[N, M]`, or `[N, M * D]` if an action has D dimensions; float32 `[N, M, D]` if actions are
            continuous. It is ignored for a copy that is reset after its time limit.
        """
        copies, shared = state
        key_step, key_reset = jax.random.split(key)
        keys = jax.random.split(key_step, self.num_envs)
        # An argmax of the user's own may have 64 bits.
        action = jnp.asarray(action, jnp.float32 if self._is_continuous else jnp.int32)
        action = action.reshape(self.num_envs, *self._action_axes)
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
        """Reset the copies where `renew` is True.

        Args:
          key: Random key for the new episodes.
          renew: Bool `[N]`.
          shown: Environment states, observations and legal actions of all copies.

        Returns:
          The same as `shown`, but with those of a new episode in the copies that were reset.
        """

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

        # A loop of at most one turn in place of a `cond`, both branches of which would be computed under `vmap`.
        return jax.lax.while_loop(lambda carry: carry[1], deal, (strong(shown), renew.any()))[0]

    def _with_axes(self, step: Step) -> tuple[Step, jax.Array]:
        """Return the step with the axes and dtypes that `Step` documents, and the raw rewards."""
        obs, legal = step.obs, step.legal
        if not self.is_team:
            obs = jax.tree.map(lambda x: x[:, None], obs)
        if legal is not None:
            legal = legal.reshape(len(legal), -1, self.num_actions)
        reward, metrics = jax.tree.map(lambda x: x.astype(jnp.float32), (step.reward, step.metrics))
        raw_reward = metrics.get("raw_reward", reward)
        metrics = {name: value for name, value in metrics.items() if name != "raw_reward"}
        return Step(obs, legal, reward, step.terminated.astype(bool), step.truncated.astype(bool), metrics), raw_reward


def _where(condition: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    """Choose between the rows of two arrays `[N, ...]` by `condition [N]`; random keys are allowed."""
    return jnp.where(condition.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
