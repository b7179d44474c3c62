"""Jumanji: puzzles, packing, routing and small games (Bonnet et al., 2024, arXiv:2306.09884).

Adapts jumanji 1.1, most of whose environments do not distinguish terminations from time limits.

Axes: M members of a team, H and W rows and columns of a grid.
"""

import copy
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jumanji
import numpy as np
from jumanji.viewer import MatplotlibViewer

from qlax.envs.suites.options import check_name, checked
from qlax.errors import UserError, described
from qlax.types import PyTree, Step

CONTINUOUS = "SearchAndRescue-v0"
NEEDS_INTERNET = "Sokoban-v0"  # downloads its levels when it is made
NO_LIMIT = 2**30  # steps
DRAWN_SIZE = 480  # pixels of a picture's longer side
FRIGHTENED = 30  # steps for which ghosts stay frightened
# Classes whose reset costs as much as 7 to 66 steps, with their reset_ratio, which is smaller if episodes are short.
RESET_RATIOS = {
    "Cleaner": 8,
    "Connector": 8,
    "MMST": 16,
    "Maze": 8,
    "Minesweeper": 4,
    "RubiksCube": 16,
    "SlidingTilePuzzle": 8,
}


class Jumanji:
    """One Jumanji environment with discrete actions.

    An environment with one action per member is a team, whose reward is the sum of its members' rewards. Several
    choices of a single agent become one joint action, numbered in C order. `metrics` are the values in Jumanji's
    `timestep.extras` at the end of an episode.

    Args:
      env: Environment of Jumanji, of a class named in `OBSERVATIONS`.
    """

    fps = 4.0

    def __init__(self, env: Any):
        kind = type(env).__name__
        self._env, self._observe = copy.copy(env), OBSERVATIONS[kind]
        if kind in RESET_RATIOS:
            self.reset_ratio = RESET_RATIOS[kind]
        self._has_limit = hasattr(env, "time_limit")
        if self._has_limit:
            self.time_limit = int(env.time_limit)
            self._env.time_limit = NO_LIMIT  # so that every end that Jumanji reports is a termination
        mask = getattr(env.observation_spec, "action_mask", None)
        choices = getattr(env.action_spec, "num_values", None)  # number of values of each member's action or choice
        self._choices = () if choices is None else tuple(int(n) for n in jnp.atleast_1d(choices))
        self._is_masked = mask is not None
        shape = self._choices if mask is None else mask.shape
        self._is_joint = env.action_spec.shape != () and shape == self._choices
        if self._is_joint:
            shape = (math.prod(shape),)
        self.num_actions: int = shape[-1]
        if len(shape) == 2:
            self.num_agents = shape[0]
        for name, viewer in vars(env).items():
            if isinstance(viewer, MatplotlibViewer):
                self._drawn: list[np.ndarray] = []
                setattr(self._env, name, _without_window(viewer, self._drawn))
                self.render: Callable[[Any], np.ndarray] = self._render

    def reset(self, key: jax.Array) -> tuple[PyTree, Step]:
        """See `qlax.Env`."""
        return self._shown(*self._env.reset(key))

    def step(self, key: jax.Array, state: PyTree, action: jax.Array) -> tuple[PyTree, Step]:
        """See `qlax.Env`."""
        del key  # the state holds a key
        if self._is_joint:
            action = jnp.stack(jnp.unravel_index(action, self._choices))
        return self._shown(*self._env.step(state, action))

    def _render(self, state: Any) -> np.ndarray:
        state = jax.tree.map(jnp.asarray, state)  # some of Jumanji's drawings need JAX arrays
        self._env.render(state)  # some environments return no picture, so the viewer stores it
        return self._drawn.pop()

    def _shown(self, state: Any, timestep: Any) -> tuple[PyTree, Step]:
        obs, terminated, truncated, legal = timestep.observation, timestep.last(), jnp.bool_(False), None
        if self._has_limit:
            truncated = ~terminated & (state.step_count >= self.time_limit)
        if self._is_masked:
            legal = obs.action_mask.ravel() if self._is_joint else obs.action_mask
            legal |= ~legal.any(-1, keepdims=True)
        at_end = terminated | truncated
        metrics = {name: jnp.where(at_end, value, jnp.nan) for name, value in timestep.extras.items()}
        step = Step(self._observe(self._env, obs), legal, timestep.reward.sum(), terminated, truncated, metrics)
        return state, step


