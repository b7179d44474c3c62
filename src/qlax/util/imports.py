"""Modules: the user's own, by import path, and those that can wait."""

import importlib
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
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
    try:
        module = import_own(module_name)
    except Exception as error:
        raise UserError(f"cannot import {module_name!r} of {path!r}: {described(error)}") from error
    if not hasattr(module, attribute):
        known = [name for name in vars(module) if not name.startswith("_")]
        raise UserError(f"module {module_name!r} has no {attribute!r}{nearest(attribute, known)}")
    return getattr(module, attribute)


def import_own(name: str) -> ModuleType:
    """Import a module that a user names, of the working directory rather than one that is installed.

    The working directory is first on the import path only while the module is imported. It then stays as the last entry
    if it holds the module, which may import its neighbours when it is called, as may processes that are started for it:
    so nothing that is installed is shadowed for the rest of the process.
    """
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(here)
        if not {here, ""} & set(sys.path) and PathFinder.find_spec(name.partition(".")[0], [here]):
            sys.path.append(here)


@contextmanager
def imported_when_used(*names: str) -> Iterator[None]:
    """Within it, importing these modules gives stand-ins, which import them when something of them is used."""

    def stand_in(name):
        module = ModuleType(name)

        def used(attribute):
            if sys.modules.get(name) is module:
                del sys.modules[name]
            return getattr(importlib.import_module(name), attribute)

        module.__getattr__ = used  # type: ignore[method-assign]
        return module

    stand_ins = {name: stand_in(name) for name in names if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, module in stand_ins.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


@contextmanager
def silently() -> Iterator[None]:
    """Within it nothing is printed: for packages that print while they are imported, past any redirection."""
    streams = {name: getattr(sys, name) for name in ("stdout", "stderr", "__stdout__", "__stderr__")}
    for name in streams:
        setattr(sys, name, io.StringIO())
    try:
        yield
    finally:
        for name, stream in streams.items():
            setattr(sys, name, stream)
