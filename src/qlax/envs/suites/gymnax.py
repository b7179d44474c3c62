"""Gymnax: classic control, bsuite, MinAtar and small tasks written in JAX.

Adapts gymnax 1.0, whose `step_env` neither resets nor truncates.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qlax.envs.suites import drawing
from qlax.envs.suites.options import check_name, check_options, like_default
from qlax.errors import UserError, described
from qlax.types import PyTree, Step
from qlax.util.imports import imported_when_used

# These are used only for drawing, and take nine tenths of gymnax's import time.
with imported_when_used("seaborn", "matplotlib", "matplotlib.colors", "matplotlib.pyplot"):
    import gymnax
    from gymnax.environments import spaces
    from gymnax.environments.misc import frozen_lake

    from qlax.envs.suites import seaquest

NEEDS_INTERNET = "MNISTBandit-bsuite"  # downloads its data when it is made


class Gymnax:
    """One Gymnax environment.

    Args:
      env: Environment of gymnax.
      params: Parameters of the environment.
    """

    def __init__(self, env, params):
        self._env, self._params = env, params
        self._categories = getattr(env.observation_space(params), "n", None)
        self._is_binary = any(".minatar." in base.__module__ for base in type(env).__mro__)  # 0 or 1, although float32
        actions = env.action_space(params)
        self._shape: tuple[int, ...] | None = None  # of continuous actions
        if isinstance(actions, spaces.Discrete):
            self.num_actions: int = env.num_actions
        else:
            self._shape = actions.shape
            self.action_bounds = tuple(
                np.full(actions.shape, end, np.float32).ravel() for end in (actions.low, actions.high)
            )
        self.time_limit = int(params.max_steps_in_episode)
        drawn = DRAWN.get(type(env).__name__)
        if drawn is not None:
            self.fps = drawn.fps
            self.render: Callable[[Any], np.ndarray] = functools.partial(drawn.draw, env, params)
            names = drawn.action_names
            if names is drawing.MINATAR_ACTIONS:
                names = tuple(names[action] for action in env.action_set)
            if self._shape is None and len(names) == self.num_actions:
                self.action_names = names

    def reset(self, key: jax.Array) -> tuple[PyTree, Step]:
        """See `qlax.Env`."""
        obs, state = self._env.reset_env(key, self._params)
        return state, Step(self._observation(obs), None, jnp.float32(0), jnp.bool_(False), jnp.bool_(False), {})

    def step(self, key: jax.Array, state: PyTree, action: jax.Array) -> tuple[PyTree, Step]:
        """See `qlax.Env`."""
        action = action if self._shape is None else action.reshape(self._shape)
        obs, state, reward, terminated, _ = self._env.step_env(key, state, action, self._params)
        truncated = self._env.is_truncated(state, self._params)
        reward = reward.reshape(())  # that of Pendulum has the shape of its action
        return state, Step(self._observation(obs), None, reward, terminated, truncated, {})

    def _observation(self, obs: jax.Array) -> jax.Array:
        """Convert categories to one-hot bool, planes of 0 and 1 to bool, and other numbers to float32.

        The dtypes of Gymnax's spaces are not used, as some are wrong.
        """
        if self._categories is not None:
            return jax.nn.one_hot(obs, self._categories, dtype=bool)
        return obs.astype(bool if self._is_binary else jnp.float32)


def _cart_pole(env: Any, params: Any, state: Any) -> np.ndarray:
    x, angle = float(state.x), float(state.theta)
    canvas = drawing.Canvas((400, 300), (-2.5, -0.7), 80)
    canvas.line([(-params.x_threshold, 0), (params.x_threshold, 0)], drawing.GREY, 0.02)
    canvas.box((x - 0.3, -0.15), (0.6, 0.3), drawing.INK)
    tip = x + 2 * params.length * np.sin(angle), 0.15 + 2 * params.length * np.cos(angle)
    canvas.line([(x, 0.15), tip], drawing.ORANGE, 0.12)
    canvas.circle((x, 0.15), 0.05, drawing.SKY)
    return canvas.picture()


def _acrobot(env: Any, params: Any, state: Any) -> np.ndarray:
    first, second = float(state.joint_angle1), float(state.joint_angle1 + state.joint_angle2)
    elbow = np.array([np.sin(first), -np.cos(first)])
    hand = elbow + np.array([np.sin(second), -np.cos(second)])
    canvas = drawing.Canvas((300, 300), (-2.3, -2.3), 300 / 4.6)
    canvas.line([(-2.2, 1), (2.2, 1)], drawing.GREY, 0.02)  # the height to be reached
    canvas.line([(0, 0), elbow], drawing.BLUE, 0.2)
    canvas.line([elbow, hand], drawing.ORANGE, 0.2)
    for joint in ((0, 0), elbow):
        canvas.circle(joint, 0.06, drawing.INK)
    return canvas.picture()


def _mountain_car(env: Any, params: Any, state: Any) -> np.ndarray:
    def height(x):
        return np.sin(3 * x) * 0.45 + 0.55

    def on_slope(x, along, above):
        slope = np.array([1, 1.35 * np.cos(3 * x)])
        slope /= np.linalg.norm(slope)
        return np.array([x, height(x)]) + along * slope + above * np.array([-slope[1], slope[0]])

    low, high, goal, x = params.min_position, params.max_position, params.goal_position, float(state.position)
    canvas = drawing.Canvas((400, 300), (low, -0.05), 400 / (high - low))
    xs = np.linspace(low, high, 100)
    canvas.polygon([(low, -1), *zip(xs, height(xs), strict=True), (high, -1)], (222, 222, 222))
    canvas.line([*zip(xs, height(xs), strict=True)], drawing.GREY, 0.01)
    canvas.line([(goal, height(goal)), (goal, height(goal) + 0.2)], drawing.INK, 0.008)
    flag = (0, 0.2), (0, 0.12), (0.08, 0.16)
    canvas.polygon(np.add((goal, height(goal)), flag), drawing.GREEN)
    canvas.polygon([on_slope(x, *at) for at in ((-0.08, 0.02), (0.08, 0.02), (0.06, 0.09), (-0.06, 0.09))], drawing.INK)
    for wheel in (-0.05, 0.05):
        canvas.circle(on_slope(x, wheel, 0.025), 0.025, drawing.ORANGE)
    return canvas.picture()


def _pendulum(env: Any, params: Any, state: Any) -> np.ndarray:
    tip = np.array([-np.sin(state.theta), np.cos(state.theta)])  # upright at 0
    canvas = drawing.Canvas((300, 300), (-1.3, -1.3), 300 / 2.6)
    canvas.line([(0, 0), tip], drawing.ORANGE, 0.18)
    canvas.circle((0, 0), 0.06, drawing.INK)
    return canvas.picture()


def _minatar(game: str) -> Callable[[Any, Any, Any], np.ndarray]:
    return lambda env, params, state: drawing.minatar(game, _observed(env, params, state))


@functools.partial(jax.jit, static_argnums=0)
def _observed(env: Any, params: Any, state: Any) -> jax.Array:
    return env.get_obs(state, params)


def _catch(env: Any, params: Any, state: Any) -> np.ndarray:
    shape = env.rows, env.columns
    layers = [(_at(shape, state.paddle_y, state.paddle_x), drawing.SKY)]
    return drawing.cells(shape, [*layers, (_at(shape, state.ball_y, state.ball_x), drawing.WHITE)])


def _deep_sea(env: Any, params: Any, state: Any) -> np.ndarray:
    shape = env.size, env.size
    layers = [(np.tri(env.size), (32, 52, 78)), (_at(shape, env.size - 1, env.size - 1), drawing.YELLOW)]
    row, column = np.minimum((state.row, state.column), env.size - 1)
    return drawing.cells(shape, [*layers, (_at(shape, row, column), drawing.ORANGE)])


def _maze(env: Any, params: Any, state: Any) -> np.ndarray:
    walls = np.asarray(env.occupied_map)
    goal, agent = (_at(walls.shape, *place) for place in (state.goal, state.pos))
    return drawing.cells(walls.shape, [(walls, drawing.GREY), (goal, drawing.GREEN), (agent, drawing.ORANGE)])


def _pong(env: Any, params: Any, state: Any) -> np.ndarray:
    paddles, ball, trail = np.moveaxis(np.asarray(_observed(env, params, state)), -1, 0)
    return drawing.cells(paddles.shape, [(trail, drawing.DIM), (paddles, drawing.SKY), (ball, drawing.WHITE)])


def _frozen_lake(env: Any, params: Any, state: Any) -> np.ndarray:
    lake = np.asarray(env.desc)
    layers = [(lake == frozen_lake.HOLE, drawing.BLUE), (lake == frozen_lake.GOAL, drawing.GREEN)]
    return drawing.cells(
        lake.shape, [*layers, (_at(lake.shape, *divmod(state.position, env.ncol)), drawing.ORANGE)], (214, 234, 242)
    )


def _at(shape: tuple[int, ...], row: Any, column: Any) -> np.ndarray:
    """Return a bool array of this shape, True at one cell."""
    plane = np.zeros(shape, bool)
    plane[int(row), int(column)] = True
    return plane


class Drawn(NamedTuple):
    """Drawing function of an environment, with its speed and the names of its actions."""

    draw: Callable[[Any, Any, Any], np.ndarray]  # (env, params, state) of Gymnax -> picture
    fps: float  # steps per second
    action_names: tuple[str, ...] = ()  # () if they have no names


ROUND = ("up", "right", "down", "left")
DRAWN = {  # by the name of Gymnax's class; other environments cannot be rendered
    "CartPole": Drawn(_cart_pole, 50, ("left", "right")),
    "Acrobot": Drawn(_acrobot, 15, ("torque -1", "torque 0", "torque 1")),
    "MountainCar": Drawn(_mountain_car, 30, ("left", "none", "right")),
    "ContinuousMountainCar": Drawn(_mountain_car, 30),
    "Pendulum": Drawn(_pendulum, 20),
    **{
        f"Min{game.title().replace('_', '')}": Drawn(_minatar(game), 15, drawing.MINATAR_ACTIONS)
        for game in drawing.MINATAR
    },
    "Catch": Drawn(_catch, 8, ("left", "stay", "right")),
    "DeepSea": Drawn(_deep_sea, 8),  # without names, as the actions' meanings may differ from cell to cell
    "FourRooms": Drawn(_maze, 8, ROUND),
    "MetaMaze": Drawn(_maze, 8, ROUND),
    "Pong": Drawn(_pong, 30),
    "FrozenLake": Drawn(_frozen_lake, 4, ("left", "down", "right", "up")),
}


def names() -> list[str]:
    """Return the names of the environments that need no download."""
    return [name for name in gymnax.registered_envs if name != NEEDS_INTERNET]


def make(name: str, /, **options) -> Gymnax:
    """Make an environment by its name.

    Args:
      name: Name of the environment.
      options: Fields of the environment's parameters, such as `max_steps_in_episode`, or arguments of its class.

    Raises:
      UserError: The name or an option is unknown, or data cannot be downloaded.
    """
    check_name("gymnax", name, gymnax.registered_envs)
    try:
        env, params = gymnax.make(name)
    except OSError as error:
        raise UserError(f"gymnax/{name} cannot download its data: {error}") from error
    fields = {field.name for field in dataclasses.fields(params)}
    arguments = set(inspect.signature(type(env).__init__).parameters) - {"self", "args", "kwargs"}
    check_options(f"gymnax/{name}", options, fields | arguments)
    constructed = {option: value for option, value in options.items() if option in arguments}
    if constructed:
        try:
            env, params = gymnax.make(name, **constructed)
        except Exception as error:
            raise UserError(f"gymnax/{name} cannot be made with {constructed}: {described(error)}") from error
    changed = {option: value for option, value in options.items() if option in fields}
    if name == "Seaquest-MinAtar" and options.keys() <= {"max_steps_in_episode"}:
        env = seaquest.MinSeaquest()  # the same game, but it has slots for the usual parameters only
    params = params.replace(
        **{option: like_default(getattr(params, option), option, value) for option, value in changed.items()}
    )
    return Gymnax(env, params)
