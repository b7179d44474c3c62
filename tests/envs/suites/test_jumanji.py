"""Jumanji, which compiles slowly on a CPU: few environments are stepped in CI, and many states are made by hand."""

import functools
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import jumanji
import numpy as np
import pytest
from jumanji.environments.logic.rubiks_cube.utils import make_solved_cube
from jumanji.environments.routing.sokoban.env import Sokoban
from jumanji.environments.routing.sokoban.generator import SimpleSolveGenerator

from qlax.envs import make
from qlax.envs.check.env import check_env
from qlax.envs.suites import jumanji as suite
from qlax.errors import UserError

KEY = jax.random.key(0)
LIMIT = 3


def slow(*arguments):
    return pytest.param(*arguments, marks=pytest.mark.slow)


@functools.cache
def started(name, **options):
    """Return an environment, its initial state and step, and its compiled `step`."""
    env = make(f"jumanji/{name}", **options)
    state, first = jax.jit(env.reset)(KEY)
    action = jnp.zeros(getattr(env, "num_agents", ()), jnp.int32)
    step = jax.jit(lambda state, action: env.step(KEY, state, action)).lower(state, action).compile()
    return state, first, lambda state, action: step(state, jnp.asarray(action, jnp.int32))


def first_legal(step):
    return step.legal.argmax(-1)


def test_names_are_those_of_discrete_actions_that_need_no_network():
    assert len(suite.names()) == 24
    assert set(suite.names()) == jumanji.registered_environments() - {"Sokoban-v0", "SearchAndRescue-v0"}


