"""The page and the table say what was measured, and the page needs nothing but itself."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from opentsm.client.phone.g711 import PCMU
from opentsm.client.phone.speech import speech
from opentsm.lab.demo import page
from opentsm.lab.demo.plots import WIDTH, Axis, call_plot, network_picture
from opentsm.lab.demo.story import Result
from tests.unit.lab.demo.made_up import played

NUMBER = re.compile(r"-?\d+\.?\d*")


@pytest.fixture
def result() -> Result:
    return Result([played()], {"alice": "10.64.1.11", "bob": "10.64.1.10"}, [{"caller": "<alice>"}])


def test_the_table_has_a_row_for_each_stretch_and_direction(result: Result) -> None:
    lines = page.table(result).splitlines()
    assert lines[0].split()[:3] == ["part", "stretch", "direction"]
    before, after = lines[2].split(), lines[4].split()
    assert before[:7] == ["(b)", "before", "the", "switch", "alice", "to", "bob"]
    assert before[7:11] == ["300", "0", "0.0", "10.0"]
    assert after[7:11] == ["300", "100", "2.0", "2.0"]
    assert after[-1] == "3.21"
    assert float(after[-2]) > float(before[-2])


def test_a_busy_machine_is_named(result: Result) -> None:
    assert "too busy" not in page.table(result) + page.page(result, seed=7)
    call = result.parts[0]
    result.parts[0] = replace(call, directions=[replace(way, skipped=11) for way in call.directions])
    assert "too busy to send 22 packets in time" in page.table(result)
    assert "too busy to send 22 packets in time" in page.page(result, seed=7)


def test_findings_are_the_worse_direction(result: Result) -> None:
    ((figure, unit, sentence),) = page.findings(result)
    worse = min(direction.spans[1].mos for direction in result.parts[0].directions)
    assert (figure, unit) == (f"{worse:.2f}", "MOS")
    assert "(2.0 % lost or late)" in sentence


def test_the_page_holds_plots_and_sound_and_fetches_nothing(result: Result) -> None:
    text = page.page(result, seed=7)
    assert text.count("<svg") == 2
    sounds = re.findall(r'src="data:audio/wav;base64,([^"]+)"', text)
    assert len(sounds) == 3
    sound = base64.b64decode(sounds[0])
    assert (sound[:4], sound[8:12]) == (b"RIFF", b"WAVE")
    assert PCMU.encode(speech(12.0)) in sound
    assert set(re.findall(r'(?:src|href)="(\w+):', text)) == {"data"}
    assert "url(" not in text
    assert "@import" not in text
    assert "<script" not in text
    assert "prefers-color-scheme:dark" in text
    assert "&lt;alice&gt;" in text
    assert "10.64.1.11" in text
    assert "700 packets TCP/443 (70 kB), 300 packets UDP/443 (60 kB); nothing else" in text


def test_a_reduced_demonstration_says_what_it_has_left_out(result: Result) -> None:
    result.left_out = ("no firewall, no <NAT>",)
    text = page.page(result, seed=7)
    assert "no firewall, no &lt;NAT&gt;" in text
    assert "WAN emulator" not in text


def test_a_calls_plot_is_drawn_inside_its_picture() -> None:
    tree = ElementTree.fromstring(call_plot(played()))
    height = float(tree.attrib["viewBox"].split()[3])
    kinds = [(element.get("class") or "").split() for element in tree.iter() if element.tag.endswith("path")]
    for name in "sdxl":  # both tunnels, lost and late, in both directions
        assert sum(name in kind for kind in kinds) == 2, name
    for path in (element for element in tree.iter() if element.tag.endswith("path")):
        for x, y in re.findall(r"M(-?[\d.]+) (-?[\d.]+)", path.attrib["d"]):
            assert 0 <= float(x) <= WIDTH
            assert 0 <= float(y) <= height
    words = {element.text for element in tree.iter() if element.tag.endswith("text")}
    assert {"switch <turned>", "on the datagram tunnel", "MOS over three seconds (E-model)"} <= words


def test_every_packet_that_came_is_a_dot() -> None:
    call = played()
    tree = ElementTree.fromstring(call_plot(call))
    dots = sum(
        element.attrib["d"].count("h0")
        for element in tree.iter()
        if (element.get("class") or "").startswith("o ")
    )
    assert dots == sum(packet.came is not None for way in call.directions for packet in way.packets)


def test_an_axis_keeps_what_is_outside_at_its_ends() -> None:
    axis = Axis(0.0, 2.0, 10.0, 20.0)
    assert [axis(value) for value in (-1.0, 0.0, 1.0, 2.0, 9.0)] == [10.0, 10.0, 15.0, 20.0, 20.0]


def test_the_network_is_a_well_formed_picture() -> None:
    tree = ElementTree.fromstring(network_picture(["a & b"], ["c"], ["d"]))
    assert "a & b" in {element.text for element in tree.iter()}
