"""Episodes of a trained agent step by step: pictures, Q-values and actions, for videos and for the terminal."""

import itertools
from collections.abc import Callable, Generator, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qlax.agents.agent import Agent
from qlax.envs import build
from qlax.envs.check.common import shared_of
from qlax.errors import UserError, described, remedy
from qlax.playing.evaluate import Stage
from qlax.playing.interface import check_epsilon
from qlax.playing.painter import Moment
from qlax.pqn import epsilon_greedy
from qlax.types import Array, PyTree, Step, is_key
from qlax.util.text import shown


def action_names(stage: Stage) -> list[str]:
    """Return the names of the actions; their numbers if the environment has no names, nothing if an actor acts."""
    if stage.agents[0].is_continuous:
        return []
    num_actions = stage.env.num_actions
    names = list(map(str, getattr(stage.env, "action_names", range(num_actions))))
    if len(names) != num_actions:
        found = f"{stage.config.env} has action_names {shown(names)}"
        raise UserError(f"{found}; expected one for each of its {num_actions} actions")
    return names


def deciders(stage: Stage) -> list[str]:
    """Return what chooses each number of an action: members of a team, dimensions of an action, or both."""
    members = [f"member {index}" for index in range(getattr(stage.env, "num_agents", 0))]
    dimensions = [f"dimension {index}" for index in range(getattr(stage.env, "action_dimensions", 0))]
    return [", ".join(each) for each in itertools.product(*filter(None, (members, dimensions)))]


def player(stage: Stage, episodes: int, epsilon: float, to_draw: bool) -> "PlayerInJax | PlayerOnHost":
    """Make the environments in which an agent plays episodes side by side.

    Args:
      stage: The agent and its environment.
      episodes: Number of episodes side by side, N.
      epsilon: Probability of a random legal action; 0 is greedy.
      to_draw: If False, the moments have no pictures, and the environment need not be able to draw.

    Raises:
      UserError: The environment has to draw, and has no method for it; or an actor acts, and epsilon is not 0.
    """
    if to_draw and not hasattr(stage.env, "render"):
        method = "render(state)" if stage.make_envs is None else "render()"
        contract = "qlax.Env" if stage.make_envs is None else "qlax.HostEnv"
        raise UserError(f"{stage.config.env} cannot be rendered, as it has no method {method}; see {contract}")
    check_epsilon(stage.agents[0], epsilon)
    kind = PlayerInJax if stage.make_envs is None else PlayerOnHost
    return kind(stage, episodes, epsilon, to_draw)


