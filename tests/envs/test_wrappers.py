import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import STOP, Counting
from probes import ConstantReward, show, strict_and_quick

import qlax
from qlax.envs import wrap
from qlax.envs.check.env import check_env
from qlax.envs.vec import Vec
from qlax.envs.wrappers import (
    ClipReward,
    Flatten,
    FrameStack,
    LastAction,
    LastReward,
    OneHot,
    SymlogReward,
    TimeLimit,
    TransformReward,
    Wrapper,
)
from qlax.errors import UserError

KEY = jax.random.key(0)


@pytest.fixture(autouse=True, scope="module")
def strict():
    with strict_and_quick():
        yield


class Pair(Counting):
    """Team of two who share one count."""

    num_agents = 2
    shared = jnp.float32(5)

    def reset(self, key):
        state, step = super().reset(key)
        return state, step._replace(obs=jnp.stack([step.obs, step.obs]))

    def step(self, key, state, action, bonus):
        state, step = super().step(key, state, action.sum())
        return state, step._replace(obs=jnp.stack([step.obs, step.obs]), reward=step.reward + bonus)


class Sights:
    """Environment for one agent or a team of two, whose observed arrays of all kinds have new numbers in each step.

    An episode is cut after `time_limit` steps, or terminates earlier, as drawn at its start.
    """

    num_actions = 3
    time_limit = 4
    reset_ratio = 2

    def __init__(self, num_agents=None):
        self.team = () if num_agents is None else (num_agents,)
        if num_agents is not None:
            self.num_agents = num_agents

    def score(self, episode_return):
        return 2 * episode_return

    def reset(self, key):
        state = (jax.random.randint(key, (), 0, 1000), jnp.int32(0))
        return state, show(self.obs(state))

    def step(self, key, state, action):
        del key
        start, count = state[0], state[1] + 1
        reward = action.sum() - 1.0
        terminated, truncated = count >= 2 + start % 4, count >= self.time_limit
        return (start, count), show(self.obs((start, count)), reward, terminated, truncated)

    def obs(self, state):
        start, count = state
        number = start * 10.0 + count
        if self.team:
            number = number + 0.5 * jnp.arange(*self.team)

        def array(*shape):
            places = jnp.arange(np.prod(shape, dtype=int), dtype=jnp.float32).reshape(shape)
            return jnp.reshape(number, (*self.team, *(1,) * len(shape))) * 7 + places.reshape(
                *(1,) * len(self.team), *shape
            )

        return {
            "grid": (array(3, 4, 2) % 256).astype(jnp.uint8),
            "nested": (array(2, 2, 2, 1), array(3, 4) % 3 < 1),
            "number": array(),
            "vector": array(5),
        }


def rollout(env, num_steps=12, num_envs=3):
    """Take random actions in `Vec`, and return the steps `[1 + num_steps, N, ...]`."""
    vec = Vec(env, num_envs, reset_ratio=1)
    state, step = jax.jit(vec.reset)(KEY)
    steps, advance = [step], jax.jit(vec.step)
    for t in range(num_steps):
        action = np.random.default_rng(t).integers(0, env.num_actions, (num_envs, vec.num_agents)).astype(np.int32)
        state, step = advance(jax.random.fold_in(KEY, t), state, action)
        steps.append(step)
    return jax.tree.map(lambda *x: np.stack(x), *steps)


# TimeLimit


def counts(env, actions):
    """Step `Counting` in `Vec`; return the observation, terminated, truncated and the episode's length of each step."""
    vec = Vec(env, 1)
    state, step = vec.reset(KEY)
    advance, shown = jax.jit(vec.step), []
    for action in actions:
        state, step = advance(KEY, state, jnp.full((1, 1), action))
        shown.append([step.obs[0, 0, 1], step.terminated[0], step.truncated[0], step.metrics["episode_length"][0]])
    return np.array(shown, np.float32)


def test_an_episode_is_cut_at_the_limit_and_its_final_observation_shown():
    nan = np.nan
    shown = counts(TimeLimit(Counting(random_starts=False), 3), [0, 0, 0, 1, 0, 0, STOP, 0])
    expected = [
        [1, 0, 0, nan],
        [2, 0, 0, nan],
        [3, 0, 0, 3],  # the episode is cut: this is its final observation
        [0, 0, 1, nan],  # the step of the reset, whose action is ignored
        [1, 0, 0, nan],
        [2, 0, 0, nan],
        [0, 1, 0, 3],  # terminated at the limit, which counts as terminated
        [1, 0, 0, nan],
    ]
    np.testing.assert_array_equal(shown, expected)


