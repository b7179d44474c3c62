import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxmarl.wrappers.baselines import CTRolloutManager

from qlax.envs import make
from qlax.errors import UserError
from qlax.types import strong

KEYS = jax.random.split(jax.random.key(0), 40)
OPTIONS = {"hanabi": {}, "smax/3m": {"max_steps": 3}}  # if not listed: episodes of 6 steps


def in_ci(cheap, dear):
    return [*cheap, *(pytest.param(name, marks=pytest.mark.slow) for name in dear)]


@pytest.mark.parametrize(
    ("name", "obs", "actions", "limit"),
    [
        ("smax/3m", (3, 75 + 3), 8, 101),
        ("overcooked/asymm_advantages", (2, 5, 9, 26), 6, 400),
        ("hanabi", (2, 658 + 2), 21, None),
        ("mpe/simple_spread", (3, 18 + 3), 5, 26),
        ("mpe/simple_speaker_listener", (2, 11 + 2), 5, 26),
    ],
)
def test_sizes(name, obs, actions, limit):
    env = make(f"jaxmarl/{name}")
    step = jax.eval_shape(env.reset, KEYS[0])[1]
    assert (step.obs.shape, env.num_actions, getattr(env, "time_limit", None)) == (obs, actions, limit)
    assert env.num_agents == obs[0]


@functools.cache
def beside_theirs(name):
    """Return our environment, and compiled functions that reset and step it beside that of JaxMARL's own baselines.

    reset: key -> (state, Step), their state, their observations, their legal actions (None where they have none)
    step: key, state, their state, action -> the same, their reward and whether they are done
    """
    env = make(f"jaxmarl/{name}", **OPTIONS.get(name, {"max_steps": 6}))
    padded = not name.startswith("overcooked")
    manager = CTRolloutManager(env._env, batch_size=1, preprocess_obs=padded)
    shared = [env.shared] if hasattr(env, "shared") else []

    def of_members(tree):
        return jnp.stack([tree[agent][0] for agent in env._env.agents])

    def legal(state):
        return of_members(manager.get_valid_actions(state)) if padded else None

    def reset(key):
        obs, state = manager.batch_reset(key)
        return strong((env.reset(jax.random.split(key, 1)[0]), state, of_members(obs), legal(state)))

    def step(key, state, their_state, action):
        actions = {agent: action[i][None] for i, agent in enumerate(env._env.agents)}
        obs, after, reward, done, _ = manager.batch_step(key, their_state, actions)
        ours = env.step(jax.random.split(jax.random.split(key, 1)[0])[0], state, action, *shared)
        return strong((ours, after, of_members(obs), legal(after), reward["__all__"][0], done["__all__"][0]))

    return env, jax.jit(reset), jax.jit(step)


def random_legal(random, step, num_actions):
    legal = np.ones((len(step.obs), num_actions), bool) if step.legal is None else np.asarray(step.legal)
    return jnp.array(np.where(legal, random.random(legal.shape), -1).argmax(-1), jnp.int32)


@pytest.mark.parametrize(
    "name", in_ci(["mpe/simple_speaker_listener", "overcooked/cramped_room", "smax/3m"], ["hanabi"])
)
def test_transitions_are_those_of_the_suites_own_baselines(name):
    env, reset, step = beside_theirs(name)
    random, num_ends = np.random.default_rng(0), 0
    (state, shown), their_state, obs, legal = reset(KEYS[0])
    np.testing.assert_allclose(shown.obs, obs, rtol=1e-6)
    for key in KEYS[1:]:
        if legal is not None and (shown.legal is not None or np.all(legal)):
            expected = np.ones(legal.shape, bool) if shown.legal is None else shown.legal
            np.testing.assert_array_equal(expected, legal)
        action = random_legal(random, shown, env.num_actions)
        (state, shown), their_state, obs, legal, reward, done = step(key, state, their_state, action)
        raw_reward = shown.metrics.get("raw_reward", shown.reward)
        np.testing.assert_allclose(raw_reward, reward, rtol=1e-6)
        assert bool(shown.terminated | shown.truncated) == bool(done)
        if done:  # JaxMARL already shows the first observation of the next episode
            num_ends += 1
            (state, shown), their_state, obs, legal = reset(key)
        np.testing.assert_allclose(shown.obs, obs, rtol=1e-6)
    assert num_ends


def test_time_limits_truncate_and_only_time_does_where_nothing_else_can():
    for name, steps in (("mpe/simple_speaker_listener", 7), ("overcooked/cramped_room", 6)):
        env, reset, step = beside_theirs(name)
        (state, shown), theirs, *_ = reset(KEYS[0])
        for count in range(1, steps + 1):
            (state, shown), theirs, *_ = step(KEYS[0], state, theirs, jnp.zeros(2, jnp.int32))
            assert (bool(shown.terminated), bool(shown.truncated)) == (False, count == steps)
        assert env.time_limit == steps


def test_smax_tells_victory_defeat_and_time_apart():
    _, reset, step = beside_theirs("smax/3m")
    (start, first), theirs, *_ = reset(KEYS[0])
    assert np.isnan(first.metrics["won"])
    stop = jnp.full(3, 4)

    def ends(health_of_allies, health_of_enemies, steps=1):
        health = jnp.array([health_of_allies] * 3 + [health_of_enemies] * 3, jnp.float32)
        state = start.replace(state=start.state.replace(unit_health=health, unit_alive=health > 0))
        for _ in range(steps):
            (state, shown), *_ = step(KEYS[0], state, theirs, stop)
        return (
            bool(shown.terminated),
            bool(shown.truncated),
            float(shown.metrics["won"]),
            bool(shown.legal.any(-1).all()),
        )

    assert ends(45, 0) == (True, False, 1, True)
    assert ends(0, 45) == (True, False, 0, True)
    assert ends(45, 45, steps=4) == (False, True, 0, True)  # the suite compares before it counts


