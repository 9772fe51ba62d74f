"""TOML to the tree. ``tomllib`` reads the values; a small scanner finds the line of every key.

The scanner runs only over text that ``tomllib`` has accepted, so it has to find its way, not to judge.
"""

from __future__ import annotations

import re
import tomllib
from typing import Final

from opentsm.config.schema import BY_KEY
from opentsm.config.tree import Document, Entry, Node, unreadable

_KeyPath = tuple[str, ...]

_AT_LINE: Final = re.compile(r" ?\(at line (\d+), column \d+\)")
_BLANK: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE: Final = re.compile(r"[ \t]*")
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_STRING: Final = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}|' r"'''.*?'{3,5}|" r'"(?:\\.|[^"\\])*"|' r"'[^']*'", re.DOTALL
)
_OTHER: Final = re.compile(r"[^\"'\[\]{}#\n]+")


def read_toml(text: str, source: str) -> Document:
    """Parse TOML text.

    Raises:
        ConfigErrors: it is not TOML; the message has the line.
    """
    try:
        tree = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise _not_toml(error, source) from None
    lines = find_lines(text)
    document = Document(source)
    for kind, value in tree.items():
        document.nodes.extend(_nodes(kind, value, lines))
    document.nodes.sort(key=lambda node: node.line)
    return document


def find_lines(text: str) -> dict[_KeyPath, int]:
    """The line on which each table header or key first stands, by its full path."""
    return _Scanner(text).scan()


def _not_toml(error: ValueError | RecursionError, source: str) -> Exception:
    if isinstance(error, RecursionError):
        return unreadable("the values are nested too deeply", source=source)
    message = str(error)
    found = _AT_LINE.search(message)
    return unreadable(
        f"not valid TOML: {_AT_LINE.sub('', message)}",
        source=source,
        line=int(found[1]) if found else None,
        hint='a text needs quotes: name = "text"' if "Invalid value" in message else "",
    )


def _nodes(kind: str, value: object, lines: dict[_KeyPath, int]) -> list[Node]:
    """The objects under one top-level key. What is not shaped like an object becomes a node with one
    nameless entry, for the builder to complain about with its line."""
    schema = BY_KEY.get(kind)
    if not isinstance(value, dict):
        return [Node(kind, "", _line(lines, kind), [Entry("", value, _line(lines, kind))])]
    if schema is None or not schema.named:
        return [_node(kind, "", value, lines, (kind,))]
    return [
        _node(kind, name, inner, lines, (kind, name))
        if isinstance(inner, dict)
        else Node(kind, name, _line(lines, kind, name), [Entry("", inner, _line(lines, kind, name))])
        for name, inner in value.items()
    ]


def _node(kind: str, name: str, table: dict[str, object], lines: dict[_KeyPath, int], path: _KeyPath) -> Node:
    entries = [Entry(key, value, _line(lines, *path, key)) for key, value in table.items()]
    return Node(kind, name, _line(lines, *path), entries)


def _line(lines: dict[_KeyPath, int], *path: str) -> int:
    """The line of a key, or of the nearest table around it (a key inside an inline table)."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return 1


class _Scanner:
    """Walks over valid TOML, statement by statement."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1
        self._lines: dict[_KeyPath, int] = {}

    def scan(self) -> dict[_KeyPath, int]:
        table: _KeyPath = ()
        while self._skip(_BLANK) and self._at < len(self._text):
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._note((*table, *self._key()))
                self._value()
        return self._lines

    def _note(self, path: _KeyPath) -> None:
        for length in range(1, len(path) + 1):
            self._lines.setdefault(path[:length], self._line)

    def _header(self) -> _KeyPath:
        while self._text[self._at] in "[ \t":
            self._at += 1
        path = self._key()
        self._note(path)
        while self._at < len(self._text) and self._text[self._at] in "] \t":
            self._at += 1
        return path

    def _key(self) -> _KeyPath:
        """A key, dotted or quoted, and the ``=`` or ``]`` not yet."""
        parts: list[str] = []
        while True:
            self._skip(_SPACE)
            start = self._at
            if not self._skip(_BARE_KEY) or self._at == start:
                self._skip(_STRING)
                parts.append(_unquote(self._text[start : self._at]))
            else:
                parts.append(self._text[start : self._at])
            self._skip(_SPACE)
            if self._text[self._at : self._at + 1] != ".":
                return tuple(parts)
            self._at += 1

    def _value(self) -> None:
        """From the ``=`` to the end of the statement: the first line end outside all brackets."""
        depth = 0
        while self._at < len(self._text):
            char = self._text[self._at]
            if char in "\"'":
                self._skip(_STRING)
            elif char == "#":
                self._skip(_BLANK) if depth else self._to_line_end()
            elif char == "\n" and not depth:
                return
            elif char in "[]{}\n":
                depth += (char in "[{") - (char in "]}")
                self._line += char == "\n"
                self._at += 1
            else:
                self._skip(_OTHER)

    def _to_line_end(self) -> None:
        end = self._text.find("\n", self._at)
        self._at = len(self._text) if end < 0 else end

    def _skip(self, pattern: re.Pattern[str]) -> bool:
        found = pattern.match(self._text, self._at)
        if found is None:
            return False
        self._line += found[0].count("\n")
        self._at = found.end()
        return True


def _unquote(key: str) -> str:
    """A quoted key means what the same text means as a value."""
    return str(tomllib.loads(f"k = {key}")["k"])
