"""Pgx: board and card games, 2048 and MinAtar (Koyamada et al., 2023, arXiv:2303.17503).

Adapts pgx 2.6, whose steps never reset. In games for two the learner is one player; the other moves within its step,
so that what follows its action is the next position in which it has to move.
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
from qlax.mixing import only_legal
from qlax.networks.qnetwork import build
from qlax.types import Network, PyTree, Step
from qlax.util.imports import import_object

LEARNER = 0  # by number; who begins is drawn anew in every game
MINATAR = "minatar-"
FOR_THREE = "sparrow_mahjong"  # may be over before the learner has moved
OPPONENT: dict[str, Any] = {"opponent": "random", "opponent_epsilon": 0.3, "generations": 100}
DRAWN_SIZE = 480  # pixels of a board's longer side
# No font that comes with anything here has the Japanese letters: the usual western ones, + for what was promoted.
SHOGI_LETTERS = str.maketrans(
    {
        **dict(zip("歩香桂銀金角飛王玉", "PLNSGBRKK", strict=True)),
        **{"と": "+P", "成": "+", "馬": "+B", "龍": "+R"},
        **dict(zip("一二三四五六七八九", "abcdefghi", strict=True)),
    }
)
Policy = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # (key, obs [...], legal [A] bool) -> action


class Opponent(NamedTuple):
    """What plays against the learner when it plays against itself."""

    variables: PyTree  # those the learner had
    generation: jax.Array  # int32, how often they were replaced; -1 before training


class SinglePlayer:
    """2048, or a game of MinAtar; of these only Freeway has a time limit, its own."""

    def __init__(self, env: pgx.Env):
        self._env = env
        self.num_actions = _num_actions(env)
        self._all_legal = env.id.startswith(MINATAR)
        self._only_time_ends = env.id == "minatar-freeway"
        if self._only_time_ends:
            self.time_limit = int(freeway.time_limit) + 1  # it compares before it counts
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
    """A game against an opponent; `metrics` hold `won` and `drawn`, 1 or 0 at the end of a game.

    Args:
      env: of Pgx, for two players.
      policy: the opponent's; None: a legal action drawn uniformly.
      epsilon: how likely it moves at random instead.
    """

    fps = 1.5

    def __init__(self, env: pgx.Env, policy: Policy | None = None, epsilon: float = 0.0):
        self._env, self._policy, self._epsilon = env, policy or _random, epsilon
        self.num_actions = _num_actions(env)

    def reset(self, key: jax.Array) -> tuple[PyTree, Step]:
        """See `qlax.Env`."""
        key_init, key_answer = jax.random.split(key)
        state, _ = self._answered(key_answer, self._env.init(key_init), self._policy)
        return state, self._step(state, jnp.float32(0))

    def step(self, key: jax.Array, state: PyTree, action: jax.Array) -> tuple[PyTree, Step]:
        """See `qlax.Env`."""
        return self._moved(key, state, action, self._policy)

    def render(self, state: PyTree) -> np.ndarray:
        """See `qlax.Env`."""
        return _board(state)

    def _moved(self, key: jax.Array, state: PyTree, action: jax.Array, policy: Policy) -> tuple[PyTree, Step]:
        key_step, key_answer = jax.random.split(key)
        state = self._env.step(state, action, key_step)
        state, reward = self._answered(key_answer, state, policy)
        return state, self._step(state, reward)

    def _answered(self, key: jax.Array, state: pgx.State, policy: Policy) -> tuple[pgx.State, jax.Array]:
        """The state in which the learner is to move or the game is over, and its rewards on the way there.

        An opponent may move several times, as in Backgammon, or not at all.
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
        obs = _observation(self._env._observe(state, jnp.int32(LEARNER)))  # at the end it may be nobody's turn
        outcomes = {"won": reward > 0, "drawn": reward == 0}
        metrics = {name: jnp.where(state.terminated, outcome, jnp.nan) for name, outcome in outcomes.items()}
        return Step(obs, state.legal_action_mask, reward, state.terminated, jnp.bool_(False), metrics)


class SelfPlay(Game):
    """A game against what the learner was; made by `Challenge.with_network`.

    Where the opponent begins it opens at random. Evaluation is against one that always moves at random.

    Args:
      env: see `Game`.
      network: the learner's.
      epsilon: see `Game`.
      generations: how often in the course of training the opponent becomes the learner of then.
    """

    def __init__(self, env: pgx.Env, network: Network, epsilon: float, generations: int):
        super().__init__(env, None, epsilon)
        self._network, self._generations = network, generations
        obs = jax.eval_shape(self.reset, jax.random.key(0))[1].obs
        rows = (jnp.zeros((1, 1, *obs.shape), obs.dtype), jnp.ones((1, 1), bool))
        self.shared = Opponent(network.init(jax.random.key(0), (), *rows, False), jnp.int32(-1))
        self.evaluated = Game(env)  # by a measure that does not change

    def step(  # type: ignore[override]  # what is shared comes last
        self, key: jax.Array, state: PyTree, action: jax.Array, opponent: Opponent
    ) -> tuple[PyTree, Step]:
        """See `qlax.Env`."""
        return self._moved(key, state, action, _greedy(self._network, opponent.variables))

    def shared_after(self, opponent: Opponent, progress: jax.Array, variables: PyTree) -> Opponent:
        """See `qlax.Env`."""
        generation = jnp.int32(progress * self._generations)
        is_new = generation > opponent.generation
        return jax.tree.map(lambda new, old: jnp.where(is_new, new, old), Opponent(variables, generation), opponent)


