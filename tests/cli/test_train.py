import json

import pytest
from runs import CARTPOLE, SMALL, flags, lines_of

from qlax.cli.main import main
from qlax.storage.formats import to_json


@pytest.fixture(autouse=True)
def in_an_empty_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def test_train_then_repeat_by_its_configuration(capsys, tmp_path):
    assert main(["train", CARTPOLE, "--out", "first", "--seeds", "2", "--lam", "0", "0.9", *flags(SMALL)]) == 0
    said = capsys.readouterr()
    assert said.out.count("  agent ") == 4
    assert "  agent 3 (seed 1, lam 0.9):" in said.out
    assert "steps/s on " in said.out
    assert "first/curve.png" in said.out
    assert "presets for gymnax/CartPole-v1: cartpole, cartpole-fast" in said.err
    assert main(["train", "--config", "first/config.json", "--out", "second"]) == 0
    assert lines_of(tmp_path / "first") == lines_of(tmp_path / "second")


def test_every_kind_of_flag_reaches_the_configuration(monkeypatch):
    """Only the settings are checked here; another test shows that `config.json` holds what is trained."""
    told = []
    monkeypatch.setattr("qlax.train", lambda config, **options: told.append(config), raising=False)
    monkeypatch.setattr("qlax.cli.train.report", lambda result: None)
    words = "--num-envs 4 --num-steps 1_6 --total-steps 1e2 --hidden 8,4 --dueling --env-options max_steps_in_episode=9"
    assert main(["train", "cartpole", "--out", "run", *words.split(), "--norm", "none"]) == 0
    config = json.loads(to_json(told[0]))
    expected = {"num_envs": 4, "num_steps": 16, "total_steps": 100, "hidden": [8, 4], "dueling": True, "norm": "none"}
    assert {name: config[name] for name in expected} == expected
    assert config["env_options"] == {"max_steps_in_episode": 9}
    assert (config["preset"], config["lam"]) == ("cartpole", 0.95)
