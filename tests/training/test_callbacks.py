import json
import signal
from types import SimpleNamespace

import numpy as np
import pytest
from runs import CARTPOLE, SMALL, interrupt_at, lines_of, same_weights

import qlax
from qlax.storage.directory import RunDirectory
from qlax.training import callbacks, loop


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Train two seeds to the planned length."""
    return qlax.train(CARTPOLE, out=tmp_path_factory.mktemp("run") / "whole", seeds=2, **SMALL)


def ends_after(updates, seen=None):
    def callback(line):
        if seen is not None:
            seen.append(line)
        return line["updates"] >= updates

    return callback


def test_a_callback_sees_every_line_as_it_is_written(whole, tmp_path):
    seen = []
    result = qlax.train(CARTPOLE, out=tmp_path / "run", seeds=2, callback=seen.append, **SMALL)
    assert [line["updates"] for line in seen] == [2, 4, 6, 8, 10, 12]
    for name in ("eval_return", "loss", "steps"):
        assert np.array_equal([line[name] for line in seen], result.curves[name], equal_nan=True)
    assert same_weights(result, whole)
    assert result.summary["stopped_by"] == ""


@pytest.mark.parametrize(
    "updates", [4, pytest.param(6, marks=pytest.mark.slow)], ids=["with an evaluation", "without one"]
)
def test_a_run_that_a_callback_ended_is_complete_and_goes_on_to_the_bits_of_one_it_did_not(whole, tmp_path, updates):
    seen = []
    ended = qlax.train(CARTPOLE, out=tmp_path / "run", seeds=2, callback=ends_after(updates, seen), **SMALL)
    assert [line["updates"] for line in seen] == list(range(2, updates + 1, 2))
    assert (ended.summary["updates"], ended.summary["stopped_by"]) == (updates, "callback")
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == ended.summary
    assert lines_of(tmp_path / "run") == lines_of(whole.directory)[: updates // 2]
    if updates == 4:
        assert ended.summary["eval_return"]["per_run"] == whole.curves["eval_return"][1].tolist()
    played = qlax.evaluate(tmp_path / "run", episodes=3)
    assert np.isfinite(ended.summary["eval_return"]["per_run"]).all()
    assert played.returns.shape == (2, 3)
    resumed = qlax.resume(tmp_path / "run")
    assert resumed.summary["stopped_by"] == ""
    assert same_weights(resumed, whole)
    assert lines_of(tmp_path / "run") == lines_of(whole.directory)
    assert (tmp_path / "run" / "earlier" / str(32 * updates) / "summary.json").exists()


def test_until_ends_a_run_once_every_agent_reaches_the_return(whole, tmp_path):
    evaluated = whole.curves["eval_return"][[1, 3, 5]]  # [evaluations, agents]
    target = evaluated.min()
    first = int((evaluated >= target).all(axis=1).argmax())
    result = qlax.train(CARTPOLE, out=tmp_path / "run", seeds=2, until=target, **SMALL)
    assert result.summary["updates"] == 4 * (first + 1)
    assert result.summary["stopped_by"] == ("until" if first < 2 else "")
    when = [4 * 32 * (int((agent >= target).argmax()) + 1) for agent in evaluated.T]
    assert [agent["steps"] for agent in result.summary["reached"]] == when
    assert same_weights(qlax.resume(tmp_path / "run"), whole)
    assert qlax.read(tmp_path / "run").config.until is None


def test_a_return_that_no_agent_reaches_changes_nothing(whole, tmp_path):
    result = qlax.train(CARTPOLE, out=tmp_path / "run", seeds=2, until=1e6, **SMALL)
    assert (result.summary["stopped_by"], result.summary["reached"]) == ("", [None, None])
    assert same_weights(result, whole)


@pytest.mark.parametrize(
    ("returns", "reached"),
    [([np.nan, np.nan], False), ([5.0, 4.9], False), ([5.0, 7.0], True), ([np.nan, 5.0], True)],
)
def test_agents_that_diverged_are_not_waited_for(returns, reached):
    assert callbacks.until(5)({"eval_return": np.array(returns)}) is reached


def test_minutes_count_those_before_an_interruption(whole, tmp_path, monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: 10.0 * next(clock)))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4, signal.SIGTERM)
        with pytest.raises(qlax.Stopped):
            qlax.train(CARTPOLE, out=tmp_path / "run", seeds=2, minutes=1.1, **SMALL)
    before = qlax.read(tmp_path / "run").curves["seconds"]
    assert before[-1] < 66
    result = qlax.resume(tmp_path / "run")
    assert result.summary["stopped_by"] == "minutes"
    seconds = result.curves["seconds"]
    assert len(seconds) > len(before)
    assert seconds[-1] >= 66 > seconds[-2]
    again = qlax.resume(tmp_path / "run", minutes=10)
    assert again.summary["stopped_by"] == ""
    assert again.config.minutes == 10
    assert same_weights(again, whole)


def test_an_exception_in_a_callback_is_raised_after_a_checkpoint(whole, tmp_path):
    def failing(line):
        if line["updates"] == 6:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        qlax.train(CARTPOLE, out=tmp_path / "run", seeds=2, callback=failing, **SMALL)
    assert "a checkpoint was saved; go on with: qlax resume" in caught.value.__notes__[0]
    assert caught.traceback[-1].path.name == "test_callbacks.py"
    assert not (tmp_path / "run" / "summary.json").exists()
    lines = []
    assert same_weights(qlax.resume(tmp_path / "run", callback=lines.append), whole)
    assert [line["updates"] for line in lines] == [8, 10, 12]


def test_what_a_callback_returns_is_checked(tmp_path):
    with pytest.raises(TypeError, match=r"the callback returned 3\.5; expected True"):
        qlax.train(CARTPOLE, out=tmp_path / "run", callback=lambda line: 3.5, **SMALL)
    with pytest.raises(qlax.UserError, match="callback=3: expected a function"):
        qlax.train(CARTPOLE, out=tmp_path / "other", callback=3, **SMALL)
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_population_that_a_callback_ended_is_described_as_it_is(tmp_path):
    swept = {"learning_rate": [1e-4, 1e-3, 1e-2, 1e-1, 1.0], "population": "pbt"}
    result = qlax.train(CARTPOLE, out=tmp_path / "run", callback=ends_after(8), **SMALL | swept)
    assert result.summary["updates"] == 8
    final = result.summary["final_settings"]["learning_rate"]
    assert [agent.info["learning_rate"] for agent in result.agents] == final
    resumed = qlax.resume(tmp_path / "run")  # its next evaluation records the settings
    assert resumed.curves["learning_rate"][5] == pytest.approx(final, rel=1e-5)


@pytest.mark.slow
def test_environments_on_the_host_are_ended_too(tmp_path):
    tiny = {"total_steps": 512, "num_envs": 4, "num_steps": 8, "num_minibatches": 2, "eval_episodes": 2}
    settings = tiny | {"hidden": (8,), "log_interval": 2, "eval_max_steps": 20}
    result = qlax.train("gymnasium/CartPole-v1", out=tmp_path / "run", callback=ends_after(2), **settings)
    assert (result.summary["updates"], result.summary["stopped_by"]) == (2, "callback")
    assert np.isfinite(result.summary["eval_return"]["mean"])
    with RunDirectory(tmp_path / "run") as run:
        assert run.stopped_by == "callback"
        assert not run.is_finished(run.config)