def test_the_smaller_limit_holds():
    inner = TimeLimit(Counting(time_limit=2, random_starts=False), 3)
    outer = TimeLimit(Counting(time_limit=3, random_starts=False), 2)
    assert (inner.time_limit, outer.time_limit, TimeLimit(Pair(), 7).time_limit) == (2, 2, 7)
    unlimited = ConstantReward()
    unlimited.time_limit = None  # the contract allows None
    assert TimeLimit(unlimited, 7).time_limit == 7
    np.testing.assert_array_equal(counts(inner, [0, 0, 0]), counts(outer, [0, 0, 0]))
    assert counts(inner, [0, 0, 0])[:, 0].tolist() == [1, 2, 0]


class Accountant(Counting):
    """Environment that reports the length of its episodes itself."""

    def reset(self, key):
        state, step = super().reset(key)
        return state, step._replace(metrics={"episode_length": jnp.float32(jnp.nan)})


# FrameStack


@pytest.mark.parametrize("num_agents", [None, 2])
def test_frames_are_those_of_the_episode_oldest_first(num_agents):
    frames = 3
    single, stacked = rollout(Sights(num_agents)), rollout(FrameStack(Sights(num_agents), frames))
    begins = single.terminated | single.truncated
    assert single.terminated.any()
    assert single.truncated.any()
    begins[0] = True

    def expected(path, x):  # [T, N, M, ...], stacked frame by frame in a loop
        x = x[..., None] if jax.tree_util.keystr(path) in ("['number']", "['nested'][1]") else x
        result = np.empty((*x.shape[:-1], frames * x.shape[-1]), x.dtype)
        for t, n in np.ndindex(*x.shape[:2]):
            begin = max(t0 for t0 in range(t + 1) if begins[t0, n])
            chosen = [x[max(t - back, begin), n] for back in reversed(range(frames))]
            result[t, n] = np.concatenate(chosen, axis=-1)
        return result

    jax.tree.map(np.testing.assert_array_equal, stacked.obs, jax.tree_util.tree_map_with_path(expected, single.obs))
    assert stacked.obs["grid"].dtype == np.uint8
    assert stacked.obs["grid"].shape[3:] == (3, 4, 6)
    assert stacked.obs["nested"][1].shape[3:] == (3, 4, 3)
    assert stacked.obs["vector"].shape[3:] == (15,)
    jax.tree.map(np.testing.assert_array_equal, stacked[2:], single[2:])


# Rewards


class Wages:
    """Environment of three steps whose reward is looked up by the action; a team gets the sum."""

    num_actions = 4
    wages = (0.0, 0.5, 3.0, -7.0)

    def __init__(self, num_agents=None, shaped=False):
        self.shaped = shaped
        self.team = () if num_agents is None else (num_agents,)
        if num_agents is not None:
            self.num_agents = num_agents

    def reset(self, key):
        del key
        return jnp.int32(0), self.shown(jnp.int32(0), 0.0)

    def step(self, key, state, action):
        del key
        return state + 1, self.shown(state + 1, jnp.array(self.wages)[action].sum())

    def shown(self, count, reward):
        metrics = {"raw_reward": jnp.float32(reward)} if self.shaped else {}
        learned = reward * 100 if self.shaped else reward
        return show(jnp.zeros((*self.team, 1)), learned, terminated=count >= 3, metrics=metrics)


def earned(env, actions):
    """Return the rewards for learning, and the reported return of the episode."""
    vec = Vec(env, 1)
    state, step = vec.reset(KEY)
    advance, rewards = jax.jit(vec.step), [step.reward[0]]
    for action in actions:
        state, step = advance(KEY, state, jnp.array(action).reshape(1, -1))
        rewards.append(step.reward[0])
    assert step.terminated[0]
    assert "raw_reward" not in step.metrics
    return np.array(rewards), float(step.metrics["episode_return"][0])


