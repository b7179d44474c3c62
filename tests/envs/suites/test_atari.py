"""Atari: how lives, ends of games, time limits and rewards reach the learner, with a script and with both emulators."""

import importlib.util

import numpy as np
import pytest
from probes import strict_and_quick
from runs import SMALL

import qlax
from qlax.config.configure import configure
from qlax.envs.episodes import Episodes
from qlax.envs.suites import atari
from qlax.errors import UserError

FIRE = 1
BACK_ENDS = [
    pytest.param("ale", "", id="ale"),
    pytest.param(
        "envpool",
        "-v5",
        id="envpool",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(not importlib.util.find_spec("envpool"), reason="envpool is not installed"),
        ],
    ),
]


class Scripted:
    """Emulator of one game that plays back a list of (reward, game over, truncated, lives)."""

    num_actions = 3

    def __init__(self, script, lives):
        self.script, self.lives = iter(script), lives

    def reset(self, seed):
        del seed
        return np.zeros((1, 4, 84, 84), np.uint8), np.array([self.lives])

    def step(self, action):
        del action
        reward, game_over, truncated, lives = next(self.script)
        obs = np.zeros((1, 4, 84, 84), np.uint8)
        return atari.Shown(obs, np.array([reward]), np.array([game_over]), np.array([truncated]), np.array([lives]))

    def close(self):
        pass


def seen(script, lives=3, **options):
    """Return what the learner gets of every step: (reward, terminated, truncated, return or nan)."""
    env = atari.Atari("Pong", Scripted(script, lives), 1, atari.settings("ale/Pong", options))
    env.reset(0)
    steps = [env.step(np.zeros(1, np.int32)) for _ in script]
    return [
        (float(s.reward[0]), bool(s.terminated[0]), bool(s.truncated[0]), float(s.metrics["episode_return"][0]))
        for s in steps
    ]


NAN = pytest.approx(np.nan, nan_ok=True)
LOST_LIFE = [(10, False, False, 3), (5, False, False, 2), (0, False, False, 2)]
GAME_OVER = [(10, False, False, 1), (-7, True, False, 0), (99, False, False, 3), (2, False, False, 3)]
TIME_LIMIT = [(10, False, False, 3), (4, False, True, 3), (99, False, False, 3), (2, True, False, 3)]


def test_a_lost_life_ends_the_learner_s_episode_and_the_game_goes_on():
    assert seen(LOST_LIFE) == [(1, False, False, NAN), (1, True, False, NAN), (0, False, False, NAN)]
    assert seen(LOST_LIFE, episodic_life=False)[1] == (1, False, False, NAN)


def test_a_game_over_ends_it_and_the_step_of_the_reset_does_not_count():
    expected = [(1, False, False, NAN), (-1, True, False, 3), (0, False, True, NAN), (1, False, False, NAN)]
    assert seen(GAME_OVER, lives=1) == expected
    unclipped = [reward for reward, *_ in seen(GAME_OVER, lives=1, clip_rewards=False)]
    assert unclipped == [10, -7, 0, 2]


def test_a_time_limit_is_no_end():
    expected = [(1, False, False, NAN), (1, False, False, 14), (0, False, True, NAN), (1, True, False, 2)]
    assert seen(TIME_LIMIT) == expected


def test_no_life_left_is_not_yet_the_end():
    """Qbert shows zero lives for some frames before the game is over, which must count as one end, not as two."""
    script = [(0, False, False, 0), (25, False, False, 0), (0, True, False, 0)]
    assert [terminated for _, terminated, _, _ in seen(script, lives=1)] == [False, False, True]


def test_a_life_won_is_no_end():
    assert not any(terminated for _, terminated, _, _ in seen([(0, False, False, 4), (0, False, False, 4)]))


def played(suite, suffix, game, action, until, num_envs=1, **options):
    """Play a real game by repeating one action until `until` games are over, and return the steps."""
    env = qlax.make(f"{suite}/{game}{suffix}", num_envs=num_envs, **options)
    env.reset(0)
    steps, over = [], 0
    while over < until:
        steps.append(env.step(np.full(num_envs, action, np.int32)))
        over += (~np.isnan(steps[-1].metrics["episode_return"])).sum()
        assert len(steps) < 5000
    steps.append(env.step(np.full(num_envs, action, np.int32)))
    env.close()
    return env, steps


