"""Code blocks of Markdown pages, for tests that run them."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests"  # folder of modules that processes of tests import


class Block(NamedTuple):
    """Code block of a page."""

    language: str
    text: str
    file: str | None  # name to save the text under, given in the line above the block

    @property
    def commands(self):
        """Words of each of qlax's commands in the block."""
        lines = self.text.splitlines() if self.language == "sh" else []
        return [shlex.split(line, comments=True) for line in lines if line.startswith("qlax ")]


def blocks(page):
    """Return the code blocks of a page in their order."""
    found = re.findall(r"(?:^`(\S+)`:\n\n)?^```(\w+)\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    return [Block(language, text, file or None) for file, language, text in found]


def shortened(text):
    """Return the text with trainings of a few updates."""
    return re.sub(r"(total[_-]steps[= ])[\d_]+", r"\g<1>5_000", text)
