"""From a target, or from the contents of a file, to settings."""

import dataclasses
from typing import Any

from qlax.config import presets
from qlax.config.kinds import LONGEST_NAME
from qlax.config.settings import FIELDS, Config, checked
from qlax.errors import UserError, nearest
from qlax.util.text import shown


def configure(target: str | Config | None = None, **overrides: Any) -> Config:
    """Make the settings of a preset or of an environment, with some of them replaced.

    Args:
      target: a preset, such as "cartpole"; an environment, "suite/name" or "module:Name"; or settings to start from.
      overrides: fields of `Config`; options of the environment are added to those of the preset.

    Raises:
      UserError: no such preset or field, or a value that cannot be.
    """
    settings: dict[str, Any] = {}
    if isinstance(target, Config):
        settings = dataclasses.asdict(target)
    elif target is not None:
        checked(FIELDS["env"], target)
        if presets.is_preset(target):
            settings = {**presets.settings(target), "preset": target}
        elif ":" in target or ("/" in target and not presets.is_almost(target)):
            settings = {"env": target}
        else:
            known = presets.names()
            hint = nearest(target, known)
            raise UserError(f"unknown preset {target!r}{hint}; presets: {', '.join(known)}; environments: suite/name")
    return from_dict(settings, "settings", **overrides)


def from_dict(settings: dict[str, Any], source: str, /, **overrides: Any) -> Config:
    """Make the settings that a dictionary holds, with some of them replaced.

    Args:
      settings: fields of `Config`; those left out have their defaults.
      source: where they come from, for error messages.
      overrides: fields of `Config`; options of the environment are added to the others.

    Raises:
      UserError: no such field, or a value that cannot be.
    """
    for name in (*settings, *overrides):
        if name not in FIELDS:
            raise UserError(f"unknown setting {shown(repr(name))} in {source}{nearest(name[:LONGEST_NAME], FIELDS)}")
    for name in ("derived", "env_options"):  # others are checked where all are there
        for given in (settings, overrides):
            if name in given:
                checked(FIELDS[name], given[name])
    if overrides:  # what followed from other settings has to follow anew
        settings = {name: value for name, value in settings.items() if name not in settings.get("derived", ())}
        settings.pop("derived", None)
    if "env" in overrides and overrides["env"] != settings.get("env"):
        settings.pop("preset", None)  # it was made for another environment, and would name this one
    if "env_options" in overrides and "env_options" in settings and "env" not in overrides:
        overrides = {**overrides, "env_options": {**settings["env_options"], **overrides["env_options"]}}
    return Config(**{**settings, **overrides})
