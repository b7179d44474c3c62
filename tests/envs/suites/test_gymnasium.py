"""Gymnasium's environments: both ways of resetting, in this process and in others, and all kinds of spaces."""

import importlib.util
import os
import signal
import subprocess
import sys
import time

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from pages import TESTS
from runs import SMALL, flags

import qlax
from qlax.cli.main import main
from qlax.envs.suites import spaces as ours
from qlax.envs.vec import Vec
from qlax.errors import UserError
from qlax.networks.spaces import action, observation

CARTPOLE = "gymnasium/CartPole-v1"
FAST = {  # settings of cartpole-fast, but with fewer steps
    "num_envs": 32,
    "num_steps": 32,
    "num_minibatches": 8,
    "num_epochs": 4,
    "learning_rate": 3e-3,
    "lam": 0.95,
    "epsilon_fraction": 0.4,
    "reward_scale": 0.1,
    "hidden": (64, 64),
    "total_steps": 80_000,
    "eval_episodes": 16,
    "eval_interval": 13,
}


@pytest.fixture(autouse=True)
def tests_are_importable(monkeypatch):
    monkeypatch.syspath_prepend(TESTS)
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)  # for the environments' processes


@pytest.mark.parametrize("autoreset", ["next_step", pytest.param("same_step", marks=pytest.mark.slow)])
def test_cartpole_is_learned(autoreset, tmp_path):
    # One good evaluation of six is enough: after so few steps, one seed of six is bad at the end.
    result = qlax.train(CARTPOLE, out=tmp_path / "run", env_options={"autoreset": autoreset}, **FAST)
    assert result.summary["best_eval_return"]["mean"] >= 450


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("envpool"), reason="envpool is not installed")
def test_cartpole_is_learned_through_envpool(tmp_path):
    result = qlax.train("envpool/CartPole-v1", out=tmp_path / "run", **FAST)
    assert result.summary["best_eval_return"]["mean"] >= 450


def steps_of(env, action, count):
    env.reset(0)
    steps = [env.step(np.full(env.num_envs, action, np.int32)) for _ in range(count)]
    env.close()
    return steps


@pytest.mark.parametrize("vectorization", ["sync", "vector_entry_point"])
def test_a_reset_takes_a_step_of_its_own(vectorization):
    steps = steps_of(qlax.make(CARTPOLE, num_envs=1, vectorization=vectorization), 1, 30)
    terminated = np.array([step.terminated[0] for step in steps])
    truncated = np.array([step.truncated[0] for step in steps])
    assert 2 <= terminated.sum() <= 4
    np.testing.assert_array_equal(truncated[1:], terminated[:-1])
    lengths = np.array([step.metrics["episode_length"][0] for step in steps])
    np.testing.assert_array_equal(~np.isnan(lengths), terminated)
    assert lengths[terminated][1] == np.diff(np.flatnonzero(terminated))[0] - 1


def test_a_reset_in_the_same_step_takes_none():
    steps = steps_of(qlax.make(CARTPOLE, num_envs=1, autoreset="same_step"), 1, 30)
    terminated = np.array([step.terminated[0] for step in steps])
    assert not any(step.truncated[0] for step in steps)
    lengths = np.array([step.metrics["episode_length"][0] for step in steps])
    assert lengths[terminated][1] == np.diff(np.flatnonzero(terminated))[0]


@pytest.mark.parametrize(("autoreset", "shown"), [("next_step", 5), ("same_step", 4)])
def test_a_time_limit_is_no_end(autoreset, shown):
    """The last step is learned from only if its observation is available; the step after a reset never is."""
    env = qlax.make(CARTPOLE, num_envs=1, autoreset=autoreset, max_episode_steps=5)
    assert env.time_limit == 5
    steps = steps_of(env, 0, 6)
    assert not any(step.terminated[0] for step in steps)
    assert [index for index, step in enumerate(steps) if step.truncated[0]] == [shown]
    assert steps[4].metrics["episode_length"] == 5


