"""The tree to settings: read each setting by the schema, resolve names, run the cross-checks.

Problems are collected, not raised one by one. An object with a problem is not built, and what refers
to it is passed over in silence: one mistake gives one message.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from opentsm.config import check
from opentsm.config.errors import Problems
from opentsm.config.kinds import NAME
from opentsm.config.model import Settings
from opentsm.config.schema import BY_KEY, OBJECTS, Field, ObjectType
from opentsm.config.tree import Document, Entry, Node

_BROKEN: Final = object()
"""Value of a setting that could not be read; the problem is noted already."""


def build(document: Document, base: Path) -> Settings:
    """Make settings of a document.

    Args:
        base: directory that relative file names are relative to.

    Raises:
        ConfigErrors: something is wrong; all of it is in there.
    """
    return _Builder(document, base).run()


class _Builder:
    def __init__(self, document: Document, base: Path) -> None:
        self._document = document
        self._base = base
        self._problems = Problems(document.source)
        self._lines = check.Lines()
        self._built: dict[str, dict[str, Any]] = {kind.key: {} for kind in OBJECTS}
        self._written: dict[str, dict[str, Node]] = {kind.key: {} for kind in OBJECTS}

    def run(self) -> Settings:
        for node in self._document.nodes:
            self._admit(node)
        for kind in OBJECTS:
            if not kind.named:
                self._written[kind.key].setdefault("", Node(kind.key, "", 0))
            for node in self._written[kind.key].values():
                self._make(kind, node)
            if not kind.named and not self._built[kind.key]:
                self._make(kind, Node(kind.key, "", 0))  # a broken one: its defaults, for the checks
        parts: dict[str, Any] = {}
        for kind in OBJECTS:
            built = self._built[kind.key]
            parts[kind.attr] = built if kind.named else built[""]
        settings = Settings(source=self._document.source, **parts)
        check.check(settings, self._lines, self._problems)
        self._problems.raise_any()
        return settings

    def _admit(self, node: Node) -> None:
        """Take an object in if it is a known one with a proper name, not seen before."""
        kind = BY_KEY.get(node.kind)
        if kind is None:
            self._complain(
                f"{node.kind!r} is not an object of the configuration", node.line, _near(node.kind, BY_KEY)
            )
        elif kind.named and not NAME.fullmatch(node.name):
            self._complain(
                f"a {node.kind} needs a name of letters, digits, '-', '_' and '.'",
                node.line,
                f'write [{node.kind}.NAME], in XML <{node.kind} name="NAME">',
            )
        elif node.name and not kind.named:
            self._complain(f"there is only one {node.kind}; it has no name", node.line)
        elif node.name in (known := self._written[node.kind]):
            first = known[node.name].line
            self._complain(f"{_title(node)} is there twice; the first is on line {first}", node.line)
        else:
            known[node.name] = node

    def _make(self, kind: ObjectType, node: Node) -> None:
        self._lines.note(node)
        values = {entry.key: entry for entry in node.entries}
        if "" in values:
            shape = f"[{kind.key}.NAME]" if kind.named else f"[{kind.key}]"
            self._complain(f"{kind.key} is not written as an object", node.line, f"write it as {shape}")
            return
        for entry in node.entries:
            if kind.field(entry.key) is None:
                self._complain_unknown(kind, node, entry)
        attributes = {
            field.attribute: self._value(node, field, values.get(field.key)) for field in kind.fields
        }
        broken = [value for value in attributes.values() if value is _BROKEN]
        if kind.named:
            attributes["name"] = node.name
        if not broken:
            self._built[kind.key][node.name] = kind.target(**attributes)

    def _value(self, node: Node, field: Field, entry: Entry | None) -> Any:
        if entry is None and field.required:
            self._complain(
                f"{_title(node)} has no {field.key}", node.line, f"add {field.key}: {field.kind.allowed}"
            )
            return _BROKEN
        raw = field.default if entry is None else entry.value
        if raw is None:
            return () if field.kind.many else None
        try:
            value = field.kind.parse(raw)
            if field.required and value in ((), None):
                raise ValueError("it must not be empty")
        except ValueError as error:
            line = node.line if entry is None else entry.line
            self._complain(f"{_title(node)}: {field.key}: {error}", line)
            return _BROKEN
        return self._resolve(node, field, entry, value)

    def _resolve(self, node: Node, field: Field, entry: Entry | None, value: Any) -> Any:
        """Paths become absolute, names become the objects they stand for."""
        if isinstance(value, Path):
            return self._base / value
        if field.kind.refers_to is None:
            return value
        names = value if field.kind.many else (value,)
        line = node.line if entry is None else entry.line
        found = [self._find(node, field, field.kind.refers_to, name, line) for name in names]
        if any(one is _BROKEN for one in found):
            return _BROKEN
        return tuple(found) if field.kind.many else found[0]

    def _find(self, node: Node, field: Field, kind: str, name: str, line: int) -> Any:
        if name not in self._written[kind]:
            near = _near(name, self._written[kind]) or f"add [{kind}.{name}]"
            self._complain(f"{_title(node)}: {field.key}: there is no {kind} {name!r}", line, near)
        return self._built[kind].get(name, _BROKEN)

    def _complain_unknown(self, kind: ObjectType, node: Node, entry: Entry) -> None:
        hint = _near(entry.key, [field.key for field in kind.fields])
        self._complain(f"{_title(node)} has no setting {entry.key!r}", entry.line, hint)

    def _complain(self, message: str, line: int, hint: str = "") -> None:
        self._problems.add(message, line=line or None, hint=hint)


def _near(word: str, known: Iterable[str]) -> str:
    """A hint with the nearest known word, or with all of them if none is near."""
    words = list(known)
    found = difflib.get_close_matches(word, words, n=1)
    if found:
        return f"did you mean {found[0]!r}?"
    return f"known: {', '.join(words)}" if words else ""


def _title(node: Node) -> str:
    return f"{node.kind} {node.name}" if node.name else node.kind
