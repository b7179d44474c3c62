"""Paths that users give may begin with their home directory."""

from runs import CARTPOLE, SMALL

import qlax
from qlax.cli.main import main


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch, capsys):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    qlax.train(CARTPOLE, out="~/run", **SMALL)
    qlax.load("~/run").save("~/agent.safetensors")
    qlax.evaluate("~/run", episodes=2)
    qlax.read("~/run")
    qlax.extend("~/run", 16 * 32)
    qlax.train(CARTPOLE, out="~/next", init="~/run", **SMALL)
    assert main(["plot", "~/run", "--out=~/figure.png"]) == 0
    assert main(["report", "~/run", "--no-video", "--out", "~/report.html"]) == 0
    assert main(["evaluate", "~/run", "--episodes", "2", "--json=~/played.json"]) == 0
    assert main(["export", "~/run", "--out=~/agent.stablehlo"]) == 0
    made = {"run", "next", "agent.safetensors", "figure.png", "report.html", "played.json", "agent.stablehlo"}
    assert {path.name for path in home.iterdir()} >= made
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
