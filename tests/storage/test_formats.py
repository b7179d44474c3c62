"""Runs of an older version can be resumed, extended, read and evaluated."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from runs import lines_of

import qlax
from qlax.config.configure import configure
from qlax.config.intervals import with_intervals
from qlax.config.settings import Config
from qlax.errors import UserError
from qlax.storage import checkpoint, formats, history
from qlax.training import loop

ENV = "gymnax/CartPole-v1"
OLD = Path(__file__).parent.parent / "data" / "format-0"
TOLERANCE = 1e-4  # newer code and other machines sum in another order


def copy_of(name, tmp_path):
    return Path(shutil.copytree(OLD / name, tmp_path / name))


def newest(run):
    return max((run / "checkpoints").glob("*.safetensors"))


def assert_same(found, expected):
    np.testing.assert_allclose(np.array(found, float), np.array(expected, float), rtol=TOLERANCE, atol=TOLERANCE)


def assert_same_run(run, other):
    """Check that weights and measurements are equal to those of the other run."""
    for folder in ("agents", "best"):
        files = sorted(path.name for path in (other / folder).glob("*.safetensors"))
        assert len(files) == 4
        for name in files:
            (info, found), (expected_info, expected) = (checkpoint.read(at / folder / name) for at in (run, other))
            assert found.keys() == expected.keys()
            for leaf in expected:
                assert_same(found[leaf], expected[leaf])
            assert info["seed"] == expected_info["seed"]
    lines, expected_lines = lines_of(run), lines_of(other)
    assert len(lines) == len(expected_lines) == 6
    for line, expected in zip(lines, expected_lines, strict=True):
        for name, value in expected.items():
            assert_same(line[name], value)


def test_an_interrupted_run_of_an_older_format_resumes_to_its_end(tmp_path):
    run = copy_of("interrupted", tmp_path)
    # A process of its own, because only there every core is a device.
    subprocess.run([sys.executable, "-m", "qlax", "resume", str(run)], check=True)
    assert_same_run(run, OLD / "finished")
    config = history.config_of(run)
    assert (config.draws, config.num_members) == (2, 4)
    assert checkpoint.about(newest(run))["format"] == formats.FORMAT


def test_a_finished_run_of_an_older_format_is_read_drawn_and_played_with(tmp_path):
    run = copy_of("finished", tmp_path)
    assert qlax.load(run, index=3, best=True).info["seed"] == 1
    assert qlax.plot(run, tmp_path / "figure.png").path.exists()
    assert qlax.report(run, tmp_path / "report.html", video=False).exists()
    played = qlax.evaluate(run, episodes=2, max_steps=5)
    assert len(played.agents) == 4


def test_a_run_of_an_older_format_is_extended_and_then_of_todays(tmp_path):
    run = copy_of("finished", tmp_path)
    result = qlax.extend(run, total_steps=16 * 32)
    assert result.summary["updates"] == 16
    written = json.loads((run / "config.json").read_text())
    assert (written["format"], written["draws"], "runs" in written) == (formats.FORMAT, 2, False)
    assert history.config_of(run) == result.config
    assert qlax.load(run, index=3).info["seed"] == 1
    assert qlax.plot(run, tmp_path / "figure.png").path.exists()


@pytest.mark.parametrize(("written", "is_derived"), [({}, True), ({"algorithm": "pqn"}, False)])
def test_a_norm_of_observations_that_was_the_default_counts_as_derived(written, is_derived, tmp_path):
    settings = {"env": ENV, "input_norm": "none", **written}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    config = formats.config_of_file(tmp_path / "config.json")
    assert config.input_norm == "none"
    assert ("input_norm" in config.derived) is is_derived


@pytest.mark.parametrize(
    ("settings", "draws"),
    [
        ({"runs": 12, "lam": "uniform:0:1", "gamma": [0.9, 0.99], "seeds": 3}, 2),
        ({"runs": 4, "lam": "uniform:0:1"}, 4),
        ({"runs": 4, "lam": [0, 0.5], "seeds": 2}, None),  # all combinations, and nothing drawn
        ({"runs": None}, None),
        ({"format": 1, "draws": 5, "lam": "uniform:0:1"}, 5),
        ({"draws": 5, "lam": "uniform:0:1"}, 5),  # written by hand, without a format number
    ],
)
def test_runs_of_format_0_become_draws(settings, draws, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"env": ENV, **settings}))
    assert formats.config_of_file(tmp_path / "config.json").draws == draws


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": 3}, "has format 3; expected at most 2: a newer version of qlax may read it"),
        ({"format": "new"}, "has format new; expected at most 2"),
        ({"format": 1, "runs": 5}, "unknown setting 'runs'"),
        ({"runs": "many", "lam": "uniform:0:1"}, "draws='many': expected a whole number"),
        ({"runs": 4, "lam": "uniform:0:1", "seeds": 0}, "expected a whole number"),
    ],
)
def test_what_no_format_has_is_named(settings, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"env": ENV, **settings}))
    with pytest.raises(UserError, match=message):
        formats.config_of_file(tmp_path / "config.json")


def test_a_setting_renamed_twice_has_its_newest_name(monkeypatch):
    first = formats.Older(renamed={"one": ("two", lambda x, _: x + 1)})
    second = formats.Older(renamed={"two": ("three", lambda x, settings: 10 * x + settings["other"])})
    monkeypatch.setattr(formats, "OLDER", (first, second))
    monkeypatch.setattr(formats, "FORMAT", 2)
    assert formats.upgraded({"one": 1, "other": 5}, "file") == {"three": 25, "other": 5}
    assert formats.upgraded({"format": 1, "two": 1, "other": 5}, "file") == {"three": 15, "other": 5}
    assert formats.upgraded({"format": 2, "three": 1}, "file") == {"three": 1}


class Hyper(NamedTuple):
    lam: np.ndarray
    momentum: np.ndarray  # field that no version had


class State(NamedTuple):
    hyper: Hyper


class Saved(NamedTuple):
    state: State


def test_a_checkpoint_may_lack_a_hyperparameter_that_came_later(monkeypatch, tmp_path):
    path, lam = tmp_path / "0.safetensors", np.array([0.25, 0.5], np.float32)
    checkpoint.save(path, {"state": {"hyper": {"lam": lam}}}, {"updates": 4})
    like = Saved(State(Hyper(lam, jax.ShapeDtypeStruct((2,), np.float32))))
    with pytest.raises(UserError, match="it lacks state/hyper/momentum"):
        checkpoint.restore(path, like, formats.absent(checkpoint.about(path), "file"))
    monkeypatch.setattr(formats, "OLDER", (formats.Older(hyper={"momentum": 0.5}),))
    _, saved = checkpoint.restore(path, like, formats.absent(checkpoint.about(path), "file"))
    np.testing.assert_array_equal(saved.state.hyper.lam, lam)
    np.testing.assert_array_equal(saved.state.hyper.momentum, np.array([0.5, 0.5], np.float32))
    assert saved.state.hyper.momentum.dtype == np.float32
    assert not [name for name in formats.absent({"format": 1}, "file") if "hyper" in name]  # format 1 has all of them


def test_a_checkpoint_may_lack_the_sums_of_a_measurement_that_came_later(tmp_path):
    """A run that was begun before a measurement was introduced can still be resumed."""
    path, weight = tmp_path / "0.safetensors", np.array([3.0, 4.0], np.float32)
    loss, td_error = {"total": 2 * weight, "weight": weight}, {"total": weight, "weight": weight}
    checkpoint.save(path, {"record": {"sums": {"loss": loss}}}, {"format": 1})
    like = {"record": {"sums": {"loss": loss, "td_error": td_error}}}
    _, saved = checkpoint.restore(path, like, formats.absent(checkpoint.about(path), "file"))
    np.testing.assert_array_equal(saved["record"]["sums"]["loss"]["total"], 2 * weight)
    np.testing.assert_array_equal(saved["record"]["sums"]["td_error"]["total"], [0, 0])
    own = {"record": {"sums": {"loss": loss, "fish": td_error}}}  # a metric of another environment
    with pytest.raises(UserError, match="it lacks record/sums/fish/total"):
        checkpoint.restore(path, own, formats.absent(checkpoint.about(path), "file"))


def test_a_setting_that_an_old_checkpoint_lacks_has_its_default(tmp_path):
    """A run that was begun before a setting was introduced can still be resumed."""
    from qlax.storage.directory import RunDirectory
    from qlax.training.plan import make

    run = copy_of("interrupted", tmp_path)
    path = newest(run)
    plan = make(history.config_of(run), {})
    like = loop.Saved(plan.shapes, plan.new_record())
    info, saved = checkpoint.restore(path, like, formats.absent(checkpoint.about(path), str(path)))
    del info["config"]["mixing"]
    checkpoint.save(path, saved, info)
    with RunDirectory(run) as directory:
        found, _ = directory.newest(like)
    assert found["config"]["mixing"] == configure("cartpole").mixing


def test_what_is_written_is_read_back(tmp_path):
    config = Config(env=ENV, lam=[0, 0.5], hidden=[8, 8], env_options={"length": 3}, gamma="uniform:0:1", draws=2)
    config = with_intervals(config, 100)
    (tmp_path / "config.json").write_text(formats.to_json(config))
    assert formats.config_of_file(tmp_path / "config.json") == config
    assert formats.config_of_file(tmp_path / "config.json", lam=1).lam == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds a list; expected an object"),
        ('{"env": "a/b", "ALG_NAME": 1}', "unknown setting 'ALG_NAME'"),
        ('{"env": "a/b", "gamma": "high"}', "gamma='high'"),
        ('{"env": "a/b", "lam": 0, "lam": 1}', "is not JSON: 'lam' occurs twice"),
        ("[" * 100_000, "is not JSON: maximum recursion depth"),
        (f'{{"env": "a/b", "seed": {"9" * 5000}}}', "is not JSON: Exceeds the limit"),
        ('{"env": "a/b", "lam": NaN}', "lam=nan: expected a number from 0 to 1"),
        ('{"env": "' + "a" * 2**20 + '"}', "has more than 1,048,576 bytes; expected the settings of a run"),
        (b"\xff", "is not JSON: 'utf-8' codec can't decode"),
        ('{"env": "a/b", "env_options": [1]}', r"env_options=\[1\]: expected name=value"),
        ('{"env": "a/b", "derived": 5}', "derived=5: expected names"),
    ],
)
def test_a_damaged_or_foreign_file_is_named(text, message, tmp_path):
    (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        formats.config_of_file(tmp_path / "config.json", env_options={"length": 3})
    with pytest.raises(UserError, match=message):
        formats.config_of_file(tmp_path / "config.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing.json cannot be read"):
        formats.config_of_file(tmp_path / "nothing.json")
    with pytest.raises(UserError, match=r"'nothing\\x00' cannot be read: embedded null byte"):
        formats.config_of_file("nothing\0")
