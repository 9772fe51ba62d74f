"""The table of all settings agrees with the model, the documents and the examples."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from xml.etree.ElementTree import Element

import defusedxml.ElementTree
import pytest

from opentsm.config.docs import main, reference, xsd
from opentsm.config.model import Settings
from opentsm.config.schema import BY_KEY, OBJECTS, Effect, Field, ObjectType
from opentsm.limits import KEEPALIVE_TIMER_STREAM, TUNNEL_PERSISTENCE_TIME

XS = "{http://www.w3.org/2001/XMLSchema}"
FIELDS = [
    pytest.param(kind, field, id=f"{kind.key}.{field.key}") for kind in OBJECTS for field in kind.fields
]


@pytest.mark.parametrize("kind", OBJECTS, ids=lambda kind: kind.key)
def test_every_setting_has_its_place_in_the_model(kind: ObjectType) -> None:
    expected = {field.name for field in dataclasses.fields(kind.target)}
    found = {field.attribute for field in kind.fields} | ({"name"} if kind.named else set())
    assert found == expected


def test_every_part_of_the_settings_is_an_object_of_the_schema() -> None:
    held = {field.name for field in dataclasses.fields(Settings)} - {"source"}
    assert {kind.attr for kind in OBJECTS} == held


@pytest.mark.parametrize(("kind", "field"), FIELDS)
def test_defaults_are_valid_and_references_come_first(kind: ObjectType, field: Field) -> None:
    if field.default is not None:
        field.kind.parse(field.default)
        assert not field.required
    if field.kind.refers_to is not None:
        order = [one.key for one in OBJECTS]
        assert order.index(field.kind.refers_to) < order.index(kind.key)


@pytest.mark.parametrize(("kind", "field"), FIELDS)
def test_the_documentation_is_a_sentence(kind: ObjectType, field: Field) -> None:
    assert re.fullmatch(r"[A-Z`].*[.`]", field.doc, re.DOTALL), field.doc


def test_what_a_reload_can_change_is_what_the_design_promises() -> None:
    """All but listener addresses, and what a process without privileges cannot do, reload."""
    restart = {f"{kind.key}.{f.key}" for kind in OBJECTS for f in kind.fields if f.effect is Effect.RESTART}
    assert restart == {
        "server.workers",
        "server.user",
        "server.admin-socket",
        "server.store",
        "realm.core",
        "realm.tun",
        "realm.addresses",
        "tscf-port.address",
        "tscf-port.port",
        "tscf-port.transport-protocol",
        "tscf-port.congestion-control",
        "tscf-interface.realm",
        "tscf-interface.ports",
        *(f"{kind}.{field.key}" for kind in ("sbc", "trunk") for field in BY_KEY[kind].fields),
    }


def test_timers_have_the_incumbents_ranges() -> None:
    parse = {field.key: field.kind.parse for field in BY_KEY["timers"].fields}
    for key, lowest, highest in (
        ("keepalive-timer", 30, 660),
        ("keepalive-timer-datagram", 30, 660),
        ("tunnel-persistence-time", 10, 700),
    ):
        assert [parse[key](value) for value in (0, lowest, highest)] == [0, lowest, highest]
        for value in (lowest - 1, highest + 1):
            with pytest.raises(ValueError, match="out of range"):
                parse[key](value)
    assert (KEEPALIVE_TIMER_STREAM, TUNNEL_PERSISTENCE_TIME) == (300.0, 330.0)


def test_the_reference_is_up_to_date(root: Path) -> None:
    """If this fails: python -m opentsm.config.docs docs"""
    assert (root / "docs/configuration.md").read_text(encoding="utf-8") == reference()


def test_the_xml_schema_is_up_to_date(root: Path) -> None:
    """If this fails: python -m opentsm.config.docs docs"""
    assert (root / "docs/opentsm.xsd").read_text(encoding="utf-8") == xsd()


def test_both_documents_are_written_where_asked(tmp_path: Path) -> None:
    main(str(tmp_path))
    assert (tmp_path / "configuration.md").read_text(encoding="utf-8") == reference()
    assert (tmp_path / "opentsm.xsd").read_text(encoding="utf-8") == xsd()


@pytest.mark.parametrize(("kind", "field"), FIELDS)
def test_the_reference_names_every_setting(kind: ObjectType, field: Field) -> None:
    heading = f"[{kind.key}.NAME]" if kind.named else f"[{kind.key}]"
    section = reference().partition(f"\n## `{heading}`")[2].partition("\n## ")[0]
    assert f"| `{field.key}` |" in section


def test_the_example_shows_every_setting_that_has_an_effect_there(root: Path) -> None:
    tree = tomllib.loads((root / "examples/server.toml").read_text())
    shown = set()
    for key, table in tree.items():
        for inner in table.values() if BY_KEY[key].named else [table]:
            shown |= {f"{key}.{field}" for field in inner}
    every = {f"{kind.key}.{field.key}" for kind in OBJECTS for field in kind.fields}
    assert every - shown == {
        "authentication.token-file",
        "authentication.plugins",
        "authentication.plugin-options",
        "realm.routes",
    }


def elements(parent: Element) -> dict[str, Element]:
    return {one.get("name", ""): one for one in parent.iter(f"{XS}element")}


def test_the_xml_example_keeps_to_the_xml_schema(root: Path) -> None:
    """Walks the example along the schema: every element is declared, every text fits its pattern or list."""
    schema = defusedxml.ElementTree.fromstring(xsd())
    simple = {
        one.get("name"): [p.get("value", "") for p in one.iter(f"{XS}pattern")]
        for one in schema.findall(f"{XS}simpleType")
    }
    types = {one.get("name"): one for one in schema.findall(f"{XS}complexType")}
    count = 0
    for held in defusedxml.ElementTree.fromstring((root / "examples/server.xml").read_bytes()):
        declared = elements(types[held.tag])
        assert (held.get("name") is not None) == (types[held.tag].find(f"{XS}attribute") is not None)
        for setting in held:
            element, text = declared[setting.tag], setting.text or ""
            listed = [one.get("value") for one in element.iter(f"{XS}enumeration")]
            assert text in listed or not listed
            for pattern in simple.get(element.get("type"), []):
                assert re.fullmatch(pattern, text), (setting.tag, text)
            count += 1
    assert count > 40
