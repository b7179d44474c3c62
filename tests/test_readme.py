import re

import pytest
from pages import blocks, shortened

from qlax import cli
from qlax.config import configure

PYTHON = [block.text for block in blocks("README.md") if block.language == "python"]
PAGES = ("README.md", "docs/scaling.md")
COMMANDS = [words for page in PAGES for block in blocks(page) for words in block.commands]


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: re.search(r"\w+", block.split("\n\n")[-1])[0])
def test_python_blocks_run(block, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    exec(compile(shortened(block), "README.md", "exec"), {})


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_are_understood(words):
    options, unknown = cli._parser().parse_known_args(words[1:])
    assert not unknown
    if getattr(options, "target", None):
        asked = cli._given(options) if words[1] == "train" else {}
        configure(options.target, **{name: cli._value(name, value) for name, value in asked.items()})
