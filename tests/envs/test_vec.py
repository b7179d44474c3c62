import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import STOP, Counting

from qlax.envs.vec import Vec
from qlax.errors import UserError
from qlax.types import Step

nan = np.nan
KEYS = jax.random.split(jax.random.key(0), 100)


def play(vec, actions):
    """Take `actions [T, N]`, the same for all members; return all steps, with fields `[T + 1, ...]` in NumPy."""
    state, first = jax.jit(vec.reset)(KEYS[-1])
    actions = jnp.repeat(jnp.asarray(actions, jnp.int32)[..., None], vec.num_agents, -1)
    step = lambda state, inputs: vec.step(inputs[0], state, inputs[1])  # noqa: E731
    _, steps = jax.lax.scan(step, state, (KEYS[: len(actions)], actions))
    return jax.tree.map(lambda x, xs: np.concatenate([x[None], xs]), first, steps)


def kinds(tree):
    """Return shape, dtype and weak type of every array."""
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


# Steps of one copy after its reset and after the actions 1, 0, 1, 1, 0:
#   count of the observation, reward, terminated, truncated, episode_return, episode_length, the environment's metric
TERMINATES = (
    {"lengths": (2,)},
    False,
    [
        (0, 0, 0, 0, nan, nan, nan),
        (1, 1, 0, 0, nan, nan, 1),
        (0, 0, 1, 0, 1, 2, 2),
        (1, 1, 0, 0, nan, nan, 1),
        (0, 1, 1, 0, 2, 2, 2),
        (1, 0, 0, 0, nan, nan, 1),
    ],
)
CUT = (
    {"time_limit": 2},
    False,
    [
        (0, 0, 0, 0, nan, nan, nan),
        (1, 1, 0, 0, nan, nan, 1),
        (2, 0, 0, 0, 1, 2, 2),  # the final observation
        (0, 0, 0, 1, nan, nan, nan),  # the action 1 is ignored
        (1, 1, 0, 0, nan, nan, 1),
        (2, 0, 0, 0, 1, 2, 2),
    ],
)
BOTH_AT_ONCE = ({"lengths": (2,), "time_limit": 2}, False, TERMINATES[-1])
LIMIT_IS_TERMINAL = ({"time_limit": 2}, True, TERMINATES[-1])


@pytest.mark.parametrize(("options", "terminal", "expected"), [TERMINATES, CUT, BOTH_AT_ONCE, LIMIT_IS_TERMINAL])
def test_the_two_ends(options, terminal, expected):
    vec = Vec(Counting(**options), 2, time_limit_is_terminal=terminal)
    steps = play(vec, np.repeat([[1], [0], [1], [1], [0]], 2, 1))
    names = ("episode_return", "episode_length", "count")
    for copy in range(2):
        columns = steps.obs[:, copy, 0, 1], steps.reward[:, copy], steps.terminated[:, copy], steps.truncated[:, copy]
        metrics = [steps.metrics[name][:, copy] for name in names]
        np.testing.assert_array_equal(np.stack([*columns, *metrics], 1), np.array(expected, np.float32))


