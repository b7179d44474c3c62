import errno
import functools
import json
import logging
import math
import os
import pickle
import re
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import Blank, Paid, show
from runs import CARTPOLE, SMALL, interrupt_at, lines_of, same_weights

import qlax
from qlax.cli.train import report
from qlax.config.intervals import with_intervals
from qlax.envs.wrappers import Wrapper
from qlax.errors import DivergedError, RunError, Stopped, UserError
from qlax.learning.mixing import VDN
from qlax.pqn import epsilon_greedy
from qlax.storage.directory import claim
from qlax.storage.formats import config_of_file
from qlax.training.device_runs import DeviceRuns
from qlax.training.display import ProgressDisplay
from qlax.training.loop import Loop
from qlax.training.placement import Placement
from qlax.training.plan import make
from qlax.util.files import write_whole


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Train two seeds of two settings without an interruption."""
    return qlax.train(CARTPOLE, out=tmp_path_factory.mktemp("run") / "whole", seed=7, seeds=2, lam=[0.0, 0.9], **SMALL)


def test_a_run_leaves_everything_behind(whole):
    files = {path.relative_to(whole.directory).as_posix() for path in whole.directory.rglob("*") if path.is_file()}
    agents = {f"agents/{index}.safetensors" for index in range(4)}
    assert files >= agents | {"config.json", "metrics.jsonl", "summary.json", "curve.png"}
    summary = json.loads((whole.directory / "summary.json").read_text())
    assert summary == whole.summary
    assert summary["seeds"] == [7, 8, 7, 8]
    assert summary["settings"] == {"lam": [0.0, 0.0, 0.9, 0.9]}
    assert summary["total_steps"] == 12 * 32
    assert summary["network"]["encoder"] == "mlp"
    for name in ("train_return", "eval_return"):
        assert summary[name]["mean"] == pytest.approx(np.mean(summary[name]["per_run"]))
    assert same_weights(pickle.loads(pickle.dumps(whole)), whole)


def test_lines_come_at_the_intervals(whole):
    lines = lines_of(whole.directory)
    assert [line["updates"] for line in lines] == [2, 4, 6, 8, 10, 12]
    assert [line["steps"] for line in lines] == [64, 128, 192, 256, 320, 384]
    evaluated = [line["updates"] for line in lines if line["eval_return"][0] is not None]
    assert evaluated == [4, 8, 12]
    assert {len(line["loss"]) for line in lines} == {4}
    assert whole.curves["loss"].shape == (6, 4)


def test_train_return_covers_the_end_of_training(whole):
    last = lines_of(whole.directory)[-1]
    expected = [value if value is not None else None for value in last["episode_return"]]
    assert whole.summary["train_return"]["per_run"] == pytest.approx(expected)


def test_the_written_configuration_repeats_the_run(whole, tmp_path):
    again = qlax.train(config_of_file(whole.directory / "config.json"), out=tmp_path / "again")
    assert lines_of(again.directory) == lines_of(whole.directory)
    assert same_weights(again, whole)


def test_the_length_of_a_chunk_changes_no_bit(whole, tmp_path):
    longer = {**SMALL, "log_interval": 5, "eval_interval": 5, "checkpoint_interval": 5}
    other = qlax.train(CARTPOLE, out=tmp_path / "run", seed=7, seeds=2, lam=[0.0, 0.9], **longer)
    assert same_weights(other, whole)


def test_a_run_alone_equals_itself_among_others(whole, tmp_path):
    alone = qlax.train(CARTPOLE, out=tmp_path / "alone", seed=8, lam=0.9, **SMALL)
    for name in ("loss", "value", "grad_norm"):
        first_five = slice(None, 2)  # the first two lines, of two updates each
        np.testing.assert_allclose(alone.curves[name][first_five, 0], whole.curves[name][first_five, 3], rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        ({"norm": "batch", "memory": "gru", "dueling": True}, signal.SIGINT),
        pytest.param({"norm": "batch"}, signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param({"memory": "gru", "dueling": True}, signal.SIGINT, marks=pytest.mark.slow),
    ],
    ids=["both, Ctrl-C", "batch norm, SIGTERM", "memory, Ctrl-C"],
)
def test_resuming_changes_no_bit(settings, number, monkeypatch, tmp_path):
    settings = {**SMALL, **settings}
    undisturbed = qlax.train(CARTPOLE, out=tmp_path / "undisturbed", **settings)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 6, number)
        with pytest.raises(Stopped, match=r"qlax resume .*interrupted") as stopped:
            qlax.train(CARTPOLE, out=tmp_path / "interrupted", **settings)
    assert stopped.value.signal_number == number
    assert not (tmp_path / "interrupted" / "summary.json").exists()
    resumed = qlax.resume(tmp_path / "interrupted")
    assert lines_of(resumed.directory) == lines_of(undisturbed.directory)
    assert same_weights(resumed, undisturbed)


def test_after_a_crash_the_last_checkpoint_counts(whole, monkeypatch, tmp_path):
    """Lines after the checkpoint are written again, once, and the intervals of the run are kept."""

    def crash(display, done, *rest):
        if done >= 4 * 6 * 32:
            raise OSError("power failure")

    with monkeypatch.context() as patch:
        patch.setattr(ProgressDisplay, "show", crash)
        with pytest.raises(OSError, match="power failure"):
            qlax.train(CARTPOLE, out=tmp_path / "run", seed=7, seeds=2, lam=[0.0, 0.9], **SMALL)
    assert lines_of(tmp_path / "run")[-1]["updates"] == 6
    assert sorted((tmp_path / "run" / "checkpoints").iterdir())[-1].stem == "0000000004"
    resumed = qlax.resume(tmp_path / "run")
    assert lines_of(resumed.directory) == lines_of(whole.directory)
    assert same_weights(resumed, whole)


def test_without_a_checkpoint_it_begins_anew(whole, tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (directory / name).write_bytes((whole.directory / name).read_bytes())
    resumed = qlax.resume(directory)
    assert lines_of(resumed.directory) == lines_of(whole.directory)
    assert same_weights(resumed, whole)


def test_an_interruption_within_a_line_changes_no_bit(whole, monkeypatch, tmp_path):
    """The clock decides the length of chunks, so a checkpoint also has the sums of the line in progress."""
    settings = SMALL | {"log_interval": 12, "eval_interval": 12, "checkpoint_interval": 12}
    undisturbed = qlax.train(CARTPOLE, out=tmp_path / "undisturbed", **settings)
    settle = Loop._settle

    def settle_and_stop(loop, boundary):
        settle(loop, boundary)
        loop.chunk = 2
        if boundary.updates == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_settle", settle_and_stop)
        with pytest.raises(Stopped):
            qlax.train(CARTPOLE, out=tmp_path / "run", **settings)
    (newest,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert newest.stem == "0000000004"
    assert lines_of(tmp_path / "run") == []
    resumed = qlax.resume(tmp_path / "run")
    assert lines_of(resumed.directory) == lines_of(undisturbed.directory)
    assert same_weights(resumed, undisturbed)
    assert resumed.summary["inexact"] == []


def test_a_damaged_checkpoint_is_named_and_the_one_before_counts(whole, monkeypatch, tmp_path, capfd):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4 * 6, signal.SIGTERM)
        with pytest.raises(Stopped):
            qlax.train(CARTPOLE, out=run, seed=7, seeds=2, lam=[0.0, 0.9], **SMALL)
    *_, newest = sorted((run / "checkpoints").iterdir())
    damaged = newest.read_bytes()[:-7]
    newest.write_bytes(damaged)
    resumed = qlax.resume(run)
    assert f"{newest.name} is damaged" in capfd.readouterr().err
    assert newest.with_name(f"{newest.name}.damaged").read_bytes() == damaged
    assert lines_of(run) == lines_of(whole.directory)
    assert same_weights(resumed, whole)


def test_what_is_not_as_it_was_is_said(monkeypatch, tmp_path, capfd):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4, signal.SIGTERM)
        with pytest.raises(Stopped):
            qlax.train(CARTPOLE, out=tmp_path, **SMALL)
    monkeypatch.setattr("qlax.training.compare.__version__", "99.0")
    resumed = qlax.resume(tmp_path)
    assert "qlax 99.0 instead of 0.1.0" in resumed.summary["inexact"][0]
    assert "not be bit-identical" in capfd.readouterr().err


def test_another_configuration_than_that_of_the_checkpoint_is_refused(monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4, signal.SIGTERM)
        with pytest.raises(Stopped):
            qlax.train(CARTPOLE, out=tmp_path, **SMALL)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"lam": 0.65', '"lam": 0.66'))
    with pytest.raises(UserError, match=r"begun with lam=0.65, but its config.json says 0.66"):
        qlax.resume(tmp_path)


def test_a_run_of_another_version_of_its_environment_is_named(monkeypatch, tmp_path):
    settings = SMALL | {"num_envs": 2}
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4, signal.SIGTERM)
        with pytest.raises(Stopped):
            qlax.train("probes:ConstantReward", out=tmp_path, **settings)
    reset = Blank.reset
    monkeypatch.setattr(Blank, "reset", lambda self, key: ({"clock": jnp.int32(0)}, reset(self, key)[1]))
    message = rf"environments has another form now \(.*state/env/.*\), .*, with qlax {qlax.__version__}, .*--init"
    with pytest.raises(UserError, match=message):
        qlax.resume(tmp_path)


def test_a_longer_run_goes_on_and_keeps_what_its_end_left(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole.directory, run)
    with pytest.raises(UserError, match="expected more"):
        qlax.extend(run, 12 * 32)
    longer = qlax.extend(run, 16 * 32)
    assert longer.summary["updates"] == 16
    assert lines_of(run)[:6] == lines_of(whole.directory)
    assert [line["updates"] for line in lines_of(run)] == [2, 4, 6, 8, 10, 12, 14, 16]
    earlier = qlax.load(run / "earlier" / str(12 * 32))
    assert jax.tree.all(jax.tree.map(np.array_equal, earlier.variables, whole.agents[0].variables))
    assert json.loads((run / "earlier" / str(12 * 32) / "summary.json").read_text()) == whole.summary


def test_weights_to_begin_with(whole, tmp_path):
    settings = SMALL | {"total_steps": 32, "learning_rate": 0.0}
    begun = qlax.train(CARTPOLE, out=tmp_path / "run", init=whole.directory / "agents" / "2.safetensors", **settings)
    weights = (begun.agents[0].variables, whole.agents[2].variables)
    assert jax.tree.all(jax.tree.map(np.array_equal, *weights))
    with pytest.raises(UserError, match=r"has 4 agents, but the new run has 3"):
        qlax.train(CARTPOLE, out=tmp_path / "other", init=whole.directory, seeds=3, **settings)
    with pytest.raises(UserError, match=r"belongs to another configuration"):
        qlax.train(CARTPOLE, out=tmp_path / "other", init=whole.directory, seeds=4, **settings | {"hidden": (9,)})
    shutil.copytree(whole.directory, tmp_path / "partly")
    (tmp_path / "partly" / "agents" / "1.safetensors").unlink()
    with pytest.raises(UserError, match=r"partly has only 3 of its 4 agents"):
        qlax.train(CARTPOLE, out=tmp_path / "other", init=tmp_path / "partly", seeds=3, **settings)
    assert not (tmp_path / "other").exists()


def test_the_best_weights_are_kept(whole):
    returns = whole.curves["eval_return"]
    for index in range(4):
        best = qlax.load(whole.directory, index, best=True).info
        assert (
            best["eval_return"] == np.nanmax(returns[:, index]) == whole.summary["best_eval_return"]["per_run"][index]
        )
        assert whole.curves["updates"][np.nanargmax(returns[:, index])] == best["updates"]


def test_a_directory_is_for_one_process(whole, tmp_path):
    config = qlax.Config(env=CARTPOLE, **SMALL)
    with claim(tmp_path / "run", config), pytest.raises(UserError, match="another process is training in it"):
        qlax.resume(tmp_path / "run")


def test_a_full_disk_ends_the_run_in_one_line_and_it_goes_on_afterwards(whole, monkeypatch, tmp_path):
    run, calls = tmp_path / "run", []

    def full(path, data, sync):
        calls.append(path)
        if len(calls) >= 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write_whole(path, data, sync)

    with monkeypatch.context() as patch:
        patch.setattr("qlax.storage.checkpoint.write_whole", full)
        with pytest.raises(RunError, match=r"cannot be written: No space left on device; .*qlax resume"):
            qlax.train(CARTPOLE, out=run, seed=7, seeds=2, lam=[0.0, 0.9], **SMALL)
    resumed = qlax.resume(run)
    assert lines_of(run) == lines_of(whole.directory)
    assert same_weights(resumed, whole)


def test_nothing_leads_out_of_a_run(whole, tmp_path):
    run, outside = tmp_path / "run", tmp_path / "outside"
    shutil.copytree(whole.directory, run)
    (run / "summary.json").unlink()
    shutil.move(run / "checkpoints", outside)
    (run / "checkpoints").symlink_to(outside)
    with pytest.raises(UserError, match=r"is a link to .*; links are not followed"):
        qlax.resume(run)


def test_an_extended_run_that_was_cut_off_is_resumed(whole, tmp_path, monkeypatch):
    shutil.copytree(whole.directory, tmp_path / "run")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4 * 14, signal.SIGTERM)  # updates of four agents
        with pytest.raises(Stopped):
            qlax.extend(tmp_path / "run", 24 * 32)
    with pytest.raises(UserError, match=r"planned for 768 steps; expected more; to finish these: qlax resume .*run$"):
        qlax.extend(tmp_path / "run", 24 * 32)
    with pytest.raises(UserError, match=r"planned for 384 steps; expected more$"):
        qlax.extend(whole.directory, 12 * 32)


def test_what_cannot_be_resumed(whole, tmp_path):
    with pytest.raises(qlax.UserError, match="finished run"):
        qlax.resume(whole.directory)
    with pytest.raises(qlax.UserError, match="holds no run"):
        qlax.resume(tmp_path)


def test_own_parts_of_the_algorithm_are_used_and_have_to_be_the_same_on_resuming(monkeypatch, tmp_path):
    def never_explore(key, q, legal, epsilon):
        return epsilon_greedy(key, q, legal, 0 * epsilon)

    parts = {"explore": never_explore, "mixing": VDN}
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4, signal.SIGTERM)
        with pytest.raises(Stopped):
            qlax.train(CARTPOLE, out=tmp_path / "run", **parts, **SMALL)
    with pytest.raises(qlax.UserError, match="never_explore"):
        qlax.resume(tmp_path / "run")
    assert qlax.resume(tmp_path / "run", **parts).summary["updates"] == 12


@pytest.mark.parametrize(("asked", "expected"), [("default", {"DEFAULT"}), ("float32", {"HIGHEST"})])
def test_products_have_the_precision_that_was_asked_for(asked, expected, monkeypatch, tmp_path):
    found, compile = set(), Placement.compile

    def watched(self, lowered):
        found.update(*re.findall(r"precision = \[(\w+), (\w+)\]", lowered.as_text()))
        return compile(self, lowered)

    monkeypatch.setattr(Placement, "compile", watched)
    qlax.train(CARTPOLE, out=tmp_path / "run", matmul_precision=asked, **SMALL | {"total_steps": 32})
    assert found == expected


def scaled(error, factor):
    return factor * error**2


def test_an_unknown_part_of_the_algorithm_is_named_and_partial_ones_are_known_by_their_arguments():
    config = qlax.Config(env=CARTPOLE, **SMALL)
    with pytest.raises(qlax.UserError, match=r"unknown part of the algorithm 'explor'; did you mean 'explore'"):
        make(config, {"explor": epsilon_greedy})
    plan = make(config, {"loss": functools.partial(scaled, factor=2.0)})
    assert plan.plugins == {"loss": "test_training.scaled with () {'factor': 2.0}"}


def test_sizes_that_disagree_are_named():
    vec = qlax.Vec(qlax.make(CARTPOLE), 4)
    with pytest.raises(qlax.UserError, match="num_envs is 8 in the shape, but env has 4"):
        qlax.pqn.make(vec, qlax.QNetwork(2), qlax.pqn.Shape(num_envs=8))


def test_a_chunk_is_compiled_once_and_calls_no_host(caplog, tmp_path):
    caplog.set_level(logging.DEBUG, logger="jax")
    with jax.log_compiles():
        result = qlax.train(CARTPOLE, out=tmp_path / "run", **{**SMALL, "total_steps": 11 * 32})  # short last line
    compiled = [record for record in caplog.records if "XLA compilation of jit(chunk)" in record.getMessage()]
    assert len(compiled) == 1
    plan = make(result.config, {})
    text = DeviceRuns(plan, ()).lowered_chunk().as_text()
    assert "while" in text
    assert "callback" not in text


class Exploding(Blank):
    """Environment whose reward is infinite from step 60 of an episode on."""

    def step(self, key, state, action):
        del key, action
        return state + 1, show(jnp.ones(1), reward=jnp.where(state >= 60, jnp.inf, 0.0))


def test_divergence_stops_the_run_and_says_where(tmp_path):
    run = tmp_path / "run"
    where = r"reward not finite in agent 0 of 2 \(seed=3\) in update 8, between 224 and 256 steps: the environment"
    with pytest.raises(DivergedError, match=rf"{where}.*last finite weights are in .*agents"):
        qlax.train("test_training:Exploding", out=run, seed=3, seeds=2, **SMALL)
    assert [line["updates"] for line in lines_of(run)] == [2, 4, 6, 8]
    assert np.isfinite(lines_of(run)[-1]["loss"]).all()  # loss of the update before
    summary = json.loads((run / "summary.json").read_text())
    assert [each["steps"] for each in summary["diverged"]] == [224, 224]
    assert 8 <= summary["updates"] < 12
    good = [qlax.load(run, index) for index in range(2)]
    with pytest.raises(DivergedError, match=where):  # resuming reports the same
        qlax.resume(run)
    again = qlax.train(
        "test_training:Overflowing", out=tmp_path / "again", init=run, seeds=2, **SMALL | {"total_steps": 32}
    )
    assert again.config.init == str(run)
    shapes = [jax.tree.map(np.shape, agent.variables) for agent in (good[0], again.agents[0])]
    assert shapes[0] == shapes[1]


def test_a_run_that_diverges_is_frozen_and_the_others_are_as_without_it(tmp_path, capfd):
    settings = SMALL | {"seeds": 1}
    both = qlax.train("test_training:Overflowing", out=tmp_path / "both", reward_scale=[1.0, 1e38], **settings)
    alone = qlax.train("test_training:Overflowing", out=tmp_path / "alone", reward_scale=1.0, **settings)
    frozen = both.summary["diverged"]
    assert frozen[0] is None
    assert frozen[1]["what"] in ("value", "loss", "grad_norm", "parameters")
    assert "agent 1 of 2 (seed=0, reward_scale=1e+38)" in capfd.readouterr().err
    np.testing.assert_allclose(both.curves["loss"][:, 0], alone.curves["loss"][:, 0], rtol=1e-5)
    assert np.isnan(both.curves["loss"][-1, 1])
    assert np.isnan(both.curves["eval_return"][-1, 1])
    assert both.summary["eval_return"]["per_run"][1] is None
    report(both)
    assert "agent 1 (seed 0, reward_scale 1e+38): diverged after" in capfd.readouterr().out
    leaves = jax.tree.leaves(qlax.load(both.directory, 1).variables)
    assert all(np.isfinite(leaf).all() for leaf in leaves)


class Overflowing(Blank):
    """Environment with reward 10 in each of eight steps."""

    def step(self, key, state, action):
        del key, action
        return state + 1, show(jnp.ones(1), reward=10.0, terminated=state >= 7)


def test_a_directory_in_use_is_left_alone(whole, tmp_path):
    before = (whole.directory / "config.json").read_text()
    with pytest.raises(qlax.UserError, match="already holds a run"):
        qlax.train(CARTPOLE, out=whole.directory, **SMALL)
    assert (whole.directory / "config.json").read_text() == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(qlax.UserError, match="not empty"):
        qlax.train(CARTPOLE, out=tmp_path, **SMALL)


def refuse(*_):
    raise UserError("does not fit into memory")


def test_a_directory_is_claimed_when_nothing_can_be_refused_any_more(whole, monkeypatch, tmp_path):
    compiled, run = [], tmp_path / "run"
    monkeypatch.setattr(DeviceRuns, "compile", lambda _: compiled.append("compiled"))
    monkeypatch.setattr("qlax.training.memory.fit", refuse)
    with pytest.raises(UserError, match="already holds a run"):  # refused before compilation
        qlax.train(CARTPOLE, out=whole.directory, **SMALL)
    assert not compiled
    with pytest.raises(UserError, match="memory"):
        qlax.train(CARTPOLE, out=run, **SMALL)
    assert compiled
    assert not run.exists()
    shutil.copytree(whole.directory, run)
    with pytest.raises(UserError, match="memory"):
        qlax.extend(run, 16 * 32)
    assert json.loads((run / "summary.json").read_text()) == whole.summary
    assert (run / "config.json").read_text() == (whole.directory / "config.json").read_text()


def test_who_stops_while_it_is_compiled_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(DeviceRuns, "compile", lambda _: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Stopped, match="before training began; nothing was written"):
        qlax.train(CARTPOLE, out=tmp_path / "run", **SMALL)
    assert not (tmp_path / "run").exists()


def test_runs_get_directories_of_their_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = qlax.Config(env=CARTPOLE)
    directories = []
    for _ in range(2):
        with claim(None, config) as directory:
            directories.append(directory.path.as_posix())
    assert directories == ["runs/gymnax-cartpole-v1-1", "runs/gymnax-cartpole-v1-2"]


def test_score_of_the_suite_is_reported(tmp_path):
    result = qlax.train("test_training:Scored", out=tmp_path / "run", **SMALL)
    assert result.summary["eval_return"]["per_run"] == [3.0]
    assert result.summary["eval_score"]["per_run"] == [0.25]


class Scored:
    """Environment of three steps with reward 1, and a score that counts 12 as perfect."""

    num_actions = 2
    time_limit = 3

    def reset(self, key):
        del key
        return jnp.int32(0), show(jnp.ones(1))

    def step(self, key, state, action):
        del key, action
        return state + 1, show(jnp.ones(1), reward=1, truncated=state + 1 >= self.time_limit)

    def score(self, episode_return):
        return episode_return / 12


def test_what_is_shared_follows_the_progress_of_training_whatever_the_chunk(tmp_path):
    settings = SMALL | {"eval_interval": 12, "checkpoint_interval": 12}
    results = [
        qlax.train("test_training:Fading", out=tmp_path / str(interval), **settings | {"log_interval": interval})
        for interval in (1, 4)
    ]
    returns = results[0].curves["episode_return"][:, 0]
    np.testing.assert_allclose(returns, 1 - np.arange(12) / 12, rtol=1e-5)
    assert results[0].summary["eval_return"]["per_run"] == pytest.approx([1 / 12], rel=1e-5)  # the last update's
    assert same_weights(*results)


class Fading(Paid):
    """Environment whose reward falls during training."""

    def shared_at(self, progress):
        return 1 - progress


def test_own_metrics_and_wrappers_are_in_the_summary_and_the_description_of_agents(tmp_path):
    settings = SMALL | {"wrappers": ("last_action", "test_training:Doubled"), "reset_ratio": None}
    result = qlax.train("counting:Counting", out=tmp_path / "run", env_options={"time_limit": 5}, **settings)
    assert result.summary["eval_count"]["per_run"] == [5.0]
    info = qlax.load(result.directory).info
    assert info["wrappers"] == ["last_action", "test_training:Doubled"]
    assert info["obs"] == [["float32", [10]]]
    assert config_of_file(result.directory / "config.json").reset_ratio == 2  # gcd(6, 4)


class Doubled(Wrapper):
    """Wrapper that repeats the observation."""

    reset_ratio = 6

    def reset(self, key):
        return self.twice(*self._env.reset(key))

    def step(self, key, state, action):
        return self.twice(*self._env.step(key, state, action))

    def twice(self, state, step):
        return state, step._replace(obs=jnp.concatenate([step.obs, step.obs]))


def test_a_team_learns_apart_if_asked_to():
    for mixing, learners in (("sum", 1), ("none", 2)):
        config = qlax.Config(env="probes:RandomWorld", env_options={"num_agents": 2}, mixing=mixing)
        plan = make(config, {})
        assert jax.eval_shape(jax.vmap(plan.algorithm.act), plan.shapes)[1].value.shape == (1, 128, learners)
    with pytest.raises(UserError, match=r"mixing=none and a qlax\.Mixing cannot be combined"):
        make(config, {"mixing": VDN})


def test_intervals_follow_from_the_sizes_alone():
    config = with_intervals(qlax.Config(env=CARTPOLE, total_steps=10_000_000), 1000)
    assert config.num_updates == math.ceil(10_000_000 / 4096)
    assert config.log_interval == 4
    assert config.eval_interval % config.log_interval == 0
    assert config.checkpoint_interval % config.log_interval == 0
    assert 25 <= config.num_updates / config.eval_interval < 50
    assert with_intervals(config, 1000) == config
