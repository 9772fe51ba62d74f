"""What every file format is read into: objects with entries, each with its line.

[tscf-interface.access]        ->  Node("tscf-interface", "access", line, entries)
ports = ["v4"]                 ->  Entry("ports", ["v4"], line)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from opentsm.config.errors import ConfigErrors
from opentsm.errors import ConfigError

MAX_FILE_BYTES: Final = 4 * 1024 * 1024
"""Largest configuration read: 10,000 pools are under 1 MiB. Keeps a wrong path (a log, a device) from
filling the memory of a running server at reload."""

Scalar = str | int | float | bool
Raw = Scalar | list[Scalar]
"""A value as a format gives it: XML only knows texts, TOML has types of its own."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One setting as written. ``line`` is 1-based."""

    key: str
    value: object
    line: int


@dataclass(slots=True)
class Node:
    """One object as written. ``name`` is empty for an object of which there is only one."""

    kind: str
    name: str
    line: int
    entries: list[Entry] = field(default_factory=list)


@dataclass(slots=True)
class Document:
    """A whole file, objects in its order."""

    source: str
    nodes: list[Node] = field(default_factory=list)


def unreadable(message: str, *, source: str, line: int | None = None, hint: str = "") -> ConfigErrors:
    """The error for a text that is not even well-formed."""
    return ConfigErrors([ConfigError(message, source=source, line=line, hint=hint)])