@pytest.mark.parametrize("reset_ratio", [1, 2])
@pytest.mark.parametrize("terminal", [False, True])
def test_long_random_runs_equal_a_plain_simulation(reset_ratio, terminal):
    lengths, limit, num_envs = (1, 2, 4, 6, 9), 5, 4
    actions = np.random.default_rng(0).integers(0, 2, (60, num_envs))
    vec = Vec(Counting(lengths, limit), num_envs, reset_ratio=reset_ratio, time_limit_is_terminal=terminal)
    steps = play(vec, actions)
    num_terminated = num_cut = 0
    for copy in range(num_envs):
        start, count, total, overdue = steps.obs[0, copy, 0, 0], 0, 0, False
        for t, action in enumerate(actions[:, copy], start=1):
            shown_start, shown_count = steps.obs[t, copy, 0]
            count, total = (count, total) if overdue else (count + 1, total + action)
            terminated = not overdue and (count >= lengths[int(start) % 5] or (terminal and count == limit))
            cut = not overdue and not terminated and count == limit
            num_terminated, num_cut = num_terminated + terminated, num_cut + cut
            assert steps.reward[t, copy] == (0 if overdue else action)
            assert (steps.terminated[t, copy], steps.truncated[t, copy]) == (terminated, overdue)
            ended = (total, count) if terminated or cut else (nan, nan)
            shown = [steps.metrics[name][t, copy] for name in ("episode_return", "episode_length", "count")]
            np.testing.assert_array_equal(shown, [*ended, nan if overdue else count])
            if terminated or overdue:
                assert shown_start != start
                start, count, total = shown_start, 0, 0
            assert (shown_start, shown_count) == (start, count)
            overdue = cut
    assert num_terminated > 20
    assert (num_cut > 5) != terminal