@pytest.mark.parametrize(
    ("name", "options", "num_actions", "num_agents", "time_limit"),
    [
        ("Game2048-v1", {}, 4, None, None),
        ("Maze-v0", {"time_limit": 7}, 4, None, 7),
        ("Tetris-v0", {"num_cols": 6}, 4 * 6, None, 400),
        ("RubiksCube-partly-scrambled-v0", {}, 6 * 1 * 3, None, 20),
        ("MultiCVRP-v0", {}, 21, 2, None),
        slow("JobShop-v0", {}, 21, 10, None),
    ],
)
def test_sizes(name, options, num_actions, num_agents, time_limit):
    env = make(f"jumanji/{name}", **options)
    assert env.num_actions == num_actions
    assert getattr(env, "num_agents", None) == num_agents
    assert getattr(env, "time_limit", None) == time_limit


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("Tetris-v0", (4, 10)),
        slow("Minesweeper-v0", (10, 10)),
        slow("RubiksCube-v0", (6, 1, 3)),
        slow("Sudoku-v0", (9, 9, 9)),
        slow("BinPack-v2", (40, 20)),
    ],
)
def test_a_joint_action_is_the_choices_it_stands_for(name, choices):
    env, theirs = make(f"jumanji/{name}"), jumanji.make(name)
    _, first = jax.jit(env.reset)(KEY)
    state, timestep = jax.jit(theirs.reset)(KEY)
    after, shown = jax.jit(jax.vmap(lambda a: env.step(KEY, state, a)))(jnp.arange(env.num_actions))
    each = jnp.array(list(itertools.product(*map(range, choices))))
    after_theirs, shown_theirs = jax.jit(jax.vmap(lambda a: theirs.step(state, a)))(each)
    assert len(each) == env.num_actions
    for ours, expected in zip(jax.tree.leaves(after), jax.tree.leaves(after_theirs), strict=True):
        if not jax.dtypes.issubdtype(ours.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(ours, expected)
    np.testing.assert_array_equal(shown.reward, shown_theirs.reward)
    np.testing.assert_array_equal(shown.terminated, shown_theirs.last())
    if name.startswith("Rubik"):
        assert first.legal is None
        return
    legal = [bool(timestep.observation.action_mask[choice]) for choice in itertools.product(*map(range, choices))]
    np.testing.assert_array_equal(first.legal, legal)


def test_members_rewards_are_added_up():
    """Agents of levels 2 and 1 load a food of level 3 together, which is half of all food."""
    state, first, step = started("LevelBasedForaging-v0")
    assert first.legal.shape == (2, 6)
    food = state.food_items.replace(position=jnp.array([[4, 4], [1, 1]]), level=jnp.array([3, 3]))
    agents = state.agents.replace(position=jnp.array([[4, 3], [4, 6]]), level=jnp.array([2, 1]))
    state, shown = step(state.replace(food_items=food, agents=agents), [0, 3])  # the first waits, the second moves left
    assert shown.reward == 0
    places = [[4, 4, 3, 1, 1, 3, 4, 3, 2, 4, 5, 1], [4, 4, 3, 1, 1, 3, 4, 5, 1, 4, 3, 2]]  # food, observer, other
    np.testing.assert_array_equal(shown.obs, np.array(places) / 8)
    np.testing.assert_array_equal(shown.legal[:, 3:], [[True, False, True], [False, True, True]])
    state, shown = step(state, [5, 5])
    np.testing.assert_allclose(shown.reward, 0.5, rtol=1e-6)
    np.testing.assert_array_equal(shown.obs[:, :3], np.array([[-1, -1, 0]] * 2) / 8)
    assert not shown.terminated


def no_dirt(state):
    return state.replace(grid=jnp.where(state.grid == 0, 1, state.grid).astype(state.grid.dtype))


def target_above(state):
    return state.replace(
        agent_position=state.agent_position._replace(row=jnp.int32(1), col=jnp.int32(0)),
        target_position=state.target_position._replace(row=jnp.int32(0), col=jnp.int32(0)),
        action_mask=jnp.ones(4, bool),
    )


def nothing_valid(state):
    return state.replace(action_mask=jnp.zeros_like(state.action_mask))


def one_slide_away(state):
    puzzle = jnp.array([*range(1, 20), 0, *range(21, 25), 20]).reshape(5, 5)
    return state.replace(puzzle=puzzle, empty_tile_position=jnp.array([3, 4]))


def one_turn_away(state):
    """Return a solved cube whose upper layer is turned anticlockwise by a quarter, seen from above."""
    cube = np.array(make_solved_cube(3))
    cube[1, 0], cube[2, 0], cube[3, 0], cube[4, 0] = 4, 1, 2, 3
    return state.replace(cube=jnp.array(cube))


def all_eaten(state):
    return state.replace(food_items=state.food_items.replace(eaten=jnp.ones(2, bool)))


def all_connected(state):
    return state.replace(agents=state.agents.replace(target=state.agents.position))


def all_reached(state):
    return state.replace(nodes_to_connect=jnp.broadcast_to(state.positions[:, None], state.nodes_to_connect.shape))


def no_pellets(state):
    return state.replace(pellets=jnp.int32(0), pellet_locations=jnp.zeros_like(state.pellet_locations))


def collision(state):
    return state.replace(grid=state.grid.at[1].set(0))  # no robot is on its shelf any more


@pytest.mark.parametrize(
    ("name", "prepare", "action"),
    [
        ("Cleaner-v0", no_dirt, None),
        ("Maze-v0", target_above, 0),
        ("Snake-v1", nothing_valid, None),
        slow("SlidingTilePuzzle-v0", one_slide_away, 2),
        slow("RubiksCube-v0", one_turn_away, None),
        slow("Tetris-v0", nothing_valid, None),
        slow("LevelBasedForaging-v0", all_eaten, None),
        slow("Connector-v3", all_connected, None),
        slow("MMST-v0", all_reached, None),
        slow("PacMan-v1", no_pellets, None),
        slow("RobotWarehouse-v0", collision, None),
    ],
)
def test_a_time_limit_truncates_and_the_end_of_the_task_terminates(name, prepare, action):
    begun, first, step = started(name, time_limit=LIMIT)
    assert not first.terminated
    assert not first.truncated
    state, shown = begun, first
    for count in range(1, LIMIT + 1):
        quiet = jnp.int32(0) if shown.legal is None else first_legal(shown)
        state, shown = step(state, quiet)
        assert (bool(shown.terminated), bool(shown.truncated)) == (False, count == LIMIT)
        assert all(np.isnan(value) != shown.truncated for value in shown.metrics.values())
    quiet = jnp.int32(0) if first.legal is None else first_legal(first)
    action = quiet if action is None else action
    for count in (0, LIMIT - 1):  # at the limit too
        _, shown = step(prepare(begun).replace(step_count=jnp.int32(count)), action)
        assert (bool(shown.terminated), bool(shown.truncated)) == (True, False)
        assert not any(np.isnan(value) for value in shown.metrics.values())


def test_metrics_are_what_is_reported_at_the_end():
    state, first, step = started("Cleaner-v0", time_limit=LIMIT)
    _, shown = step(no_dirt(state), first_legal(first))
    assert {name: float(value) for name, value in shown.metrics.items()} == {
        "num_dirty_tiles": 0,
        "ratio_dirty_tiles": 0,
    }
    assert set(first.metrics) == set(shown.metrics)
    assert np.isnan(list(first.metrics.values())).all()


def test_where_nothing_is_legal_everything_is():
    state, first, step = started("Knapsack-v1")
    np.testing.assert_array_equal(first.legal, np.ones(50, bool))
    state = state.replace(remaining_budget=state.weights[7] + state.weights[3], packed_items=jnp.arange(50) >= 8)
    state, shown = step(state, 7)
    np.testing.assert_array_equal(shown.legal, (np.arange(50) < 7) & (state.weights <= state.weights[3]))
    assert shown.legal[3]
    np.testing.assert_allclose(shown.reward, state.values[7])
    _, shown = step(state.replace(remaining_budget=state.weights[3], packed_items=jnp.arange(50) != 3), 3)
    assert shown.terminated
    assert shown.legal.all()


def observed(kind, env=None, **fields):
    """Convert an observation with these fields, from an environment with these attributes, as for a network."""
    lists = {name: jnp.array(value) for name, value in fields.items() if isinstance(value, list | np.ndarray)}
    obs = SimpleNamespace(**(fields | lists))
    return jax.jit(lambda: suite.OBSERVATIONS[kind](SimpleNamespace(**(env or {})), obs))()


def marked(text):
    """Convert a map to bool `[H, W, C]`, with one plane for each of the letters behind `|`."""
    cells, letters = text.split("|")
    rows = np.array([list(row) for row in cells.split()])
    return rows[..., None] == np.array(list(letters))


def test_of_a_grid_each_category_is_a_plane():
    np.testing.assert_array_equal(observed("Game2048", board=[[0, 1], [5, 2]]), marked("ab fc|abcdef"))
    np.testing.assert_array_equal(observed("SlidingTilePuzzle", puzzle=[[3, 1], [0, 2]]), marked("db ac|abcd"))
    board = [[-1, 0], [8, 1]]
    np.testing.assert_array_equal(observed("Minesweeper", board=board), marked("-0 81|-012345678"))
    np.testing.assert_array_equal(observed("Sudoku", board=board), marked("-0 81|-012345678"))
    cube = np.arange(6).repeat(4).reshape(6, 2, 2)
    np.testing.assert_array_equal(observed("RubiksCube", cube=cube), np.eye(6, dtype=bool).repeat(4, axis=0))
    obs = observed("Tetris", grid=[[0, 1], [1, 1]], tetromino=[[0, 1], [0, 1]])
    np.testing.assert_array_equal(obs["grid"], marked(".x xx|x"))
    np.testing.assert_array_equal(obs["tetromino"], [[False, True], [False, True]])


def test_a_maze_shows_walls_the_agent_and_its_target():
    obs = observed("Maze", walls=[[False, True], [False, False]], agent_position=(0, 0), target_position=(1, 1))
    np.testing.assert_array_equal(obs, marked("aw .t|wat"))


def test_cleaners_see_themselves_and_the_others():
    obs = observed(
        "Cleaner", {"num_agents": 3}, grid=[[0, 1], [2, 1]], agents_locations=[[0, 1], [0, 1], [1, 1]]
    )  # two of them are in the same place
    assert obs.shape == (3, 2, 2, 4)
    np.testing.assert_array_equal(obs[..., :2], np.stack([marked("d. w.|dw")] * 3))
    np.testing.assert_array_equal(
        obs[..., 2], np.stack([marked(own)[..., 0] for own in (".x ..|x", ".x ..|x", ".. .x|x")])
    )
    np.testing.assert_array_equal(
        obs[..., 3], np.stack([marked(others)[..., 0] for others in (".x .x|x", ".x .x|x", ".x ..|x")])
    )


def test_connectors_tell_their_own_path_head_and_target_from_others():
    obs = observed("Connector", {"num_agents": 2}, grid=[[1, 2, 0], [5, 4, 6], [3, 0, 0]])
    np.testing.assert_array_equal(obs[0], marked("ph. HPT t..|phtPHT"))
    np.testing.assert_array_equal(obs[1], marked("PH. hpt T..|phtPHT"))


def test_in_mmst_each_member_sees_the_graph_from_its_side():
    """Use the example of Jumanji's own documentation of the observation."""
    seen = [[1, 0, -1, 2, -1, 3, 1, -1, 3, 1, -1, -1], [3, 2, -1, 0, -1, 1, 3, -1, 1, 3, -1, -1]]
    adjacent = np.arange(144).reshape(12, 12) % 5 == 0
    obs = observed(
        "MMST",
        {"num_agents": 2, "num_nodes": 12},
        node_types=seen[0],
        positions=[1, 3],
        adj_matrix=adjacent.astype(np.int32),
    )
    np.testing.assert_array_equal(obs["node_types"], np.array(seen)[..., None] == np.arange(4))
    np.testing.assert_array_equal(obs["positions"].argmax(-1), [[1, 3], [3, 1]])
    assert (obs["positions"].sum(-1) == 1).all()
    np.testing.assert_array_equal(obs["adj_matrix"], [adjacent, adjacent])


def test_in_job_shops_machines_are_numbered_from_the_member_on():
    obs = observed(
        "JobShop",
        {"num_jobs": 2, "num_machines": 3, "max_op_duration": 4},
        ops_machine_ids=[[0, 1], [2, -1]],
        ops_durations=[[2, 1], [4, -1]],
        ops_mask=[[False, True], [True, False]],
        machines_job_ids=[0, 2, 1],
        machines_remaining_times=[1, 0, 2],
    )
    numbers = np.array([[[-1, 1], [2, -1]], [[-1, 0], [1, -1]], [[-1, 2], [0, -1]]])
    expected = (numbers[..., None] == np.arange(3)).reshape(3, 2, 6)
    np.testing.assert_array_equal(obs["ops_machine_ids"], expected)
    np.testing.assert_array_equal(obs["ops_durations"], [[[0, 0.25], [1, 0]]] * 3)
    np.testing.assert_array_equal(obs["machines_job_ids"].argmax(-1), [[0, 2, 1], [2, 1, 0], [1, 0, 2]])
    np.testing.assert_array_equal(obs["machines_remaining_times"], [[0.25, 0, 0.5], [0, 0.5, 0.25], [0.5, 0.25, 0]])


def test_in_multi_cvrp_the_own_vehicle_comes_first():
    obs = observed(
        "MultiCVRP",
        {"_num_vehicles": 2, "_map_max": 10, "_max_capacity": 60, "_max_end_window": 20.0},
        nodes=SimpleNamespace(coordinates=np.array([[1.0, 2.0]]), demands=np.array([30], np.int16)),
        windows=SimpleNamespace(start=np.array([4.0]), end=np.array([14.0])),
        coeffs=SimpleNamespace(early=np.array([0.25]), late=np.array([0.75])),
        vehicles=SimpleNamespace(
            coordinates=np.array([[5.0, 0.0], [0.0, 10.0]]),
            local_times=np.array([2.0, 10.0]),
            capacities=np.array([60, 15], np.int16),
        ),
    )
    np.testing.assert_allclose(obs["nodes"], [[[0.1, 0.2, 0.5, 0.2, 0.7, 0.25, 0.75]]] * 2)
    vehicles = [[0.5, 0, 0.1, 1], [0, 1, 0.5, 0.25]]
    np.testing.assert_allclose(obs["vehicles"], [vehicles, vehicles[::-1]])


def test_pac_man_sees_what_is_left_to_eat_and_each_ghost():
    obs = observed(
        "PacMan",
        grid=[[0, 1, 1], [1, 1, 1]],
        player_locations=SimpleNamespace(x=1, y=2),  # (row, column), while all others are (column, row)
        ghost_locations=[[0, 1], [1, 1], [1, 1], [2, 0]],
        pellet_locations=[[0, 0], [1, 0]],  # the first pellet was eaten
        power_up_locations=[[0, 1], [0, 0]],
        frightened_state_time=np.array(15),
    )
    maps = ("x.. ...", "... ..x", "... x..", "... .x.", "... .x.", "..x ...", ".x. ...", "... x..")
    expected = [marked(f"{each}|x") for each in maps]  # planes: walls, player, four ghosts, pellets, power-ups
    np.testing.assert_array_equal(obs["grid"], np.concatenate(expected, axis=-1))
    np.testing.assert_array_equal(obs["frightened_state_time"], [0.5])
    ended = observed(
        "PacMan",
        grid=[[0, 1]],
        player_locations=SimpleNamespace(x=0, y=1),
        ghost_locations=[[1, 0]] * 4,
        pellet_locations=[[0, 0]],
        power_up_locations=[[0, 0]],
        frightened_state_time=np.array(-7),
    )
    np.testing.assert_array_equal(ended["frightened_state_time"], [0])
    assert not ended["grid"][..., 6:].any()


def test_flat_pack_shows_the_blocks_that_are_left():
    one, two = np.zeros((3, 3), int), np.zeros((3, 3), int)
    one[0, :2], two[1, 1] = 1, 2
    grid = np.zeros((5, 5), int)
    grid[4, 3] = 2
    obs = observed("FlatPack", grid=grid, blocks=np.stack([one, two]))
    np.testing.assert_array_equal(obs["grid"], (grid > 0)[..., None])
    np.testing.assert_array_equal(obs["blocks"], [one.ravel() > 0, np.zeros(9, bool)])


def test_tours_show_where_they_are_where_they_began_and_what_is_left():
    coordinates = np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])
    fields = {"coordinates": coordinates, "action_mask": [True, False, False]}
    obs = observed("TSP", {"num_cities": 3}, position=np.array(1), trajectory=[2, 1, -1], **fields)
    np.testing.assert_array_equal(obs["coordinates"], coordinates)
    np.testing.assert_array_equal(obs["position"], [False, True, False])
    np.testing.assert_array_equal(obs["start"], [False, False, True])
    np.testing.assert_array_equal(obs["unvisited"], [True, False, False])
    before = observed("TSP", {"num_cities": 3}, position=np.array(-1), trajectory=[-1, -1, -1], **fields)
    assert not before["position"].any()
    assert not before["start"].any()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"grid_observation": True}, {}])
