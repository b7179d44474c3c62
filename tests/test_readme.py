"""README and the pages beside it: their Python runs, in its order, and their commands are understood."""

import sys

import pytest
from pages import blocks, shortened

from qlax.cli import main
from qlax.config.settings import configure
from qlax.training.plan import Program

IN_PYTHON = ("README.md", "docs/index.md", "docs/agents.md", "docs/own-network.md")
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
                Program(settings(words), {})


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_are_understood(words):
    options, unknown = main._parser().parse_known_args(words[1:])
    assert not unknown
    if getattr(options, "target", None):
        settings(words)


def settings(words):
    """The configuration that a command asks for."""
    options = main._parser().parse_args(words[1:])
    asked = main._given(options) if words[1] == "train" else {}
    return configure(options.target, **{name: main._value(name, value) for name, value in asked.items()})