@pytest.mark.parametrize(("reset_ratio", "num_fresh"), [(1, 6), (2, 3), (6, 1)])
def test_fresh_episodes_are_dealt_to_the_copies_that_ended(reset_ratio, num_fresh):
    vec = Vec(Counting(), 6, reset_ratio=reset_ratio)
    state, first = vec.reset(KEYS[0])
    before = np.array(first.obs[:, 0, 0])
    assert len(set(before)) == 6
    step = jax.jit(vec.step)
    for ending in ([], [4], [1, 4, 5], [0, 1, 2, 3, 5], [0, 1, 2, 3, 4, 5]):
        action = jnp.zeros((6, 1), jnp.int32).at[jnp.array(ending, int)].set(STOP)
        after = np.array(step(KEYS[1], state, action)[1].obs[:, 0, 0])
        staying = np.setdiff1d(np.arange(6), ending)
        np.testing.assert_array_equal(after[staying], before[staying])
        assert not set(after[ending]) & set(before)
        assert len(set(after[ending])) == min(len(ending), num_fresh)  # shared if many ended
        if ending and reset_ratio > 1:
            shares = np.unique(after[ending], return_counts=True)[1]
            assert max(shares) == -(-len(ending) // num_fresh)  # shared evenly


class Resets(Counting):
    """Counts, by a callback to the host, how often a new episode is made."""

    reset_ratio = 4

    def __init__(self):
        super().__init__()
        self.made = []

    def reset(self, key):
        jax.debug.callback(lambda _: self.made.append(1), key)
        return super().reset(key)


def test_fresh_episodes_are_made_only_where_one_ended_also_side_by_side():
    env = Resets()
    vec = Vec(env, 6)  # the environment asks for 4, of which 2 divides 6
    assert vec.reset_ratio == 2
    state, _ = jax.vmap(vec.reset)(KEYS[:2])
    jax.effects_barrier()
    step, made = jax.jit(jax.vmap(vec.step)), []
    for stops in ([], [0], [0, 1], []):
        env.made.clear()
        action = jnp.zeros((2, 6, 1), jnp.int32).at[jnp.array(stops, int), 3].set(STOP)
        state, shown = step(KEYS[:2], state, action)
        jax.block_until_ready(shown)
        jax.effects_barrier()
        made.append(len(env.made))
        assert list(shown.terminated[:, 3]) == [index in stops for index in range(2)]
    assert made[0] == made[3] == 0
    assert min(made[1:3]) > 0


class Shaped(Counting):
    """Environment whose reward for learning is ten times the reported one."""

    def reset(self, key):
        state, step = super().reset(key)
        return state, step._replace(metrics={"raw_reward": jnp.float32(nan)})

    def step(self, key, state, action):
        state, step = super().step(key, state, action)
        return state, step._replace(reward=10 * step.reward, metrics={"raw_reward": step.reward})


def test_returns_are_of_raw_rewards_which_go_no_further():
    steps = play(Vec(Shaped(time_limit=2), 1), np.ones((5, 1)))
    np.testing.assert_array_equal(steps.reward[:, 0], [0, 10, 10, 0, 10, 10])  # not the inf of ignored actions
    np.testing.assert_array_equal(steps.metrics["episode_return"][:, 0], [nan, nan, 2, nan, nan, 2])
    assert set(steps.metrics) == {"episode_return", "episode_length"}


@pytest.mark.parametrize(
    ("num_envs", "reset_ratio", "message"),
    [
        (0, 1, "num_envs=0: expected a whole number from 1"),
        (-2, 1, "num_envs=-2: expected a whole number from 1"),
        (4, 3, "reset_ratio=3: expected a divisor of num_envs=4"),
        (4, 8, "reset_ratio=8: expected a divisor of num_envs=4"),
        (4, 0, "reset_ratio=0: expected a divisor of num_envs=4"),
        (4, -2, "reset_ratio=-2: expected a divisor of num_envs=4"),
    ],
)
def test_numbers_of_copies_that_cannot_be(num_envs, reset_ratio, message):
    with pytest.raises(UserError, match=message):
        Vec(Counting(), num_envs, reset_ratio=reset_ratio)


class Weak(Counting):
    """Environment that returns Python's numbers, which have weak types in JAX, and an int reward."""

    def reset(self, key):
        del key
        state = {"start": 0, "count": 0, "strong": jnp.int32(0), "weak": 0.0}
        return state, Step(jnp.zeros(1), None, 0, jnp.bool_(False), jnp.bool_(False), {"count": nan})

    def step(self, key, state, action):
        del key
        state = {"start": state["start"], "count": state["count"] + 1, "strong": 1, "weak": 1.0}
        obs = jnp.where(action == 0, 1.0, 2.0)[None]
        return state, Step(obs, None, action, state["count"] > 3, state["count"] > 2, {"count": 1.0})


class Keyed(Counting):
    """Environment with a random key in its state, which changes at every step."""

    def reset(self, key):
        state, step = super().reset(key)
        return state | {"key": key}, step

    def step(self, key, state, action):
        counting, step = super().step(key, {name: state[name] for name in ("start", "count")}, action)
        return counting | {"key": jax.random.split(state["key"])[0]}, step


class Team(Counting):
    """Team of two who observe the count and the shared bonus; the reward is the bonus times the sum of actions."""

    num_agents = 2
    shared = jnp.float32(10)

    def reset(self, key):
        state, step = super().reset(key)
        return state, self._team(step, jnp.float32(0))

    def step(self, key, state, action, shared):
        state, step = super().step(key, state, action[0] * 0)
        return state, self._team(step, shared * action.sum())

    def _team(self, step, reward):
        members = jnp.arange(2)
        obs = {"count": step.obs[None, 1] + 100.0 * members, "index": jax.nn.one_hot(members, 2, dtype=bool)}
        legal = jnp.stack([jnp.array([True, False, True]), jnp.array([step.obs[1] > 0, True, False])])
        return step._replace(obs=obs, legal=legal, reward=reward)


class Masked(Counting):
    """Environment in which action 0 is illegal in the first step."""

    def _show(self, state, *rest):
        legal = jnp.array([True, True, True]).at[0].set(state["count"] > 0)
        return super()._show(state, *rest)._replace(legal=legal)


@pytest.mark.parametrize("world", [Counting, Weak, Keyed, Team, Masked])
@pytest.mark.parametrize("reset_ratio", [1, 2])
def test_reset_and_step_give_the_same_strong_types(world, reset_ratio):
    vec = Vec(world(), 4, reset_ratio=reset_ratio)
    state, step = jax.eval_shape(vec.reset, KEYS[0])
    action = jax.ShapeDtypeStruct((4, vec.num_agents), jnp.int32)
    assert kinds(jax.eval_shape(vec.step, KEYS[0], state, action)) == kinds((state, step))
    assert not any(x.weak_type for x in jax.tree.leaves((state, step)))
    for name, dtype in {"reward": jnp.float32, "terminated": bool, "truncated": bool}.items():
        assert (getattr(step, name).shape, getattr(step, name).dtype) == ((4,), dtype)
    assert all((x.shape, x.dtype) == ((4,), jnp.float32) for x in step.metrics.values())
    assert set(step.metrics) == {"episode_return", "episode_length", "count"}


def test_weak_types_do_not_compile_twice():
    vec, num_traces = Vec(Weak(), 2), 0

    @jax.jit
    def advance(state):
        nonlocal num_traces
        num_traces += 1
        return vec.step(KEYS[0], state, jnp.zeros((2, 1), jnp.int32))[0]

    advance(advance(vec.reset(KEYS[1])[0]))
    assert num_traces == 1


def test_random_keys_in_the_state_are_kept_and_renewed_like_everything_else():
    vec = Vec(Keyed(), 2)
    state, _ = vec.reset(KEYS[0])
    after, _ = vec.step(KEYS[1], state, jnp.array([[0], [STOP]]))
    assert jnp.issubdtype(after.copies.env["key"].dtype, jax.dtypes.prng_key)
    kept = jax.vmap(lambda key: jax.random.split(key)[0])(state.copies.env["key"])
    same = jax.random.key_data(after.copies.env["key"]) == jax.random.key_data(kept)
    np.testing.assert_array_equal(same.all(-1), [True, False])


def test_a_team_acts_together_and_gets_what_is_shared():
    vec = Vec(Team(lengths=(2,)), 3)
    assert (vec.num_agents, vec.num_actions, vec.is_team) == (2, 3, True)
    state, first = vec.reset(KEYS[0])
    assert {name: x.shape for name, x in first.obs.items()} == {"count": (3, 2), "index": (3, 2, 2)}
    assert first.legal.shape == (3, 2, 3)
    action = jnp.array([[0, 0], [0, 1], [2, 1]])
    state, step = vec.step(KEYS[1], state, action)
    np.testing.assert_array_equal(step.reward, [0, 10, 30])
    np.testing.assert_array_equal(step.obs["count"], [[1, 101]] * 3)
    np.testing.assert_array_equal(step.legal, [[[1, 0, 1], [1, 1, 0]]] * 3)
    state, step = vec.step(KEYS[2], state._replace(shared=(jnp.float32(1000),)), action)
    np.testing.assert_array_equal(step.metrics["episode_return"], [0, 1010, 3030])
    np.testing.assert_array_equal(step.obs["count"], [[0, 100]] * 3)
    np.testing.assert_array_equal(step.legal, [[[1, 0, 1], [0, 1, 0]]] * 3)
    np.testing.assert_array_equal(state.shared, [1000])  # resets keep what copies share


def test_single_agents_get_the_axis_of_members():
    vec = Vec(Masked(lengths=(2,)), 2)
    assert (vec.num_agents, vec.is_team, vec.reset(KEYS[0])[0].shared) == (1, False, ())
    steps = play(vec, np.ones((2, 2)))
    assert steps.obs.shape == (3, 2, 1, 2)
    np.testing.assert_array_equal(steps.legal[:, :, 0], [[[0, 1, 1]] * 2, [[1, 1, 1]] * 2, [[0, 1, 1]] * 2])
    assert play(Vec(Counting(), 2), np.ones((1, 2))).legal is None


def test_copies_and_steps_have_randomness_of_their_own():
    class Noisy(Counting):
        def step(self, key, state, action):
            state, step = super().step(key, state, action)
            return state, step._replace(reward=jax.random.uniform(key))

    vec = Vec(Noisy(), 3)
    reward = play(vec, np.zeros((4, 3))).reward[1:]
    assert len(np.unique(reward)) == 12
    assert len(np.unique(vec.reset(KEYS[0])[1].obs[..., 0])) == 3
