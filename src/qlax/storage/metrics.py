"""Metrics of a run: the file of JSON lines, and the curves that it holds."""

import hashlib
import json
import math
import os
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np

from qlax.storage.measurements import is_shared
from qlax.util.files import free_name, write_whole

CHECKSUM = 16  # hexadecimal digits


class MetricsFile:
    """`metrics.jsonl`: a line a logging interval, appended and flushed; what has no value is null."""

    def __init__(self, path: Path):
        self.path = path
        self._checksums: list[str] = []  # of the lines that are in it

    def append(self, line: dict[str, Any]) -> None:
        """Add one line; arrays become lists."""
        written = (json.dumps({name: _plain(value) for name, value in line.items()}) + "\n").encode()
        with self.path.open("ab") as file:
            file.write(written)
        self._checksums.append(_checksum(written))

    def read(self, num_members: int) -> list[dict[str, Any]]:
        """Read all lines but those that a crash cut short, or that are not what so many members write."""
        return _lines(self.content(), num_members)

    def checksums(self) -> str:
        """What `cut` goes by: `CHECKSUM` characters a line."""
        return "".join(self._checksums)

    def sync(self) -> None:
        """Have what was appended survive a loss of power."""
        if self.path.exists():
            with self.path.open("rb+") as file:
                os.fsync(file.fileno())

    def cut(self, checksums: str) -> str:
        """Drop whatever is not, or no longer, a line that was there once: what came later will be written again.

        Args:
          checksums: of the lines that were there.

        Returns:
          What was lost, if the file does not begin with them; it is then moved aside, and those still in it are kept.
        """
        wanted = [checksums[begin : begin + CHECKSUM] for begin in range(0, len(checksums), CHECKSUM)]
        content = self.content()
        lines = [line + b"\n" for line in content.split(b"\n")[:-1]]
        kept, lost = lines[: len(wanted)], ""
        if list(map(_checksum, kept)) != wanted:
            found = {_checksum(line): line for line in lines}
            kept = [found[checksum] for checksum in wanted if checksum in found]
            lost = f"{self.path} is damaged: {len(kept)} of {len(wanted)} lines are as they were{self._set_aside()}"
        self._begin(kept, content)
        return lost

    def clear(self, moved_aside_from: int, num_members: int) -> str:
        """Drop all: it will be written again.

        Args:
          moved_aside_from: a file whose lines come as far as this number of updates, or are damaged, is moved aside.
          num_members: of the run.

        Returns:
          Where it was moved aside, if it was.
        """
        content = self.content()
        lines = _lines(content, num_members)
        is_kept = any(line["updates"] >= moved_aside_from for line in lines) or len(lines) < content.count(b"\n")
        aside = f"{self.path} was written already{self._set_aside()}" if is_kept else ""
        self._begin([], content)
        return aside

    def _begin(self, kept: list[bytes], content: bytes) -> None:
        if b"".join(kept) != content or not self.path.exists():
            write_whole(self.path, b"".join(kept))
        self._checksums = list(map(_checksum, kept))

    def _set_aside(self) -> str:
        if not self.path.exists():
            return ""
        aside = free_name(self.path.with_suffix(".damaged.jsonl"))
        self.path.rename(aside)
        return f"; moved aside as {aside.name}"

    def content(self) -> bytes:
        """What it holds."""
        return self.path.read_bytes() if self.path.exists() else b""


def _checksum(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()[:CHECKSUM]


def _lines(content: bytes, num_members: int) -> list[dict[str, Any]]:
    """Parse the lines that are whole: objects with their `updates`, and a number or a list of one a run per name."""

    def is_measurement(name: str, value: Any) -> bool:
        if is_shared(name):
            return _is_number(value)
        return isinstance(value, list) and len(value) == num_members and all(map(_is_number, value))

    lines = []
    for written in content.split(b"\n")[:-1]:
        try:
            line = json.loads(written)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and type(line.get("updates")) is int and all(starmap(is_measurement, line.items())):
            lines.append(line)
    return lines


def _is_number(value: Any) -> bool:
    return value is None or type(value) is float or (type(value) is int and abs(value) < 2**63)


def curves(lines: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Stack lines to one array a name, `[lines]` or `[lines, R]` float64, nan where there is no value."""
    nothing = {name: [None] * len(value) for line in lines for name, value in line.items() if isinstance(value, list)}
    names = dict.fromkeys(name for line in lines for name in line)
    return {name: np.array([line.get(name, nothing.get(name)) for line in lines], dtype=np.float64) for name in names}


def _plain(value: Any) -> Any:
    """The value as JSON can hold it."""
    if isinstance(value, np.ndarray):
        return [_plain(x) for x in value.tolist()]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
