"""File formats of runs: the current format number, and how files of older formats are read.

`config.json`, `sweep.json` and the description of every checkpoint carry a format number; without one it is 0.
"""

import dataclasses
import json
import math
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from qlax.config.configure import from_dict
from qlax.config.settings import SWEEPABLE, Config
from qlax.errors import UserError
from qlax.storage.measurements import MEASUREMENTS
from qlax.util.files import given_path
from qlax.util.text import shown

ENTRY = "format"
LARGEST_FILE = 2**20  # bytes; a config.json that qlax wrote has a few thousand
Settings = dict[str, Any]


class Older(NamedTuple):
    """Changes from an older format to the one after it.

    Attributes:
      renamed: For each old name of a setting: its new name, and a function of the old value and all settings that
        returns the new value.
      hyper: Fields of `qlax.pqn.Hyper` that checkpoints of the older format lack, with their neutral values.
    """

    renamed: Mapping[str, tuple[str, Callable[[Any, Settings], Any]]] = {}
    hyper: Mapping[str, float] = {}


def _draws(runs: Any, settings: Settings) -> Any:
    """Convert format 0's `runs`, the number of all agents, to the number of drawn settings."""
    swept = [settings.get(name) for name in SWEEPABLE]
    if runs is None or not any(isinstance(value, str) for value in swept):
        return None
    lists = [len(value) for value in swept if isinstance(value, list | tuple)]
    return runs // (settings.get("seeds", 1) * math.prod(lists))


OLDER = (  # index: format number; add an entry when the format changes
    Older(renamed={"runs": ("draws", _draws)}),
    Older(hyper={"epsilon_spread": 1.0, "lam_end": 0.65, "lam_fraction": 0.0}),
)
FORMAT = len(OLDER)


def stamped(content: Settings) -> Settings:
    """Add the current format number to the content of a file."""
    return {ENTRY: FORMAT, **content}


def upgraded(content: Settings, source: str) -> Settings:
    """Convert the settings of a file to the current format, and remove the format number.

    Args:
      content: Content of the file.
      source: Name of the file, for error messages.

    Raises:
      UserError: The file has a newer format.
    """
    settings = {name: value for name, value in content.items() if name != ENTRY}
    for older in OLDER[_checked(content.get(ENTRY, 0), source) :]:
        for name, (new, convert) in older.renamed.items():
            if name in settings and new not in settings:
                value = settings.pop(name)
                try:
                    settings[new] = convert(value, settings)
                except (ArithmeticError, TypeError):  # damaged value: later checks refuse it under its new name
                    settings[new] = value
    # Before there was a choice of algorithms, "none" was the default, which now depends on the algorithm.
    if settings.get("input_norm") == "none" and "algorithm" not in settings:
        settings["derived"] = [*settings.get("derived", ()), "input_norm"]
    return settings


def absent(info: Settings, source: str) -> dict[str, float]:
    """Map the leaves that an older checkpoint may lack to their neutral values.

    These are hyper-parameters that were added later, see `Older.hyper`, and the sums of measurements that were added
    to the table later, which start at zero.

    Args:
      info: Description of the checkpoint.
      source: Name of the checkpoint's file, for error messages.

    Raises:
      UserError: The checkpoint has a newer format.
    """
    older = OLDER[_checked(info.get(ENTRY, 0), source) :]
    sums = {f"record/sums/{key}/{part}": 0.0 for key in MEASUREMENTS for part in ("total", "weight")}
    return sums | {f"state/hyper/{name}": value for each in older for name, value in each.hyper.items()}


def to_json(config: Config) -> str:
    """Return the content of `config.json`, which `config_of_file` reads back."""
    return json.dumps(stamped(dataclasses.asdict(config)), indent=2) + "\n"


def config_of_file(path: Path | str, **overrides: Any) -> Config:
    """Read the settings in a `config.json` or in a preset (.toml), and replace some of them by the overrides.

    Raises:
      UserError: The file is missing or damaged, or holds something else than settings.
    """
    kind = "TOML" if Path(path).suffix == ".toml" else "JSON"
    name = shown(str(path), 200)
    try:
        with given_path(path).open("rb") as file:
            written = file.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:  # ValueError: the path contains a null character
        raise UserError(f"{name} cannot be read: {getattr(error, 'strerror', error)}") from error
    if len(written) > LARGEST_FILE:
        raise UserError(f"{name} has more than {LARGEST_FILE:,} bytes; expected the settings of a run")
    try:
        text = written.decode()
        content = tomllib.loads(text) if kind == "TOML" else json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is not {kind}: {shown(str(error), 200)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{name} holds a {type(content).__name__}; expected an object of settings")
    return from_dict(upgraded(content, name), name, **overrides)


def _checked(number: Any, source: str) -> int:
    if type(number) is not int or not 0 <= number <= FORMAT:
        raise UserError(
            f"{source} has format {shown(number)}; expected at most {FORMAT}: a newer version of qlax may read it"
        )
    return number


def _unique(pairs: list[tuple[str, Any]]) -> Settings:
    """Make a dictionary of a JSON object's pairs; raise ValueError if a name occurs twice."""
    settings: Settings = {}
    for name, value in pairs:
        if name in settings:
            raise ValueError(f"{shown(repr(name))} occurs twice")
        settings[name] = value
    return settings
