"""Formats of what a run leaves: the number of today's, and how files of older ones are read.

`config.json`, `sweep.json` and the description of every checkpoint say their format; what says none is of format 0.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from qlax.config.configure import from_dict
from qlax.config.settings import SWEEPABLE, Config
from qlax.errors import UserError
from qlax.storage.measurements import MEASUREMENTS
from qlax.util.text import shown

ENTRY = "format"
LARGEST_FILE = 2**20  # bytes; our own have a few thousand
Settings = dict[str, Any]


class Older(NamedTuple):
    """Differences of an older format from the next one.

    Attributes:
      renamed: of a setting's old name, the new one, and what makes the new value of the old one and all settings.
      hyper: fields of `qlax.pqn.Hyper` that its checkpoints lack, with the values that change nothing.
    """

    renamed: Mapping[str, tuple[str, Callable[[Any, Settings], Any]]] = {}
    hyper: Mapping[str, float] = {}


def _draws(runs: Any, settings: Settings) -> Any:
    """Number of settings drawn, of the number of all agents."""
    swept = [settings.get(name) for name in SWEEPABLE]
    if runs is None or not any(isinstance(value, str) for value in swept):
        return None
    lists = [len(value) for value in swept if isinstance(value, list | tuple)]
    return runs // (settings.get("seeds", 1) * math.prod(lists))


OLDER = (Older(renamed={"runs": ("draws", _draws)}),)  # by their numbers; add one here whenever a format changes
FORMAT = len(OLDER)


def stamped(content: Settings) -> Settings:
    """What a file holds, with the number of today's format."""
    return {ENTRY: FORMAT, **content}


def upgraded(content: Settings, source: str) -> Settings:
    """Settings of a file as today's format has them, without its number.

    Args:
      content: of the file.
      source: the file, for error messages.

    Raises:
      UserError: the file is of a newer format.
    """
    settings = {name: value for name, value in content.items() if name != ENTRY}
    for older in OLDER[_checked(content.get(ENTRY, 0), source) :]:
        for name, (new, convert) in older.renamed.items():
            if name in settings and new not in settings:
                value = settings.pop(name)
                try:
                    settings[new] = convert(value, settings)
                except (ArithmeticError, TypeError):  # damaged: checked, and refused, by its new name
                    settings[new] = value
    return settings


def absent(info: Settings, source: str) -> dict[str, float]:
    """Leaves that a checkpoint may lack, with the values that change nothing.

    They are hyper-parameters that came later, see `Older.hyper`, and sums of measurements: of one that is new in the
    table nothing was added up before.

    Args:
      info: description of the checkpoint.
      source: its file, for error messages.

    Raises:
      UserError: the checkpoint is of a newer format.
    """
    older = OLDER[_checked(info.get(ENTRY, 0), source) :]
    sums = {f"record/sums/{key}/{part}": 0.0 for key in MEASUREMENTS for part in ("total", "weight")}
    return sums | {f"state/hyper/{name}": value for each in older for name, value in each.hyper.items()}


def to_json(config: Config) -> str:
    """Contents of `config.json`, which `config_of_file` reads back."""
    return json.dumps(stamped(dataclasses.asdict(config)), indent=2) + "\n"


def config_of_file(path: Path | str, **overrides: Any) -> Config:
    """Settings in a `config.json`, with some of them replaced.

    Raises:
      UserError: the file is missing, damaged or not one of ours.
    """
    name = shown(str(path), 200)
    try:
        with Path(path).open("rb") as file:
            written = file.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:  # the latter where the path holds a null
        raise UserError(f"{name} cannot be read: {getattr(error, 'strerror', error)}") from error
    if len(written) > LARGEST_FILE:
        raise UserError(f"{name} has more than {LARGEST_FILE:,} bytes; expected the settings of a run")
    try:
        content = json.loads(written.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is not JSON: {shown(str(error), 200)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{name} holds a {type(content).__name__}; expected an object of settings")
    return from_dict(upgraded(content, name), name, **overrides)


def _checked(number: Any, source: str) -> int:
    if type(number) is not int or not 0 <= number <= FORMAT:
        raise UserError(
            f"{source} has the format {shown(number)}; expected at most {FORMAT}: a newer version of qlax may read it"
        )
    return number


def _unique(pairs: list[tuple[str, Any]]) -> Settings:
    """An object of JSON, in which no name may stand twice."""
    settings: Settings = {}
    for name, value in pairs:
        if name in settings:
            raise ValueError(f"{shown(repr(name))} stands there twice")
        settings[name] = value
    return settings
