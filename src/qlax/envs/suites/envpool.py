"""EnvPool: environments in C++; its Atari games have the same protocols as those of `ale`."""

from typing import Any

import envpool
import numpy as np

from qlax.config.environments import unsuitable
from qlax.envs.suites import atari
from qlax.envs.suites.options import check_name, check_options
from qlax.envs.suites.spaces import SpacesEnv
from qlax.errors import UserError

# Fields of EnvPool's configuration that qlax sets, and users may not.
RESERVED = ("num_envs", "batch_size", "seed", "env_seed", "max_num_players", "gym_reset_return_info", "base_path")


class EnvPool(SpacesEnv):
    """Pool of N environments as a `qlax.HostEnv`."""

    def __init__(self, name: str, num_envs: int, options: dict[str, Any]):
        pool = _Pool(name, num_envs, options)
        space = pool.spec
        super().__init__(
            f"envpool/{name}", pool, space.gymnasium_observation_space, space.gymnasium_action_space, num_envs
        )
        self.time_limit: int = space.config.max_episode_steps


def names() -> list[str]:
    """Return the names of all environments, without those of which it is known that PQN cannot use them."""
    return sorted(set(envpool.list_all_envs()) - unsuitable("envpool"))


def make(name: str, /, num_envs: int, **options: Any) -> EnvPool | atari.Atari:
    """Make N environments by their name.

    Args:
      name: Name of the environment, such as "Pong-v5" or "CartPole-v1".
      num_envs: Number of environments, N.
      options: For Atari games, the options of `qlax.envs.suites.ale.make`; else fields of EnvPool's configuration.

    Raises:
      UserError: The name or an option is unknown, a package is not installed, or PQN cannot use the environment's
        spaces.
    """
    known = envpool.list_all_envs()
    check_name("envpool", name, known)
    if "zero_discount_on_life_loss" in envpool.make_spec(name).config._fields:  # a game of Atari
        chosen = atari.settings(f"envpool/{name}", options)
        return atari.Atari(name.rpartition("-")[0], _Emulators(name, num_envs, chosen), num_envs, chosen)
    limit = options.get("max_episode_steps", 1)
    if not isinstance(limit, int) or limit < 1:
        raise UserError(f"envpool/{name}: max_episode_steps={limit!r}: expected a whole number from 1")
    return EnvPool(name, num_envs, options)


class _Pool:
    """Pool that is made anew by every reset, as EnvPool takes its seed only when it is made."""

    def __init__(self, name: str, num_envs: int, options: dict[str, Any]):
        self._env: Any = None
        self._make = lambda **more: envpool.make(name, env_type="gymnasium", num_envs=num_envs, **options, **more)
        self.spec = envpool.make_spec(name)
        check_options(f"envpool/{name}", options, set(self.spec.config._fields) - set(RESERVED))
        self.spec = envpool.make_spec(name, **options)

    def reset(self, seed: int) -> tuple[Any, dict[str, Any]]:
        self.close()
        self._env = self._make(seed=seed)
        return self._env.reset()

    def step(self, action: np.ndarray) -> tuple[Any, ...]:
        return self._env.step(action)

    def close(self) -> None:
        if self._env is not None:
            self._env.close()


class _Emulators:
    """Emulators of EnvPool; see `qlax.envs.suites.atari.Emulators`."""

    def __init__(self, name: str, num_envs: int, chosen: dict[str, Any]):
        options = {
            "num_threads": chosen["num_threads"],
            "max_episode_steps": chosen["max_frames"] // chosen["frame_skip"],
            "repeat_action_probability": chosen["repeat_action_probability"],
            "full_action_space": chosen["full_action_space"],
            "frame_skip": chosen["frame_skip"],
            "noop_max": max(chosen["noop_max"], 1),  # EnvPool counts the step that resets as one
            "use_fire_reset": chosen["fire_reset"],
        }
        self._pool = _Pool(name, num_envs, options)
        self.num_actions = int(self._pool.spec.gymnasium_action_space.n)

    def reset(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        obs, info = self._pool.reset(seed)
        return obs, info["lives"]

    def step(self, action: np.ndarray) -> atari.Shown:
        obs, reward, terminated, truncated, info = self._pool.step(action)
        return atari.Shown(obs, reward, terminated, truncated, info["lives"])

    def close(self) -> None:
        self._pool.close()
