"""What the site has beside its pages: pages made of commands and presets, and the files that pages link to."""

import argparse
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from qlax.cli import main
from qlax.config import presets
from qlax.config.kinds import GROUPS
from qlax.config.settings import FIELDS

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(?<=\]\()\.\./([^)#]+)")  # out of docs/


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages that are made here, and whatever else of the repository pages link to."""
    files.append(File.generated(config, "commands.md", content=commands()))
    files.append(File.generated(config, "presets.md", content=all_presets()))
    pages = [file.content_string for file in files.documentation_pages()]
    for path in sorted({found for page in pages for found in LINK.findall(page) if (ROOT / found).is_file()}):
        files.append(File.generated(config, f"files/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Links out of docs/ lead to the copies; those to what is not there are left, which the build reports."""
    return LINK.sub(lambda found: f"files/{found[1]}" if (ROOT / found[1]).is_file() else found[0], markdown)


def commands() -> str:
    """Every command with its flags, and all settings once."""
    parser = main._parser()
    (subparsers,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    parts = [
        "# Commands",
        "What `qlax COMMAND --help` says, on one page. Exit codes: 0 all is done, 1 training failed, 2 something in "
        "the command has to be mended.",
    ]
    for name, subparser in subparsers.choices.items():
        own = [action for action in subparser._actions if action.dest != "help"]
        settings = [action for action in own if action.dest in FIELDS]
        has_settings = len(settings) > len(FIELDS) / 2  # all, where others have some flags of the same names
        own = [action for action in own if not (has_settings and action in settings)]
        words = [action.metavar or action.dest for action in own if not action.option_strings]
        more = ["[SETTINGS]"] * has_settings + ["[FLAGS]"] * (len(own) > len(words))
        usage = " ".join(["qlax", name, *map(str, words), *more])
        said = [part for part in (subparser.description, subparser.epilog) if part]
        parts += [
            f"## qlax {name}",
            f"`{usage}`",
            *(f"{part[0].upper()}{part[1:].rstrip('.')}." for part in said),
            _table(own),
        ]
    parts += [
        "## Settings",
        "Of `train` and `sweep`; in Python, arguments of `qlax.train` and fields of `qlax.Config`.",
    ]
    settings = [action for action in subparsers.choices["train"]._actions if action.dest in FIELDS]
    for group in GROUPS:
        own = [action for action in settings if FIELDS[action.dest].metadata["group"] == group]
        parts += [f"### {group.capitalize()}", _table(own)]
    return "\n\n".join(parts) + "\n"


def _table(actions: list[argparse.Action]) -> str:
    rows = ["| argument | what it says |", "| --- | --- |"]
    for action in actions:
        values = "|".join(map(str, action.choices or ())) or action.metavar or ""
        takes = f" {values}" if action.option_strings and action.nargs != 0 and values else ""
        written = ", ".join(f"{flag}{takes}" for flag in action.option_strings) or str(action.metavar or action.dest)
        rows.append(f"| `{written.replace('|', ' or ')}` | {action.help} |")
    return "\n".join(rows)


def all_presets() -> str:
    """What the heading of every preset says, and its settings."""
    parts = [
        "# Presets",
        "`qlax presets` lists them, `qlax train NAME` trains one, and flags change what it says. "
        "What has been measured of them is in [Results](results.md), with intervals.",
    ]
    for name in presets.names():
        lines = presets.text(name).splitlines()
        heading = [line for line in lines if line.startswith("#")]
        said = "\n".join(line.removeprefix("#").strip() for line in heading)
        said = re.sub(r"\n(Source|Expect|Hardware):", r"\n\n**\1.**", said).replace("<name>", "`<name>`")
        settings = "\n".join(line for line in lines if line not in heading)
        parts.append(f"## {name.replace('<name>', 'NAME')}\n\n{said}\n\n```toml\n{settings}\n```")
    return "\n\n".join(parts) + "\n"
