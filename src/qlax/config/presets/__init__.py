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
    """Names of the presets; `folder/<name>` stands for one of every environment of a kind."""
    found = (path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.toml"))
    return sorted(name.removesuffix(EACH) + ANY if name.endswith(f"/{EACH}") else name for name in found)


def spelled(name: str) -> str | None:
    """Name of a preset in its own spelling, whatever case it is given in; None if there is no such preset."""
    known = names()
    if found := matching(name, known):
        return found
    folder, _, variant = name.partition("/")
    each = matching(f"{folder}/{ANY}", known)
    if each is None or variant.casefold() in ("", EACH):
        return None
    start = tomllib.loads(_file(each).read_text())["env"].partition(ANY)[0]
    return each.replace(ANY, environments.spelled(start + variant).removeprefix(start))


def text(name: str) -> str:
    """Text of a preset's file: the comments say where it comes from and what to expect.

    Raises:
      UserError: no such preset.
    """
    return _file(_known(name)).read_text()


def settings(name: str) -> dict[str, Any]:
    """Settings of a preset, as its file has them.

    Raises:
      UserError: no such preset.
    """
    preset = _known(name)
    found = tomllib.loads(_file(preset).read_text())
    return {**found, "env": found["env"].replace(ANY, preset.partition("/")[2])}


def made_for(env: str) -> list[str]:
    """Names of the presets made for an environment."""

    def name_of(preset: str) -> str | None:
        start, each, _ = settings(preset)["env"].partition(ANY)
        if each and env.startswith(start):
            return preset.replace(ANY, env.removeprefix(start))
        return preset if start == env else None

    return [name for name in map(name_of, names()) if name]


def is_almost(target: str) -> bool:
    """Whether a name is that of a preset with a slip of the pen, or at least of a folder of presets."""
    known, target = names(), target.casefold()
    folder = target.partition("/")[0]
    return any(name.startswith(f"{folder}/") for name in known) or bool(
        difflib.get_close_matches(target, known, cutoff=0.85)
    )


def _known(name: str) -> str:
    """Name of a preset in its own spelling.

    Raises:
      UserError: no such preset.
    """
    found = spelled(name)
    if found is None:
        known = names()
        hint = nearest(name[:LONGEST_NAME], known)
        raise UserError(f"unknown preset {shown(repr(name))}{hint}; presets: {', '.join(known)}")
    return found


def _file(preset: str) -> Path:
    """The file that holds a preset: its own, or the one its folder has for each of a kind of environments."""
    own = FOLDER / f"{preset}.toml"
    # Compared with the list, so that no name leads out of the folder.
    return own if preset in names() and not preset.endswith(ANY) else FOLDER / preset.partition("/")[0] / f"{EACH}.toml"
