import pytest

from qlax.cli.main import main


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
    assert "1 of 1 environments break their contract: mistaken:Env" in said.err