@pytest.mark.parametrize("vectorization", ["sync", pytest.param("async", marks=pytest.mark.slow)])
def test_the_time_limit_is_that_of_the_outermost_wrapper(vectorization):
    env = qlax.make(
        CARTPOLE, num_envs=2, vectorization=vectorization, wrappers=("gymnasium.wrappers:TimeLimit=5", "failing:Dying")
    )
    steps = steps_of(env, 0, 5)
    assert env.time_limit == 5
    assert steps[4].metrics["episode_length"].tolist() == [5, 5]


def test_processes_and_turns_show_the_same():
    make = lambda how: steps_of(qlax.make(CARTPOLE, num_envs=2, vectorization=how), 1, 20)  # noqa: E731
    for one, other in zip(make("sync"), make("async"), strict=True):
        np.testing.assert_array_equal(one.obs, other.obs)
        np.testing.assert_array_equal(one.terminated, other.terminated)


@pytest.mark.parametrize(
    ("wrapper", "timeout", "message"),
    [
        pytest.param("Dying", 120, "crashed", marks=pytest.mark.slow),
        pytest.param("Sleeping", 5, "did not answer within 5 seconds", marks=pytest.mark.slow),
    ],
)
def test_a_process_that_fails_ends_in_an_error_and_a_checkpoint(
    wrapper, timeout, message, tmp_path, monkeypatch, pytestconfig
):
    """The training runs in a process of its own, to check that it ends together with its environments' processes."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(pytestconfig.cache.mkdir("jax")))
    settings = SMALL | {"num_envs": 2, "eval_episodes": 1, "eval_max_steps": 1, "out": tmp_path / "run"}
    settings |= {"log_interval": 1, "eval_interval": 24, "checkpoint_interval": 24}
    settings |= {"wrappers": f"failing:{wrapper}", "host_timeout": timeout}
    command = [sys.executable, "-m", "qlax", "train", CARTPOLE, *flags(settings)]
    done = subprocess.run(
        [*command, "--env-options", "vectorization=async"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1, done.stderr
    assert message in done.stderr
    assert f"qlax resume {tmp_path / 'run'}" in done.stderr
    assert list((tmp_path / "run" / "checkpoints").glob("*.safetensors"))


@pytest.mark.slow
def test_ctrl_c_leaves_no_semaphores_and_no_files(tmp_path, monkeypatch, pytestconfig):
    """A second Ctrl-C arrives in the middle of a chunk, and a terminal sends it to the environments' processes too."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(pytestconfig.cache.mkdir("jax")))
    temporary, run = tmp_path / "temporary", tmp_path / "run"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    settings = SMALL | {"num_envs": 2, "num_steps": 16, "eval_episodes": 1, "eval_max_steps": 1, "total_steps": 10**6}
    settings |= {"log_interval": 1, "eval_interval": 10**4, "checkpoint_interval": 10**4}
    command = [sys.executable, "-m", "qlax", "train", CARTPOLE, *flags(settings | {"out": run})]
    command += ["--wrappers", "failing:Slow", "--env-options", "vectorization=async"]
    lines = run / "metrics.jsonl"
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    until = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < until and not (lines.exists() and lines.read_bytes()):
        time.sleep(0.02)
    for _ in range(2):  # a chunk takes 1.6 seconds
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.5)
    _, said = process.communicate(timeout=60)  # until all its child processes have ended
    assert (process.returncode, said) == (130, "qlax: stopped at once\n")
    assert not list(temporary.iterdir())


@pytest.mark.parametrize(
    ("wrapper", "shape"),
    [
        ("FrameStackObservation=3", (3, 4)),
        ('FrameStackObservation={"stack_size": 2, "padding_type": "zero"}', (2, 4)),
        ("ReshapeObservation=[2,2]", (2, 2)),  # this wrapper expects a tuple
        ("TimeAwareObservation", (5,)),
    ],
)
def test_wrappers_take_arguments(wrapper, shape):
    env = qlax.make(CARTPOLE, num_envs=2, wrappers=[f"gymnasium.wrappers:{wrapper}"])
    step = env.reset(0)
    env.close()
    assert step.obs.shape == (2, *shape)
    assert (not step.obs[:, 0].any()) == ("zero" in wrapper)


