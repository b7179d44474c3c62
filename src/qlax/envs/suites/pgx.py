"""Pgx: board and card games, 2048 and MinAtar (Koyamada et al., 2023, arXiv:2303.17503).

Adapts pgx 2.6, whose steps never reset. In games for two players the learner is one of them. The opponent moves
within the learner's step, so the learner only sees positions in which it is to move.
"""

import inspect
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pgx
from pgx.minatar import freeway

from qlax.agents.agent import load
from qlax.envs.suites import drawing
from qlax.envs.suites.options import check_name, checked
from qlax.errors import UserError, described, nearest
from qlax.learning.heads import q_values
from qlax.learning.mixing import only_legal
from qlax.networks.qnetwork import build
from qlax.types import Network, PyTree, Step
from qlax.util.files import given_path
from qlax.util.imports import import_object

LEARNER = 0  # Pgx's number of the learner's player; which player begins is random in every game
MINATAR = "minatar-"
FOR_THREE = "sparrow_mahjong"  # not adapted: it may be over before the learner has moved
OPPONENT: dict[str, Any] = {"opponent": "random", "opponent_epsilon": 0.3, "generations": 100}
DRAWN_SIZE = 480  # pixels of the longer side of a rendered board
# Western letters of shogi's pieces, with + for a promoted piece, as the font used has no Japanese letters.
SHOGI_LETTERS = str.maketrans(
    {
        **dict(zip("歩香桂銀金角飛王玉", "PLNSGBRKK", strict=True)),
        **{"と": "+P", "成": "+", "馬": "+B", "龍": "+R"},
        **dict(zip("一二三四五六七八九", "abcdefghi", strict=True)),
    }
)
Policy = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # (key, obs [...], legal [A] bool) -> action


class Opponent(NamedTuple):
    """Opponent in self-play: an earlier version of the learner."""

    variables: PyTree  # variables of the network
    generation: jax.Array  # int32, number of replacements of the variables so far, from 0; -1 before training


class SinglePlayer:
    """2048 or a game of MinAtar; only Freeway has a time limit.

    Args:
      env: Environment of Pgx for one player.
    """

    def __init__(self, env: pgx.Env):
        self._env = env
        self.num_actions = _num_actions(env)
        self._all_legal = env.id.startswith(MINATAR)
        self._only_time_ends = env.id == "minatar-freeway"
        if self._only_time_ends:
            self.time_limit = int(freeway.time_limit) + 1  # Pgx compares with the limit before it counts the step
        self.fps = 15.0 if self._all_legal else 4.0
        if self._all_legal:
            chosen = env.minimal_action_set if env.use_minimal_action_set else range(len(drawing.MINATAR_ACTIONS))
            self.action_names = tuple(drawing.MINATAR_ACTIONS[action] for action in chosen)
        elif env.id == "2048":
            self.action_names = ("left", "up", "right", "down")

    def reset(self, key: jax.Array) -> tuple[PyTree, Step]:
        """See `qlax.Env`."""
        state = self._env.init(key)
        return state, self._step(state, jnp.float32(0))

    def step(self, key: jax.Array, state: PyTree, action: jax.Array) -> tuple[PyTree, Step]:
        """See `qlax.Env`."""
        state = self._env.step(state, action, key)
        return state, self._step(state, state.rewards[0])

    def render(self, state: PyTree) -> np.ndarray:
        """See `qlax.Env`."""
        if self._all_legal:
            return drawing.minatar(self._env.id.removeprefix(MINATAR), state.observation)
        return _board(state)

    def _step(self, state: pgx.State, reward: jax.Array) -> Step:
        no, legal = jnp.bool_(False), None if self._all_legal else state.legal_action_mask
        ends = (no, state.terminated) if self._only_time_ends else (state.terminated, no)
        return Step(state.observation, legal, reward, *ends, {})


