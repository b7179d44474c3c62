"""Paths that users give may begin with `~`, their home directory."""

import re

import pytest
from runs import CARTPOLE, SMALL

import qlax
from qlax.cli.main import main
from qlax.errors import UserError


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch, capsys):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    qlax.train(CARTPOLE, out="~/run", **SMALL)
    qlax.load("~/run").save("~/agent.safetensors")
    qlax.evaluate("~/run", episodes=2)
    qlax.read("~/run")
    with pytest.raises(UserError, match=r"^total_steps=1: ~/run is planned for 384 steps"):
        qlax.extend("~/run", 1)
    with pytest.raises(UserError, match=re.escape(f"{home}/run/agents/0.safetensors belongs to another")):
        qlax.train(CARTPOLE, out="~/next", init="~/run", **SMALL | {"hidden": (3,)})
    assert main(["plot", "~/run", "--out=~/figure.png"]) == 0
    assert main(["report", "~/run", "--no-video", "--out", "~/report.html"]) == 0
    assert main(["evaluate", "~/run", "--episodes", "2", "--json=~/played.json"]) == 0
    assert main(["export", "~/run", "--out=~/agent.stablehlo"]) == 0
    made = {"run", "agent.safetensors", "figure.png", "report.html", "played.json", "agent.stablehlo"}
    assert {path.name for path in home.iterdir()} >= made
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