@pytest.mark.slow
def test_wrappers_with_arguments_and_options_of_any_kind_are_those_of_the_whole_run(tmp_path):
    """They pass from the command line to `config.json` and the environments, and back when another command plays."""
    run, options = tmp_path / "run", ['desc=["SFH","FFH","HFG"]', "map_name=null", "is_slippery=false"]
    wrappers = 'gymnasium.wrappers:TimeLimit=5,gymnasium.wrappers:FrameStackObservation={"stack_size":2}'
    settings = SMALL | {"total_steps": 64, "eval_episodes": 2, "eval_max_steps": 100}
    words = flags(settings | {"out": run, "wrappers": wrappers})
    main(["train", "gymnasium/FrozenLake-v1", *words, "--env-options", *options])
    config = qlax.read(run).config
    assert config.env_options == {"desc": ["SFH", "FFH", "HFG"], "map_name": None, "is_slippery": False}
    assert config.wrappers == tuple(wrappers.split(",", 1))
    info = qlax.load(run).info
    assert info["env_options"] == config.env_options
    assert info["wrappers"] == list(config.wrappers)
    assert info["obs"] == [["bool", [18]]]
    assert qlax.evaluate(run, episodes=4, epsilon=1.0).lengths.max() <= 5
    longer = qlax.extend(run, total_steps=128)
    assert longer.config.env_options == config.env_options


def test_wrappers_are_put_around_each(tmp_path):
    wrappers = ("gymnasium.wrappers:NormalizeReward", "gymnasium.wrappers:TimeAwareObservation")
    settings = SMALL | {"total_steps": 64, "wrappers": wrappers}
    result = qlax.train(CARTPOLE, out=tmp_path / "run", **settings)
    assert result.agents[0].act(np.zeros(5, np.float32)).shape == ()


@pytest.mark.slow
def test_minigrid_runs_with_a_wrapper_that_leaves_its_mission_out():
    pytest.importorskip("minigrid", reason="MiniGrid is not an extra")
    name = "gymnasium/minigrid:MiniGrid-Empty-5x5-v0"
    with pytest.raises(UserError, match="MissionSpace"):
        qlax.make(name, num_envs=2)
    env = qlax.make(name, num_envs=2, wrappers=("minigrid.wrappers:ImgObsWrapper",))
    qlax.check_env(env, 50)
    assert env.reset(0).obs.shape == (2, 7, 7, 3)
    env.close()


def test_pictures_are_there_if_asked_for():
    env = qlax.make("gymnasium/FrozenLake-v1", num_envs=2, render_mode="rgb_array")
    env.reset(0)
    assert env.render().shape[0] == 2
    assert (env.render().dtype, env.render().shape[-1]) == (np.uint8, 3)
    env.close()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("CartPol-v1", {}, "Did you mean: `CartPole`"),
        ("Pendulum-v1", {"wrappers": ("test_gymnasium:Unbounded",)}, "has actions without finite bounds"),
        ("CartPole-v1", {"autoreset": "never"}, "expected next_step, same_step"),
        ("CartPole-v1", {"vectorization": "asinc"}, "did you mean 'async'"),
        ("CartPole-v1", {"length": 3}, "unexpected keyword argument 'length'"),
        ("CartPole-v1", {"wrappers": ("failing:Nothing",)}, "no 'Nothing'"),
        (
            "CartPole-v1",
            {"wrappers": ("gymnasium.wrappers:FrameStackObservation",)},
            "wrapper gymnasium.wrappers:FrameStackObservation cannot be made: TypeError.* 'stack_size'",
        ),
        ("CartPole-v1", {"wrappers": ("gymnasium.wrappers:TimeLimit=soon",)}, "=soon cannot be made"),
        ("CartPole-v1", {"vectorization": "vector_entry_point", "autoreset": "same_step"}, "autoreset cannot be"),
    ],
)
def test_what_cannot_be_is_named(name, options, message):
    with pytest.raises(UserError, match=message):
        qlax.make(f"gymnasium/{name}", num_envs=2, **options)