def test_foragers_see_levels_and_places_in_parts_of_the_largest(options):
    _, first, _ = started("LevelBasedForaging-v0", **options)
    assert first.obs.shape == ((2, 17, 17, 3) if options else (2, 12))
    levels = first.obs[..., 0] if options else first.obs[:, 8::3]
    assert set(np.unique(8 * levels)) <= {0, 1, 2}


@pytest.mark.slow
def test_robots_see_their_place_in_parts_of_the_warehouse():
    state, first, _ = started("RobotWarehouse-v0")
    places = np.stack([state.agents.position.x, state.agents.position.y], axis=-1)
    np.testing.assert_allclose(first.obs[:, :2], places / np.array(state.grid.shape[1:]), rtol=1e-6)
    assert set(np.unique(first.obs[:, 2:])) <= {0, 1}


@pytest.mark.slow
def test_sokoban_can_be_played_once_it_is_made():
    env = suite.Jumanji(Sokoban(generator=SimpleSolveGenerator()))
    check_env(env, num_steps=130)
    state, first = env.reset(KEY)
    assert (env.num_actions, env.time_limit, first.legal) == (4, 120, None)
    expected = [state.fixed_grid == 1, state.fixed_grid == 2, state.variable_grid == 3, state.variable_grid == 4]
    np.testing.assert_array_equal(first.obs, np.stack(expected, axis=-1))