@pytest.mark.parametrize(
    ("env", "actions", "rewards"),
    [
        (ClipReward(Wages(), 1), [1, 2, 3], [0, 0.5, 1, -1]),
        (ClipReward(Wages(), 3.5), [1, 2, 3], [0, 0.5, 3, -3.5]),
        (SymlogReward(Wages()), [1, 2, 3], [0, np.log(1.5), np.log(4), -np.log(8)]),
        (SymlogReward(Wages(2)), [[0, 1], [1, 1], [3, 2]], [0, np.log(1.5), np.log(2), -np.log(5)]),
        (ClipReward(SymlogReward(Wages()), 2), [1, 2, 3], [0, np.log(1.5), np.log(4), -2]),
        (ClipReward(Wages(shaped=True), 60), [1, 2, 3], [0, 50, 60, -60]),
        (TransformReward(Wages(), lambda reward: reward - 1), [1, 2, 3], [0, -0.5, 2, -8]),  # 0 for a reset
    ],
)
def test_rewards_are_changed_and_returns_are_raw(env, actions, rewards):
    found, total = earned(env, actions)
    np.testing.assert_allclose(found, rewards, rtol=1e-6)
    assert total == sum(Wages.wages[action] for action in np.ravel(actions))


# OneHot, Flatten


class Still:
    """Environment whose observation never changes."""

    num_actions = 2

    def __init__(self, obs, num_agents=None):
        self.obs = jax.tree.map(jnp.asarray, obs)
        if num_agents is not None:
            self.num_agents = num_agents

    def reset(self, key):
        del key
        return jnp.int32(0), show(self.obs)

    def step(self, key, state, action):
        del key, action
        return state, show(self.obs, reward=0.25)


def looks(env):
    """Return the observation after a reset, and check that a step returns the same one."""
    state, first = env.reset(KEY)
    _, second = env.step(KEY, state, jnp.zeros(getattr(env, "num_agents", ()), jnp.int32))
    jax.tree.map(np.testing.assert_array_equal, first.obs, second.obs)
    return first.obs