def _without_window(viewer: MatplotlibViewer, drawn: list[np.ndarray]) -> MatplotlibViewer:
    """Return a copy of the viewer that appends its pictures to `drawn` instead of opening a window."""
    viewer = copy.copy(viewer)

    def new_figure(*_: Any, **options: Any) -> tuple[Any, Any]:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(viewer.figure_size, dpi=DRAWN_SIZE / max(viewer.figure_size), **options)
        FigureCanvasAgg(figure)
        figure.subplots_adjust(left=0.05, right=0.95, bottom=0.05, top=0.92)
        kind = type(viewer).__name__
        if kind == "RubiksCubeViewer":
            return figure, list(figure.subplots(3, 2).flat)
        return figure, figure.add_subplot(projection="3d" if kind == "BinPackViewer" else None)

    def keep(figure: Any) -> None:
        drawn.append(np.array(viewer._display_rgb_array(figure)[..., :3]))

    changed: dict[str, Any] = {"_get_fig_ax": new_figure, "_display": keep, "_clear_display": lambda: None}
    for name, value in changed.items():
        setattr(viewer, name, value)
    return viewer


def _one_hot(x: jax.Array, categories: int) -> jax.Array:
    """Return a bool one-hot array `[..., categories]`, all False where `x` is not in 0 .. categories - 1."""
    return jax.nn.one_hot(x, categories, dtype=bool)


def _plane(shape: tuple[int, ...], *index: jax.Array) -> jax.Array:
    """Return a bool array of this shape, True at `index`."""
    return jnp.zeros(shape, bool).at[index].set(True)


def _for_each(x: jax.Array, members: int) -> jax.Array:
    """Repeat an array for every member: `[...]` to `[M, ...]`."""
    return jnp.broadcast_to(x, (members, *x.shape))


def _own_first(x: jax.Array) -> jax.Array:
    """Show every member the rows of all members, its own first and then the next ones: `[M, ...]` to `[M, M, ...]`."""
    return jnp.stack([jnp.roll(x, -member, axis=0) for member in range(len(x))])


def _bin_pack(env: Any, obs: Any) -> PyTree:
    scale = 1 if env.normalize_dimensions else max(env.generator.container_dims)
    return {
        "ems": jnp.stack(jax.tree.leaves(obs.ems), axis=-1) / scale,
        "ems_mask": obs.ems_mask,
        "items": jnp.stack(jax.tree.leaves(obs.items), axis=-1) / scale,
        "items_mask": obs.items_mask,
        "items_placed": obs.items_placed,
    }


def _cleaner(env: Any, obs: Any) -> jax.Array:
    """Return planes of dirt, walls, the member and the other members, which may stand in the same place."""
    rows, columns = obs.agents_locations.T
    own = jax.vmap(lambda *place: _plane(obs.grid.shape, *place))(rows, columns)
    dirt, walls = (_for_each(obs.grid == kind, env.num_agents) for kind in (0, 2))
    return jnp.stack([dirt, walls, own, own.sum(0, keepdims=True) > own], axis=-1)


