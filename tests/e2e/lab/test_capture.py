"""A capture sees exactly what passed."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from opentsm.errors import PlatformError
from opentsm.lab import Lab, LabSpec

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(LabSpec()) as made:
        yield made


def test_every_packet_is_seen_with_its_addresses_length_and_payload(lab: Lab) -> None:
    with (
        lab["phone1"].capture("eth0") as inner,
        lab["firewall1"].capture("wan0") as outer,
        lab["phone1"].udp() as phone,
    ):
        for number in range(200):
            phone.sendto(b"\x16\xfe\xfd" + number.to_bytes(2), (lab["server"].ipv4, 443))
        port = phone.getsockname()[1]
        outer.wait_for(200, protocol="udp", port=443)
    for wire, source in ((inner, lab["phone1"].ipv4), (outer, lab.plan.wan(1).ipv4)):
        seen = wire.select(protocol="udp", port=443, source=source, direction="out")
        assert [int.from_bytes(packet.payload[3:]) for packet in seen] == list(range(200))
        assert {packet.length for packet in seen} == {33}
        assert all(packet.is_dtls for packet in seen)
        assert [packet.time for packet in seen] == sorted(packet.time for packet in seen)
        assert wire.missed == 0
    assert {packet.source_port for packet in inner.select(protocol="udp", port=443)} == {port}


def test_directions_are_those_of_the_captured_host(lab: Lab) -> None:
    with lab["server"].listen(port=443) as listener, lab["server"].capture("wan0") as wire:
        with lab["phone1"].socket() as stream:
            stream.settimeout(10)
            stream.connect((lab["server"].ipv4, 443))
            stream.send(b"\x16\x03\x01hello")
            wire.wait_for(3, protocol="tcp", direction="in")  # SYN, ACK, data
        listener.settimeout(10)
        listener.accept()[0].close()
    syn = wire.select(protocol="tcp", direction="in")[0]
    assert (syn.flags, syn.destination_port) == (2, 443)
    assert wire.select(protocol="tcp", direction="out")[0].flags == 0x12
    assert [packet.payload for packet in wire.packets if packet.is_tls] == [b"\x16\x03\x01hello"]


def test_ipv6_is_seen_too(lab: Lab) -> None:
    with lab["firewall1"].capture("wan0") as wire, lab["phone1"].udp(lab["phone1"].ipv6) as phone:
        phone.sendto(b"six", (lab["server"].ipv6, 9))
        (packet,) = wire.wait_for(1, protocol="udp", destination=lab["server"].ipv6)
    assert (packet.version, packet.payload) == (6, b"six")


def test_a_capture_is_bounded_and_says_what_it_missed(lab: Lab) -> None:
    with lab["phone1"].capture("eth0", max_packets=5) as wire, lab["phone1"].udp() as phone:
        for _ in range(20):
            phone.sendto(b"x", (lab["server"].ipv4, 9))
    assert len(wire.packets) == 5
    assert wire.missed >= 15


def test_a_pcap_file_holds_the_packets(lab: Lab, tmp_path: Path) -> None:
    with lab["firewall1"].capture("wan0", snap_length=64) as wire, lab["phone1"].udp() as phone:
        phone.sendto(b"y" * 100, (lab["server"].ipv4, 9))
        wire.wait_for(1, protocol="udp")
    wire.save(tmp_path / "wire.pcap")
    data = (tmp_path / "wire.pcap").read_bytes()
    magic, *_, snap, link = struct.unpack_from("=IHHiIII", data)
    assert (magic, snap, link) == (0xA1B23C4D, 64, 101)
    offset, lengths = 24, []
    while offset < len(data):
        _, _, kept, length = struct.unpack_from("=IIII", data, offset)
        lengths.append((kept, length))
        offset += 16 + kept
    assert offset == len(data)
    assert (64, 128) in lengths


def test_a_wrong_interface_is_named(lab: Lab) -> None:
    with pytest.raises(PlatformError, match="eth7"):
        lab["phone1"].capture("eth7")


def test_waiting_in_vain_says_how_many_came(lab: Lab) -> None:
    with lab["phone1"].capture("eth0") as wire, lab["phone1"].udp() as phone:
        phone.sendto(b"x", (lab["server"].ipv4, 9))
        with pytest.raises(TimeoutError, match="1 of 2"):
            wire.wait_for(2, within=0.05, protocol="udp", port=9)
