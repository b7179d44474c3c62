"""Environments on the host: the loop computes the same as `pqn.py`, and failures end in clear errors."""

import functools
import signal
import sys
import time
from types import SimpleNamespace

import hosts
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hosts import LENGTH, LIMIT, HostWalk, Walk
from pages import TESTS
from probes import strict_and_quick
from runs import SMALL, flags, lines_of

import qlax
from qlax import pqn
from qlax.cli import main
from qlax.envs.check.host import check_host_env
from qlax.envs.vec import Vec
from qlax.envs.worker import Worker
from qlax.errors import HostError, UserError
from qlax.playing import host
from qlax.training import guard, host_runs

WALK = "hosts:HostWalk"
TINY = SMALL | {"num_steps": 8, "total_steps": 8 * 32, "log_interval": 2, "eval_interval": 4, "checkpoint_interval": 4}


@pytest.fixture(autouse=True)
def tests_are_importable(monkeypatch):
    monkeypatch.syspath_prepend(TESTS)


def workers_of(make, num_envs, **options):
    options = {"device": jax.devices()[0], "timeout": 30.0} | options
    return [Worker("test", make, n, **options) for n in host.sizes(num_envs)]


def first_steps(workers):
    for index, worker in enumerate(workers):
        worker.reset(index)
    return jax.tree.map(lambda *x: jnp.concatenate(x), *(worker.result()[0] for worker in workers))


@pytest.fixture
def quick():
    with strict_and_quick():
        yield


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("num_envs", "memory"), [(4, "none"), pytest.param(3, "none", marks=pytest.mark.slow), (4, "gru")]
)
def test_an_update_is_the_page_s(num_envs, memory):
    """Acting greedily, in one minibatch, nothing is random: walks in JAX and in NumPy give the same update."""
    num_steps = 10
    shape = pqn.Shape(num_envs=num_envs, num_steps=num_steps, num_minibatches=1, num_epochs=1, num_updates=10)
    network = qlax.QNetwork(num_actions=2, hidden=(16,), memory=memory)
    hyper = pqn.Hyper(epsilon_start=0.0, epsilon_end=0.0, learning_rate=1e-2)
    vec = Vec(Walk(), num_envs)
    on_device, on_host = pqn.make(vec, network, shape), pqn.make(None, network, shape)
    env_state, step = jax.jit(vec.reset)(jax.random.key(0))
    expected = jax.jit(on_device.init)(jax.random.key(1), hyper, step, env_state)
    workers = workers_of(HostWalk, num_envs)
    state = jax.jit(on_host.init)(jax.random.key(1), hyper, first_steps(workers))
    learn, measured = guard.make(on_host, network)
    runs = jax.tree.map(lambda x: x[None], state)
    sums = jax.eval_shape(jax.vmap(lambda state: measured(*host.standing_still(on_host, num_steps, state))[1]), runs)
    empty = jax.tree.map(lambda x: jnp.asarray(x[0]), guard.empty(sums, 1))
    compiled = SimpleNamespace(begin=jax.jit(host.begin), act=jax.jit(functools.partial(host.act, on_host)))
    learn = jax.jit(functools.partial(host_runs.learn, learn))
    update, ended = jax.jit(on_device.update), 0.0
    for _ in range(3):
        expected, expected_metrics = update(expected)
        collected = host.collect(compiled, on_host, num_steps, workers, state, host.Waits())
        state, seen = learn(state, empty, *collected)
        metrics = {name: seen.sums[name] for name in expected_metrics}
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), metrics, expected_metrics)
        ended += metrics["episode_return"].weight
    assert ended > 0
    for part in ("params", "opt_state", "step", "memory"):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
            getattr(state, part),
            getattr(expected, part),
        )


@pytest.mark.usefixtures("quick")
def test_parts_and_learning_have_keys_of_their_own():
    algorithm = pqn.make(None, qlax.QNetwork(2), pqn.Shape(num_envs=4, num_steps=4, num_minibatches=1))
    state = jax.jit(algorithm.init)(jax.random.key(0), pqn.Hyper(), first_steps(workers_of(HostWalk, 4)))
    seen = []
    for _ in range(3):
        key, parts = jax.jit(host.begin)(state)
        for k in (key, *(part.key for part in parts)):
            seen += [tuple(jax.random.key_data(x).tolist()) for x in (k, *jax.random.split(k))]
        state = state._replace(key=jax.random.split(key)[0])  # as `learn` splits it
    assert len(seen) == len(set(seen))


def test_arrays_may_be_used_again_by_the_environment():
    for _ in range(10):  # whether JAX copies depends on the address of the memory
        (worker,) = workers_of(functools.partial(HostWalk, memory_is_used_again=True), 1)
        worker.reset(0)
        first, _ = worker.result()
        worker.step(np.ones((1, 1), np.int32))
        second, _ = worker.result()
        assert (first.obs.argmax(), second.obs.argmax()) == (0, 1)


