"""Zoo of trained agents, each named after the preset that trained it.

`pretrained/index.json` lists all of them, with their results and checksums. The smallest are files beside it; the
setting QLAX_ZOO names where the others are: a folder, or the URL of one. `benchmarks/zoo.py` writes all of it.
"""

import functools
import hashlib
import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

import platformdirs

from qlax.config import presets
from qlax.errors import UserError, in_one_line, matching, nearest
from qlax.storage.checkpoint import SUFFIX
from qlax.util.files import given_path, write_whole
from qlax.util.text import shown

FOLDER = Path(__file__).parent / "pretrained"
INDEX = "index.json"
CARD = ".md"
PLACE = "QLAX_ZOO"  # environment variable: the folder or URL of the agents that are not installed
MARK = "zoo:"  # begins the name of an agent of the zoo where a path may stand as well
INSTALLED = "installed"
URLS = ("https://", "http://", "file://")
SECONDS = 60  # without an answer, after which a download fails
MOST_BYTES = 100_000_000


class Entry(NamedTuple):
    """Agent of the zoo.

    Attributes:
      name: Name of the agent, which is that of its preset.
      env: Environment it was trained in.
      episode_return: Mean undiscounted greedy return.
      interval: 95 % confidence interval of the return over the episodes; None if they are all the same episode.
      episodes: Number of greedy episodes of that evaluation.
      seed: Seed of its training: of all seeds, the one with the median greedy return.
      seeds: Number of seeds.
      steps: Environment steps of its training.
      command: Command that trains all seeds.
      date: Day of the training.
      note: Anything else that a user has to know; else empty.
      bytes: Size of the file.
      sha256: Checksum of the file, in hexadecimal digits.
    """

    name: str
    env: str
    episode_return: float
    interval: tuple[float, float] | None
    episodes: int
    seed: int
    seeds: int
    steps: int
    command: str
    date: str
    note: str
    bytes: int
    sha256: str


@functools.cache
def entries() -> dict[str, Entry]:
    """Return all agents of the zoo by name, in alphabetical order."""
    found = json.loads((FOLDER / INDEX).read_text(encoding="utf-8"))
    return {name: Entry(name, **fields) for name, fields in sorted(found.items())}


def missing() -> list[str]:
    """Return the presets that have no agent in the zoo; a preset of many environments has one if any of them has."""
    made = {*entries(), *(f"{name.partition('/')[0]}/{presets.ANY}" for name in entries())}
    return [name for name in presets.names() if name not in made]


def where(entry: Entry) -> str:
    """Say where the file of an agent is, without opening or downloading it."""
    if _installed(entry.name).exists():
        return INSTALLED
    if _cached(entry).exists():
        return "in the cache"
    place = os.environ.get(PLACE, "")
    if not place:
        return f"set {PLACE}"
    return f"at {place}" if _is_url(place) or _in_folder(place, entry.name).exists() else f"not in {place}"


def card(name: str) -> str:
    """Return the model card of an agent, in Markdown.

    Raises:
      UserError: There is no such agent.
    """
    return (FOLDER / f"{_known(name).name}{CARD}").read_text(encoding="utf-8")


def located(run: Path | str) -> Path:
    """Return the path that a user gave, or the file of the agent if it is "zoo:" and a name.

    Raises:
      UserError: There is no such agent, or its file cannot be obtained.
    """
    return fetched(run.removeprefix(MARK)) if isinstance(run, str) and run.startswith(MARK) else given_path(run)


def named(word: Path | str) -> Path | str:
    """Return a run, a file or the name of an agent as `located` takes it; names of the zoo need no "zoo:" here.

    Raises:
      UserError: There is neither such a path nor such an agent.
    """
    if not isinstance(word, str) or word.startswith(MARK) or given_path(word).exists():
        return word
    if matching(word, entries()) is None:
        hint = nearest(word, entries())
        raise UserError(
            f"there is no run or file {shown(word)}, and the zoo has no agent of this name{hint}; 'qlax zoo' lists all"
        )
    return MARK + word


def home_of(run: Path | str) -> Path:
    """Return the folder for new files about a run or agent: the run's, the file's, or the working one for the zoo.

    Raises:
      UserError: As for `located`.
    """
    if isinstance(run, str) and run.startswith(MARK):
        return Path()
    path = located(run)
    return path if path.is_dir() else path.parent


def fetched(name: str) -> Path:
    """Return the file of an agent; a file that is downloaded stays in the user's cache directory.

    Raises:
      UserError: There is no such agent, QLAX_ZOO names no place that has it, or the file has another checksum.
    """
    entry = _known(name)
    if (path := _installed(entry.name)).exists():
        _check(path, path.read_bytes(), entry)
        return path
    place = os.environ.get(PLACE, "")
    if (path := _cached(entry)).exists() and _digest(path.read_bytes()) == entry.sha256:
        return path
    if not place:
        here = ", ".join(each for each in entries() if _installed(each).exists())
        raise UserError(
            f"the agent {entry.name} is not installed with qlax, as {here} are: "
            f"set {PLACE} to the folder or URL of the other agents"
        )
    if _is_url(place):
        return _downloaded(place, entry)
    path = _in_folder(place, entry.name)
    try:
        _check(path, path.read_bytes(), entry)
    except OSError as error:
        raise UserError(f"{PLACE}={place} does not have {entry.name}: {path}: {error.strerror or error}") from error
    return path


def _known(name: str) -> Entry:
    known = entries()
    found = matching(name, known)
    if found is None:
        raise UserError(f"the zoo has no agent {shown(repr(name))}{nearest(name, known)}; 'qlax zoo' lists all")
    return known[found]


def _installed(name: str) -> Path:
    return FOLDER / f"{name}{SUFFIX}"


def _in_folder(place: str, name: str) -> Path:
    return given_path(place) / f"{name}{SUFFIX}"


def _cached(entry: Entry) -> Path:
    """Return where a downloaded file stays; its checksum is in the path, as the agent may change with the version."""
    return platformdirs.user_cache_path("qlax") / "zoo" / entry.sha256[:16] / f"{entry.name}{SUFFIX}"


def _is_url(place: str) -> bool:
    return place.startswith(URLS)


def _downloaded(place: str, entry: Entry) -> Path:
    url = f"{place.rstrip('/')}/{entry.name}{SUFFIX}"
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            data = answer.read(MOST_BYTES)
    except (OSError, ValueError, urllib.error.URLError) as error:
        raise UserError(f"{url} cannot be downloaded ({in_one_line(error)}); is {PLACE} right?") from error
    path = _cached(entry)
    _check(url, data, entry)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as error:
        raise UserError(
            f"{error.filename or path} cannot be written: {error.strerror or error}; "
            f"download {url} by hand, and set {PLACE} to its folder"
        ) from error
    return path


def _check(source: Path | str, data: bytes, entry: Entry) -> None:
    """Check that the content of a file has the checksum of the index.

    Raises:
      UserError: The checksum differs.
    """
    if (found := _digest(data)) != entry.sha256:
        raise UserError(
            f"{source} is not the agent {entry.name} of this version of qlax: its SHA-256 is {found[:16]}..., expected "
            f"{entry.sha256[:16]}..."
        )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
