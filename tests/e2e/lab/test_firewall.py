"""Firewalls and NAT on real packets."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator

import pytest

from opentsm.lab import Lab, LabSpec, firewall
from opentsm.lab.nftables import Counter

pytestmark = pytest.mark.netns

WAIT = 10.0


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(LabSpec(emulate=False)) as made:
        yield made


@pytest.fixture(autouse=True)
def _open_firewall(lab: Lab) -> None:
    lab.firewall().apply(firewall.everything())
    lab.firewall().masquerade(True)
    lab.firewall().flush()


@pytest.fixture
def server(lab: Lab) -> Iterator[socket.socket]:
    with lab["server"].udp(port=443) as opened:
        opened.settimeout(WAIT)
        yield opened


@pytest.fixture
def phone(lab: Lab) -> Iterator[socket.socket]:
    with lab["phone1"].udp() as opened:
        opened.connect((lab["server"].ipv4, 443))
        opened.settimeout(WAIT)
        yield opened


def matched(lab: Lab, rule: str) -> Counter:
    """A rule's counter, once it has counted anything: forwarding may lag behind sending."""
    deadline = time.monotonic() + WAIT
    while not (counter := lab.firewall().counters()[rule]).packets:
        assert time.monotonic() < deadline, f"nothing matched {rule}"
    return counter


def tcp_outcome(lab: Lab, address: str, port: int, *, within: float = WAIT) -> str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with lab["phone1"].socket(family) as stream:
        stream.settimeout(within)
        try:
            stream.connect((address, port))
        except TimeoutError:
            return "silence"
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return "connected"


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_only_tcp_443_passes(lab: Lab, family: str) -> None:
    address = getattr(lab["server"], family)
    lab.firewall().apply(firewall.tcp_443_only())
    with lab["server"].listen(address, 443), lab["server"].listen(address, 80):
        assert tcp_outcome(lab, address, 443) == "connected"
        assert tcp_outcome(lab, address, 80, within=0.3) == "silence"
    assert matched(lab, "refuse-tcp-up").packets >= 1


def test_refusing_aloud_is_heard_at_once(lab: Lab, server: socket.socket, phone: socket.socket) -> None:
    lab.firewall().apply(firewall.tcp_443_only(refuse="reject"))
    assert tcp_outcome(lab, lab["server"].ipv4, 80) == "ECONNREFUSED"
    phone.send(b"x")
    with pytest.raises(ConnectionRefusedError):
        phone.recv(10)


def test_a_running_udp_flow_is_cut_in_both_directions_and_comes_back(
    lab: Lab, server: socket.socket, phone: socket.socket
) -> None:
    phone.send(b"1")
    _, source = server.recvfrom(10)
    lab.firewall().apply(firewall.udp_blocked())
    phone.send(b"lost")
    server.sendto(b"lost too", source)
    assert matched(lab, "block-udp-up") == Counter(packets=1, bytes=20 + 8 + 4)
    assert matched(lab, "block-udp-down").packets == 1
    lab.firewall().apply(firewall.everything())
    phone.send(b"2")
    assert server.recv(10) == b"2"
    server.sendto(b"3", source)
    assert phone.recv(10) == b"3"


def test_a_one_way_block_leaves_the_other_way(lab: Lab, server: socket.socket, phone: socket.socket) -> None:
    phone.send(b"1")
    _, source = server.recvfrom(10)
    lab.firewall().apply(firewall.one_way("down", "udp", port=443))
    phone.send(b"2")
    assert server.recv(10) == b"2"
    server.sendto(b"lost", source)
    assert matched(lab, "block-udp-443-down").packets >= 1
    phone.setblocking(False)
    with pytest.raises(BlockingIOError):
        phone.recv(10)


def test_an_outsider_cannot_begin(lab: Lab) -> None:
    with (
        lab["phone1"].udp(lab["phone1"].ipv6, 7000) as phone,
        lab["server"].udp(lab["server"].ipv6) as outsider,
    ):
        outsider.sendto(b"hello?", (lab["phone1"].ipv6, 7000))
        assert matched(lab, "refuse-udp-down").packets >= 1
        with pytest.raises(BlockingIOError):
            phone.recv(10)


def test_nat_hides_the_phone_and_is_remembered(lab: Lab, server: socket.socket, phone: socket.socket) -> None:
    phone.send(b"x")
    _, source = server.recvfrom(10)
    assert source[0] == lab.plan.wan(1).ipv4
    (known,) = [c for c in lab.firewall().connections() if c.protocol == "udp"]
    assert known.original.source == lab["phone1"].ipv4
    assert (known.reply.destination, known.reply.destination_port) == source


def test_a_rebinding_changes_the_outer_port_every_time(
    lab: Lab, server: socket.socket, phone: socket.socket
) -> None:
    seen = []
    for _ in range(4):
        phone.send(b"x")
        seen.append(server.recvfrom(10)[1])
        lab.firewall().rebind()
    assert len(set(seen)) == 4
    server.sendto(b"to a mapping that is gone", seen[-1])
    phone.setblocking(False)
    with pytest.raises(BlockingIOError):
        phone.recv(100)


def test_a_mapping_dies_of_silence_as_configured(
    lab: Lab, server: socket.socket, phone: socket.socket
) -> None:
    lab.firewall().timeouts(udp=1, udp_stream=1)
    phone.send(b"x")
    _, source = server.recvfrom(10)
    deadline = time.monotonic() + WAIT
    while [c for c in lab.firewall().connections() if c.protocol == "udp"]:
        assert time.monotonic() < deadline, "the mapping does not die"
    server.sendto(b"too late", source)
    phone.setblocking(False)
    with pytest.raises(BlockingIOError):
        phone.recv(10)
    lab.firewall().timeouts(udp=30, udp_stream=120)


def test_without_masquerade_the_phone_is_seen(lab: Lab, server: socket.socket, phone: socket.socket) -> None:
    lab.firewall().masquerade(False)
    phone.send(b"x")
    assert server.recvfrom(10)[1][0] == lab["phone1"].ipv4


def test_servers_can_be_named(lab: Lab, phone: socket.socket, server: socket.socket) -> None:
    lab.firewall().apply(firewall.tcp_udp_443(lab["server"].ipv4))
    phone.send(b"x")
    assert server.recv(10) == b"x"
    lab.firewall().apply(firewall.tcp_udp_443("198.19.9.9"))
    phone.send(b"x")
    assert matched(lab, "refuse-udp-up").packets >= 1
    assert "ip daddr 198.19.9.9" in lab.firewall().text()