class Game:
    """Game against an opponent, with the metrics `won` and `drawn`, 1 or 0 at the end of a game.

    Args:
      env: Environment of Pgx for two players.
      policy: The opponent's policy; None for legal actions drawn uniformly.
      epsilon: Probability that the opponent moves at random instead.
    """

    fps = 1.5

    def __init__(self, env: pgx.Env, policy: Policy | None = None, epsilon: float = 0.0):
        self._env, self._policy, self._epsilon = env, policy or _random, epsilon
        self.num_actions = _num_actions(env)

    def reset(self, key: jax.Array) -> tuple[PyTree, Step]:
        """See `qlax.Env`."""
        key_init, key_answer = jax.random.split(key)
        state, _ = self._play_opponent(key_answer, self._env.init(key_init), self._policy)
        return state, self._step(state, jnp.float32(0))

    def step(self, key: jax.Array, state: PyTree, action: jax.Array) -> tuple[PyTree, Step]:
        """See `qlax.Env`."""
        return self._play_action(key, state, action, self._policy)

    def render(self, state: PyTree) -> np.ndarray:
        """See `qlax.Env`."""
        return _board(state)

    def _play_action(self, key: jax.Array, state: PyTree, action: jax.Array, policy: Policy) -> tuple[PyTree, Step]:
        """Take the learner's action and the opponent's next moves; see `qlax.Env.step`."""
        key_step, key_answer = jax.random.split(key)
        state = self._env.step(state, action, key_step)
        state, reward = self._play_opponent(key_answer, state, policy)
        return state, self._step(state, reward)

    def _play_opponent(self, key: jax.Array, state: pgx.State, policy: Policy) -> tuple[pgx.State, jax.Array]:
        """Let the opponent move until it is the learner's turn or the game is over.

        An opponent may move several times, as in Backgammon, or not at all.

        Returns:
          The new state, and the learner's reward: that of `state` and those of the opponent's moves.
        """

        def opponents_turn(carry):
            _, state, _ = carry
            return ~state.terminated & (state.current_player != LEARNER)

        def move(carry):
            key, state, reward = carry
            key, key_policy, key_choice, key_random, key_step = jax.random.split(key, 5)
            legal = state.legal_action_mask
            action = policy(key_policy, state.observation, legal)
            if self._epsilon > 0:
                at_random = jax.random.uniform(key_choice) < self._epsilon
                action = jnp.where(at_random, _random(key_random, state.observation, legal), action)
            state = self._env.step(state, action, key_step)
            return key, state, reward + state.rewards[LEARNER]

        return jax.lax.while_loop(opponents_turn, move, (key, state, state.rewards[LEARNER]))[1:]

    def _step(self, state: pgx.State, reward: jax.Array) -> Step:
        # The learner's view: `state.observation` is that of the player to move, who at the end may be the opponent.
        obs = _observation(self._env._observe(state, jnp.int32(LEARNER)))
        outcomes = {"won": reward > 0, "drawn": reward == 0}
        metrics = {name: jnp.where(state.terminated, outcome, jnp.nan) for name, outcome in outcomes.items()}
        return Step(obs, state.legal_action_mask, reward, state.terminated, jnp.bool_(False), metrics)


class SelfPlay(Game):
    """Game against an earlier version of the learner; made by `Challenge.with_network`.

    If the opponent has the first move of a game, that move is random. Agents are evaluated against an opponent that
    always moves at random.

    Args:
      env: See `Game`.
      network: The learner's network.
      epsilon: See `Game`.
      generations: Number of times during training that the opponent is replaced by the current learner.
    """

    def __init__(self, env: pgx.Env, network: Network, epsilon: float, generations: int):
        super().__init__(env, None, epsilon)
        self._network, self._generations = network, generations
        obs = jax.eval_shape(self.reset, jax.random.key(0))[1].obs
        rows = (jnp.zeros((1, 1, *obs.shape), obs.dtype), jnp.ones((1, 1), bool))
        self.shared = Opponent(network.init(jax.random.key(0), (), *rows, False), jnp.int32(-1))
        self.evaluated = Game(env)  # an opponent that stays the same, so that evaluations can be compared

    def step(  # type: ignore[override]  # the shared value is the last argument
        self, key: jax.Array, state: PyTree, action: jax.Array, opponent: Opponent
    ) -> tuple[PyTree, Step]:
        """See `qlax.Env`."""
        return self._play_action(key, state, action, _greedy(self._network, opponent.variables))

    def shared_after(self, opponent: Opponent, progress: jax.Array, variables: PyTree) -> Opponent:
        """See `qlax.Env`."""
        generation = jnp.int32(progress * self._generations)
        is_new = generation > opponent.generation
        return jax.tree.map(lambda new, old: jnp.where(is_new, new, old), Opponent(variables, generation), opponent)


class Challenge(Game):
    """Game for self-play before the learner's network is known; its opponent moves at random.

    Args:
      env: See `Game`.
      epsilon: See `SelfPlay`.
      generations: See `SelfPlay`.
    """

    def __init__(self, env: pgx.Env, epsilon: float, generations: int):
        super().__init__(env)
        self._settings = (epsilon, generations)

    def with_network(self, network: Network) -> SelfPlay:
        """See `qlax.Env`."""
        if network.recurrent:
            raise UserError("opponent=self needs a network without memory: --memory none")
        return SelfPlay(self._env, network, *self._settings)


def _board(state: pgx.State) -> np.ndarray:
    """Render the SVG drawing that Pgx makes of a game."""
    import matplotlib
    import resvg_py
    from pgx._src.visualizer import Visualizer
    from PIL import Image

    state = jax.tree.map(jnp.asarray, state)  # some of Pgx's drawings need JAX arrays
    svg: Any = Visualizer().get_dwg(state)
    font, fonts = "DejaVu Sans", Path(matplotlib.get_data_path(), "fonts/ttf")
    png = resvg_py.svg_to_bytes(
        svg_string=svg.tostring().translate(SHOGI_LETTERS),
        zoom=DRAWN_SIZE / max(svg["width"], svg["height"]),
        skip_system_fonts=True,  # so that pictures are the same on all machines
        font_files=[str(fonts / "DejaVuSans.ttf"), str(fonts / "DejaVuSans-Bold.ttf")],
        font_family=font,
        serif_family=font,
        sans_serif_family=font,
        monospace_family=font,
    )
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def _num_actions(env: pgx.Env) -> int:
    """Return the number of actions by tracing, as `env.num_actions` would begin a game to find it."""
    return jax.eval_shape(env.init, jax.random.key(0)).legal_action_mask.size


