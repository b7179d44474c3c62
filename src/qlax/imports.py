"""The user's own code, by import path."""

import importlib
import sys
from pathlib import Path
from typing import Any

from qlax.errors import UserError, described, nearest


def import_object(path: str) -> Any:
    """What `module:Name` refers to.

    Raises:
      UserError: it cannot be imported.
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise UserError(f"{path!r} is no import path; expected module:Name")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise UserError(f"cannot import {module_name!r} of {path!r}: {described(error)}") from error
    if not hasattr(module, attribute):
        known = [name for name in vars(module) if not name.startswith("_")]
        raise UserError(f"module {module_name!r} has no {attribute!r}{nearest(attribute, known)}")
    return getattr(module, attribute)
