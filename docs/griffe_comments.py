"""Extension of Griffe that describes fields by the comments beside them, for the API reference."""

import dataclasses
from typing import Any

import griffe

from qlax.config.settings import FIELDS

SETTINGS = ("qlax.config.settings.Config", "qlax.config.algorithm.AlgorithmSettings")


class Comments(griffe.Extension):
    """Describe attributes without a docstring: settings by their help, others by the comment on their line."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """See `griffe.Extension`."""
        text = attr.source.rpartition("  # ")[2] if "  # " in attr.source else ""
        if attr.parent is not None and attr.parent.path in SETTINGS and attr.name in FIELDS:
            field = FIELDS[attr.name]
            kind = field.metadata["kind"]
            text = f"{field.metadata['help']}. Expected: {kind.expected}"
            attr.value = "{}" if field.default is dataclasses.MISSING else repr(field.default)
        if text and attr.docstring is None:
            attr.docstring = griffe.Docstring(f"{text[0].upper()}{text[1:]}.", parent=attr)
