"""Settings on a command line: read from words, and written as words."""

import json
from collections.abc import Collection
from typing import Any

from qlax.config import presets
from qlax.config.configure import configure
from qlax.config.settings import FIELDS, SWEEPABLE, Config, fields_where, unfitting
from qlax.util.text import shown


def parse(name: str, text: str) -> Any:
    """Read the value of a field from a word of the command line.

    Raises:
      UserError: The word is not a value of the field.
    """
    try:
        return FIELDS[name].metadata["kind"].parse(text)
    except ValueError:
        raise unfitting(FIELDS[name], text, shown(text)) from None


def flag(name: str) -> str:
    """Return the flag of a field, as `--num-envs`."""
    return "--" + name.replace("_", "-")


def as_words(config: Config, always: Collection[str] = ()) -> list[str]:
    """Return the words after `qlax train` that give these settings: a target, and flags for what differs from it.

    Args:
      config: Settings to write.
      always: Fields to write even if they do not differ.
    """
    target, asked = config.env, configure(config.env)
    if config.preset and presets.spelled(config.preset):
        preset = configure(config.preset)
        # No flag sets a field back to None: if the preset has a value there, it cannot be the target.
        gone = [name for name in FIELDS if getattr(config, name) is None and getattr(preset, name) is not None]
        if not gone and preset.env == config.env and preset.env_options.keys() <= config.env_options.keys():
            target, asked = config.preset, preset
    said = [name for name in fields_where(flag=True) if name not in config.derived]
    here, there = ({name: getattr(of, name) for name in said} for of in (config, asked))
    differing = {name: value for name, value in here.items() if name in always or value != there[name]}
    return [target, *(word for name, value in differing.items() for word in _as_words(name, value))]


def _as_words(name: str, value: Any) -> list[str]:
    """Return the words of one field, which `parse` reads back."""
    if isinstance(value, bool):
        return [flag(name) if value else flag(f"no_{name}")]
    if isinstance(value, dict):
        return [flag(name), *(f"{key}={json.dumps(each)}" for key, each in value.items())]
    if isinstance(value, tuple) and name in SWEEPABLE:
        return [flag(name), *map(str, value)]
    word = written(value)
    return [f"{flag(name)}={word}"] if word.startswith("-") else [flag(name), word]


def written(value: Any) -> str:
    """Return a value of a field as one word."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
