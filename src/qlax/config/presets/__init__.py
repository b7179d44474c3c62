"""Presets: settings in the TOML files of this folder, found by name and read."""

import difflib
import tomllib
from pathlib import Path
from typing import Any

from qlax.config.kinds import LONGEST_NAME
from qlax.errors import UserError, nearest
from qlax.util.text import shown

FOLDER = Path(__file__).parent
EACH, ANY = "each", "<name>"  # smax/each.toml is the preset smax/<name>, and `<name>` in it that of the environment


def names() -> list[str]:
    """Names of the presets; `folder/<name>` stands for one of every environment of a kind."""
    found = (path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.toml"))
    return sorted(name.removesuffix(EACH) + ANY if name.endswith(f"/{EACH}") else name for name in found)


def is_preset(name: str) -> bool:
    """Whether there is a preset of this name."""
    return _file(name) is not None


def text(name: str) -> str:
    """Text of a preset's file: the comments say where it comes from and what to expect.

    Raises:
      UserError: no such preset.
    """
    file = _file(name)
    if file is None:
        known = names()
        hint = nearest(name[:LONGEST_NAME], known)
        raise UserError(f"unknown preset {shown(repr(name))}{hint}; presets: {', '.join(known)}")
    return file.read_text()


def settings(name: str) -> dict[str, Any]:
    """Settings of a preset, as its file has them.

    Raises:
      UserError: no such preset.
    """
    found = tomllib.loads(text(name))
    return {**found, "env": found["env"].replace(ANY, name.partition("/")[2])}


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
    known, folder = names(), target.partition("/")[0]
    return any(name.startswith(f"{folder}/") for name in known) or bool(
        difflib.get_close_matches(target, known, cutoff=0.85)
    )


def _file(name: str) -> Path | None:
    """The file that holds a preset: its own, or the one its folder has for each of a kind of environments."""
    folder, _, variant = name.partition("/")
    known = names()  # asked first, so that no name leads out of the folder
    if name in known and variant != ANY:
        return FOLDER / f"{name}.toml"
    return FOLDER / folder / f"{EACH}.toml" if f"{folder}/{ANY}" in known and variant not in ("", EACH) else None
