"""The calls of the patent's text: numbers returned, callbacks made, the opaque pointer handed back."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import pytest

from opentsm import tsc
from opentsm.admin.certificates import Issued
from opentsm.errors import ConnectError
from tests.unit.client.hosting import peer_in_a_thread
from tests.unit.client.peer import ECHO_PORT, GATEWAY, Peer, make_authority, server_certificate

ECHO = (GATEWAY, ECHO_PORT)
Data = tsc.tsc_notification_data


@pytest.fixture(scope="module")
def authority() -> Issued:
    return make_authority()


@pytest.fixture
def peer(authority: Issued) -> Iterator[Peer]:
    with peer_in_a_thread(server_certificate(authority)) as peer:
        yield peer
        tsc.tsc_shutdown()


@pytest.fixture
def handle(peer: Peer, authority: Issued) -> int:
    return tsc.tsc_new_tunnel(peer.url, ca=authority.chain_pem)


def test_ddt_as_the_text_tells_it(handle: int) -> None:
    """Set the option, bind, get the notification with the socket and the opaque value, go on."""
    told: queue.Queue[Data] = queue.Queue()
    opaque = object()
    rtp = tsc.tsc_socket(handle, tsc.AF_INET, tsc.SOCK_DGRAM)
    assert tsc.tsc_notification_enable(handle, tsc.tsc_notification_ddt, told.put, opaque) > 0
    assert tsc.tsc_setsockopt(rtp, tsc.SOL_SOCKET, tsc.TSC_SO_DDT, 1) == 0
    assert tsc.tsc_getsockopt(rtp, tsc.SOL_SOCKET, tsc.TSC_SO_DDT) == 1
    assert tsc.tsc_getsockopt(rtp, tsc.SOL_SOCKET, tsc.TSC_SO_PATH) == 0  # set is not yet in force
    assert told.empty()
    assert tsc.tsc_bind(rtp, ("", 40000)) == 0
    first, second = told.get(timeout=30), told.get(timeout=30)
    assert (first.event, first.available, first.enabled) == ("ddt-available", True, False)
    assert (second.event, second.available, second.enabled) == ("ddt-enabled", True, True)
    assert (second.socket, second.opaque, first.opaque) == (rtp, opaque, opaque)
    assert tsc.tsc_getsockopt(rtp, tsc.SOL_SOCKET, tsc.TSC_SO_PATH) == 1
    assert tsc.tsc_sendto(rtp, b"media", ECHO) == 5
    assert tsc.tsc_recvfrom(rtp, timeout=30) == (b"media", ECHO)
    assert tsc.tsc_setsockopt(rtp, tsc.SOL_SOCKET, tsc.TSC_SO_DDT, 0) == 0
    third = told.get(timeout=30)
    assert (third.event, third.enabled, third.socket) == ("ddt-disabled", False, rtp)
    assert third.reason == "switched"


def test_without_the_service_the_answer_is_not_available(authority: Issued) -> None:
    told: queue.Queue[Data] = queue.Queue()
    with peer_in_a_thread(server_certificate(authority), frozenset()) as peer:
        handle = tsc.tsc_new_tunnel(peer.url, ca=authority.chain_pem)
        tsc.tsc_notification_enable(handle, tsc.tsc_notification_ddt, told.put, None)
        rtp = tsc.tsc_socket(handle)
        assert tsc.tsc_setsockopt(rtp, tsc.SOL_SOCKET, tsc.TSC_SO_DDT, 1) == 0
        assert tsc.tsc_bind(rtp, ("", 0)) == 0
        answer = told.get(timeout=30)
        assert (answer.available, answer.enabled, answer.socket) == (False, False, -1)
        assert tsc.tsc_sendto(rtp, b"on", ECHO) == 2
        assert tsc.tsc_recvfrom(rtp, timeout=30) == (b"on", ECHO)
        tsc.tsc_shutdown()


def test_options_that_cannot_be_set_answer_1(handle: int) -> None:
    rtp = tsc.tsc_socket(handle)
    assert tsc.tsc_setsockopt(rtp, 99, tsc.TSC_SO_DDT, 1) == 1
    assert tsc.tsc_setsockopt(rtp, tsc.SOL_SOCKET, 99, 1) == 1
    assert tsc.tsc_setsockopt(rtp, tsc.SOL_SOCKET, tsc.TSC_SO_DDT, 2) == 1
    assert tsc.tsc_setsockopt(rtp + 1, tsc.SOL_SOCKET, tsc.TSC_SO_DDT, 1) == 1
    assert tsc.tsc_setsockopt(rtp, tsc.SOL_SOCKET, tsc.TSC_SO_TRANSPORT, 2) == 0
    assert tsc.tsc_setsockopt(rtp, tsc.SOL_SOCKET, tsc.TSC_SO_REDUNDANCY, 0x12) == 0
    assert tsc.tsc_getsockopt(rtp, tsc.SOL_SOCKET, tsc.TSC_SO_REDUNDANCY) == 0x12
    assert tsc.tsc_setsockopt(rtp, tsc.SOL_SOCKET, tsc.TSC_SO_REDUNDANCY, 0x19) == 1
    assert tsc.tsc_setsockopt(rtp, tsc.SOL_SOCKET, tsc.TSC_SO_CODING, 0x21) == 0
    assert tsc.tsc_getsockopt(rtp, tsc.SOL_SOCKET, tsc.TSC_SO_CODING) == 0x21
    assert tsc.tsc_setsockopt(rtp, tsc.SOL_SOCKET, tsc.TSC_SO_CODING, 3) == 1
    assert tsc.tsc_getsockopt(rtp, tsc.SOL_SOCKET, tsc.TSC_SO_TRANSPORT) == 2
    assert tsc.tsc_getsockopt(rtp, tsc.SOL_SOCKET, 99) == -1


def test_numbers_that_stand_for_nothing(handle: int) -> None:
    assert tsc.tsc_init() == 0
    assert tsc.tsc_socket(99) == -1
    assert tsc.tsc_socket(handle, tsc.AF_INET, 3) == -1
    assert tsc.tsc_bind(5, ("", 0)) == -1
    assert tsc.tsc_sendto(5, b"x", ECHO) == -1
    assert tsc.tsc_recvfrom(5) is None
    assert tsc.tsc_close(5) == -1
    assert tsc.tsc_get_config(99) is None
    assert tsc.tsc_delete_tunnel(99) == 1
    assert tsc.tsc_notification_enable(99, tsc.tsc_notification_ddt, print) == 0
    assert tsc.tsc_notification_enable(handle, 99, print) == 0
    assert tsc.tsc_notification_disable(99) == 1


def test_recvfrom_waits_no_longer_than_it_is_told(handle: int) -> None:
    sock = tsc.tsc_socket(handle)
    tsc.tsc_bind(sock, ("", 0))
    assert tsc.tsc_recvfrom(sock, timeout=0) is None
    assert tsc.tsc_recvfrom(sock, timeout=0.01) is None
    assert tsc.tsc_connect(sock, ECHO) == 0
    assert tsc.tsc_sendto(sock, b"12345") == 5
    assert tsc.tsc_recvfrom(sock, 3, timeout=30) == (b"123", ECHO)
    assert tsc.tsc_close(sock) == 0
    assert tsc.tsc_getsockname(sock) is None


def test_tcp_sockets(handle: int, peer: Peer, authority: Issued) -> None:
    other = tsc.tsc_new_tunnel(peer.url, ca=authority.chain_pem)
    listening = tsc.tsc_socket(handle, tsc.AF_INET, tsc.SOCK_STREAM)
    assert tsc.tsc_bind(listening, ("", 5060)) == 0
    assert tsc.tsc_listen(listening) == 0
    assert tsc.tsc_accept(listening, timeout=0.01) is None
    calling = tsc.tsc_socket(other, tsc.AF_INET, tsc.SOCK_STREAM)
    there = tsc.tsc_getsockname(listening)
    assert there is not None
    assert tsc.tsc_connect(calling, there) == 0
    accepted = tsc.tsc_accept(listening, timeout=30)
    assert accepted is not None
    answering, peername = accepted
    assert peername == tsc.tsc_getsockname(calling)
    assert tsc.tsc_send(calling, b"REGISTER") == 8
    assert tsc.tsc_recv(answering, timeout=30) == b"REGISTER"
    assert tsc.tsc_recv(answering, timeout=0.01) is None
    assert tsc.tsc_setsockopt(calling, tsc.SOL_SOCKET, tsc.TSC_SO_DDT, 1) == 1  # TCP stays on the stream
    assert tsc.tsc_sendto(calling, b"x", there) == tsc.tsc_listen(tsc.tsc_socket(handle)) == -1
    assert tsc.tsc_close(calling) == 0
    assert tsc.tsc_recv(answering, timeout=30) == b""
    assert tsc.tsc_connect(tsc.tsc_socket(other, tsc.AF_INET, tsc.SOCK_STREAM), (GATEWAY, 9)) == -1


def test_the_configuration(handle: int) -> None:
    config = tsc.tsc_get_config(handle)
    assert config is not None
    assert (config.inner_addresses, config.prefix_lengths) == (("10.99.0.11",), (24,))
    assert (config.services, config.inner_mtu, config.keepalive) == (("DDT",), 1400, 5.0)
    assert config.observed_address is not None
    sock = tsc.tsc_socket(handle)
    assert tsc.tsc_bind(sock, ("", 40000)) == 0
    assert tsc.tsc_getsockname(sock) == ("10.99.0.11", 40000)


def test_callbacks_may_call_and_end_when_disabled(handle: int) -> None:
    told: queue.Queue[object] = queue.Queue()

    def callback(data: Data) -> None:
        told.put(tsc.tsc_get_config(handle))

    number = tsc.tsc_notification_enable(handle, tsc.tsc_notification_ddt, callback)
    rtp = tsc.tsc_socket(handle)
    tsc.tsc_setsockopt(rtp, tsc.SOL_SOCKET, tsc.TSC_SO_DDT, 1)
    tsc.tsc_bind(rtp, ("", 0))
    assert told.get(timeout=30) == tsc.tsc_get_config(handle)
    assert tsc.tsc_notification_disable(number) == 0
    assert tsc.tsc_notification_disable(number) == 1


def test_a_deleted_tunnel_says_so_and_takes_its_sockets_along(handle: int, peer: Peer) -> None:
    told: queue.Queue[Data] = queue.Queue()
    tsc.tsc_notification_enable(handle, tsc.tsc_notification_tunnel, told.put, "mine")
    sock = tsc.tsc_socket(handle)
    tsc.tsc_bind(sock, ("", 0))
    assert tsc.tsc_delete_tunnel(handle) == 0
    end = told.get(timeout=30)
    assert (end.event, end.reason, end.opaque) == ("tunnel-terminated", "local-close", "mine")
    assert tsc.tsc_sendto(sock, b"x", ECHO) == -1
    assert tsc.tsc_delete_tunnel(handle) == 1


def test_no_tunnel_is_an_exception_that_says_why(authority: Issued) -> None:
    with pytest.raises(ConnectError, match="refused"):
        tsc.tsc_new_tunnel("tls://127.0.0.1:1", ca=authority.chain_pem)
    tsc.tsc_shutdown()
    assert not [t for t in threading.enumerate() if t.name.startswith("tsc-")]
