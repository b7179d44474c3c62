"""README and pages of the documentation: Python blocks run in their order, and commands are valid."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT, blocks, shortened

from qlax.cli import flags, main, train
from qlax.config.configure import configure
from qlax.training.plan import make

IN_PYTHON = (
    *("README.md", "docs/index.md", "docs/agents.md", "docs/continuous-actions.md", "docs/own-network.md"),
    "docs/running.md",
)
ALL_PAGES = ("README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))
TYPED = [page for page in ALL_PAGES if any(block.language == "python" for block in blocks(page))]
COMMANDS = dict.fromkeys(tuple(words) for page in ALL_PAGES for block in blocks(page) for words in block.commands)


@pytest.mark.parametrize("page", IN_PYTHON)
def test_what_stands_there_in_python_runs(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    names = {}
    for block in blocks(page):
        if block.file:
            (tmp_path / block.file).write_text(block.text)
        elif block.language == "python":
            exec(compile(shortened(block.text), page, "exec"), names)
        for words in block.commands:
            if "--network" in words:
                make(settings(words), {})
    assert "qlax" in names


RIGHT = """
from collections.abc import Callable

import jax
import qlax
from cooperative_environment import Team
from lighthouse import Lighthouse
from jax_task import MyTask
from team_task import MyTask as MyTeam

class Shared:
    num_actions = 2
    shared = (0.0,)

    def reset(self, key: jax.Array) -> tuple[int, qlax.Step]:
        raise NotImplementedError

    def step(self, key: jax.Array, state: int, action: jax.Array, shared: float) -> tuple[int, qlax.Step]:
        raise NotImplementedError

class Printer:
    def __init__(self, tracked: qlax.Tracked) -> None:
        print(tracked.names)

    def log(self, line: dict[str, object]) -> None:
        print(line)

    def finish(self, summary: dict[str, object] | None, video: bytes | None) -> None:
        print(summary)

envs: list[qlax.Env] = [Shared(), MyTask(), MyTeam(), Lighthouse()]
on_host: qlax.HostEnv = Team(2)
tracker: Callable[[qlax.Tracked], qlax.Tracker] = Printer
network: qlax.Network = qlax.QNetwork(num_actions=2)
qlax.train("cartpole", lam=[0.0, 0.5], hidden=64, mixing=qlax.VDN, until=475, callback=lambda line: line["steps"] > 9)
"""
# What `mypy --strict` adds, except that users need not annotate code of their own. Options of the command would make
# mypy check all packages again. An environment may inherit from one whose step takes no `shared`.
STRICT = """# mypy: disable-error-code=override
# mypy: disallow-subclassing-any, disallow-untyped-decorators, extra-checks, no-implicit-reexport, strict-equality
# mypy: warn-return-any, warn-unused-ignores
"""
STRICTEST = f"{STRICT}# mypy: disallow-any-generics, disallow-incomplete-defs, disallow-untyped-defs\n"
TEMPLATES = ROOT / "src" / "qlax" / "cli" / "templates"
WRONG = """
import qlax

qlax.trian()
qlax.load('runs/a').act()
qlax.train('cartpole', lerning_rate=3)
qlax.train('cartpole', num_envs='many')
env: qlax.Env = qlax.load('runs/a')
"""


def test_what_stands_there_in_python_has_the_right_types(tmp_path):
    for page in TYPED:
        folder = tmp_path / Path(page).stem.replace("-", "_")
        folder.mkdir()
        code = [block.text for block in blocks(page) if block.language == "python" and not block.file]
        (folder / f"{folder.name}_page.py").write_text("\n".join([STRICT, *code]))
        for block in blocks(page):
            if block.file and block.language == "python":
                (folder / block.file).write_text(f"{STRICT}\n{block.text}")
    for kind in ("jax", "team", "gymnasium"):
        text = (TEMPLATES / kind / "__init__.py").read_text()
        (tmp_path / f"{kind}_task.py").write_text(f"{STRICT}\n{text}")
    (tmp_path / "right.py").write_text(f"{STRICTEST}\n{RIGHT}")
    (tmp_path / "wrong.py").write_text(WRONG)
    command = [sys.executable, "-m", "mypy", *map(str, tmp_path.rglob("*.py"))]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    assert re.findall(r"(\w+\.py:\d+): error", said) == [f"wrong.py:{line}" for line in (4, 5, 6, 7, 8)], said


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_are_understood(words):
    options, unknown = main.parser().parse_known_args(words[1:])
    assert not unknown
    if words[1] == "sweep":
        assert all(make() for make in train.targets(options).values())
    elif words[1] == "train":
        settings(words)


def settings(words):
    """Return the configuration of a command."""
    options = main.parser().parse_args(words[1:])
    return configure(options.target, **flags.given(options))