@pytest.mark.parametrize(("suite", "suffix"), BACK_ENDS)
def test_both_back_ends_mean_the_same_by_lives_and_the_end(suite, suffix):
    """In Breakout a player who only serves loses five lives, and then the game."""
    env, steps = played(suite, suffix, "Breakout", FIRE, until=1)
    assert (env.num_actions, env.time_limit) == (4, 27_000)
    obs = np.stack([step.obs[0] for step in steps])
    assert (obs.dtype, obs.shape[1:]) == (np.uint8, (84, 84, 4))
    assert (obs[1:, :, :, :3] == obs[:-1, :, :, 1:]).all(axis=(1, 2, 3)).mean() > 0.9  # the newest frame is the last
    terminated = np.array([step.terminated[0] for step in steps])
    returns = np.array([step.metrics["episode_return"][0] for step in steps])
    assert terminated.sum() == 5
    (end,) = np.flatnonzero(~np.isnan(returns))
    assert end == np.flatnonzero(terminated)[-1]
    raw = np.array([step.metrics["raw_reward"][0] for step in steps])
    assert returns[end] == raw[: end + 1].sum()
    assert steps[end].metrics["episode_length"][0] == end + 1
    truncated = np.array([step.truncated[0] for step in steps])
    assert truncated.sum() == 1
    assert truncated[end + 1]
    assert steps[end + 1].reward[0] == 0


@pytest.mark.parametrize(("suite", "suffix"), BACK_ENDS)
def test_both_back_ends_mean_the_same_by_a_time_limit(suite, suffix):
    _, steps = played(suite, suffix, "Pong", FIRE, until=2, num_envs=2, max_frames=200)
    lengths = np.array([step.metrics["episode_length"] for step in steps])
    first = [np.flatnonzero(~np.isnan(column))[0] for column in lengths.T]
    for column, end in enumerate(first):
        assert 200 / 4 - 30 / 4 - 5 <= lengths[end, column] <= 200 / 4  # resets may take frames too
        assert not steps[end].terminated[column]
        assert not steps[end].truncated[column]
        if end + 1 < len(steps):
            assert steps[end + 1].truncated[column]


@pytest.mark.parametrize(("suite", "suffix"), BACK_ENDS)
def test_both_back_ends_mean_the_same_by_rewards(suite, suffix):
    _, steps = played(suite, suffix, "SpaceInvaders", FIRE, until=2, num_envs=2)
    raw = np.array([step.metrics["raw_reward"] for step in steps])
    learned = np.array([step.reward for step in steps])
    assert raw.max() > 1
    np.testing.assert_array_equal(learned, np.sign(raw))


@pytest.mark.parametrize(("suite", "suffix"), BACK_ENDS)
def test_the_protocol_of_machado_is_one_word(suite, suffix):
    env, steps = played(suite, suffix, "Breakout", FIRE, until=1, protocol="machado")
    assert env.num_actions == 18
    assert sum(step.terminated[0] for step in steps) == 1


def test_a_picture_is_the_newest_frame():
    env = qlax.make("ale/Breakout", num_envs=2)
    env.reset(0)
    step = env.step(np.full(2, FIRE, np.int32))
    picture = env.render()
    assert (picture.shape, picture.dtype) == ((2, 84, 84, 3), np.uint8)
    np.testing.assert_array_equal(picture[..., 0], step.obs[..., 3])


@pytest.mark.parametrize(("suite", "suffix"), BACK_ENDS)
def test_games_follow_from_their_seed(suite, suffix):
    def game(seed):
        env = qlax.make(f"{suite}/Breakout{suffix}", num_envs=2)
        obs = [env.reset(seed).obs, *(env.step(np.full(2, FIRE, np.int32)).obs for _ in range(60))]
        env.close()
        return np.stack(obs)

    np.testing.assert_array_equal(game(3), game(3))
    assert not np.array_equal(game(3), game(4))


