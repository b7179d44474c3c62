"""Suites of environments, and the names of their environments, which are known without importing a suite.

Importing all suites takes many seconds, and a sweep must not import JAX.
"""

import functools
import json
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from qlax.errors import UserError, matching, nearest

FILE = Path(__file__).with_suffix(".json")  # written by tests/envs/names.py


class Suite(NamedTuple):
    """Package of environments whose adapter is the module of this name in `qlax.envs.suites`."""

    distribution: str  # name on the package index
    extra: str  # extra of qlax that installs the package: pip install 'qlax[<extra>]'
    on_host: bool = False  # True if the environments are HostEnvs, False if they are written in JAX


SUITES = {
    "gymnax": Suite("gymnax", extra="gymnax"),
    "pgx": Suite("pgx", extra="pgx"),
    "jumanji": Suite("jumanji", extra="jumanji"),
    "navix": Suite("navix", extra="navix"),
    "xminigrid": Suite("xminigrid", extra="xminigrid"),
    "craftax": Suite("craftax", extra="craftax"),
    "jaxmarl": Suite("jaxmarl", extra="jaxmarl"),
    "octax": Suite("octax", extra="octax"),
    "brax": Suite("brax", extra="brax"),
    "playground": Suite("playground", extra="playground"),
    "ale": Suite("ale-py", extra="atari", on_host=True),
    "envpool": Suite("envpool", extra="envpool", on_host=True),
    "gymnasium": Suite("gymnasium", extra="gymnasium", on_host=True),
}


class Recorded(NamedTuple):
    """Names of a suite's environments in one version of its package.

    Attributes:
      version: The version.
      names: Names of the environments to train in, as `names()` of the suite's adapter returns them.
      others: Names of environments that are not in `names`, by the reason.
    """

    version: str | None
    names: list[str]
    others: dict[str, list[str]]


def suite_called(name: str) -> str:
    """Return the name of a suite in its own spelling, whatever case it is given in.

    Raises:
      UserError: There is no such suite.
    """
    found = matching(name, SUITES)
    if found is None:
        raise UserError(f"unknown suite {name!r}{nearest(name, SUITES)}; suites: {', '.join(SUITES)}")
    return found


@functools.cache
def recorded(suite: str) -> Recorded:
    """Return the recorded names of a suite's environments, with the suite's version; no names if none were recorded."""
    return Recorded(
        **{"version": None, "names": [], "others": {}, **json.loads(FILE.read_text("utf-8")).get(suite, {})}
    )


def installed_version(suite: str) -> str:
    """Return the version of a suite's package.

    Raises:
      UserError: The package is not installed.
    """
    distribution, extra, _ = SUITES[suite]
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError as error:
        raise UserError(f"the suite {suite!r} is not installed: pip install 'qlax[{extra}]'") from error


def is_own(env: str) -> bool:
    """Return True if the name of an environment is the import path of a user's own, `module:Name`."""
    return ":" in env.partition("/")[0]  # names within a suite may contain a colon


def spelled(env: str) -> str:
    """Return the name of an environment, suite/name, in the spelling of its suite, whatever case it is given in.

    Names that were not recorded, and the import paths of a user's own environments, are returned as they are.
    """
    suite, slash, name = env.partition("/")
    suite = matching(suite, SUITES) or suite
    if is_own(env) or suite not in SUITES:
        return env
    return f"{suite}{slash}{matching(name, _all(suite)) or name}"


def is_recorded(suite: str, name: str) -> bool:
    """Return True if the file lists an environment of this name, in this spelling."""
    return name in _all(suite)


def unsuitable(suite: str) -> set[str]:
    """Return the names of the environments of a suite that are recorded as others, see `Recorded`."""
    return {name for names in recorded(suite).others.values() for name in names}


def _all(suite: str) -> set[str]:
    return {*recorded(suite).names, *unsuitable(suite)}
