"""Atari games of ale-py, whose emulators are stepped in C++."""

from typing import Any

import numpy as np
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv

from qlax.envs.suites import atari
from qlax.envs.suites.options import check_name
from qlax.errors import UserError

TO_DRAW = {"render_mode": "rgb_array"}
MULTIPLAYER = ("combat", "joust", "maze_craze", "warlords")  # with a single player, ale-py would end the process


def names() -> list[str]:
    """Return the names of the games."""
    return list(_roms())


def make(name: str, /, num_envs: int, *, render_mode: str | None = None, **options: Any) -> atari.Atari:
    """Make N environments that play an Atari game.

    Args:
      name: Name of the game, such as "Pong".
      num_envs: Number of environments, N.
      render_mode: "rgb_array" makes `render` return the screens in colour, from a second set of emulators that take
        the same actions; None makes it return the learner's grey frames.
      options: `protocol`, "paper" or "machado", and settings that differ from the protocol, see
        `qlax.envs.suites.atari.PROTOCOLS`.

    Raises:
      UserError: The game or an option is unknown, or a value is not allowed.
    """
    known = _roms()
    check_name("ale", name, known)
    if render_mode not in (None, TO_DRAW["render_mode"]):
        raise UserError(f"ale/{name}: render_mode={render_mode!r}: expected {TO_DRAW['render_mode']}")
    chosen = atari.settings(f"ale/{name}", options)
    return atari.Atari(name, _Emulators(known[name], num_envs, chosen, render_mode is not None), num_envs, chosen)


def _roms() -> dict[str, str]:
    """Return the name of the ROM file of every game, by the name of the game."""
    playable = sorted(set(roms.get_all_rom_ids()) - set(MULTIPLAYER))
    return {rom.title().replace("_", ""): rom for rom in playable}


class _Emulators:
    """Emulators of ale-py; see `qlax.envs.suites.atari.Emulators`."""

    def __init__(self, rom: str, num_envs: int, chosen: dict[str, Any], in_color: bool):
        def emulators(**screen: Any) -> AtariVectorEnv:
            return AtariVectorEnv(
                rom,
                num_envs,
                num_threads=chosen["num_threads"],
                max_num_frames_per_episode=chosen["max_frames"],
                repeat_action_probability=chosen["repeat_action_probability"],
                full_action_space=chosen["full_action_space"],
                frameskip=chosen["frame_skip"],
                noop_max=chosen["noop_max"],
                use_fire_reset=chosen["fire_reset"],
                reward_clipping=False,
                **screen,
            )

        self._env = emulators()
        # Emulators are deterministic, so a second set with the same seeds and actions shows the same games.
        self._screens: Any = None
        self._twin = emulators(grayscale=False, stack_num=1, img_height=210, img_width=160) if in_color else None
        actions = self._env.ale.get_action_set()
        self.num_actions = len(actions)
        self.action_names = tuple(action.name.lower() for action in actions)

    def reset(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        obs: Any
        obs, info = self._env.reset(seed=seed)
        if self._twin is not None:
            self._screens, _ = self._twin.reset(seed=seed)
        return obs, info["lives"]

    def step(self, action: np.ndarray) -> atari.Shown:
        obs, reward, terminated, truncated, info = self._env.step(action)
        if self._twin is not None:
            self._screens = self._twin.step(action)[0]
        return atari.Shown(obs, reward, terminated, truncated, info["lives"])

    def screens(self) -> np.ndarray | None:
        return None if self._twin is None else np.array(self._screens[:, -1])

    def close(self) -> None:
        self._env.close()
        if self._twin is not None:
            self._twin.close()