def test_steps_without_an_end_in_between_are_summed():
    episodes = Episodes(2)
    episodes.begin(np.zeros((2, 1)))
    no, yes = np.array([False, False]), np.array([True, False])
    episodes.step(None, np.array([1.0, 2.0]), no, no)
    step = episodes.step(None, np.array([1.0, 2.0]), yes, no)
    np.testing.assert_array_equal(step.metrics["episode_return"], [2, np.nan])
    episodes.step(None, np.array([50.0, 2.0]), no, no)  # the first environment is reset
    step = episodes.step(None, np.array([1.0, 2.0]), yes, ~yes)
    np.testing.assert_array_equal(step.metrics["episode_return"], [1, 8])
    np.testing.assert_array_equal(step.metrics["episode_length"], [1, 4])


def test_a_reset_in_the_step_of_the_end_hides_the_last_observation():
    episodes = Episodes(2, reset_takes_a_step=False)
    episodes.begin(np.zeros((2, 1)))
    step = episodes.step(None, np.array([1.0, 1.0]), np.array([True, False]), np.array([False, True]))
    np.testing.assert_array_equal(step.terminated, [True, False])
    np.testing.assert_array_equal(step.truncated, [False, True])
    np.testing.assert_array_equal(step.metrics["episode_return"], [1, 1])
    step = episodes.step(None, np.array([5.0, 5.0]), np.array([True, True]), np.array([False, False]))
    np.testing.assert_array_equal(step.metrics["episode_return"], [5, 5])


def test_scores_are_between_random_and_human():
    assert len(atari.SCORES) == 57
    assert all(random < human for random, human in atari.SCORES.values())
    assert atari.human_normalised("Breakout", 1.7) == 0
    assert atari.human_normalised("Breakout", 30.5) == pytest.approx(100)
    assert qlax.make("ale/Breakout", num_envs=1).score(16.1) == pytest.approx(50)
    assert not hasattr(qlax.make("ale/Tetris", num_envs=1), "score")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Pon", {}, "did you mean 'Pong'"),
        ("Pong", {"protocol": "machadoo"}, "did you mean 'machado'"),
        ("Pong", {"noop": 3}, "did you mean 'noop_max'"),
        ("Pong", {"frame_skip": 0}, "frame_skip=0"),
        ("Pong", {"repeat_action_probability": 2.0}, "expected a probability, from 0 to 1"),
        ("Pong", {"episodic_life": 1}, "true or false"),
    ],
)
def test_wrong_settings_are_named(name, options, message):
    with pytest.raises(UserError, match=message):
        qlax.make(f"ale/{name}", num_envs=1, **options)


TINY = SMALL | {"hidden": (16,), "num_steps": 4, "total_steps": 4 * 16, "eval_max_steps": 8, "eval_episodes": 2}


@pytest.mark.parametrize("game", ["Breakout", pytest.param("Pong", marks=pytest.mark.slow)])
def test_games_are_trained_on(game, tmp_path):
    with strict_and_quick():
        result = qlax.train(f"atari/{game}", out=tmp_path / "run", **TINY)
    assert result.summary["network"]["encoder"] == "nature"
    assert np.isfinite(result.curves["loss"]).all()
    assert result.summary["eval_score"]["mean"] is not None


@pytest.mark.slow
@pytest.mark.parametrize("game", atari.SCORES)
def test_every_preset_plays(game, tmp_path):
    env = qlax.make(configure(f"atari/{game}").env, num_envs=2)
    assert env.score(atari.SCORES[game][1]) == pytest.approx(100)
    env.reset(0)
    random = np.random.default_rng(0)
    for _ in range(100):
        assert env.step(random.integers(0, env.num_actions, 2).astype(np.int32)).obs.shape == (2, 84, 84, 4)
    env.close()
    tiny = TINY | {"total_steps": 16, "encoder": "mlp"}
    assert qlax.train(f"atari/{game}", out=tmp_path / "run", **tiny).summary["updates"] == 1
