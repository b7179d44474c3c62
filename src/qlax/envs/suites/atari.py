"""Protocols, lives, rewards and scores of Atari games, the same for every back end."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from qlax.config.atari57 import SCORES
from qlax.envs.episodes import Episodes
from qlax.envs.suites.options import checked
from qlax.errors import UserError, nearest
from qlax.types import Step

FRAMES_PER_SECOND = 60  # of the Atari console

PROTOCOLS: dict[str, dict[str, Any]] = {
    # The protocol of DQN and PQN: Mnih et al., 2015, doi:10.1038/nature14236.
    "paper": {
        "repeat_action_probability": 0.0,  # above 0 for "sticky actions"
        "full_action_space": False,  # True for all 18 actions in every game
        "episodic_life": True,  # a lost life terminates the episode for the learner, while the game goes on
        "clip_rewards": True,  # learn from the sign of rewards; reported returns stay raw
        "noop_max": 30,  # largest number of idle frames at the start of a game, drawn at random
        "fire_reset": True,  # press FIRE at the start of games that need it
        "frame_skip": 4,  # frames per step
        "max_frames": 108_000,  # time limit of a game: half an hour of play
        "num_threads": 0,  # threads that step the emulators; 0 for one per core
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
    """Return the settings of a protocol, changed by the given options.

    Args:
      env_id: Name of the environment, for messages.
      options: `protocol`, a name in `PROTOCOLS` ("paper" unless given), and settings that differ from the protocol.

    Raises:
      UserError: The protocol or an option is unknown, or a value is not allowed.
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
        found = f"{env_id}: repeat_action_probability={chosen['repeat_action_probability']}"
        raise UserError(f"{found}: expected a probability, from 0 to 1")
    return chosen


class Shown(NamedTuple):
    """Raw result of a step of N emulators, which take another step to reset after a game ended."""

    obs: np.ndarray  # [N, 4, 84, 84] uint8, the last four frames
    reward: np.ndarray  # [N], raw
    game_over: np.ndarray  # [N] bool
    truncated: np.ndarray  # [N] bool, True where the game reached its time limit
    lives: np.ndarray  # [N], number of lives left


class Emulators(Protocol):
    """Interface of a back end's N emulators of one game.

    Optional attributes: `action_names`, see `qlax.Env`; `screens()`, which returns the screens in colour, uint8
    `[N, height, width, 3]`, or None.
    """

    num_actions: int

    def reset(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Begin N new games; return observations `[N, 4, 84, 84]` uint8 and lives `[N]`."""

    def step(self, action: np.ndarray) -> Shown:
        """Step all emulators with actions `[N]`."""

    def close(self) -> None:
        """Release the emulators and their threads."""


class Atari:
    """N environments of an Atari game as a `qlax.HostEnv`, with observations `[N, 84, 84, 4]` uint8.

    Reported returns are sums of raw rewards over whole games. Lost lives are handled here, as the back ends ale-py
    and EnvPool handle them differently.

    Args:
      game: Name of the game as in `SCORES`; games that are not listed there have no score.
      emulators: Emulators that return raw rewards and do not end an episode when a life is lost.
      num_envs: Number of environments, N.
      chosen: The settings, as `settings` returns them.
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
        if self._episodic_life:  # lives > 0, as some games show 0 lives for a few frames before they are over
            lost = (shown.lives < self._lives) & (shown.lives > 0) & ~step.truncated
            step = step._replace(terminated=step.terminated | lost)
        self._obs, self._lives = shown.obs, shown.lives
        return step._replace(reward=np.sign(step.reward)) if self._clip_rewards else step

    def render(self) -> np.ndarray:
        """See `qlax.HostEnv`; screens in colour if the emulators have them, else the learner's newest grey frame."""
        screens = self._emulators.screens() if hasattr(self._emulators, "screens") else None
        return np.repeat(self._obs[:, -1, :, :, None], 3, axis=-1) if screens is None else screens

    def close(self) -> None:
        """See `qlax.HostEnv`."""
        self._emulators.close()


def _channels_last(obs: np.ndarray) -> np.ndarray:
    """Move the frames to the last axis, as a view, which is copied when it is sent to the device."""
    return obs.transpose(0, 2, 3, 1)


def human_normalised(game: str, episode_return: float) -> float:
    """Return the human-normalised score in percent: 0 for a random player, 100 for a professional human tester."""
    random, human = SCORES[game]
    return 100 * (episode_return - random) / (human - random)
