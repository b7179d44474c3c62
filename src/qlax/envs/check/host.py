"""Checks of environments on the host."""

from typing import Any

import jax
import numpy as np

from qlax.envs.check.common import (
    ACCOUNTS,
    Clock,
    Ends,
    Expect,
    check_attributes,
    check_step,
    expecting,
    is_real,
    observation_advice,
    raised,
    random_action,
    same,
    team_of,
    vector,
)
from qlax.errors import HostError, UserError
from qlax.types import PyTree, Step

USE_EPISODES = ": qlax.Episodes does this bookkeeping"


def check_host_env(env: Any, num_steps: int = 1, seed: int = 0) -> Step:
    """Check the contract of a `HostEnv` while taking random legal actions.

    Args:
      env: N environments.
      num_steps: Number of steps to take after the reset.
      seed: Seed of the actions and of the environments.

    Returns:
      The first steps, as `reset` returned them.

    Raises:
      UserError: The environment breaks its contract; the message says what was expected and how to fix it.
    """
    return _play_on_host(env, num_steps, seed)[0]


def host_advice(env: Any, num_steps: int, seed: int) -> list[str]:
    """Check a `HostEnv` as `check_host_env` does, and return warnings of possible mistakes."""
    first, ends, clock = _play_on_host(env, num_steps, seed)
    return [*ends.check(), *clock.advice(), *observation_advice(first.obs, (env.num_envs, *team_of(env)))]


def _play_on_host(env: Any, num_steps: int, seed: int) -> tuple[Step, Ends, Clock]:
    expect, draws = expecting(env), np.random.default_rng(seed)
    check_attributes(env, ("reset", "step", "close"), ("num_actions", "num_envs"), "HostEnv", expect)
    for name in ("shared", "shared_at", "shared_after", "with_network", "evaluated"):
        expect(not hasattr(env, name), f"it has {name!r}, which only an environment in JAX may have; see qlax.HostEnv")
    ends, clock = Ends(env, expect), Clock()
    legal = None
    first: Any = None
    accounts: Any = None
    for index in range(num_steps + 1):
        what = "step" if index else "reset"
        action = random_action(env, legal, draws, (env.num_envs,))
        try:
            step = env.step(action) if index else env.reset(seed)
        except HostError as error:  # its message names the environment
            raise UserError(str(error)) from error
        except Exception as error:
            raise UserError(f"environment {type(env).__name__}: {what} failed: {raised(error)}") from error
        _check_host_step(step, what, env, expect)
        legal = step.legal
        first = step if first is None else first
        for part in ("obs", "legal", "metrics"):
            expect(*same(part, getattr(first, part), getattr(step, part)))
        if index:
            accounts.see(step)
        else:
            quiet = not (step.terminated | step.truncated).any() and not step.reward.any()
            expect(quiet, "reset returns a reward or an end of the episode; expected rewards 0 and no end")
            nothing = all(np.isnan(step.metrics[metric]).all() for metric in ACCOUNTS)
            wanted = "expected nan, as they are numbers only where an episode ended"
            expect(nothing, f"episode_return and episode_length of reset are not nan; {wanted}")
            accounts = _Accounts(step, ends, clock, expect)
    accounts.check()
    return first, ends, clock


def _check_host_step(step: Any, what: str, env: Any, expect: Expect) -> None:
    """Check that a step has the shapes, dtypes and finite numbers of its contract."""
    expect(isinstance(step, Step), f"{what} returns {type(step).__name__}; expected a qlax.Step")
    arrays = {"reward": step.reward, "terminated": step.terminated, "truncated": step.truncated, "obs": step.obs}
    arrays |= {"metrics": step.metrics, "legal": step.legal}
    for field, tree in arrays.items():
        try:
            leaves = jax.tree.leaves(tree)
        except Exception as error:  # raised for a dict whose keys cannot be sorted
            expect(False, f"{field} of {what} is not a tree of arrays: {raised(error)}")
        odd = [type(leaf).__name__ for leaf in leaves if not hasattr(leaf, "dtype")]
        expect(not odd, f"{field} of {what} holds {', '.join(odd[:3])}; expected NumPy arrays")
        kinds = [leaf.dtype for leaf in leaves if not (is_real(leaf.dtype) or leaf.dtype == np.bool_)]
        expect(not kinds, f"{field} of {what} holds {', '.join(map(str, kinds[:3]))}; expected numbers or bool")
    check_step(step, what, (int(env.num_envs),), env, expect)
    for metric in ACCOUNTS:
        wanted = "expected an array, nan except where an episode ended"
        expect(metric in step.metrics, f"{what} has no metrics[{metric!r}]; {wanted}")
    has_choice = step.legal is None or step.legal.any(-1).all()
    expect(has_choice, f"no legal action after a {what}; expected at least one per member")
    for field, tree in (
        ("reward", step.reward),
        ("obs", step.obs),
        ("raw_reward", step.metrics.get("raw_reward", 0.0)),
    ):
        finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))
        expect(finite, f"{field} of {what} is not finite")