def test_a_dead_unit_of_smax_sees_only_zeros_as_in_the_suites_own_baselines():
    _, reset, step = beside_theirs("smax/3m")
    (state, _), *_ = reset(KEYS[0])
    health = state.state.unit_health.at[1].set(0)
    state = state.replace(state=state.state.replace(unit_health=health, unit_alive=health > 0))
    (_, shown), _, obs, *_ = step(KEYS[0], state, jax.tree.map(lambda x: x[None], state), jnp.full(3, 4))
    np.testing.assert_allclose(shown.obs, obs, rtol=1e-6)
    np.testing.assert_array_equal(shown.obs[:, -3:], np.diag([1, 0, 1]))
    np.testing.assert_array_equal(np.any(shown.obs, axis=-1), [True, False, True])


def test_overcooked_rewards_what_helps_at_first_and_reports_deliveries():
    env, _, _ = beside_theirs("overcooked/cramped_room")
    assert [float(env.shared_at(progress)) for progress in (0.0, 0.25, 0.5, 1.0)] == [1, 0.5, 0, 0]
    sparse = make("jaxmarl/overcooked/cramped_room", shaping_fraction=0)
    assert [float(sparse.shared), float(sparse.shared_at(0.0))] == [0, 0]
    step = jax.jit(functools.partial(env.step, KEYS[0]))
    (inner, deliveries), _ = env.reset(KEYS[1])
    # The first agent stands before a pot with an onion; the second one stands before the counter with a soup.
    up, down, interact = 0, 1, 5
    inner = inner.replace(agent_inv=jnp.array([3, 0]), agent_pos=jnp.array([[2, 1], [3, 2]], jnp.uint32))
    state = (inner, deliveries)
    rewards = []
    for factor in (1.0, 0.25, 0.0):
        after, _ = step(state, jnp.array([up, down]), jnp.float32(factor))
        _, shown = step(after, jnp.array([interact, down]), jnp.float32(factor))
        rewards.append((float(shown.reward), float(shown.metrics["raw_reward"])))
    assert rewards == [(3, 0), (0.75, 0), (0, 0)]  # the shaped reward for an onion in a pot is 3
    inner = inner.replace(agent_inv=jnp.array([9, 0]), agent_pos=jnp.array([[3, 2], [1, 1]], jnp.uint32))
    state, _ = step((inner, deliveries), jnp.array([down, up]), jnp.float32(1))
    state, shown = step(state, jnp.array([interact, up]), jnp.float32(1))
    assert float(shown.metrics["raw_reward"]) == 20
    for _ in range(4):
        assert np.isnan(shown.metrics["deliveries"])
        state, shown = step(state, jnp.array([interact, up]), jnp.float32(1))
    assert float(shown.metrics["deliveries"]) == 1


@pytest.mark.slow
def test_hanabi_has_one_player_at_a_time_and_reports_its_end():
    env, reset, step = beside_theirs("hanabi")
    random, ends = np.random.default_rng(1), 0
    (state, shown), theirs, *_ = reset(KEYS[0])
    for key in KEYS:
        waiting = np.asarray(shown.legal).sum(-1) == 1
        assert waiting.sum() == 1
        assert shown.legal[np.flatnonzero(waiting)[0], -1]
        (state, shown), theirs, *_ = step(key, state, theirs, random_legal(random, shown, env.num_actions))
        if shown.terminated:
            ends += 1
            assert float(shown.metrics["lost_lives"]) == 1
            assert float(shown.metrics["fireworks"]) == float(state.fireworks.sum())
            (state, shown), theirs, *_ = reset(key)
        assert np.isnan(list(shown.metrics.values())).all()
        assert not shown.truncated
    assert ends


@pytest.mark.slow
def test_importing_the_suite_prints_nothing_and_leaves_the_streams_alone():
    imported = "import qlax.envs.suites.jaxmarl"
    code = f"import sys; out = sys.stdout = open(sys.argv[1], 'w'); {imported}; assert sys.stdout is out"
    done = subprocess.run([sys.executable, "-c", code, "/dev/null"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("smax/3n", {}, "jaxmarl has no environment 'smax/3n'; did you mean 'smax/3m'?; 'qlax envs jaxmarl' lists"),
        ("smax/3m", {"max_step": 5}, "jaxmarl/smax/3m has no option 'max_step'; did you mean 'max_steps'?; options: "),
        ("smax/3m", {"num_allies": 5}, "has no option 'num_allies'"),
        ("overcooked/coord_ring", {"shaping_fraction": 2}, "shaping_fraction=2.0: expected a fraction"),
        ("hanabi", {"num_agents": 7}, "hanabi cannot be made with {'num_agents': 7}: AssertionError: Number of agents"),
        (
            "smax/3m",
            {"attack_mode": "closer"},
            "attack_mode='closer': expected closest or random; did you mean 'closest'",
        ),
        ("smax/3m", {"attack_mode": 3}, "attack_mode=3: expected a word, like 'closest'"),
        ("smax/3m", {"smacv2_unit_type_generation": True}, "has no option 'smacv2_unit_type_generation'"),
        ("overcooked/coord_ring", {"random_reset": "yes"}, "random_reset='yes': expected true or false, like False"),
        ("mpe/simple_spread", {"max_steps": 0}, "max_steps=0: expected a number like 25"),
    ],
)
def test_errors_name_what_was_wrong_and_what_was_probably_meant(name, options, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        make(f"jaxmarl/{name}", **options)
