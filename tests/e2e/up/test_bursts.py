"""Bursts through both TUN devices: several packets in one write are as if they had come alone."""

from __future__ import annotations

import socket
import struct

import pytest

from opentsm.lab.host import Host
from opentsm.lab.serving import ServerProcess
from opentsm.lab.topology import Lab
from opentsm.lab.waiting import until_now
from tests.e2e.up.harness import CORE, Up

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]

UDP_SEGMENT = 103
SIZE = 172
PORT = 7000
TRIES = 20
"""Bursts until one of them has been in one turn of the server; mostly the first is."""


def burst(sock: socket.socket, payloads: list[bytes]) -> None:
    """Datagrams that leave by one system call, as from a gateway with many calls (UDP_SEGMENT, udp(7))."""
    size = struct.pack("=H", len(payloads[0]))
    sock.sendmsg([b"".join(payloads)], [(socket.SOL_UDP, UDP_SEGMENT, size)])


def voice(number: int, count: int) -> list[bytes]:
    """Payloads like RTP's, the last one shorter."""
    payloads = [struct.pack("!BBHII", 0x80, 0, number, k, 7) + bytes([k]) * (SIZE - 12) for k in range(count)]
    return [*payloads[:-1], payloads[-1][:100]]


def wrong_checksum(source: tuple[str, int], to: tuple[str, int], payload: bytes) -> bytes:
    """A whole IPv4 packet, the kernel computes its header's sum only."""
    udp = struct.pack("!HHHH", source[1], to[1], 8 + len(payload), 0x1234)
    ends = socket.inet_aton(source[0]) + socket.inet_aton(to[0])
    head = struct.pack("!BBHHHBBH", 0x45, 0, 28 + len(payload), 0, 0x4000, 64, socket.IPPROTO_UDP, 0)
    return head + ends + udp + payload


def checksum_errors(host: Host) -> int:
    """How many UDP datagrams with a wrong checksum the host has met."""
    names, values = (
        line.split() for line in host.run(["cat", "/proc/net/snmp"]).stdout.splitlines() if line[:4] == "Udp:"
    )
    return int(values[names.index("InCsumErrors")])


@pytest.mark.parametrize("version", [4, 6])
def test_a_burst_of_one_flow_comes_out_as_it_went_in(lab: Lab, server: ServerProcess, version: int) -> None:
    phone, core = lab["phone1"], lab["core"]
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    here = (core.ipv4 if version == 4 else core.ipv6, PORT)
    with (
        Up(lab, server, *CORE) as up,
        core.socket(family, socket.SOCK_DGRAM) as sink,
        phone.socket(family, socket.SOCK_DGRAM) as source,
    ):
        sink.bind(here)
        sink.settimeout(20)
        source.bind((up.address(version), 40000))
        source.connect(here)
        for number in range(TRIES):
            sent = voice(number, 24)
            burst(source, sent)
            assert [sink.recv(2048) for _ in sent] == sent
            if server.counters()["tun_runs"]:
                break
        assert server.counters()["tun_runs"], "nothing was written in one piece"


def test_a_wrong_checksum_stays_wrong_in_a_burst(lab: Lab, server: ServerProcess) -> None:
    phone, core = lab["phone1"], lab["core"]
    here = (core.ipv4, PORT)
    with (
        Up(lab, server, *CORE) as up,
        core.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink,
        phone.socket(socket.AF_INET, socket.SOCK_DGRAM) as source,
        phone.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw,
    ):
        sink.bind(here)
        sink.settimeout(20)
        source.bind((up.address(), 40000))
        source.connect(here)
        bad = wrong_checksum(source.getsockname(), here, bytes(SIZE))
        before = checksum_errors(core)
        for number in range(TRIES):
            sent = [*voice(number, 8), *voice(number + TRIES, 8)]
            burst(source, sent[:8])
            raw.sendto(bad, (core.ipv4, 0))
            burst(source, sent[8:])
            assert [sink.recv(2048) for _ in sent] == sent
        assert server.counters()["tun_runs"]
        until_now(lambda: checksum_errors(core) == before + TRIES, what="wrong checksums at the core")
