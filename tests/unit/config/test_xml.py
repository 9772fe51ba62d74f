from __future__ import annotations

import pytest

from opentsm.config.errors import ConfigErrors
from opentsm.config.xml import read_xml


def test_objects_settings_and_lists_come_with_their_lines() -> None:
    text = """<?xml version="1.0"?>
<opentsm xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
         xsi:noNamespaceSchemaLocation="opentsm.xsd">
  <timers/>
  <tscf-interface name="a">
    <ports>v4</ports>
    <!-- a remark -->
    <ports> v6 </ports>
    <state>enabled</state>
  </tscf-interface>
</opentsm>"""
    document = read_xml(text, "f")
    timers, interface = document.nodes
    assert (timers.kind, timers.name, timers.line, timers.entries) == ("timers", "", 4, [])
    assert (interface.name, interface.line) == ("a", 5)
    assert [(e.key, e.value, e.line) for e in interface.entries] == [
        ("ports", ["v4", "v6"], 6),
        ("state", "enabled", 9),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<opentsm>\n<timers></opentsm>", "f:2: not well-formed XML: mismatched tag"),
        ("", "f:1: not well-formed XML: no element found"),
        ("<opentsm/>\n<opentsm/>", "f:2: not well-formed XML"),
        ("<!DOCTYPE opentsm><opentsm/>", "this XML is refused: it has a document type"),
        ('<!DOCTYPE o [<!ENTITY a "b">]><opentsm>&a;</opentsm>', "remove the DOCTYPE and every entity"),
        ('<!DOCTYPE o SYSTEM "file:///etc/passwd"><opentsm/>', "this XML is refused"),
        ("<server/>", "f:1: the outermost element is <server> (it must be <opentsm>)"),
        ("<opentsm>\nhello<timers/></opentsm>", "f:2: text 'hello' before <timers> belongs to no setting"),
        (
            "<opentsm><timers>\nhello</timers></opentsm>",
            "f:2: text 'hello' in <timers> belongs to no setting",
        ),
        ("<opentsm><realm>\n<core><b/></core></realm></opentsm>", "f:2: <b> is inside a setting"),
        ("<opentsm><realm>\n<core unit='s'/></realm></opentsm>", "f:2: <core> has an attribute 'unit'"),
        ("<opentsm>\n<realm name='a' state='b'/></opentsm>", "f:2: <realm> has an attribute 'state'"),
        ('<?xml version="1.0" encoding="utf-16"?><opentsm/>', "f:1: not"),
        ('<?xml version="1.0" encoding="klingon"?><opentsm/>', "f:1: not"),
        ("<opentsm>\ud800</opentsm>", "f: not readable as XML"),
        ("<a>" * 50_000, "f:1: "),
    ],
)
def test_what_is_wrong_says_where_and_what(text: str, said: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        read_xml(text, "f")
    assert said in str(caught.value)


def test_an_entity_bomb_is_refused_before_it_grows() -> None:
    levels = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 20))
    bomb = f'<!DOCTYPE o [<!ENTITY a0 "boom">{levels}]><opentsm>&a19;</opentsm>'
    with pytest.raises(ConfigErrors, match="it has a document type"):
        read_xml(bomb, "f")
