import json
import subprocess
import sys

import pytest
from runs import CARTPOLE, SMALL, flags, lines_of

from qlax.cli.main import main
from qlax.storage.formats import to_json

BROKEN = """
import jax.numpy as jnp
import qlax

def explode():
    return 1 / 0

class Silent:
    num_actions = 2
    def reset(self, key):
        return 0, None
    def step(self, key, state, action):
        return 0, None
"""


@pytest.fixture(autouse=True)
def in_an_empty_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def test_train_then_repeat_by_its_configuration(capsys, tmp_path):
    assert main(["train", CARTPOLE, "--out", "first", "--seeds", "2", "--lam", "0", "0.9", *flags(SMALL)]) == 0
    said = capsys.readouterr()
    assert said.out.count("run ") >= 4
    assert "run 3 (seed 1, lam 0.9):" in said.out
    assert "steps/s on " in said.out
    assert "first/curve.png" in said.out
    assert "settings made for gymnax/CartPole-v1: cartpole, cartpole-fast" in said.err
    assert main(["train", "--config", "first/config.json", "--out", "second"]) == 0
    assert lines_of(tmp_path / "first") == lines_of(tmp_path / "second")


def test_every_kind_of_flag_reaches_the_configuration(monkeypatch):
    """What is trained is what `config.json` holds, as another test shows."""
    told = []
    monkeypatch.setattr("qlax.train", lambda config, **options: told.append(config), raising=False)
    monkeypatch.setattr("qlax.cli.main._report", lambda result: None)
    words = "--num-envs 4 --num-steps 1_6 --total-steps 1e2 --hidden 8,4 --dueling --env-options max_steps_in_episode=9"
    assert main(["train", "cartpole", "--out", "run", *words.split(), "--norm", "none"]) == 0
    config = json.loads(to_json(told[0]))
    expected = {"num_envs": 4, "num_steps": 16, "total_steps": 100, "hidden": [8, 4], "dueling": True, "norm": "none"}
    assert {name: config[name] for name in expected} == expected
    assert config["env_options"] == {"max_steps_in_episode": 9}
    assert (config["preset"], config["lam"]) == ("cartpole", 0.95)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train", "name one thing to train"),
        ("train cartpol", "did you mean 'cartpole'"),
        ("train gymnax/CartPole", "gymnax has no environment 'CartPole'; did you mean 'CartPole-v1'"),
        ("train gymnas/CartPole-v1", "unknown suite 'gymnas'; did you mean 'gymnax'"),
        ("train gymnax/Pendulum-v1", "continuous action space"),
        ("train cartpole --lamm 0.5", "unknown flag '--lamm'; did you mean '--lam'"),
        ("train cartpole --lam uniform:0:1 --runs 4", "unknown flag '--runs'; did you mean '--draws'"),
        ("train cartpole --gama 0.5", "unknown flag '--gama'; did you mean '--gamma'"),
        ("train cartpole extra", "unknown argument 'extra'"),
        ("train cartpole --gamma 1.5", "gamma=1.5: expected a number from 0 to 1"),
        ("train cartpole --lam 0 -0.1", "expected a number from 0 to 1"),
        ("train cartpole --epsilon-end 2", "epsilon_end=2"),
        ("train cartpole --num-envs 0", "num_envs=0: expected a whole number from 1"),
        ("train cartpole --seeds few", "seeds=few: expected a whole number from 1"),
        ("train cartpole --num-minibatches 30", "does not divide the 32 environments x 64 steps; use 16 or 32"),
        ("train cartpole --env-options gravitas=1", "no option 'gravitas'; did you mean 'gravity'"),
        ("train cartpole --env-options gravity", "env_options=gravity: expected name=value"),
        ("train cartpole --env-options gravity=high", "gravity='high'"),
        ("train cartpole --out used", "used exists and is not empty"),
        ("train cartpole --norm leyer", "did you mean 'layer'"),
        ("train --config damaged.json", "damaged.json is not JSON"),
        ("train --config foreign.json", "unknown setting 'lr' in foreign.json"),
        ("train --config missing.json", "missing.json cannot be read"),
        ("train nowhere:Env", "cannot import 'nowhere'"),
        ("train broken_world:Silent2", "has no 'Silent2'; did you mean 'Silent'"),
        ("train broken_world:Silent", "environment Silent: reset(key) returns NoneType second; expected a qlax.Step"),
        ("train cartpole --encoder cnn", "encoder=cnn: expected an observation with three axes"),
        ("train cartpole --env-options max_steps_in_episode=Infinity", "max_steps_in_episode=inf: expected a number"),
        ("train cartpole --out /dev/null/run", "cannot make /dev/null/run: Not a directory"),
        ("train minatr/breakout", "did you mean 'minatar/breakout'"),
        ("train broken_world:explode", "broken_world:explode cannot be made: ZeroDivisionError: division by zero"),
        ("train cartpole --network broken_world:Silent --hidden 8", "hidden is for qlax's own network"),
        ("train cartpole --network broken_world:Silent", "broken_world:Silent"),
        ("resume nowhere", "nowhere holds no run"),
        ("presets cartpol", "did you mean 'cartpole'"),
        ("envs gymnas", "did you mean 'gymnax'"),
        ("trane", "invalid choice: 'trane'"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(words, message, capsys, monkeypatch, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    (tmp_path / "damaged.json").write_text('{"env": ')
    (tmp_path / "foreign.json").write_text('{"env": "gymnax/CartPole-v1", "lr": 1}')
    (tmp_path / "broken_world.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        main(words.split())
    said = capsys.readouterr()
    assert stopped.value.code == 2
    assert message in said.err
    lines = [line for line in said.err.splitlines() if "settings made for" not in line]
    assert len(lines) == 1
    assert said.out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_lists_of_environments_and_presets(capsys):
    assert main(["envs", "gymnax"]) == 0
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert lines["gymnax/Breakout-MinAtar"] == ["3", "1000", "bool[10,10,4]"]
    assert main(["envs", "jaxmarl/hanabi"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["jaxmarl/hanabi", "21", "2", "float32[660]"]
    assert main(["presets"]) == 0
    assert any(line.startswith("minatar/breakout ") for line in capsys.readouterr().out.splitlines())
    assert main(["presets", "cartpole"]) == 0
    assert "learning_rate" in capsys.readouterr().out


MISTAKEN = """
from counting import Counting

class Env(Counting):
    def step(self, key, state, action):
        state, step = super().step(key, state, action)
        return state, step._replace(reward=step.reward + float("nan"))
"""


def test_environments_are_checked_and_timed(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mistaken.py").write_text(MISTAKEN)
    assert main(["envs", "--check", "gymnax/Catch-bsuite"]) == 0
    name, speed, actions, *_ = capsys.readouterr().out.splitlines()[1].split()
    assert (name, actions) == ("gymnax/Catch-bsuite", "3")
    assert float(speed.replace(",", "")) > 1000
    with pytest.raises(SystemExit, match="1"):
        main(["envs", "--check", "mistaken:Env"])
    said = capsys.readouterr()
    assert "environment Env: reward is not finite" in said.out
    assert "1 of 1 break their contract: mistaken:Env" in said.err


@pytest.mark.parametrize(("words", "said"), [("train --help", "--learning-rate"), ("plot nothing", "holds no run")])
def test_help_and_figures_do_not_wait_for_jax(words, said):
    code = f"""
import sys, qlax.cli.main
try:
    qlax.cli.main.main({words.split()})
except SystemExit:
    sys.exit('jax' in sys.modules)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said in shown.stdout + shown.stderr
