"""Generated pages of the site (commands, presets, API reference), and copies of the files that pages link to."""

import ast
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from qlax.cli import flags, main
from qlax.config import presets
from qlax.config.kinds import GROUPS
from qlax.config.settings import FIELDS
from qlax.storage.measurements import MEASUREMENTS, is_shared

ROOT = Path(__file__).parent.parent
STUB = ROOT / "src" / "qlax" / "__init__.pyi"
REFERENCE = {  # task of a user: public names for it
    "Train": ("train", "resume", "extend", "Result", "Config"),
    "Look at runs": ("read", "History", "plot", "PlotResult", "report"),
    "Use agents": (
        *("load", "Agent", "evaluate", "EvaluationResult", "Estimate", "play", "Played", "render", "Film", "export"),
    ),
    "Make environments": ("make", "wrap", "check_env", "Env", "HostEnv", "Step", "Vec", "Episodes"),
    "Wrap environments": (
        *("Wrapper", "TimeLimit", "FrameStack", "OneHot", "Flatten", "LastAction", "LastReward"),
        *("TransformReward", "ClipReward", "SymlogReward", "Bins"),
    ),
    "Bring a network": ("Network", "QNetwork", "ActorCritic", "Head", "heads"),
    "Change the algorithm, or write a loop": (
        "pqn",
        "pqn_continuous",
        "q_lambda",
        "Mixing",
        "VDN",
        "MEAN",
        "INDEPENDENT",
    ),
    "Track runs": ("Tracker", "Tracked"),
    "Handle errors": ("UserError", "RunError", "HostError", "DivergedError", "Stopped"),
}
LINK = re.compile(r"(?<=\]\()\.\./([^)#]+)")  # target of a link that leads out of docs/


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and copies of the files of the repository that pages link to."""
    files.append(File.generated(config, "commands.md", content=commands()))
    files.append(File.generated(config, "presets.md", content=all_presets()))
    files.append(File.generated(config, "reference.md", content=reference()))
    pages = [file.content_string for file in files.documentation_pages()]
    for path in sorted({found for page in pages for found in LINK.findall(page) if (ROOT / found).is_file()}):
        files.append(File.generated(config, f"files/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Redirect links that lead out of docs/ to the copies; keep links to missing files, which the build reports."""
    return LINK.sub(lambda found: f"files/{found[1]}" if (ROOT / found[1]).is_file() else found[0], markdown)


def commands() -> str:
    """Return the page of all commands with their flags, and of all settings."""
    parts = [
        "# Commands",
        "This page shows the help of all commands, which `qlax COMMAND --help` prints. Exit codes: 0 success, "
        "1 training failed, 2 a mistake in the command.",
    ]
    for command in main.COMMANDS:
        own = [each for each in command.arguments if not (command.has_settings and each.setting)]
        said = [command.description or command.help, *filter(None, [command.epilog])]
        parts += [
            f"## qlax {command.name}",
            f"`{command.usage}`",
            *(f"{part[0].upper()}{part[1:].rstrip('.')}." for part in said),
            _table(own),
        ]
    parts += [
        "## Settings",
        "Flags of `train` and `sweep`; in Python, arguments of `qlax.train` and fields of `qlax.Config`.",
    ]
    settings = flags.settings()
    for group in GROUPS:
        own = [each for each in settings if FIELDS[str(each.setting)].metadata["group"] == group]
        parts += [f"### {group.capitalize()}", _table(own)]
    return "\n\n".join(parts) + "\n"


def _table(arguments: list[flags.Argument]) -> str:
    rows = ["| argument | description |", "| --- | --- |"]
    for each in arguments:
        values = "|".join(each.options.get("choices", ())) or each.options.get("metavar", "")
        written = ", ".join(f"{name} {values}".rstrip() for name in each.flags) or each.word
        rows.append(f"| `{written.replace('|', ' or ')}` | {each.options['help']} |")
    return "\n".join(rows)


def all_presets() -> str:
    """Return the page of all presets, with the heading and the settings of each."""
    parts = [
        "# Presets",
        "`qlax presets` lists all presets, `qlax train NAME` trains with one, and flags change its settings. "
        "[Results](results.md) shows their measured returns, with intervals.",
    ]
    for name in presets.names():
        lines = presets.text(name).splitlines()
        heading = [line for line in lines if line.startswith("#")]
        said = "\n".join(line.removeprefix("#").strip() for line in heading)
        said = re.sub(r"\n(Source|Expect|Hardware):", r"\n\n**\1.**", said).replace("<name>", "`<name>`")
        settings = "\n".join(line for line in lines if line not in heading)
        parts.append(f"## {name.replace('<name>', 'NAME')}\n\n{said}\n\n```toml\n{settings}\n```")
    return "\n\n".join(parts) + "\n"


def public_names() -> dict[str, str]:
    """Return the public names of qlax, each with its full path, in the order of `__init__.pyi`."""
    imports = [node for node in ast.parse(STUB.read_text()).body if isinstance(node, ast.ImportFrom)]
    found = {
        alias.name: f"qlax.{node.module}.{alias.name}" if node.module else f"qlax.{alias.name}"
        for node in imports
        for alias in node.names
    }
    return {name: path for name, path in found.items() if not name.startswith("_")}


def measurements() -> list[str]:
    """Return a row of a table for every measurement in the lines of metrics."""
    return [
        f"| `{each.key}` | {'one' if is_shared(each.key) else 'one per agent'} | {each.meaning}"
        f"{f', in {each.unit}' if each.unit else ''} |"
        for each in MEASUREMENTS.values()
        if each.group not in ("end", "guard")
    ]


def reference() -> str:
    """Return the page of all public names, grouped by what a user wants to do, for mkdocstrings to fill in."""
    paths = public_names()
    parts = [
        "# API reference",
        "Everything here is imported as `import qlax`. All other names are private and may change.",
        "The letters in shapes are T steps, N environments, M members of a team, A actions, R agents, L consecutive "
        "steps of a segment, and B rows of a batch, which are all members of all environments in it.",
        "[Presets](presets.md) are on a page of their own, and so are [the commands](commands.md). The measurements "
        "that callbacks, trackers and curves hold are [at the end](#measurements).",
    ]
    for title, names in REFERENCE.items():
        parts.append(f"## {title}")
        for name in names:
            options = [f"heading: qlax.{name}", f"toc_label: {name}"]
            if name == "Config":
                options.append("inherited_members: true")
            if paths[name] == f"qlax.{name}":  # a module, whose members are public under its path
                options.append("show_object_full_path: true")
            parts.append("\n".join([f"::: {paths[name]}", "    options:", *(f"      {each}" for each in options)]))
    parts += [
        "## Measurements",
        "Keys of the lines of `metrics.jsonl`, of `curves`, and of what callbacks and trackers receive: one number, or "
        "one for each agent. An environment's own metrics go by their names, and in evaluations by `eval_<name>`.",
        "\n".join(["| key | numbers | meaning |", "| --- | --- | --- |", *measurements()]),
    ]
    return "\n\n".join(parts) + "\n"