def test_a_time_limit_may_be_terminal():
    for terminal in (False, True):
        (worker,) = workers_of(HostWalk, 1, time_limit_is_terminal=terminal)
        worker.reset(0)
        worker.result()
        for _ in range(LIMIT):
            worker.step(np.zeros((1, 1), np.int32))
            step, metrics = worker.result()
        assert metrics["episode_length"] == LIMIT
        assert bool(step.terminated[0]) == terminal


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Train two seeds without an interruption."""
    sys.path.insert(0, str(TESTS))
    return qlax.train(WALK, out=tmp_path_factory.mktemp("run") / "whole", seed=3, seeds=2, **TINY)


def same_weights(one, other):
    return jax.tree.all(jax.tree.map(np.array_equal, one.variables, other.variables))


def test_a_run_leaves_everything_behind(whole):
    files = {path.relative_to(whole.directory).as_posix() for path in whole.directory.rglob("*") if path.is_file()}
    assert files >= {"agents/0.safetensors", "agents/1.safetensors", "config.json", "summary.json", "curve.png"}
    assert whole.curves["eval_return"].shape == (4, 2)
    assert np.isfinite(whole.curves["eval_return"][-1]).all()
    assert whole.summary["waited_for_environments_seconds"] > 0
    assert whole.summary["train_return"]["mean"] is not None
    obs = np.eye(LENGTH + 1, dtype=np.float32)
    assert whole.agents[0].act(obs).shape == (LENGTH + 1,)


def test_greedy_episodes_are_whole_and_first(whole):
    """Greedy episodes are counted in full, whether the walk reaches the goal or the time limit."""
    for length, greedy in zip(whole.curves["eval_length"][-1], whole.curves["eval_return"][-1], strict=True):
        assert length in (LENGTH, LIMIT)
        assert greedy == pytest.approx(-0.1 * (LENGTH - 1) + 2 if length == LENGTH else -0.1 * LIMIT)


def test_evaluation_cuts_what_does_not_end(tmp_path):
    result = qlax.train(WALK, out=tmp_path / "run", **TINY | {"eval_max_steps": 3})
    assert result.summary["eval_cut"] == [1.0]
    assert result.summary["eval_return"]["mean"] == pytest.approx(-0.3)


def test_a_run_is_the_same_among_others_and_in_chunks_of_any_length(whole, tmp_path):
    settings = TINY | {"log_interval": 1, "eval_interval": 8, "checkpoint_interval": 8}
    alone = qlax.train(WALK, out=tmp_path / "alone", seed=4, **settings)
    assert same_weights(alone.agents[0], whole.agents[1])


def test_overlapping_acts_with_parameters_of_one_update_ago(tmp_path):
    """The second rollout still acts with the initial parameters, and the third one does not."""
    settings = TINY | {
        "total_steps": 3 * 32,
        "log_interval": 1,
        "eval_interval": 3,
        "epsilon_start": 0,
        "epsilon_end": 0,
    }
    settings |= {"learning_rate": 0.1, "checkpoint_interval": 3}

    def values(name, **more):
        return qlax.train(WALK, out=tmp_path / name, **settings | more).curves["value"][:, 0]

    never, plain, overlapping = values("never", learning_rate=0), values("plain"), values("overlap", overlap=True)
    assert plain[0] == overlapping[0] == never[0]
    assert plain[1] != never[1]
    assert overlapping[1] == pytest.approx(never[1], rel=1e-6)
    assert overlapping[2] != pytest.approx(never[2], rel=1e-3)


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch, capsys):
    original = host.collect
    calls = []

    def interrupting(*arguments):
        calls.append(1)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(host, "collect", interrupting)
    with pytest.raises(qlax.Stopped, match="qlax resume"):
        qlax.train(WALK, out=tmp_path / "run", **TINY)
    monkeypatch.setattr(host, "collect", original)
    result = qlax.resume(tmp_path / "run", progress=True)
    assert "new episodes in all environments" in capsys.readouterr().err
    assert result.summary["updates"] == 8
    assert [line["updates"] for line in lines_of(tmp_path / "run")] == [2, 4, 6, 8]


@pytest.mark.parametrize(
    ("env", "options", "message"),
    [
        ("hosts:Crashing", {"steps": 60}, "crashed: ValueError: the emulator is gone"),
        ("hosts:Hanging", {"steps": 60}, "did not answer within 1 seconds"),
        pytest.param("hosts:Growing", {"steps": 120}, r"\(4, 1, 9\)|\(2, 1, 9\)", marks=pytest.mark.slow),
    ],
)
def test_what_fails_ends_in_an_error_and_a_checkpoint(env, options, message, tmp_path, monkeypatch):
    settings = TINY | {"total_steps": 32 * 32, "env_options": options, "host_timeout": 1.0}
    begun = time.perf_counter()
    with pytest.raises(qlax.HostError, match=message) as error:
        qlax.train(env, out=tmp_path / "run", **settings)
    assert time.perf_counter() - begun < 50
    assert f"qlax resume {tmp_path / 'run'}" in str(error.value)
    assert sorted((tmp_path / "run" / "checkpoints").glob("*.safetensors"))[-1].stem == f"{6:010d}"
    monkeypatch.setattr(hosts.Crashing, "mended", True)
    assert qlax.resume(tmp_path / "run").summary["updates"] == 32


def test_what_fails_in_an_evaluation_is_evaluated_again(tmp_path, monkeypatch):
    """The checkpoint has the state before the chunk, whose line is not written yet."""
    settings = TINY | {"eval_interval": 8}
    with pytest.raises(qlax.HostError, match="crashed"):
        qlax.train("hosts:CrashingInEvaluation", out=tmp_path / "run", env_options={"steps": 3}, **settings)
    monkeypatch.setattr(hosts.Crashing, "mended", True)
    result = qlax.resume(tmp_path / "run")
    assert result.curves["updates"].tolist() == [2, 4, 6, 8]
    assert result.summary["eval_return"]["mean"] is not None


@pytest.mark.parametrize(
    ("env", "settings", "error", "message"),
    [
        ("hosts:HangingAtOnce", {}, qlax.HostError, "did not answer within 1 seconds"),
        ("hosts:OneOnly", {}, UserError, "made 1 environments; expected 2, as asked for by num_envs"),
        (WALK, {"env_options": {"num_envs": 3}}, UserError, "num_envs is a setting, not an option"),
        (WALK, {"wrappers": ("last_action",)}, UserError, "wrapper last_action is for environments in JAX, but"),
        (
            "gymnax/CartPole-v1",
            {"overlap": True, "host_timeout": 120.0},
            UserError,
            "overlap is for environments on the",
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_written(env, settings, error, message, tmp_path):
    with pytest.raises(error, match=message):
        qlax.train(env, out=tmp_path / "run", **TINY | {"host_timeout": 1.0} | settings)
    assert not (tmp_path / "run").exists()


def test_a_part_of_the_algorithm_is_tried_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match=r"argument loss breaks its contract"):
        qlax.train(WALK, out=tmp_path / "run", loss=lambda error: error[0, 0, 0, 0, 0], **TINY)
    assert not (tmp_path / "run").exists()


def test_the_command_says_what_failed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(TESTS)
    words = [*flags(TINY), "--env-options", "steps=60", "--out", str(tmp_path / "run")]
    assert main.main(["train", "hosts:Crashing", *words]) == 1
    assert "hosts:Crashing crashed: ValueError: the emulator is gone" in capsys.readouterr().err


class Wrong(HostWalk):
    def __init__(self, change):
        super().__init__(2)
        self.change = change

    def step(self, action):
        return self.change(super().step(action))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda step: tuple(step), "returns tuple"),
        (lambda step: step._replace(reward=np.float32(0)), r"reward of step has shape \(\)"),
        (lambda step: step._replace(reward=step.reward * np.nan), "reward of step is not finite"),
        (lambda step: step._replace(obs=step.obs.tolist()), "obs of step holds float"),
        (lambda step: step._replace(terminated=np.zeros(2)), "terminated of step is float64"),
        (lambda step: step._replace(obs=step.obs[0]), "obs of step has shape"),
        (lambda step: step._replace(obs=step.obs.astype(np.float64)), "obs differs between reset and step"),
        (lambda step: step._replace(metrics={}), "no metrics\\['episode_return'\\]"),
        (lambda step: step._replace(legal=np.zeros((2, 2), bool)), "no legal action"),
        (lambda step: 1 / 0, "step failed: ZeroDivisionError"),
    ],
)
def test_what_breaks_the_contract_is_named(change, message):
    with pytest.raises(UserError, match=message):
        check_host_env(Wrong(change))


class NeverNan(HostWalk):
    def reset(self, seed):
        step = super().reset(seed)
        return step._replace(metrics={name: np.zeros(2) for name in step.metrics})


class Silent(HostWalk):
    def step(self, action):
        step = super().step(action)
        return step._replace(metrics={name: np.full(2, np.nan) for name in step.metrics})


@pytest.mark.parametrize(("env", "message"), [(NeverNan(2), "reset are not nan"), (Silent(2), "was always nan")])
def test_accounts_that_are_wrong_are_named(env, message):
    with pytest.raises(UserError, match=message):
        qlax.check_env(env)


def test_what_keeps_the_contract_passes():
    qlax.check_env(HostWalk(3))


def test_your_own_needs_to_know_how_many():
    with pytest.raises(UserError, match="num_envs=8"):
        qlax.make(WALK)
    assert qlax.make(WALK, num_envs=2).num_envs == 2


@pytest.mark.parametrize(("begin", "kind"), [("check", UserError), ("reset", HostError)])
def test_a_library_that_is_missing_when_episodes_begin_is_named(begin, kind):
    class Torn(HostWalk):
        def reset(self, seed):
            raise OSError("libGL.so.1: cannot open shared object file: No such file or directory")

    (worker, _) = workers_of(Torn, 2)
    getattr(worker, begin)(*[0] * (begin == "reset"))
    with pytest.raises(kind, match=r"install the package of the operating system that has libGL\.so\.1$"):
        worker.result()
