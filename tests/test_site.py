"""The site builds without a warning, and has all commands, flags and presets."""

import logging
import re

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from pages import ROOT

from qlax.cli import main
from qlax.config import presets


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site as `make site` does, where a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    counter = _Counter(logging.WARNING)
    logging.getLogger("mkdocs").addHandler(counter)
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    assert not counter.messages
    return folder


class _Counter(logging.Handler):
    def __init__(self, level):
        super().__init__(level)
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


def test_every_command_and_flag_is_on_the_page_of_commands(site):
    page = (site / "commands" / "index.html").read_text()
    assert len(main.COMMANDS) > 10
    sections = dict(re.findall(r'<h2 id="([\w-]+)">(.*?)(?=<h2|</article)', page, re.DOTALL))
    for command in main.COMMANDS:
        said = sections[f"qlax-{command.name}"]
        if "[SETTINGS]" in said:
            said += sections["settings"]
        for argument in command.arguments:
            for word in argument.flags or [argument.options["metavar"]]:
                assert f"<code>{word}" in said or f", {word}" in said, (command.name, word)


def test_every_preset_is_there_with_what_it_says_of_itself(site):
    page = re.sub(r"<[^>]+>", "", (site / "presets" / "index.html").read_text())
    for name in presets.names():
        assert name.replace("<name>", "NAME") in page
        assert presets.text(name).splitlines()[0].removeprefix("# ").split(",")[0].split(" <")[0][:40] in page


def test_nothing_is_loaded_from_elsewhere(site):
    for page in site.rglob("*.html"):
        sources = re.findall(r'<(?:script|img|source|iframe)[^>]*\bsrc="?([^"\s>]+)', page.read_text())
        sheets = re.findall(r'<link[^>]*rel="?stylesheet[^>]*href="?([^"\s>]+)', page.read_text())
        assert not [source for source in sources + sheets if re.match(r"(https?:)?//", source)], page
