"""The reference (docs/configuration.md) and the XML schema (docs/opentsm.xsd), written from ``schema``.

``python -m opentsm.config.docs DIRECTORY`` writes both; a unit test fails when they are out of date.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape, quoteattr

from opentsm.config.schema import OBJECTS, Effect, Field, ObjectType
from opentsm.config.xml import ROOT

_INTRODUCTION: Final = """\
# Configuration of the server

One file, TOML or (by its ending `.xml`) XML. Complete examples with the same content:
[server.toml](../examples/server.toml), [server.xml](../examples/server.xml). This page is written from
the schema in `opentsm.config.schema`; so is [opentsm.xsd](opentsm.xsd).

## How it is written
* An object that there can be several of has a name: `[tscf-interface.access]` in TOML,
  `<tscf-interface name="access">` in XML. Names consist of letters, digits, `-`, `_` and `.`, at most 64.
* Objects refer to each other by name. The order in the file does not matter, except inside lists.
* A list is a TOML array, or one text with commas: `["v4", "v6"]` or `"v4, v6"`. In XML an element is
  written once for each item, or once with commas.
* Durations: `300` or `"300 s"`, `"5 min"`, `"250 ms"`, `"1 h"`; a bare number is seconds.
* Rates: `"128 KB/s"`, `"2 Mbit/s"`; units B/s, KB/s (1024 bytes), MB/s, kbit/s (1000 bits), Mbit/s, Gbit/s;
  a bare number is KB/s.
* Switches: `true` and `false` in TOML; in both `on`/`off`, `enabled`/`disabled`, `yes`/`no`.
* File names are relative to the directory of the configuration file.
* XML: the outermost element is `<opentsm>`; document types and entities are refused.

## What is checked
Unknown objects and settings are errors, as are names that refer to nothing, values out of range, address
ranges that overlap, and ports used twice. Every problem is reported with file, line and remedy:

```
server.toml:31: tscf-interface access has no setting 'address-pool' (did you mean 'address-pools'?)
```

`opentsm serve --check FILE` only checks. A running server checks a changed file in the same way before it
takes over anything; a file with a problem changes nothing.

## When a change counts
The last column below says when a change counts after a reload (SIGHUP, or the file has changed):
*at once*; *for newly established tunnels*, while existing ones keep what they have; or *after a restart*,
and the server says so in its log. Adding or removing an object counts as its heading says.
"""


def reference() -> str:
    """The text of docs/configuration.md."""
    return _INTRODUCTION + "".join(_section(kind) for kind in OBJECTS)


def xsd() -> str:
    """The text of docs/opentsm.xsd (XML Schema 1.0).

    It is a little wider than the loader: references, ranges and what must not be there twice are
    checked by the loader only.
    """
    return "\n".join(_xsd_lines()) + "\n"


def _section(kind: ObjectType) -> str:
    heading = f"[{kind.key}.NAME]" if kind.named else f"[{kind.key}]"
    lines = [f"\n## `{heading}`", kind.doc]
    if kind.named:
        lines.append(f"Adding or removing one counts {kind.presence.value}.")
    lines += ["", "| setting | type | allowed | default | what it does | a change counts |"]
    lines.append("|---|---|---|---|---|---|")
    lines += [_row(field) for field in kind.fields]
    return "\n".join(lines) + "\n"


def _row(field: Field) -> str:
    default = "*required*" if field.required else f"`{field.default}`" if field.default else "none"
    effect = field.effect.value
    cells = [f"`{field.key}`", field.kind.label, field.kind.allowed, default, field.doc, effect]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


_SIMPLE_TYPES: Final = {
    "text": None,
    "name": r"\s*[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}\s*",
    "duration": r"\s*[0-9]+(\.[0-9]+)?\s*(ms|s|sec|min|h)?\s*",
    "rate": r"\s*[0-9]+(\.[0-9]+)?\s*([KkMm]?[Bb]/s|[KkMmGg]bit/s)?\s*",
    "count": r"\s*[0-9]+\s*",
    "switch": r"\s*(on|off|enabled|disabled|true|false|yes|no)\s*",
}


def _xsd_lines() -> Iterator[str]:
    yield '<?xml version="1.0" encoding="UTF-8"?>'
    yield "<!-- Written by opentsm.config.docs from the schema; do not edit. -->"
    yield '<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema" elementFormDefault="qualified">'
    yield from _indent(_simple_types())
    yield f'  <xs:element name="{ROOT}">'
    yield "    <xs:complexType>"
    yield '      <xs:choice minOccurs="0" maxOccurs="unbounded">'
    for kind in OBJECTS:
        yield f'        <xs:element name="{kind.key}" type="{kind.key}"/>'
    yield "      </xs:choice>"
    yield "    </xs:complexType>"
    for kind in OBJECTS:
        if kind.named:
            yield f'    <xs:unique name="unique-{kind.key}">'
            yield f'      <xs:selector xpath="{kind.key}"/>'
            yield '      <xs:field xpath="@name"/>'
            yield "    </xs:unique>"
    yield "  </xs:element>"
    for kind in OBJECTS:
        yield from _indent(_object_type(kind))
    yield "</xs:schema>"


def _simple_types() -> Iterator[str]:
    for name, pattern in _SIMPLE_TYPES.items():
        yield f'<xs:simpleType name="{name}">'
        yield '  <xs:restriction base="xs:string">'
        if pattern is not None:
            yield f"    <xs:pattern value={quoteattr(pattern)}/>"
        yield "  </xs:restriction>"
        yield "</xs:simpleType>"


def _object_type(kind: ObjectType) -> Iterator[str]:
    yield f'<xs:complexType name="{kind.key}">'
    yield from _indent(_documentation(kind.doc))
    yield '  <xs:choice minOccurs="0" maxOccurs="unbounded">'
    for field in kind.fields:
        yield from _indent(_element(field), "    ")
    yield "  </xs:choice>"
    if kind.named:
        yield '  <xs:attribute name="name" type="name" use="required"/>'
    yield "</xs:complexType>"


def _element(field: Field) -> Iterator[str]:
    listed = field.kind.values and not field.kind.many
    type_name = "text" if field.kind.many or listed else field.kind.xsd
    yield f'<xs:element name="{field.key}"' + ("" if listed else f' type="{type_name}"') + ">"
    yield from _indent(
        _documentation(f"{field.doc} Allowed: {field.kind.allowed}. {_default_and_effect(field)}")
    )
    if listed:
        yield "  <xs:simpleType>"
        yield '    <xs:restriction base="xs:token">'
        for value in field.kind.values:
            yield f'      <xs:enumeration value="{value}"/>'
        yield "    </xs:restriction>"
        yield "  </xs:simpleType>"
    yield "</xs:element>"


def _default_and_effect(field: Field) -> str:
    default = "Required." if field.required else f"Default: {field.default or 'none'}."
    return (
        default if field.effect is Effect.NEW_TUNNELS else f"{default} A change counts {field.effect.value}."
    )


def _documentation(text: str) -> Iterator[str]:
    yield f"<xs:annotation><xs:documentation>{escape(text)}</xs:documentation></xs:annotation>"


def _indent(lines: Iterable[str], by: str = "  ") -> Iterator[str]:
    return (by + line for line in lines)


def main(directory: str) -> None:
    """Write both files."""
    (Path(directory) / "configuration.md").write_text(reference(), encoding="utf-8")
    (Path(directory) / "opentsm.xsd").write_text(xsd(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