def test_what_is_refused_is_closed(monkeypatch):
    made, make_vec = [], gymnasium.make_vec
    monkeypatch.setattr(
        gymnasium, "make_vec", lambda *args, **kwargs: made.append(make_vec(*args, **kwargs)) or made[0]
    )
    with pytest.raises(UserError, match="has actions without finite bounds"):
        qlax.make("gymnasium/Pendulum-v1", num_envs=1, wrappers=("test_gymnasium:Unbounded",))
    assert [env.closed for env in made] == [True]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"wrappers": ("last_action",)}, "wrapper last_action is for environments in JAX, but"),
        ({"reset_ratio": 2}, "reset_ratio is for environments in JAX"),
    ],
)
def test_settings_for_other_environments_are_refused(settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        qlax.train(CARTPOLE, out=tmp_path / "run", **SMALL | settings)
    assert not (tmp_path / "run").exists()


class Unbounded(gymnasium.Wrapper):
    """Environment whose actions have no bounds."""

    def __init__(self, env):
        super().__init__(env)
        self.action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)


class Several(gymnasium.Env):
    """Environment with too many combined choices for joint actions; the reward is the number of right choices."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, is_masked=False, **_):
        self.action_space = spaces.MultiDiscrete([9, 4, 16], start=[1, 0, 0])
        self._is_masked = is_masked

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(2, np.float32), self._info()

    def step(self, action):
        assert self.action_space.contains(action)
        return np.ones(2, np.float32), float((action == [4, 3, 0]).sum()), True, False, self._info()

    def _info(self):
        return {"action_mask": np.repeat([0, 1, 1], [9, 4, 16]) | (np.arange(29) == 5)} if self._is_masked else {}


gymnasium.register("Several-v0", "test_gymnasium:Several")


def test_an_agent_answers_continuous_actions_in_their_space(tmp_path):
    qlax.train("gymnasium/Pendulum-v1", out=tmp_path / "run", bins=3, **SMALL)
    agent, env = qlax.load(tmp_path / "run"), gymnasium.make("Pendulum-v1")
    action = agent.act(env.reset(seed=0)[0])
    assert action.tolist() in ([-2.0], [0.0], [2.0])
    assert env.action_space.contains(action)
    assert len(qlax.evaluate(tmp_path / "run", episodes=2).returns[0]) == 2


def test_many_choices_are_learned_each_by_itself_among_the_values_that_exist(tmp_path):
    settings = SMALL | {"total_steps": 100 * 32, "num_epochs": 4, "learning_rate": 0.01, "epsilon_fraction": 0.5}
    result = qlax.train("gymnasium/test_gymnasium:Several-v0", out=tmp_path / "run", **settings)
    assert result.curves["eval_return"][-1] == pytest.approx(3.0)
    agent = qlax.load(tmp_path / "run")
    assert (agent.num_actions, agent.dimensions) == (16, 3)
    assert agent.act(np.ones(2, np.float32)).tolist() == [4, 3, 0]


def test_masks_of_many_choices_have_an_entry_for_each_value():
    env = qlax.make("gymnasium/test_gymnasium:Several-v0", num_envs=2, is_masked=True)
    legal = env.reset(0).legal
    assert legal.shape == (2, 3, 16)
    assert [np.flatnonzero(row).tolist() for row in legal[1]] == [[5], [0, 1, 2, 3], [*range(16)]]
    env.close()


IMAGE = spaces.Box(0, 255, (36, 40, 3), np.uint8)


def converted(space, batch):
    return observation(ours.described("test", space), "test")(batch)


@pytest.mark.parametrize(
    ("space", "dtype", "shape"),
    [
        (spaces.Box(-1, 1, (3,), np.float64), np.float32, (3,)),
        (spaces.Box(0, 9, (2, 2), np.int64), np.float32, (2, 2)),
        (spaces.Box(0, 255, (128,), np.uint8), np.float32, (128,)),
        (IMAGE, np.uint8, (36, 40, 3)),
        (spaces.Box(0, 255, (4, 84, 80), np.uint8), np.uint8, (84, 80, 4)),
        (spaces.Discrete(5, start=2), bool, (5,)),
        (spaces.MultiBinary(3), bool, (3,)),
        (spaces.MultiDiscrete([2, 3]), bool, (5,)),
        (spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Box(0, 1, (2, 3))}), np.float32, (8,)),
        (spaces.Tuple((spaces.Discrete(2), spaces.Dict({"c": spaces.MultiBinary(4)}))), np.float32, (6,)),
    ],
)
def test_observations_become_what_networks_take(space, dtype, shape):
    import gymnasium

    space.seed(0)
    samples = [space.sample() for _ in range(4)]
    batch = gymnasium.vector.utils.concatenate(space, samples, gymnasium.vector.utils.create_empty_array(space, 4))
    x = converted(space, batch)
    assert (x.dtype, x.shape) == (dtype, (4, *shape))
    if not isinstance(space, spaces.Box):  # compare with Gymnasium's own flattening
        flat = np.stack([spaces.flatten(space, sample) for sample in samples]).astype(np.float32)
        np.testing.assert_array_equal(x.reshape(4, -1).astype(np.float32), flat)


def test_several_choices_are_one_joint_action():
    split = action(ours.described_action("test", spaces.MultiDiscrete([2, 3], start=[0, 5])))
    assert split.num_actions == 6
    np.testing.assert_array_equal(split(np.arange(6)), [[0, 5], [0, 6], [0, 7], [1, 5], [1, 6], [1, 7]])
    split = action(ours.described_action("test", spaces.Discrete(3, start=-1)))
    np.testing.assert_array_equal(split(np.arange(3)), [-1, 0, 1])
    with pytest.raises(UserError, match="without finite bounds"):
        ours.described_action("test", spaces.Box(-np.inf, np.inf, (2,)))


def test_more_choices_than_joint_actions_are_dimensions():
    split = action(ours.described_action("test", spaces.MultiDiscrete([[200, 3], [2, 4]], start=[[1, 0], [0, 5]])))
    assert (split.num_actions, split.dimensions) == (200, 4)
    assert split.exists.sum(-1).tolist() == [200, 3, 2, 4]
    np.testing.assert_array_equal(split(np.array([[7, 2, 1, 3]])), [[[8, 2], [1, 8]]])
    split = action(ours.described_action("test", spaces.MultiBinary(20)))
    assert (split.num_actions, split.dimensions, split.exists) == (2, 20, None)


def test_a_space_without_meaning_is_refused():
    with pytest.raises(UserError, match="expected Box, Discrete"):
        ours.described("test", spaces.Text(4))


def test_the_two_cartpoles_are_one():
    """Gymnax's CartPole in `Vec` equals Gymnasium's, from the same state and under the same actions."""
    import jax

    vec, env = Vec(qlax.make("gymnax/CartPole-v1"), 1), qlax.make(CARTPOLE, num_envs=1)
    state, step = vec.reset(jax.random.key(0))
    env.reset(0)
    env._env.envs[0].unwrapped.state = np.asarray(step.obs[0, 0], np.float64)
    for number in [1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1]:
        state, expected = vec.step(jax.random.key(1), state, np.full((1, 1), number, np.int32))
        found = env.step(np.array([number], np.int32))
        assert found.terminated == expected.terminated
        assert found.reward == expected.reward
        if found.terminated:
            return
        np.testing.assert_allclose(found.obs, expected.obs[:, 0], rtol=1e-4, atol=1e-5)
    pytest.fail("the pole did not fall")
