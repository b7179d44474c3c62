"""The command `qlax new`, which writes a small project: an environment, its tests, a preset and a README."""

import argparse
import importlib.util
import keyword
import os
import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path

from qlax.cli.flags import Command, argument
from qlax.errors import UserError
from qlax.util.files import write_result
from qlax.util.text import shown

TEMPLATES = Path(__file__).parent / "templates"
TARGETS = {  # what `qlax train` calls the environment of each kind
    "jax": "my_task:MyTask",
    "gymnasium": "gymnasium/my_task:MyTask-v0",
    "team": "my_task:MyTask",
}


def _new(options: argparse.Namespace) -> None:
    if options.gymnasium and options.team:
        raise UserError("give --gymnasium or --team, not both")
    name = options.name
    kind = "gymnasium" if options.gymnasium else "team" if options.team else "jax"
    folder = Path(name)

    if os.path.lexists(folder):
        raise UserError(f"{shown(name)} exists already; choose another name")
    class_name = checked(name)

    def filled(text: str) -> str:
        return text.replace("{target}", TARGETS[kind]).replace("my_task", name).replace("MyTask", class_name)

    try:
        folder.mkdir()
    except OSError as error:
        raise UserError(f"cannot make {name}: {error.strerror or error}") from error
    for file in (*sorted((TEMPLATES / kind).glob("*.py")), TEMPLATES / "preset.toml", TEMPLATES / "README.md"):
        text = filled(file.read_text("utf-8"))
        print(write_result(folder / filled(file.name), text.encode(), is_named=True))
    print(f"train it: qlax train --config {name}/preset.toml, or qlax train {filled(TARGETS[kind])}")


def checked(name: str) -> str:
    """Return the name of the class for a project of this name.

    Raises:
      UserError: The name cannot be that of a module, or another module has it.
    """
    what = f"{shown(name)!r} cannot be the name of a project"
    if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
        raise UserError(f"{what}: expected a letter, then letters, digits and underscores, as in my_task")
    class_name = "".join(part[0].upper() + part[1:] for part in name.split("_") if part)
    if words := [word for word in (name, class_name) if keyword.iskeyword(word)]:
        raise UserError(f"{what}: {words[0]} is a word of Python itself")
    here = str(Path.cwd())
    if name in sys.stdlib_module_names or importlib.util.find_spec(name) or PathFinder.find_spec(name, [here]):
        raise UserError(f"{what}: there is already a module {name}, and an import could find either of them")
    return class_name


COMMANDS = (
    Command(
        "new",
        _new,
        "write a project: an environment of your own, its tests, a preset and a README",
        [
            argument("name", metavar="NAME", help="name of the project and of its module, such as my_task"),
            argument(
                "--gymnasium", action="store_true", help="write an environment with Gymnasium's interface, not in JAX"
            ),
            argument("--team", action="store_true", help="write an environment for a team of agents, in JAX"),
        ],
        description="Write a folder NAME with an environment of your own, its tests, a preset and a README. The "
        "environment is a small working one, to be replaced step by step. Nothing that exists is overwritten.",
    ),
)
