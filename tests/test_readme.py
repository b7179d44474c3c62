import re

import pytest
from pages import blocks, shortened

from qlax import cli
from qlax.config import configure

BLOCKS = blocks("README.md")
PYTHON = [block.text for block in BLOCKS if block.language == "python"]
COMMANDS = [words for block in BLOCKS for words in block.commands]


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: re.search(r"\w+", block.split("\n\n")[-1])[0])
def test_python_blocks_run(block, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    exec(compile(shortened(block), "README.md", "exec"), {})


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_are_understood(words):
    options, unknown = cli._parser().parse_known_args(words[1:])
    assert not unknown
    if getattr(options, "target", None):
        configure(options.target)
