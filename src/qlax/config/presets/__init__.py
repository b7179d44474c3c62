"""Presets: settings in the TOML files of this folder, found by name and read."""

import difflib
import functools
import tomllib
from pathlib import Path
from typing import Any

from qlax.config import environments
from qlax.config.kinds import LONGEST_NAME
from qlax.errors import UserError, matching, nearest
from qlax.util.text import shown

FOLDER = Path(__file__).parent
EACH, ANY = "each", "<name>"  # smax/each.toml is the preset smax/<name>, and `<name>` in it that of the environment


@functools.cache
def names() -> list[str]:
    """Return the names of the presets; `folder/<name>` stands for a preset for every environment of a kind."""
    found = (path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.toml"))
    return sorted(name.removesuffix(EACH) + ANY if name.endswith(f"/{EACH}") else name for name in found)


def spelled(name: str) -> str | None:
    """Return the name of a preset in its own spelling, whatever case it is given in; None if there is none."""
    known = names()
    if found := matching(name, known):
        return found
    folder, _, variant = name.partition("/")
    each = matching(f"{folder}/{ANY}", known)
    if each is None or variant.casefold() in ("", EACH):
        return None
    start = tomllib.loads(_file(each).read_text("utf-8"))["env"].partition(ANY)[0]
    return each.replace(ANY, environments.spelled(start + variant).removeprefix(start))


def text(name: str) -> str:
    """Return the text of a preset's file, whose comments say where it comes from and what to expect.

    Raises:
      UserError: There is no such preset.
    """
    return _file(_known(name)).read_text("utf-8")


def settings(name: str) -> dict[str, Any]:
    """Return the settings of a preset, as its file has them.

    Raises:
      UserError: There is no such preset.
    """
    preset = _known(name)
    found = tomllib.loads(_file(preset).read_text("utf-8"))
    return {**found, "env": found["env"].replace(ANY, preset.partition("/")[2])}


def made_for(env: str) -> list[str]:
    """Return the names of the presets made for an environment."""

    def name_of(preset: str) -> str | None:
        start, each, _ = settings(preset)["env"].partition(ANY)
        if each and env.startswith(start):
            return preset.replace(ANY, env.removeprefix(start))
        return preset if start == env else None

    return [name for name in map(name_of, names()) if name]


def is_almost(target: str) -> bool:
    """Return True if a name is a misspelt preset, or begins with a folder of presets."""
    known, target = names(), target.casefold()
    folder = target.partition("/")[0]
    return any(name.startswith(f"{folder}/") for name in known) or bool(
        difflib.get_close_matches(target, known, cutoff=0.85)
    )


def _known(name: str) -> str:
    """Return the name of a preset in its own spelling.

    Raises:
      UserError: There is no such preset.
    """
    found = spelled(name)
    if found is None:
        known = names()
        hint = nearest(name[:LONGEST_NAME], known)
        raise UserError(f"unknown preset {shown(repr(name))}{hint}; presets: {', '.join(known)}")
    return found


def _file(preset: str) -> Path:
    """Return the file of a preset: its own, or the one in its folder for all environments of a kind."""
    own = FOLDER / f"{preset}.toml"
    # Compared with the list, so that no name leads out of the folder.
    return own if preset in names() and not preset.endswith(ANY) else FOLDER / preset.partition("/")[0] / f"{EACH}.toml"
