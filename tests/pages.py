"""Pages of Markdown, for tests that run what stands on them."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests"  # whose modules the processes of tests import


class Block(NamedTuple):
    """Something to run."""

    language: str
    text: str
    file: str | None  # named in the line above: to be saved as

    @property
    def commands(self):
        """The words of each of qlax's own commands."""
        lines = self.text.splitlines() if self.language == "sh" else []
        return [shlex.split(line, comments=True) for line in lines if line.startswith("qlax ")]


def blocks(page):
    """The blocks of a page, in its order."""
    found = re.findall(r"(?:^`(\S+)`:\n\n)?^```(\w+)\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    return [Block(language, text, file or None) for file, language, text in found]


def shortened(text):
    """The same with trainings of a few updates."""
    return re.sub(r"(total[_-]steps[= ])[\d_]+", r"\g<1>5_000", text)