def _connector(env: Any, obs: Any) -> jax.Array:
    """Return planes of the member's path, head and target, and of those of all other members."""
    cells = _for_each(obs.grid, env.num_agents)
    kinds = _one_hot((cells - 1) % 3, 3) & (cells > 0)[..., None]
    own = ((cells - 1) // 3 == jnp.arange(env.num_agents)[:, None, None])[..., None]
    return jnp.concatenate([kinds & own, kinds & ~own], axis=-1)


def _cvrp(env: Any, obs: Any) -> PyTree:
    return {
        "coordinates": obs.coordinates,
        "demands": obs.demands,
        "unvisited_nodes": obs.unvisited_nodes,
        "position": _one_hot(obs.position, env.num_nodes + 1),
        "capacity": obs.capacity[None],
    }


def _flat_pack(env: Any, obs: Any) -> PyTree:
    """Return the covered cells, and the shapes of the blocks that are not yet placed."""
    del env  # in a block, each cell holds the block's number
    numbers = obs.blocks.max((1, 2))
    is_placed = (obs.grid == numbers[:, None, None]).any((1, 2))
    blocks = (obs.blocks > 0) & ~is_placed[:, None, None]
    return {"grid": (obs.grid > 0)[..., None], "blocks": blocks.reshape(len(blocks), -1)}


def _graph_coloring(env: Any, obs: Any) -> PyTree:
    return {
        "adj_matrix": obs.adj_matrix,
        "colors": _one_hot(obs.colors, env.num_nodes),
        "current_node_index": _one_hot(obs.current_node_index, env.num_nodes),
    }


def _job_shop(env: Any, obs: Any) -> PyTree:
    """Return the operations still to be scheduled; each member counts machines from its own."""
    jobs, machines = env.num_jobs, env.num_machines
    numbers = (obs.ops_machine_ids - jnp.arange(machines)[:, None, None]) % machines
    numbers = jnp.where(obs.ops_mask, numbers, -1)
    durations = jnp.where(obs.ops_mask, obs.ops_durations, 0) / env.max_op_duration
    return {
        "ops_machine_ids": _one_hot(numbers, machines).reshape(machines, jobs, -1),
        "ops_durations": _for_each(durations, machines),
        "machines_job_ids": _own_first(_one_hot(obs.machines_job_ids, jobs + 1)),
        "machines_remaining_times": _own_first(obs.machines_remaining_times / env.max_op_duration),
    }


def _level_based_foraging(env: Any, obs: Any) -> jax.Array:
    view = obs.agents_view / env.observation_spec.agents_view.maximum
    return view.transpose(0, 2, 3, 1) if view.ndim == 4 else view  # Jumanji puts planes before the grid's axes


def _maze(env: Any, obs: Any) -> jax.Array:
    """Return an image whose channels show the walls, the agent and its target."""
    del env
    places = (_plane(obs.walls.shape, *place) for place in (obs.agent_position, obs.target_position))
    return jnp.stack([obs.walls, *places], axis=-1)


def _mmst(env: Any, obs: Any) -> PyTree:
    """Return the graph, the types of its nodes and the members' positions.

    The types are: connected by the member, still to be connected by the member, then the same for the next members.
    """
    members = env.num_agents
    types = (obs.node_types - 2 * jnp.arange(members)[:, None]) % (2 * members)
    return {
        "node_types": _one_hot(jnp.where(obs.node_types < 0, -1, types), 2 * members),
        "adj_matrix": _for_each(obs.adj_matrix.astype(bool), members),
        "positions": _own_first(_one_hot(obs.positions, env.num_nodes)),
    }


def _multi_cvrp(env: Any, obs: Any) -> PyTree:
    """Return nodes and vehicles, with all numbers scaled.

    The unit of distance is the size of the map, of demand the capacity of a vehicle, and of time the end of the last
    time window.
    """
    members, (size, full, end) = env._num_vehicles, (env._map_max, env._max_capacity, env._max_end_window)
    nodes, windows, vehicles = obs.nodes, obs.windows, obs.vehicles
    times, coefficients = (windows.start / end, windows.end / end), (obs.coeffs.early, obs.coeffs.late)
    return {
        "nodes": _for_each(_columns(nodes.coordinates / size, nodes.demands / full, *times, *coefficients), members),
        "vehicles": _own_first(
            _columns(vehicles.coordinates / size, vehicles.local_times / end, vehicles.capacities / full)
        ),
    }


def _columns(first: jax.Array, *others: jax.Array) -> jax.Array:
    return jnp.concatenate([first, jnp.stack(others, axis=-1)], axis=-1)


def _pac_man(env: Any, obs: Any) -> PyTree:
    """Return planes of walls, the player, each of four ghosts, pellets and power-ups; and the ghosts' fright.

    The fright is the fraction of time that is left until the ghosts are no longer frightened.
    """
    del env  # locations are (column, row), except the player's; what was eaten is at (0, 0), which is a wall
    player = _plane(obs.grid.shape, obs.player_locations.x, obs.player_locations.y)
    ghosts = [_plane(obs.grid.shape, row, column) for column, row in obs.ghost_locations]
    food = [_plane(obs.grid.shape, *places.T[::-1]) for places in (obs.pellet_locations, obs.power_up_locations)]
    walls = obs.grid == 0
    grid = jnp.stack([walls, player, *ghosts, *(plane & ~walls for plane in food)], axis=-1)
    return {"grid": grid, "frightened_state_time": jnp.maximum(obs.frightened_state_time, 0)[None] / FRIGHTENED}


def _robot_warehouse(env: Any, obs: Any) -> jax.Array:
    """Return the member's view, whose first two numbers, the row and column, are divided by the size of the grid."""
    return obs.agents_view.astype(jnp.float32).at[:, :2].divide(jnp.array(env.grid_size, jnp.float32))


def _rubiks_cube(env: Any, obs: Any) -> jax.Array:
    del env
    return _one_hot(obs.cube.ravel(), len(obs.cube))


def _sokoban(env: Any, obs: Any) -> jax.Array:
    """Return planes of walls, targets, the agent and boxes."""
    del env
    movable, fixed = jnp.moveaxis(obs.grid, -1, 0)
    return jnp.stack([fixed == 1, fixed == 2, movable == 3, movable == 4], axis=-1)


def _tsp(env: Any, obs: Any) -> PyTree:
    """Return the cities, the position, and of the trajectory only the start and the cities that are left to visit."""
    return {
        "coordinates": obs.coordinates,
        "position": _one_hot(obs.position, env.num_cities),
        "start": _one_hot(obs.trajectory[0], env.num_cities),
        "unvisited": obs.action_mask,
    }


# For each class, the function `(env, obs) -> arrays` that converts an observation for networks, with the axis M first
# for a team. Categories become one-hot bool, counts and measures float32. Numbers that are irrelevant for the future,
# or are in `Step.legal`, are left out. Only grids have three axes, as networks convolve arrays of three axes.
OBSERVATIONS: dict[str, Callable[[Any, Any], PyTree]] = {
    "BinPack": _bin_pack,
    "Cleaner": _cleaner,
    "Connector": _connector,
    "CVRP": _cvrp,
    "FlatPack": _flat_pack,
    "Game2048": lambda env, obs: _one_hot(obs.board, obs.board.size + 2),  # the highest tile is 2**(cells + 1)
    "GraphColoring": _graph_coloring,
    "JobShop": _job_shop,
    "Knapsack": lambda env, obs: {name: getattr(obs, name) for name in ("weights", "values", "packed_items")},
    "LevelBasedForaging": _level_based_foraging,
    "Maze": _maze,
    "Minesweeper": lambda env, obs: _one_hot(obs.board + 1, 10),  # -1: not explored
    "MMST": _mmst,
    "MultiCVRP": _multi_cvrp,
    "PacMan": _pac_man,
    "RobotWarehouse": _robot_warehouse,
    "RubiksCube": _rubiks_cube,
    "SlidingTilePuzzle": lambda env, obs: _one_hot(obs.puzzle, obs.puzzle.size),
    "Snake": lambda env, obs: obs.grid,
    "Sokoban": _sokoban,
    "Sudoku": lambda env, obs: _one_hot(obs.board + 1, 10),  # -1: empty
    "Tetris": lambda env, obs: {"grid": obs.grid[..., None] > 0, "tetromino": obs.tetromino > 0},
    "TSP": _tsp,
}


def names() -> list[str]:
    """Return the names of the environments with discrete actions that need no download."""
    return sorted(jumanji.registered_environments() - {CONTINUOUS, NEEDS_INTERNET})


def make(name: str, /, **options: Any) -> Jumanji:
    """Make an environment by its name.

    Args:
      name: Name of the environment.
      options: Arguments of the environment's class, such as `time_limit` or `num_rows`.

    Raises:
      UserError: The name or an option is unknown, a value is not allowed, or the actions are continuous.
    """
    check_name("jumanji", name, jumanji.registered_environments())
    if name == CONTINUOUS:
        raise UserError(f"jumanji/{name} has continuous actions; PQN needs discrete actions")
    env = jumanji.make(name)
    parameters = inspect.signature(type(env)).parameters.values()
    defaults = {each.name: getattr(env, each.name, each.default) for each in parameters}
    defaults = {option: value for option, value in defaults.items() if isinstance(value, bool | int | float | str)}
    options = checked(f"jumanji/{name}", options, defaults)
    if not options:
        return Jumanji(env)
    try:
        made = Jumanji(jumanji.make(name, **options))
        jax.eval_shape(made.reset, jax.random.key(0))  # raises an exception if the sizes are impossible
    except Exception as error:
        raise UserError(f"jumanji/{name} cannot be made with {options}: {described(error)}") from error
    return made
