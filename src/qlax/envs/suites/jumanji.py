"""Jumanji: puzzles, packing, routing and small games (Bonnet et al., 2024, arXiv:2306.09884).

Adapts jumanji 1.1, most of whose environments end alike by themselves and by their time limit.

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
NEEDS_NETWORK = "Sokoban-v0"  # downloads its levels when it is made
NO_LIMIT = 2**30  # steps
DRAWN_SIZE = 480  # pixels of a picture's longer side
FRIGHTENED = 30  # steps that ghosts stay so
# By class: where a reset costs as much as 7 to 66 steps. Fewer share one where episodes are short.
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
    """One Jumanji environment of discrete actions.

    Actions for several members are those of a team, whose reward is the sum of its members'. Several choices of a
    single agent are one joint action, numbered in C order. `metrics` hold what the environment reports, at the
    end of an episode.

    Args:
      env: of Jumanji, of a class named in `OBSERVATIONS`.
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
            self._env.time_limit = NO_LIMIT  # so that an end is one of the task
        mask = getattr(env.observation_spec, "action_mask", None)
        choices = getattr(env.action_spec, "num_values", None)  # of each member, or one after the other
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
        del key  # the state holds one
        if self._is_joint:
            action = jnp.stack(jnp.unravel_index(action, self._choices))
        return self._shown(*self._env.step(state, action))

    def _render(self, state: Any) -> np.ndarray:
        state = jax.tree.map(jnp.asarray, state)  # some drawings need more than NumPy has
        self._env.render(state)  # which may return nothing
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
    """The same, drawing in memory, pictures into `drawn`: left alone it opens windows."""
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
    """Bool `[..., categories]`; nothing is True where `x` is not one of them, 0 and up."""
    return jax.nn.one_hot(x, categories, dtype=bool)


def _plane(shape: tuple[int, ...], *index: jax.Array) -> jax.Array:
    """Bool of this shape, True at the places `index`."""
    return jnp.zeros(shape, bool).at[index].set(True)


def _for_each(x: jax.Array, members: int) -> jax.Array:
    """`[M, ...]`: the same for every member."""
    return jnp.broadcast_to(x, (members, *x.shape))


def _own_first(x: jax.Array) -> jax.Array:
    """Of `[M, ...]`, `[M, M, ...]`: for every member its own, then those of the next ones."""
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
    """Planes of dirt, walls, the member, and the others; these may share a place."""
    rows, columns = obs.agents_locations.T
    own = jax.vmap(lambda *place: _plane(obs.grid.shape, *place))(rows, columns)
    dirt, walls = (_for_each(obs.grid == kind, env.num_agents) for kind in (0, 2))
    return jnp.stack([dirt, walls, own, own.sum(0, keepdims=True) > own], axis=-1)


def _connector(env: Any, obs: Any) -> jax.Array:
    """Planes of the member's path, head and target, and of those of all others."""
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
    """Cells that are covered, and the blocks that are left, each cell of which holds its block's number."""
    del env
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
    """Operations still to be scheduled; machines are numbered from the member on."""
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
    return view.transpose(0, 2, 3, 1) if view.ndim == 4 else view  # planes come first


def _maze(env: Any, obs: Any) -> jax.Array:
    """Planes of walls, the agent and its target."""
    del env
    places = (_plane(obs.walls.shape, *place) for place in (obs.agent_position, obs.target_position))
    return jnp.stack([obs.walls, *places], axis=-1)


def _mmst(env: Any, obs: Any) -> PyTree:
    """Nodes connected by the member, its own that are not, then the same of the next members."""
    members = env.num_agents
    types = (obs.node_types - 2 * jnp.arange(members)[:, None]) % (2 * members)
    return {
        "node_types": _one_hot(jnp.where(obs.node_types < 0, -1, types), 2 * members),
        "adj_matrix": _for_each(obs.adj_matrix.astype(bool), members),
        "positions": _own_first(_one_hot(obs.positions, env.num_nodes)),
    }


def _multi_cvrp(env: Any, obs: Any) -> PyTree:
    """Distances in sizes of the map, demands in vehicles, times in what the last window needs to close."""
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
    """Planes of walls, the player, each of four ghosts, pellets and power-ups; and how frightened the ghosts are.

    Places are written as column and row, and those of what was eaten as (0, 0), in a wall.
    """
    del env
    player = _plane(obs.grid.shape, obs.player_locations.x, obs.player_locations.y)
    ghosts = [_plane(obs.grid.shape, row, column) for column, row in obs.ghost_locations]
    food = [_plane(obs.grid.shape, *places.T[::-1]) for places in (obs.pellet_locations, obs.power_up_locations)]
    walls = obs.grid == 0
    grid = jnp.stack([walls, player, *ghosts, *(plane & ~walls for plane in food)], axis=-1)
    return {"grid": grid, "frightened_state_time": jnp.maximum(obs.frightened_state_time, 0)[None] / FRIGHTENED}


def _robot_warehouse(env: Any, obs: Any) -> jax.Array:
    """Two counts, the member's row and column, and what is there or not."""
    return obs.agents_view.astype(jnp.float32).at[:, :2].divide(jnp.array(env.grid_size, jnp.float32))


def _rubiks_cube(env: Any, obs: Any) -> jax.Array:
    del env
    return _one_hot(obs.cube.ravel(), len(obs.cube))


def _sokoban(env: Any, obs: Any) -> jax.Array:
    """Planes of walls, targets, the agent and boxes."""
    del env
    movable, fixed = jnp.moveaxis(obs.grid, -1, 0)
    return jnp.stack([fixed == 1, fixed == 2, movable == 3, movable == 4], axis=-1)


def _tsp(env: Any, obs: Any) -> PyTree:
    """Of the trajectory only its start matters, and what is left to visit."""
    return {
        "coordinates": obs.coordinates,
        "position": _one_hot(obs.position, env.num_cities),
        "start": _one_hot(obs.trajectory[0], env.num_cities),
        "unvisited": obs.action_mask,
    }


# By class: what makes networks' food of an observation, `(env, obs) -> arrays`, with M first for a team. Categories
# become one-hot bool, counts and measures float32; what says nothing about the future is left out, and what is in
# `Step.legal`. Grids have three axes, so that networks convolve them, and nothing else has.
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
    """The environments of discrete actions that need no network."""
    return sorted(jumanji.registered_environments() - {CONTINUOUS, NEEDS_NETWORK})


def make(name: str, /, **options: Any) -> Jumanji:
    """`options` are arguments of the environment's class, such as `time_limit` or `num_rows`.

    Raises:
      UserError: unknown name or option, a value that cannot be, continuous actions, or levels that cannot be had.
    """
    check_name("jumanji", name, jumanji.registered_environments())
    if name == CONTINUOUS:
        raise UserError(f"jumanji/{name} has continuous actions; PQN needs discrete actions")
    try:
        env = jumanji.make(name)
    except Exception as error:
        raise UserError(f"jumanji/{name} cannot be made: {described(error)}") from error
    parameters = inspect.signature(type(env)).parameters.values()
    defaults = {each.name: getattr(env, each.name, each.default) for each in parameters}
    defaults = {option: value for option, value in defaults.items() if isinstance(value, bool | int | float | str)}
    options = checked(f"jumanji/{name}", options, defaults)
    if not options:
        return Jumanji(env)
    try:
        made = Jumanji(jumanji.make(name, **options))
        jax.eval_shape(made.reset, jax.random.key(0))  # impossible sizes show themselves here
    except Exception as error:
        raise UserError(f"jumanji/{name} cannot be made with {options}: {described(error)}") from error
    return made
