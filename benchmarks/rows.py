"""Rows of the score sheet: the commands that train (`rows.toml`), and their results (`results/`)."""

import json
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from records import RESULTS

FILE = Path(__file__).with_name("rows.toml")


class Published(NamedTuple):
    """A return that others have published; `rows.toml` explains the fields."""

    kind: str
    steps: int
    what: str
    source: str
    low: float
    high: float
    differs: str = ""


class Row(NamedTuple):
    """One row of the score sheet; `rows.toml` explains the fields."""

    name: str
    suite: str
    tier: int | str
    command: str
    hours: float
    note: str = ""
    best: float | None = None
    published: tuple[Published, ...] = ()
    each: str = ""

    def record(self) -> dict[str, Any] | None:
        """Return the record of the row's result; None if there is none of this command."""
        path = RESULTS / f"{self.name}.json"
        found = json.loads(path.read_text()) if path.exists() else {}
        return found if found.get("command") == self.command else None


def rows() -> dict[str, Row]:
    """Return all rows by name, in the order of the page."""
    content = tomllib.loads(FILE.read_text())

    def published(low: float, source: str, high: float | None = None, **rest: Any) -> Published:
        return Published(low=low, high=low if high is None else high, source=content["sources"][source], **rest)

    def row(name: str, command: str, published_by: list[dict[str, Any]], **rest: Any) -> Row:
        return Row(name, command=f"qlax train {command}", published=tuple(published(**x) for x in published_by), **rest)

    found = {}
    for pattern, fields in content["rows"].items():
        by = fields.pop("published", [])
        for each in fields.pop("each", [""]):
            filled = {key: x.replace("<name>", each) if isinstance(x, str) else x for key, x in fields.items()}
            name = pattern.replace("<name>", each)
            found[name] = row(name, published_by=by, each=each, **filled)
    return found