class _Accounts:
    """Check that the ends, returns and lengths of a `HostEnv`'s episodes agree with its rewards and each other."""

    def __init__(self, first: Step, ends: Ends, clock: Clock, expect: Expect):
        self._ends, self._clock, self._expect = ends, clock, expect
        self._start = jax.tree.map(lambda x: x[:1].copy(), first.obs)
        self._starts_alike = len(first.reward) > 1 and bool(self._at_start(first.obs).all())
        self._shows_start = np.ones(first.reward.shape, bool)
        self._taken = np.zeros(first.reward.shape, int)
        self._rewards, self._scale = np.zeros(first.reward.shape), np.ones(first.reward.shape)
        self._ended = self._was_cut = self._terminated = np.zeros(first.reward.shape, bool)
        self._reported = self._truncated = self._unexplained = False
        self._restarts = self._unpaid = 0
        self._all_paid, self._never_paid = True, True
        self._look_for_clock(first, self._ended)

    def see(self, step: Step) -> None:
        """Record and check one step of all environments."""
        expect, truncated = self._expect, step.truncated
        reward = np.asarray(step.metrics.get("raw_reward", step.reward), np.float64)
        returns, lengths = (np.asarray(step.metrics[metric], np.float64) for metric in ACCOUNTS)
        ended = ~np.isnan(returns)
        where = "expected numbers where an episode ended, nan elsewhere"
        expect(
            (ended == ~np.isnan(lengths)).all(),
            f"episode_return and episode_length are nan at different steps; {where}",
        )
        unmarked = "the step after an episode was cut begins a new one; expected truncated there"
        expect(not (self._was_cut & ~truncated).any(), f"{unmarked}{USE_EPISODES}")

        is_reset = truncated & ~step.terminated & ~ended  # the action was ignored
        unexplained = is_reset & ~self._ended & ~self._terminated
        self._unexplained |= bool(unexplained.any())
        self._clear(unexplained)
        self._taken = self._taken + ~is_reset
        self._rewards = self._rewards + np.where(is_reset, 0.0, reward)
        self._scale = self._scale + np.where(is_reset, 0.0, np.abs(reward))
        wrong = ended & (lengths != self._taken)
        i = wrong.argmax()
        found = f"episode_length is {lengths[i]:g} after {self._taken[i]} steps, not counting resets"
        expect(not wrong[i], f"{found}{USE_EPISODES}")
        wrong = ended & ~(np.abs(returns - self._rewards) <= 1e-3 * self._scale)
        i = wrong.argmax()
        total = f"{self._rewards[i]:g}"
        found = f"episode_return is {returns[i]:g}, but the rewards (raw_reward, if reported) add up to {total}"
        expect(not wrong[i], f"{found}{USE_EPISODES}")
        self._look_for_resets(step, reward, is_reset)
        for length, terminated in zip(self._taken[ended], step.terminated[ended], strict=True):
            self._ends.see(int(length), bool(terminated), not terminated)
        self._look_for_clock(step, ended)
        if self._reported and not ended.all():
            self._ends.see(int(self._taken[~ended].max()) - 1, False, False)

        self._reported |= bool(ended.any())
        self._truncated |= bool(truncated.any())
        self._was_cut = ended & ~step.terminated & ~truncated
        self._ended, self._terminated = ended, step.terminated.copy()
        self._clear(ended)

    def _clear(self, where: np.ndarray) -> None:
        """Set the sums of reward and steps to 0 where an episode begins."""
        self._taken = np.where(where, 0, self._taken)
        self._rewards, self._scale = np.where(where, 0.0, self._rewards), np.where(where, 1.0, self._scale)

    def check(self) -> None:
        """Check the episodes as a whole; call this once all steps are recorded."""
        silent = self._truncated and not self._reported
        self._expect(not silent, "episodes ended, but metrics['episode_return'] was always nan")
        unexplained = "truncated is set where no episode ended, neither in this step nor in the one before"
        self._expect(not self._unexplained, f"{unexplained}, by metrics['episode_return']{USE_EPISODES}")
        unpaid = self._unpaid > 1 and self._never_paid and self._all_paid
        first = "the step after an end ignores its action and begins a new episode; expected truncated there"
        self._expect(not (self._restarts > 1 or unpaid), f"{first}{USE_EPISODES}")

    def _look_for_resets(self, step: Step, reward: np.ndarray, is_reset: np.ndarray) -> None:
        """Count signs of steps that reset without being marked as truncated.

        One sign is an observation that equals the first one of an episode, if all episodes begin alike. Another is a
        reward of 0 after an end, if no other reward is 0.
        """
        shows_start = self._at_start(step.obs)
        after_end = self._ended & ~step.truncated
        self._restarts += int((after_end & shows_start & ~self._shows_start).sum()) if self._starts_alike else 0
        self._unpaid += int(after_end.sum())
        self._never_paid &= not reward[after_end].any()
        self._all_paid &= bool(reward[~after_end & ~is_reset].all())
        self._shows_start = shows_start

    def _look_for_clock(self, step: Step, ended: np.ndarray) -> None:
        """Record the observations of episodes that go on, and final ones that are shown because a time limit ended."""
        is_cut = ended & ~step.terminated & ~step.truncated
        obs = vector(step.obs, ended.shape)
        for i in np.flatnonzero(is_cut | ~ended):
            self._clock.see(int(self._taken[i]), obs[i], bool(is_cut[i]))

    def _at_start(self, obs: PyTree) -> np.ndarray:
        """Return bool `[N]`, True where an observation equals the first one of the first environment."""
        rows = jax.tree.map(lambda x, y: (x == y).reshape(len(x), -1).all(-1), obs, self._start)
        return np.logical_and.reduce(jax.tree.leaves(rows))
