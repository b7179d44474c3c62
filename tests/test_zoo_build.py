"""The zoo is built from finished rows of the score sheet: the median seed of each preset, with its card and index."""

import hashlib
import json
import sys

import numpy as np
import pytest
from pages import ROOT

import qlax
from qlax.agents import zoo as installed

sys.path.insert(0, str(ROOT / "benchmarks"))
import zoo
from rows import rows

TINY = {"total_steps": 2048, "seeds": 4, "eval_episodes": 2, "eval_max_steps": 50, "learning_rate": 0.01}


@pytest.mark.parametrize("shift", [0.0, -1000.0])
def test_the_median_is_that_of_numpy_and_the_lower_of_two(shift):
    for number in range(1, 9):
        returns = np.random.default_rng(number).permutation(number) + shift
        chosen = returns[zoo.median(returns.tolist())]
        assert chosen == np.percentile(returns, 50, method="lower")


def test_an_agent_that_diverged_is_the_lowest():
    assert zoo.median([None, -5.0, -3.0]) == 1
    assert zoo.median([None, None, -3.0]) in (0, 1)


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """Make a state folder of the score sheet: the row cartpole-fast, a shorter row, and one with other settings."""
    folder = tmp_path_factory.mktemp("state")
    summary = qlax.train("cartpole-fast", out=folder / "cartpole-fast", **TINY).summary
    for name in ("cartpole-fast", "cartpole-50k", "cartpole-fast-bfloat16"):
        (folder / name).mkdir(exist_ok=True)
        record = {"command": rows()[name].command, "date": "2026-01-01", **summary}
        record["total_steps"] -= 1024 * (name == "cartpole-50k")
        (folder / f"{name}.json").write_text(json.dumps(record))
    return folder


def test_only_rows_of_the_preset_itself_count_the_longest_first(state, tmp_path):
    assert {name: each.row.name for name, each in zoo.sources([tmp_path, state]).items()} == {
        "cartpole-fast": "cartpole-fast"
    }


def test_what_is_built_is_a_place_for_the_others_and_what_the_wheel_has(state, tmp_path, monkeypatch):
    place, package = tmp_path / "place", tmp_path / "package"
    assert zoo.main(["--state", str(state), "--out", str(place), "--package", str(package)]) == 0
    index = json.loads((package / "index.json").read_text())
    assert index == json.loads((place / "index.json").read_text())
    entry, data = index["cartpole-fast"], (place / "cartpole-fast.safetensors").read_bytes()
    assert entry["sha256"] == hashlib.sha256(data).hexdigest()
    assert (package / "cartpole-fast.safetensors").read_bytes() == data
    record = json.loads((state / "cartpole-fast.json").read_text())
    returns = dict(zip(record["seeds"], record["eval_return"]["per_run"], strict=True))
    assert returns[entry["seed"]] == np.percentile(list(returns.values()), 50, method="lower")
    card = (package / "cartpole-fast.md").read_text()
    assert entry["note"] == "Trained for 2,048 of the preset's 200,000 steps."
    assert entry["note"] in card
    assert "learning_rate" in card
    monkeypatch.setattr(installed, "FOLDER", package)
    monkeypatch.setattr(installed, "entries", installed.entries.__wrapped__)
    played = qlax.evaluate("zoo:cartpole-fast", episodes=2)  # episodes are cut after 50 steps, as in the run
    assert played.settings["max_steps"] == 50
    assert played.overall.mean == pytest.approx(entry["episode_return"])


def test_agents_of_rows_without_a_state_stay_while_their_weights_are_there(state, tmp_path, capsys):
    place, package = tmp_path / "place", tmp_path / "package"
    build = ["--state", str(state), "--out", str(place), "--package", str(package)]
    (package / "folder").mkdir(parents=True)
    data = b"weights"
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    for name in ("folder/kept", "gone"):
        (package / f"{name}.md").write_text("card")
    (package / "folder" / "kept.safetensors").write_bytes(data)
    (package / "index.json").write_text(json.dumps({"folder/kept": entry, "gone": entry}))
    assert zoo.main(build) == 0
    assert "gone: left out" in capsys.readouterr().out
    for folder in (place, package):
        assert json.loads((folder / "index.json").read_text()).keys() == {"folder/kept", "cartpole-fast"}
        assert (folder / "folder" / "kept.safetensors").read_bytes() == data
        assert (folder / "folder" / "kept.md").read_text() == "card"
    assert not list(tmp_path.rglob("gone.*"))


def test_a_folder_without_finished_rows_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        zoo.main(["--state", str(tmp_path), "--out", str(tmp_path / "out"), "--package", str(tmp_path / "package")])
    assert "no finished row of a preset" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