def test_categories_become_one_hot_and_what_is_none_nothing():
    vector = looks(OneHot(Still(np.array([2, 0, -1, 3], np.int8)), 3))
    assert vector.dtype == bool
    np.testing.assert_array_equal(vector, [0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(looks(OneHot(Still(np.int32(1)), 3)), [0, 1, 0])
    np.testing.assert_array_equal(looks(OneHot(Still(np.array([1, 0], np.uint8), num_agents=2), 2)), [[0, 1], [1, 0]])
    assert looks(OneHot(Still(np.int8(5)), 300)).sum() == 1  # more categories than int8 can count


@pytest.mark.parametrize("num_agents", [None, 2])
def test_categories_of_a_grid_are_its_channels(num_agents):
    team = () if num_agents is None else (num_agents,)
    kinds = np.random.default_rng(0).integers(0, 4, (*team, 5, 3, 2)).astype(np.uint8)
    grid = looks(OneHot(Still(kinds, num_agents), 4))
    assert grid.shape == (*team, 5, 3, 8)
    np.testing.assert_array_equal(np.reshape(grid, (*team, 5, 3, 2, 4)).argmax(-1), kinds)
    np.testing.assert_array_equal(looks(OneHot(Still(kinds[..., 0], num_agents), 4)), grid[..., :4])


def test_in_a_tree_whole_numbers_alone_become_one_hot():
    screen, number = np.ones((36, 36, 3), np.uint8), np.float32(3)
    obs = looks(OneHot(Still({"kind": np.int32(1), "open": np.array([True]), "screen": screen, "x": number}), 2))
    np.testing.assert_array_equal(obs["kind"], [False, True])
    np.testing.assert_array_equal(obs["screen"], screen)
    assert (obs["open"].shape, obs["x"]) == ((1,), 3)


@pytest.mark.parametrize("num_agents", [None, 2])
def test_a_tree_is_flattened_in_its_order_as_a_network_sees_it(num_agents):
    team = () if num_agents is None else (num_agents,)
    plain, flat = (jax.jit(env.reset)(KEY)[1].obs for env in (Sights(num_agents), Flatten(Sights(num_agents))))
    leaves = [plain["grid"] / np.float32(255), *plain["nested"], plain["number"], plain["vector"]]
    expected = np.concatenate([np.reshape(x, (*team, -1)) for x in leaves], axis=-1)
    assert flat.dtype == np.float32
    np.testing.assert_allclose(flat, expected, rtol=1e-6)


def test_counts_are_flattened_as_they_are():
    np.testing.assert_array_equal(looks(Flatten(Still(np.array([[200, 3]], np.uint8)))), [200, 3])
    np.testing.assert_array_equal(looks(Flatten(Still(np.int32(7)))), [7])


# LastAction, LastReward


def test_the_last_action_is_one_hot_behind_the_observation_and_zero_after_a_reset():
    vec = Vec(wrap(Counting(random_starts=False), ["last_action"]), 1)
    state, step = vec.reset(KEY)
    shown, advance = [step.obs[0, 0]], jax.jit(vec.step)
    for action in (1, 0, STOP, 1):
        state, step = advance(KEY, state, jnp.full((1, 1), action))
        shown.append(step.obs[0, 0])
    expected = [[0, 0, 0, 0, 0], [0, 1, 0, 1, 0], [0, 2, 1, 0, 0], [0, 0, 0, 0, 0], [0, 1, 0, 1, 0]]
    np.testing.assert_array_equal(shown, expected)


def test_every_member_sees_its_own_action_and_the_reward_of_all():
    env = wrap(Pair(random_starts=False), ["last_action", "last_reward"])
    assert (env.num_agents, env.time_limit, float(env.shared)) == (2, 1000, 5)
    state, step = env.reset(KEY)
    np.testing.assert_array_equal(step.obs, np.zeros((2, 6)))
    _, step = env.step(KEY, state, jnp.array([0, 1]), env.shared)
    np.testing.assert_array_equal(step.obs, [[0, 1, 1, 0, 0, 6], [0, 1, 0, 1, 0, 6]])
    check_env(env, num_steps=5)


@pytest.mark.parametrize("names", [["last_action", "last_reward"], ["last_reward", "last_action"]])
@pytest.mark.parametrize("obs", [np.ones((2, 3, 3, 2), bool), {"a": np.ones((2, 1)), "b": np.ones(2)}])
def test_beside_other_observations_they_lie_in_one_dict(obs, names):
    env = wrap(Still(obs, num_agents=2), names)
    state, first = env.reset(KEY)
    _, step = env.step(KEY, state, jnp.array([1, 0]))
    assert set(first.obs) == set(step.obs) == {"obs", "last_action", "last_reward"}
    for shown in (first.obs, step.obs):
        jax.tree.map(np.testing.assert_array_equal, shown["obs"], obs)
    assert first.obs["last_action"].dtype == jnp.float32
    np.testing.assert_array_equal(first.obs["last_action"], np.zeros((2, 2)))
    np.testing.assert_array_equal(first.obs["last_reward"], np.zeros((2, 1)))
    np.testing.assert_array_equal(step.obs["last_action"], [[0, 1], [1, 0]])
    np.testing.assert_array_equal(step.obs["last_reward"], [[0.25], [0.25]])


def test_an_environment_s_own_dict_stays_whole():
    _, step = LastAction(Still({"obs": np.ones(2), "last_action": np.ones(1)})).reset(KEY)
    obs = step.obs
    assert set(obs) == {"obs", "last_action"}
    assert set(obs["obs"]) == {"obs", "last_action"}


# Together


def test_nothing_is_there_that_the_environment_lacks():
    env = wrap(Counting(), ["last_action"])
    assert not hasattr(env, "num_agents")
    assert not hasattr(Wrapper.__new__(Wrapper), "num_actions")  # as on an instance that is being copied


ALL = ["time_limit=2", "frame_stack=2", "clip_reward=0.5", "symlog_reward", "last_action", "last_reward", "flatten"]


def test_wrappers_by_name_go_around_each_other():
    env = wrap(Sights(2), ALL)
    by_class = FrameStack(TimeLimit(Sights(2), 2), 2)
    by_class = Flatten(LastReward(LastAction(SymlogReward(ClipReward(by_class, 0.5)))))
    found, expected = rollout(env, 4), rollout(copy.copy(by_class), 4)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert found.obs.shape == (5, 3, 2, 3 + 1 + 48 + 16 + 24 + 2 + 10)
    assert (env.time_limit, env.reset_ratio, env.score(3)) == (2, 2, 6)
    check_env(env, num_steps=4)


def test_what_all_copies_share_passes_through_all():
    env = wrap(Pair(random_starts=False), ["time_limit=3", "frame_stack=2", "symlog_reward", "flatten"])
    state, _ = env.reset(KEY)
    _, step = env.step(KEY, state, jnp.array([0, 1]), env.shared)
    np.testing.assert_array_equal(step.obs, [[0, 0, 0, 1]] * 2)
    np.testing.assert_allclose(step.reward, np.log(7), rtol=1e-6)


FLOATS, PLANES = np.ones(3, np.float32), np.ones((3, 3, 2), bool)


@pytest.mark.parametrize(
    ("env", "wrapper", "message"),
    [
        (Counting(), "last_acton", "unknown wrapper 'last_acton'; did you mean 'last_action'"),
        (Counting(), "frame_stak=4", "'frame_stak'; did you mean 'frame_stack'.*frame_stack=<frames>.*or module:Name"),
        (Counting(), "counting:Counted", "module 'counting' has no 'Counted'; did you mean 'Counting'"),
        (Counting(), "time_limit", "wrapper time_limit: expected time_limit=<steps>"),
        (Counting(), "flatten=3", "wrapper flatten=3: expected flatten"),
        (Counting(), "frame_stack=", "wrapper frame_stack=: expected a number"),
        (Counting(), "frame_stack=four", "wrapper frame_stack=four: expected a number"),
        (Counting(), "frame_stack=0", "FrameStack: frames=0; expected a whole number from 1"),
        (Counting(), "time_limit=2.5", "TimeLimit: steps=2.5; expected a whole number from 1"),
        (Counting(), "time_limit=1e10", "TimeLimit: steps=10000000000; expected a whole number from 1"),
        (Still(np.int32(0)), "one_hot=-1", "OneHot: categories=-1; expected a whole number from 1"),
        (Counting(), "clip_reward=0", "ClipReward: bound=0; expected a number above 0"),
        (Counting(), "clip_reward=nan", "ClipReward: bound=nan; expected a number above 0"),
        (Accountant(), "time_limit=9", "TimeLimit: the environment reports episode_length itself"),
        (Still(FLOATS), "one_hot=4", r"of whole numbers other than screens; this one is float32\[3\]"),
        (Still({"a": FLOATS, "b": PLANES}), "one_hot=4", r"\['a'\] float32\[3\], \['b'\] bool\[3, 3, 2\]"),
        (Still(np.ones((36, 36, 1), np.uint8)), "one_hot=4", r"this one is uint8\[36, 36, 1\]"),
        (Still(np.ones(3, bool)), "last_reward", "which is bool; expected floats: put Flatten before LastReward"),
    ],
)
def test_wrappers_that_do_not_fit(env, wrapper, message):
    with pytest.raises(UserError, match=message):
        wrap(env, [wrapper])


def test_those_for_jax_do_not_go_around_what_lives_on_the_host(tmp_path):
    with pytest.raises(UserError, match="wrapper frame_stack=4 is for environments in JAX, but hosts:HostWalk runs"):
        qlax.train("hosts:HostWalk", out=tmp_path / "run", wrappers=("frame_stack=4",))


def scaled(env, factor, offset=(0,)):
    return TransformReward(env, lambda reward: factor * reward + offset[0])


@pytest.mark.parametrize(
    ("arguments", "reward"),
    [("=3", 3.0), ('={"factor": 2}', 2.0), ('={"factor":2,"offset":[0.5]}', 2.5)],
)
def test_own_wrappers_take_arguments(arguments, reward):
    env = qlax.wrap(qlax.make("gymnax/CartPole-v1"), [f"test_wrappers:scaled{arguments}", "flatten"])
    state, _ = env.reset(jax.random.key(0))
    assert env.step(jax.random.key(1), state, jnp.int32(0))[1].reward == reward


def test_own_wrappers_without_their_arguments_are_refused():
    with pytest.raises(UserError, match=r"test_wrappers:scaled cannot be made: TypeError.*'factor'"):
        qlax.wrap(qlax.make("gymnax/CartPole-v1"), ["test_wrappers:scaled"])