@pytest.mark.slow
def test_levels_that_cannot_be_downloaded_are_one_line(monkeypatch):
    def fail(*arguments, **options):
        raise OSError("no\nnetwork")

    monkeypatch.setattr("jumanji.environments.routing.sokoban.generator.hf_hub_download", fail)
    with pytest.raises(UserError, match=r"^jumanji/Sokoban-v0 cannot be made: OSError: no network$"):
        make("jumanji/Sokoban-v0")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Snake-v2", {}, "jumanji has no environment 'Snake-v2'; did you mean 'Snake-v1'?; 'qlax envs jumanji' lists"),
        ("SearchAndRescue-v0", {}, "jumanji/SearchAndRescue-v0 has continuous actions; PQN needs discrete actions"),
        ("Snake-v1", {"num_row": 6}, "jumanji/Snake-v1 has no option 'num_row'; did you mean 'num_rows'?; options:"),
        ("Snake-v1", {"num_rows": 1.5}, "num_rows=1.5: expected a number like 12"),
        ("Snake-v1", {"num_rows": -1}, "jumanji/Snake-v1 cannot be made with {'num_rows': -1}: .* nonnegative"),
        ("Tetris-v0", {"num_rows": 2}, "jumanji/Tetris-v0 cannot be made with {'num_rows': 2}: ValueError"),
        ("Maze-v0", {"time_limit": 0}, "time_limit=0: expected a number like 100"),
        ("Knapsack-v1", {"generator": 3}, "jumanji/Knapsack-v1 has no option 'generator'"),
    ],
)
def test_errors_name_what_was_wrong_and_what_was_probably_meant(name, options, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        make(f"jumanji/{name}", **options)
