"""Environments on the host for tests: one in plain NumPy, as a user would write it, and some that fail."""

import time

import jax.numpy as jnp
import numpy as np
from probes import show

from qlax.types import Step

LENGTH, LIMIT = 4, 7


class HostWalk:
    """Walk right to cell LENGTH for reward 2, in at most LIMIT steps that cost 0.1 each; resets are as in `Vec`."""

    num_actions = 2
    time_limit = LIMIT

    def __init__(self, num_envs, memory_is_used_again=False):
        self.num_envs = num_envs
        self._obs = np.zeros((num_envs, LENGTH + 1), np.float32) if memory_is_used_again else None

    def reset(self, seed):
        self.seeds = [*getattr(self, "seeds", []), seed]
        zeros = np.zeros(self.num_envs)
        self.cell, self.time, self.returns = zeros.astype(int), zeros.astype(int), zeros
        self.overdue = zeros.astype(bool)
        return self._show(zeros, zeros.astype(bool), zeros.astype(bool), zeros.astype(bool))

    def step(self, action):
        acted = ~self.overdue
        self.cell = np.maximum(self.cell + 2 * action - 1, 0)
        self.time = self.time + 1
        terminated = acted & (self.cell == LENGTH)
        cut = acted & ~terminated & (self.time >= LIMIT)
        reward = np.where(acted, np.where(terminated, 2.0, -0.1), 0.0)
        self.returns = self.returns + reward
        lengths, returns = self.time, self.returns
        renew, was_overdue = terminated | self.overdue, self.overdue
        self.cell, self.time = np.where(renew, 0, self.cell), np.where(renew, 0, self.time)
        self.returns = np.where(renew, 0.0, self.returns)
        self.overdue = cut
        step = self._show(reward, terminated, was_overdue, terminated | cut)
        step.metrics["episode_return"] = np.where(terminated | cut, returns, np.nan)
        step.metrics["episode_length"] = np.where(terminated | cut, lengths, np.nan)
        return step

    def close(self):
        pass

    def _show(self, reward, terminated, truncated, ended):
        obs = np.eye(LENGTH + 1, dtype=np.float32)[self.cell]
        if self._obs is not None:
            self._obs[:] = obs
            obs = self._obs
        nothing = np.full(self.num_envs, np.nan)
        return Step(obs, None, reward, terminated, truncated, {"episode_return": nothing, "episode_length": nothing})


class Walk:
    """Environment like `HostWalk`, but a single copy in JAX."""

    num_actions = 2
    time_limit = LIMIT

    def reset(self, key):
        del key
        return (jnp.int32(0), jnp.int32(0)), show(jnp.eye(LENGTH + 1)[0])

    def step(self, key, state, action):
        del key
        cell, time = jnp.maximum(state[0] + 2 * action - 1, 0), state[1] + 1
        terminated = cell == LENGTH
        reward = jnp.where(terminated, 2.0, -0.1)
        return (cell, time), show(jnp.eye(LENGTH + 1)[cell], reward, terminated, time >= LIMIT)


class Crashing(HostWalk):
    """Environment that raises an error after `steps` of its own steps, unless `mended` is set."""

    mended = False

    def __init__(self, num_envs, steps):
        super().__init__(num_envs)
        self.left = 10**9 if self.mended else steps

    def step(self, action):
        self.left -= 1
        if self.left < 0:
            self.fail()
        return super().step(action)

    def fail(self):
        raise ValueError("the emulator\nis gone")


class Hanging(Crashing):
    """Environment that sleeps where `Crashing` raises an error."""

    def fail(self):
        time.sleep(60)


class CrashingInEvaluation(Crashing):
    """Environment that raises an error only with three copies, as in evaluations of `runs.SMALL`."""

    def __init__(self, num_envs, steps):
        super().__init__(num_envs, steps if num_envs == 3 else 10**9)


class HangingAtOnce(HostWalk):
    """Environment that never returns a first step."""

    def reset(self, seed):
        time.sleep(60)


class OneOnly(HostWalk):
    """Environment that ignores the number of copies asked for."""

    def __init__(self, num_envs):
        super().__init__(1)


class Growing(Crashing):
    """Environment whose observations become longer after `steps` of its own steps."""

    def step(self, action):
        self.left -= 1
        step = super().step(action)
        return step if self.left > 0 else step._replace(obs=np.zeros((self.num_envs, 9), np.float32))

    def fail(self):
        pass
