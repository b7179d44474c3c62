"""What Atari games mean, whichever back end plays them: protocols, lives, rewards and scores."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from qlax.config.atari57 import SCORES
from qlax.envs.episodes import Episodes
from qlax.envs.suites.options import checked
from qlax.errors import UserError, nearest
from qlax.types import Step

FRAMES_PER_SECOND = 60  # of the console

PROTOCOLS: dict[str, dict[str, Any]] = {
    # As PQN, DQN and most since: Mnih et al., 2015, doi:10.1038/nature14236.
    "paper": {
        "repeat_action_probability": 0.0,  # "sticky actions"
        "full_action_space": False,
        "episodic_life": True,  # a lost life ends the learner's episode; the game goes on
        "clip_rewards": True,  # to their sign, for learning alone
        "noop_max": 30,  # a game begins with up to so many idle frames
        "fire_reset": True,  # and with FIRE where a game wants it
        "frame_skip": 4,
        "max_frames": 108_000,  # of a game: half an hour of play
        "num_threads": 0,  # that step the emulators; 0: one a core
    },
}
# Machado et al., 2018, arXiv:1709.06009.
PROTOCOLS["machado"] = PROTOCOLS["paper"] | {
    "repeat_action_probability": 0.25,
    "full_action_space": True,
    "episodic_life": False,
    "noop_max": 0,
    "fire_reset": False,
}


def settings(env_id: str, options: dict[str, Any]) -> dict[str, Any]:
    """Those of the protocol that `options` name ("paper" unless given), with the other options in their place.

    Raises:
      UserError: no such protocol or option, or a value that cannot be.
    """
    options = dict(options)
    protocol = options.pop("protocol", "paper")
    if protocol not in PROTOCOLS:
        hint = nearest(str(protocol), PROTOCOLS)
        raise UserError(f"{env_id}: unknown protocol {protocol!r}{hint}; protocols: {', '.join(PROTOCOLS)}")
    chosen = PROTOCOLS[protocol]
    chosen = chosen | checked(env_id, options, chosen)
    for name, lowest in (("frame_skip", 1), ("max_frames", 1), ("noop_max", 0), ("num_threads", 0)):
        if chosen[name] < lowest:
            raise UserError(f"{env_id}: {name}={chosen[name]}: expected a whole number from {lowest}")
    if not 0 <= chosen["repeat_action_probability"] <= 1:
        raise UserError(f"{env_id}: repeat_action_probability={chosen['repeat_action_probability']}: expected 0 to 1")
    return chosen


class Shown(NamedTuple):
    """What the emulators show after a step, raw: of a back end whose resets take a step."""

    obs: np.ndarray  # [N, 4, 84, 84] uint8, the last four frames
    reward: np.ndarray  # [N]
    game_over: np.ndarray  # [N] bool
    truncated: np.ndarray  # [N] bool, the game is cut
    lives: np.ndarray  # [N]


class Emulators(Protocol):
    """N emulators of a game, as a back end has them.

    Optional attributes: `action_names`; `screens()`, in colour, uint8 `[N, height, width, 3]`, or None.
    """

    num_actions: int

    def reset(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """New games: observations and lives."""

    def step(self, action: np.ndarray) -> Shown:
        """Of all, action `[N]`."""

    def close(self) -> None:
        """Give back what they hold."""


class Atari:
    """N games as a `qlax.HostEnv`; observations `[N, 84, 84, 4]` uint8.

    Returns are of raw rewards over whole games. Lives are read from the emulator, not left to a back end: ale-py and
    EnvPool do different things where a life is lost.

    Args:
      game: its name in `SCORES`, if it is there.
      emulators: of the back end, with raw rewards and without an end where a life is lost.
      num_envs: N.
      chosen: what `settings` gives.
    """

    def __init__(self, game: str, emulators: Emulators, num_envs: int, chosen: dict[str, Any]):
        self._emulators = emulators
        self._episodes = Episodes(num_envs)
        self._episodic_life, self._clip_rewards = chosen["episodic_life"], chosen["clip_rewards"]
        self.num_envs = num_envs
        self.num_actions = emulators.num_actions
        if hasattr(emulators, "action_names"):
            self.action_names = emulators.action_names
        self.fps = FRAMES_PER_SECOND / chosen["frame_skip"]
        self.time_limit: int = chosen["max_frames"] // chosen["frame_skip"]
        if game in SCORES:
            self.score: Callable[[float], float] = lambda episode_return: human_normalised(game, episode_return)

    def reset(self, seed: int) -> Step:
        """See `qlax.HostEnv`."""
        self._obs, self._lives = self._emulators.reset(seed)
        step = self._episodes.begin(_channels_last(self._obs))
        return step._replace(metrics=step.metrics | {"raw_reward": step.reward})

    def step(self, action: np.ndarray) -> Step:
        """See `qlax.HostEnv`."""
        shown = self._emulators.step(action)
        step = self._episodes.step(_channels_last(shown.obs), shown.reward, shown.game_over, shown.truncated)
        step = step._replace(metrics=step.metrics | {"raw_reward": step.reward})
        if self._episodic_life:  # some games show no life left for a few frames before they are over
            lost = (shown.lives < self._lives) & (shown.lives > 0) & ~step.truncated
            step = step._replace(terminated=step.terminated | lost)
        self._obs, self._lives = shown.obs, shown.lives
        return step._replace(reward=np.sign(step.reward)) if self._clip_rewards else step

    def render(self) -> np.ndarray:
        """See `qlax.HostEnv`: the screens, or where there are none the newest frame as the learner sees it, grey."""
        screens = self._emulators.screens() if hasattr(self._emulators, "screens") else None
        return np.repeat(self._obs[:, -1, :, :, None], 3, axis=-1) if screens is None else screens

    def close(self) -> None:
        """See `qlax.HostEnv`."""
        self._emulators.close()


def _channels_last(obs: np.ndarray) -> np.ndarray:
    """A view: it is copied to the device all the same."""
    return obs.transpose(0, 2, 3, 1)


def human_normalised(game: str, episode_return: float) -> float:
    """In percent: 0 is a random player, 100 a professional tester of games."""
    random, human = SCORES[game]
    return 100 * (episode_return - random) / (human - random)
