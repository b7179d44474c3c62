"""Imports: objects of the user's own modules, and modules that are imported when they are first used."""

import importlib
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from qlax.errors import UserError, count_as_user_code, described, nearest


def import_object(path: str) -> Any:
    """Import the object that `module:Name` refers to.

    Raises:
      UserError: The path is malformed, the module cannot be imported, or it has no such name.
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise UserError(f"{path!r} is not an import path; expected module:Name")
    try:
        module = import_own(module_name)
    except Exception as error:
        raise UserError(f"cannot import {module_name!r} for {path!r}: {described(error)}") from error
    if not hasattr(module, attribute):
        known = [name for name in vars(module) if not name.startswith("_")]
        raise UserError(f"module {module_name!r} has no {attribute!r}{nearest(attribute, known)}")
    return getattr(module, attribute)


def import_own(name: str) -> ModuleType:
    """Import a module that a user named; prefer the working directory to installed packages.

    The working directory comes first on the import path only during this import, so that its files do not hide
    installed packages for the rest of the process. If it holds the module, it stays as the last entry, because the
    module, or a process started for it, may import neighbouring files later.
    """
    count_as_user_code(name)
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
    """Make imports of these modules lazy within the context: each is imported when an attribute is first used.

    A package is listed together with all its modules that are imported within the context.
    """

    def stand_in(name):
        module = ModuleType(name)
        module.__path__ = []  # `from package import module` would import the package to ask for its path

        def used(attribute):
            if sys.modules.get(name) is module:
                del sys.modules[name]
            return getattr(importlib.import_module(name), attribute)

        module.__getattr__ = used  # type: ignore[method-assign]
        return module

    stand_ins = {name: stand_in(name) for name in names if name not in sys.modules}
    sys.modules.update(stand_ins)
    for name, module in stand_ins.items():
        package, _, last = name.rpartition(".")
        if package in stand_ins:
            setattr(stand_ins[package], last, module)
    try:
        yield
    finally:
        for name, module in stand_ins.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


@contextmanager
def silently() -> Iterator[None]:
    """Print nothing within the context, not even to the original `sys.__stdout__` and `sys.__stderr__`.

    Some packages print while they are imported.
    """
    streams = {name: getattr(sys, name) for name in ("stdout", "stderr", "__stdout__", "__stderr__")}
    for name in streams:
        setattr(sys, name, io.StringIO())
    try:
        yield
    finally:
        for name, stream in streams.items():
            setattr(sys, name, stream)