def _observation(obs: jax.Array) -> jax.Array:
    """Convert whole numbers, such as Backgammon's counts, to float32; leave bool unchanged."""
    return obs if obs.dtype == bool else obs.astype(jnp.float32)


def _random(key: jax.Array, obs: jax.Array, legal: jax.Array) -> jax.Array:
    """Draw a legal action uniformly; this is a `Policy`."""
    del obs
    return jax.random.categorical(key, jnp.where(legal, 0.0, -jnp.inf))


def _greedy(network: Network, variables: PyTree) -> Policy:
    """Return the greedy policy of a network without memory."""

    def policy(key, obs, legal):
        del key
        outputs, _ = network.apply(variables, (), _observation(obs)[None, None], jnp.ones((1, 1), bool), train=False)
        return only_legal(q_values(network, outputs)[0, 0], legal).argmax()

    return policy


def names() -> list[str]:
    """Return the names of the games for one or two players."""
    return [name for name in pgx.available_envs() if name != FOR_THREE]


def make(name: str, /, **options: Any) -> SinglePlayer | Game:
    """Make a game by its name.

    Options are arguments of the game's class in Pgx, such as `sticky_action_prob` or `size`. Games for two players
    also have:

    - `opponent`: "random" (unless given), "self" (an earlier version of the learner, see `SelfPlay`), a run directory
      or one of its agents, or the import path `module:function` of a `Policy`.
    - `opponent_epsilon`: Probability that the opponent moves at random, for "self" or an agent; 0.3 unless given.
    - `generations`: Number of times that the opponent is replaced by the current learner, for "self"; 100 unless given.

    Args:
      name: Name of the game, such as "connect_four".
      options: The options above.

    Raises:
      UserError: The name, an option or the opponent is unknown, or a value is not allowed.
    """
    check_name("pgx", name, names())
    env = pgx.make(name)
    parameters = inspect.signature(type(env).__init__).parameters.values()
    game_defaults = {each.name: each.default for each in parameters if isinstance(each.default, bool | int | float)}
    if name.startswith("go_"):
        game_defaults["size"] = env._game.size  # the size in the name, as the class has another default
    defaults = game_defaults | (OPPONENT if env.num_players > 1 else {})
    chosen = defaults | checked(f"pgx/{name}", options, defaults)
    arguments = {option: chosen.pop(option) for option in game_defaults}
    if options.keys() & game_defaults:
        try:
            env = type(env)(**arguments)
            _num_actions(env)
        except Exception as error:
            raise UserError(f"pgx/{name} cannot be made with {arguments}: {described(error)}") from error
    return _against(name, env, **chosen) if chosen else SinglePlayer(env)


def _against(name: str, env: pgx.Env, opponent: str, opponent_epsilon: float, generations: int) -> Game:
    """Make a game for two players against the opponent that the options describe; see `make`."""
    if not 0 <= opponent_epsilon <= 1:
        raise UserError(f"opponent_epsilon={opponent_epsilon}: expected a probability, from 0 to 1")
    if generations < 1:
        raise UserError(f"generations={generations}: expected a whole number from 1")
    if opponent == "random":
        return Game(env)
    if opponent == "self":
        return Challenge(env, opponent_epsilon, generations)
    if given_path(opponent).exists():
        return Game(env, _trained(name, env, opponent), opponent_epsilon)
    if ":" in opponent:
        return Game(env, import_object(opponent))
    expected = "expected random, self, a run directory, or module:function of your own"
    raise UserError(f"opponent={opponent!r}: {expected}{nearest(opponent, ('random', 'self'))}")


def _trained(name: str, env: pgx.Env, path: str) -> Policy:
    """Return the greedy policy of a trained agent.

    Args:
      name: Name of the game.
      env: Environment of Pgx for two players.
      path: Run directory, or the directory of one of its agents.

    Raises:
      UserError: The agent was trained in another game or on another board, or it has memory.
    """
    agent = load(path)
    obs = jax.eval_shape(Game(env).reset, jax.random.key(0))[1].obs
    shown = [[str(obs.dtype), list(obs.shape)]]
    if agent.info["env"] != f"pgx/{name}" or agent.info["wrappers"] or agent.info["obs"] != shown:
        found = f"{agent.info['env']}, which observes {agent.info['obs']}"
        raise UserError(f"opponent={path}: an agent of {found}; expected one of pgx/{name}, which observes {shown}")
    network = build(agent.info["network"], agent.info["num_actions"])
    if network.recurrent:
        raise UserError(f"opponent={path}: an agent with memory; expected one without")
    return _greedy(network, agent.variables)
