"""The faster Seaquest computes the same games as Gymnax's, in all situations."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments.minatar import seaquest as gymnax_seaquest

import qlax
from qlax.envs.suites import seaquest

THEIRS, OURS = gymnax_seaquest.MinSeaquest(), seaquest.MinSeaquest()
PARAMS = THEIRS.default_params
LISTS = {  # fields of Gymnax's state: the number of objects, and the field of each column
    "f_bullets": ("f_bullet_count", ("x", "y", "right")),
    "e_bullets": ("e_bullet_count", ("x", "y", "right")),
    "e_fish": ("e_fish_count", ("x", "y", "right", "timer")),
    "e_subs": ("e_subs_count", ("x", "y", "right", "timer", "shot_timer")),
    "divers": ("divers_count", ("x", "y", "right", "timer")),
}


@partial(jax.jit, static_argnums=0)
def begun(env, keys):
    return jax.vmap(env.reset_env, (0, None))(keys, PARAMS)[1]


@partial(jax.jit, static_argnums=0)
def stepped(env, state, actions, keys):
    """Step all copies; return the results and the next states, which are reset after an end or 1,000 steps."""
    obs, after, reward, done, _ = jax.vmap(env.step_env, (0, 0, 0, None))(keys, state, actions, PARAMS)
    over, fresh = done | (after.time >= 1000), jax.vmap(env.reset_env, (0, None))(keys, PARAMS)[1]
    following = jax.tree.map(
        lambda new, old: jnp.where(over.reshape(-1, *[1] * (new.ndim - 1)), new, old), fresh, after
    )
    return obs.astype(bool), after, reward, done, following


def objects(state, name, copy):
    """Return the objects of one list as rows, in Gymnax's order where ours has one: enemies' bullets have none."""
    found, columns = getattr(state, name), LISTS[name][1]
    if isinstance(found, seaquest.Objects):
        fields = {**found._asdict(), "shot_timer": state.e_subs_shot_timer}
        alive = found.alive[copy]
        order = np.argsort(found.born[copy][alive], kind="stable")
        rows = np.stack([fields[column][copy][alive][order].astype(int) for column in columns], -1)
    else:
        rows = found[copy, : getattr(state, LISTS[name][0])[copy]]
    return np.array(sorted(rows.tolist())) if name == "e_bullets" else rows


def assert_same_state(ours, theirs, copies):
    for name in vars(ours):
        if name not in LISTS and name != "e_subs_shot_timer":
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
    for name in LISTS:
        for copy in copies:
            np.testing.assert_array_equal(objects(ours, name, copy), objects(theirs, name, copy), err_msg=name)


def compare(num_envs, num_steps, act, every=1):
    """Play both versions with the same actions and keys, compare them, and count the events."""
    key = jax.random.key(0)
    states = [begun(env, jax.random.split(key, num_envs)) for env in (OURS, THEIRS)]
    seen = SimpleNamespace(drowned=0, surfaced=0, ramp=0, reward=0.0, ends=0)
    obs = np.zeros((num_envs, 10, 10, 10), bool)
    for step in range(num_steps):
        key, key_act, key_step = jax.random.split(key, 3)
        actions, keys = act(key_act, obs), jax.random.split(key_step, num_envs)
        (obs, ours, reward, done, state), (*expected, theirs, their_reward, their_done, their_state) = (
            stepped(env, state, actions, keys) for env, state in zip((OURS, THEIRS), states, strict=True)
        )
        np.testing.assert_array_equal(obs, expected[0])
        np.testing.assert_array_equal(reward, their_reward)
        np.testing.assert_array_equal(done, their_done)
        if step % every == 0:
            ours, theirs = jax.device_get((ours, theirs))
            assert_same_state(ours, theirs, range(0, num_envs, max(1, num_envs // 16)))
        before = states[0]
        seen.drowned += int((done & (before.oxygen <= 0)).sum())
        seen.surfaced += int(((ours.sub_y == 0) & (before.sub_y > 0) & ~np.asarray(done)).sum())
        seen.ramp = max(seen.ramp, int(ours.ramp_index.max()))
        seen.reward += float(reward.sum())
        seen.ends += int(done.sum())
        states = [state, their_state]
        obs = np.asarray(obs)
    return seen


def at_random(key, obs):
    return jax.random.randint(key, (len(obs),), 0, 6)


def test_random_games_are_those_of_gymnax():
    seen = compare(64, 120, at_random, every=12)
    assert seen.ends > 10
    assert seen.reward > 10


@pytest.mark.slow
def test_a_million_steps_are_those_of_gymnax():
    seen = compare(1024, 1000, at_random, every=20)
    assert min(seen.drowned, seen.surfaced) > 100
    assert seen.ramp > 2


@pytest.mark.slow
def test_the_games_of_a_trained_agent_are_those_of_gymnax(tmp_path):
    agent = qlax.train("minatar/seaquest", total_steps=2_000_000, seeds=2, out=tmp_path / "run").agents[0]
    seen = compare(128, 1000, lambda key, obs: jnp.asarray(agent.act(obs)), every=10)
    assert seen.drowned > 100  # this agent never surfaces; the random ones above do
    assert seen.reward > 1_000


def test_the_most_crowded_games_are_those_of_gymnax():
    """Games with an enemy in every step, which tests cannot reach, and a submarine that survives every hit."""
    crowded = {"e_spawn_speed": jnp.ones(8, jnp.int32), "move_speed": jnp.full(8, 2), "oxygen": jnp.full(8, 200)}
    crowded |= {"sub_y": jnp.zeros(8, jnp.int32), "surface": jnp.ones(8, bool), "terminal": jnp.zeros(8, bool)}
    key, most, states = (
        jax.random.key(1),
        0,
        [begun(env, jax.random.split(jax.random.key(0), 8)) for env in (OURS, THEIRS)],
    )
    for _ in range(80):
        key, key_step = jax.random.split(key)
        states = [state.replace(**crowded) for state in states]
        results = [
            stepped(env, state, jnp.zeros(8, int), jax.random.split(key_step, 8))
            for env, state in zip((OURS, THEIRS), states, strict=True)
        ]
        np.testing.assert_array_equal(results[0][0], results[1][0])
        states = [after for _, after, *_ in results]
        assert_same_state(*jax.device_get(states), range(8))
        most = max(most, int((states[0].e_fish.alive.sum(-1) + states[0].e_subs.alive.sum(-1)).max()))
    assert most >= 20


def test_other_parameters_are_played_by_gymnax_itself():
    assert isinstance(qlax.make("gymnax/Seaquest-MinAtar", max_steps_in_episode=50)._env, seaquest.MinSeaquest)
    assert not isinstance(qlax.make("gymnax/Seaquest-MinAtar", init_spawn_speed=2)._env, seaquest.MinSeaquest)