class _Policy:
    """Epsilon-greedy policy of an agent in N environments, which also returns the Q-values."""

    def __init__(self, agent: Agent, epsilon: float):
        self._agent, self._epsilon = agent, epsilon
        self._choose = jax.jit(epsilon_greedy)

    def begin(self, seed: int) -> None:
        """Begin new episodes with this seed of the random actions."""
        self._key = jax.random.key(seed)

    def decide(self, obs: PyTree, legal: Array | None, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return Q-values `[N, M, A]` and actions `[N, M]`, without the axis M if `obs` and `legal` have none.

        An actor has no Q-values, an array `[N, 0, 0]`, and its actions have an axis D.
        """
        axes = np.ndim(jax.tree.leaves(obs)[0]) - len(self._agent.info["obs"][0][1])
        q = self._agent._outputs(obs, first.reshape(-1, *(1,) * (axes - 1)))
        if self._agent.is_continuous:
            return np.empty((len(q), 0, 0)), q
        self._key, key = jax.random.split(self._key)
        return q, np.asarray(self._choose(key, q, legal, self._epsilon))


class PlayerInJax:
    """Player for environments in JAX, without `Vec`, which would replace a final state by the next episode's first.

    Args:
      stage: See `player`.
      episodes: See `player`.
      epsilon: See `player`.
      to_draw: See `player`.
    """

    def __init__(self, stage: Stage, episodes: int, epsilon: float, to_draw: bool):
        self._stage, self._episodes, self._to_draw = stage, episodes, to_draw
        env, agent, end_of_training = stage.env, stage.agents[0], jnp.float32(1)
        shared = build.shared_by(env, shared_of(env), end_of_training, agent.variables)
        self._policy = _Policy(agent, epsilon)
        self._reset = jax.jit(jax.vmap(env.reset))
        self._step = jax.jit(jax.vmap(lambda key, state, action: env.step(key, state, action, *shared)))
        self._keys = jax.jit(lambda key, t: jax.random.split(jax.random.fold_in(key, t), episodes))

    def play(self, seed: int, steps: int) -> Generator[Moment]:
        """Play N episodes.

        Args:
          seed: Seed of the episodes.
          steps: Number of steps after which episodes are cut.

        Yields:
          One moment for every time step.
        """
        key_reset, key = jax.random.split(jax.random.key(seed))
        state, step = self._reset(jax.random.split(key_reset, self._episodes))
        self._policy.begin(seed)

        def pictures(shown: np.ndarray) -> Iterator[np.ndarray | None]:
            env = self._stage.env
            on_host = jax.tree.map(lambda x: x if is_key(x) else np.asarray(x), state)
            for number in range(self._episodes):
                one_state = jax.tree.map(lambda x, n=number: x[n], on_host)
                try:
                    yield env.render(one_state) if shown[number] else None
                except Exception as error:  # the environment's own code may raise anything
                    what = f"{self._stage.config.env} cannot be rendered"
                    raise UserError(f"{what}: {described(error)}{remedy(error)}") from error

        def advance(t: int, action: np.ndarray) -> tuple[Step, np.ndarray, np.ndarray]:
            nonlocal state
            state, step = self._step(self._keys(key, t), state, action)
            return (
                step,
                np.asarray(step.metrics.get("raw_reward", step.reward)),
                np.asarray(step.terminated | step.truncated),
            )

        yield from _moments(self._stage, self._policy, step, steps, pictures if self._to_draw else None, advance)

    def close(self) -> None:
        """Do nothing; environments in JAX need not be closed."""


class PlayerOnHost:
    """Player for environments on the host; if the step that ends an episode resets, its picture shows the next episode.

    Args:
      stage: See `player`.
      episodes: See `player`.
      epsilon: See `player`.
      to_draw: See `player`.
    """

    def __init__(self, stage: Stage, episodes: int, epsilon: float, to_draw: bool):
        self._stage, self._episodes, self._to_draw = stage, episodes, to_draw
        self._policy = _Policy(stage.agents[0], epsilon)
        self._worker = stage.worker(episodes)

    def play(self, seed: int, steps: int) -> Generator[Moment]:
        """See `PlayerInJax`."""
        self._worker.reset(seed)
        step, _ = self._worker.result()
        self._policy.begin(seed)

        def pictures(shown: np.ndarray) -> np.ndarray:
            del shown  # a worker renders all environments
            drawn = self._worker.render()
            if drawn.shape[:1] != (self._episodes,):
                found = f"{drawn.dtype}{list(drawn.shape)}"
                expected = f"expected uint8 [{self._episodes}, height, width, 3]"
                raise UserError(f"{self._stage.config.env} renders {found}; {expected}")
            return drawn

        def advance(t: int, action: np.ndarray) -> tuple[Step, np.ndarray, np.ndarray]:
            del t
            self._worker.step(action)
            step, metrics = self._worker.result()
            return step, metrics["raw_reward"], ~np.isnan(metrics["episode_return"])

        yield from _moments(self._stage, self._policy, step, steps, pictures if self._to_draw else None, advance)

    def close(self) -> None:
        """End the environments."""
        self._worker.close()


def _moments(
    stage: Stage,
    policy: _Policy,
    step: Step,
    steps: int,
    pictures: Callable[[np.ndarray], Any] | None,
    advance: Callable[[int, np.ndarray], tuple[Step, np.ndarray, np.ndarray]],
) -> Iterator[Moment]:
    """Play from the first step until all episodes have ended or are cut.

    Args:
      stage: Agents and environment.
      policy: Policy that chooses the actions.
      step: First step of the episodes.
      steps: Number of steps after which episodes are cut.
      pictures: Function that renders the environments where its argument, bool `[N]`, is True; None for no pictures.
      advance: Function from time and actions to the next step, raw rewards `[N]`, and where an episode ended `[N]`.

    Yields:
      One moment for every time step.
    """
    episodes = len(step.reward)
    playing, first = np.ones(episodes, bool), np.ones(episodes, bool)
    returns, lengths = np.zeros(episodes), np.zeros(episodes, int)
    newest, decided = [np.empty(0)] * episodes, np.empty(0)
    shown = playing
    for t in itertools.count():
        for number, picture in enumerate(pictures(shown)) if pictures else ():
            if shown[number]:
                newest[number] = _checked_picture(stage.config.env, picture)
        q, action = policy.decide(step.obs, step.legal, first)
        q = q if step.legal is None else np.where(step.legal, q, -np.inf)
        q = q.reshape(episodes, -1, q.shape[-1]) if q.size else q
        decided = np.where(playing[:, None, None], q, decided) if t else q
        yield Moment(list(newest), playing, returns, lengths, decided, action.reshape(episodes, -1))
        if not playing.any() or t == steps:
            return
        step, reward, ended = advance(t, action)
        first = np.asarray(step.terminated) | np.asarray(step.truncated)
        shown = playing
        returns, lengths = returns + np.where(playing, reward, 0), lengths + playing
        playing = playing & ~ended


def _checked_picture(env_id: str, picture: Any) -> np.ndarray:
    picture = np.array(picture)  # a copy, as environments may reuse their memory
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
        found = f"{picture.dtype}{list(picture.shape)}"
        raise UserError(f"{env_id} renders {found}; expected a picture, uint8 [height, width, 3]")
    return picture
