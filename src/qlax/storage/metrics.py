"""Metrics of a run: the file `metrics.jsonl`, and the learning curves in it."""

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

CHECKSUM = 16  # hexadecimal digits per line


class MetricsFile:
    """File `metrics.jsonl`: one JSON object per logging interval; missing and non-finite values are null."""

    def __init__(self, path: Path):
        self.path = path
        self._checksums: list[str] = []  # one per line of the file

    def append(self, line: dict[str, Any]) -> None:
        """Append one line; arrays become lists."""
        written = (json.dumps({name: _plain(value) for name, value in line.items()}) + "\n").encode()
        with self.path.open("ab") as file:
            file.write(written)
        self._checksums.append(_checksum(written))

    def read(self, num_members: int) -> list[dict[str, Any]]:
        """Read all valid lines of a run of `num_members` agents; skip lines that a crash cut short."""
        return _lines(self.content(), num_members)

    def checksums(self) -> str:
        """Return the joined checksums of all lines, which `cut` takes: `CHECKSUM` characters per line."""
        return "".join(self._checksums)

    def sync(self) -> None:
        """Make appended lines survive a power failure."""
        if self.path.exists():
            with self.path.open("rb+") as file:
                os.fsync(file.fileno())

    def cut(self, checksums: str) -> str:
        """Restore the file to the lines it had when a checkpoint was written; training writes later lines again.

        If the file does not begin with those lines, it is moved aside, and those still found in it are kept.

        Args:
          checksums: Checksums of the lines that the file had, as `checksums` returned them.

        Returns:
          Message about lines that are lost; empty if none is.
        """
        wanted = [checksums[begin : begin + CHECKSUM] for begin in range(0, len(checksums), CHECKSUM)]
        content = self.content()
        lines = [line + b"\n" for line in content.split(b"\n")[:-1]]
        kept, lost = lines[: len(wanted)], ""
        if list(map(_checksum, kept)) != wanted:
            found = {_checksum(line): line for line in lines}
            kept = [found[checksum] for checksum in wanted if checksum in found]
            lost = f"{self.path} is damaged: {len(kept)} of {len(wanted)} lines are intact{self._move_aside()}"
        self._begin(kept, content)
        return lost

    def clear(self, moved_aside_from: int, num_members: int) -> str:
        """Remove all lines, because training starts over.

        Args:
          moved_aside_from: A file with a line of at least this many updates is moved aside, as is a damaged file.
          num_members: Number of agents of the run.

        Returns:
          Message with the new name of the file, if it was moved aside; else empty.
        """
        content = self.content()
        lines = _lines(content, num_members)
        is_kept = any(line["updates"] >= moved_aside_from for line in lines) or len(lines) < content.count(b"\n")
        aside = f"{self.path} already held metrics{self._move_aside()}" if is_kept else ""
        self._begin([], content)
        return aside

    def _begin(self, kept: list[bytes], content: bytes) -> None:
        if b"".join(kept) != content or not self.path.exists():
            write_whole(self.path, b"".join(kept))
        self._checksums = list(map(_checksum, kept))

    def _move_aside(self) -> str:
        if not self.path.exists():
            return ""
        aside = free_name(self.path.with_suffix(".damaged.jsonl"))
        self.path.rename(aside)
        return f"; moved aside as {aside.name}"

    def content(self) -> bytes:
        """Return the bytes of the file; empty if there is no file."""
        return self.path.read_bytes() if self.path.exists() else b""


def _checksum(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()[:CHECKSUM]


def _lines(content: bytes, num_members: int) -> list[dict[str, Any]]:
    """Parse the valid lines: objects with `updates`, and for every other key a number, or a list of one per agent."""

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
    """Stack lines to one float64 array per key, `[lines]` or `[lines, R]`, with nan for missing values."""
    nothing = {name: [None] * len(value) for line in lines for name, value in line.items() if isinstance(value, list)}
    names = dict.fromkeys(name for line in lines for name in line)
    return {name: np.array([line.get(name, nothing.get(name)) for line in lines], dtype=np.float64) for name in names}


def _plain(value: Any) -> Any:
    """Convert a value for JSON: arrays become lists, numbers that are not finite None."""
    if isinstance(value, np.ndarray):
        return [_plain(x) for x in value.tolist()]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
