import re
import shlex
from pathlib import Path

import pytest

from qlax import cli
from qlax.config import configure

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
COMMANDS = [
    line for language, text in BLOCKS if language == "sh" for line in text.splitlines() if line.startswith("qlax ")
]


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: re.search(r"\w+", block.split("\n\n")[-1])[0])
def test_python_blocks_run(block, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    exec(compile(block.replace("100_000", "5_000"), "README.md", "exec"), {})


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_understood(line):
    words = shlex.split(line, comments=True)
    options, unknown = cli._parser().parse_known_args(words[1:])
    assert not unknown
    if getattr(options, "target", None):
        configure(options.target)
