"""README and the pages beside it: their Python runs, in its order, and their commands are understood."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT, blocks, shortened

from qlax.cli import flags, main, train
from qlax.config.configure import configure
from qlax.training.plan import make

IN_PYTHON = ("README.md", "docs/index.md", "docs/agents.md", "docs/own-network.md", "docs/running.md")
PAGES = (*IN_PYTHON, "docs/scaling.md", "docs/looking-at-runs.md")
COMMANDS = dict.fromkeys(tuple(words) for page in PAGES for block in blocks(page) for words in block.commands)


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


def test_what_stands_there_in_python_has_the_right_types(tmp_path):
    for page in IN_PYTHON:
        code = [block.text for block in blocks(page) if block.language == "python" and not block.file]
        (tmp_path / f"{Path(page).stem.replace('-', '_')}.py").write_text("\n".join(code))
    (tmp_path / "wrong.py").write_text("import qlax\n\nqlax.trian()\nqlax.load('runs/a').act()\n")
    command = [sys.executable, "-m", "mypy", *map(str, tmp_path.glob("*.py"))]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    assert re.findall(r"(\w+\.py:\d+): error", said) == ["wrong.py:3", "wrong.py:4"], said


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_are_understood(words):
    options, unknown = main.parser().parse_known_args(words[1:])
    assert not unknown
    if words[1] == "sweep":
        assert all(make() for make in train.targets(options).values())
    elif words[1] == "train":
        settings(words)


def settings(words):
    """The configuration that a command asks for."""
    options = main.parser().parse_args(words[1:])
    return configure(options.target, **flags.given(options))