class Challenge(Game):
    """A game whose opponent is to be the learner itself: `with_network` says how it looks at the board.

    Until then the opponent moves at random.
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
    """A game as Pgx draws it, in SVG."""
    import matplotlib
    import resvg_py
    from pgx._src.visualizer import Visualizer
    from PIL import Image

    state = jax.tree.map(jnp.asarray, state)  # some drawings need more than NumPy has
    svg: Any = Visualizer().get_dwg(state)
    font, fonts = "DejaVu Sans", Path(matplotlib.get_data_path(), "fonts/ttf")
    png = resvg_py.svg_to_bytes(
        svg_string=svg.tostring().translate(SHOGI_LETTERS),
        zoom=DRAWN_SIZE / max(svg["width"], svg["height"]),
        skip_system_fonts=True,  # the same picture everywhere
        font_files=[str(fonts / "DejaVuSans.ttf"), str(fonts / "DejaVuSans-Bold.ttf")],
        font_family=font,
        serif_family=font,
        sans_serif_family=font,
        monospace_family=font,
    )
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def _num_actions(env: pgx.Env) -> int:
    """Without beginning a game, as `env.num_actions` does."""
    return jax.eval_shape(env.init, jax.random.key(0)).legal_action_mask.size


def _observation(obs: jax.Array) -> jax.Array:
    """Backgammon's counts, whole numbers, as float32."""
    return obs if obs.dtype == bool else obs.astype(jnp.float32)


def _random(key: jax.Array, obs: jax.Array, legal: jax.Array) -> jax.Array:
    del obs
    return jax.random.categorical(key, jnp.where(legal, 0.0, -jnp.inf))


def _greedy(network: Network, variables: PyTree) -> Policy:
    def policy(key, obs, legal):
        del key
        q, _ = network.apply(variables, (), _observation(obs)[None, None], jnp.ones((1, 1), bool), train=False)
        return only_legal(q[0, 0], legal).argmax()

    return policy


def names() -> list[str]:
    """The games for one player or two."""
    return [name for name in pgx.available_envs() if name != FOR_THREE]


def make(name: str, /, **options: Any) -> SinglePlayer | Game:
    """`options` are arguments of the game's class, such as `sticky_action_prob` or `size`; and of who plays.

    Games for two have `opponent`: "random", "self" (what the learner was, see `SelfPlay`), a run directory
    or one of its agents, or `module:function` of a `Policy`. With "self" or an agent, `opponent_epsilon` (0.3) is how
    likely it moves at random; with "self", `generations` (100) how often it becomes the learner of then.

    Raises:
      UserError: unknown name, option or opponent, or a value that cannot be.
    """
    check_name("pgx", name, names())
    env = pgx.make(name)
    parameters = inspect.signature(type(env).__init__).parameters.values()
    of_game = {each.name: each.default for each in parameters if isinstance(each.default, bool | int | float)}
    if name.startswith("go_"):
        of_game["size"] = env._game.size  # the name's, not the class's
    defaults = of_game | (OPPONENT if env.num_players > 1 else {})
    chosen = defaults | checked(f"pgx/{name}", options, defaults)
    arguments = {option: chosen.pop(option) for option in of_game}
    if options.keys() & of_game:
        try:
            env = type(env)(**arguments)
            _num_actions(env)
        except Exception as error:
            raise UserError(f"pgx/{name} cannot be made with {arguments}: {described(error)}") from error
    return _against(name, env, **chosen) if chosen else SinglePlayer(env)


def _against(name: str, env: pgx.Env, opponent: str, opponent_epsilon: float, generations: int) -> Game:
    if not 0 <= opponent_epsilon <= 1:
        raise UserError(f"opponent_epsilon={opponent_epsilon}: expected a probability, from 0 to 1")
    if generations < 1:
        raise UserError(f"generations={generations}: expected a whole number from 1")
    if opponent == "random":
        return Game(env)
    if opponent == "self":
        return Challenge(env, opponent_epsilon, generations)
    if Path(opponent).exists():
        return Game(env, _trained(name, env, opponent), opponent_epsilon)
    if ":" in opponent:
        return Game(env, import_object(opponent))
    expected = "expected random, self, a run directory, or module:function of your own"
    raise UserError(f"opponent={opponent!r}: {expected}{nearest(opponent, ('random', 'self'))}")


def _trained(name: str, env: pgx.Env, path: str) -> Policy:
    """The greedy policy of an agent of this game, on a board of this size."""
    agent = load(path)
    obs = jax.eval_shape(Game(env).reset, jax.random.key(0))[1].obs
    shown = [[str(obs.dtype), list(obs.shape)]]
    if agent.info["env"] != f"pgx/{name}" or agent.info["wrappers"] or agent.info["obs"] != shown:
        found = f"{agent.info['env']}, which sees {agent.info['obs']}"
        raise UserError(f"opponent={path}: an agent of {found}; expected one of pgx/{name}, which sees {shown}")
    network = build(agent.info["network"], agent.info["num_actions"])
    if network.recurrent:
        raise UserError(f"opponent={path}: an agent with memory; expected one without")
    return _greedy(network, agent.variables)
