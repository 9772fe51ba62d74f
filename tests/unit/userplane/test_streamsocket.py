"""A stream's socket options, and what the kernel refuses."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from opentsm.userplane import streamsocket as tcp


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as made:
        yield made


def test_a_dead_peer_is_noticed_in_useful_time(sock: socket.socket) -> None:
    assert tcp.tune_stream(sock) == ""
    get = sock.getsockopt
    assert get(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == tcp.USER_TIMEOUT_MS
    assert get(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert get(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == tcp.KEEPALIVE_IDLE


def test_an_accepted_socket_has_what_its_listener_has() -> None:
    """The server tunes its listeners and nothing else, so this has to be so."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        assert tcp.tune_stream(listener, "reno") == ""
        with closing(socket.create_connection(listener.getsockname())), closing(listener.accept()[0]) as one:
            assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == b"reno"
            assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == tcp.USER_TIMEOUT_MS


def test_a_refusal_says_what_to_do(sock: socket.socket) -> None:
    assert "modprobe tcp_nosuch" in tcp.tune_stream(sock, "nosuch")


def test_without_privileges_only_some_may_be_chosen(
    sock: socket.socket, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    class Refusing:
        def setsockopt(self, level: int, option: int, value: object) -> None:
            if option == socket.TCP_CONGESTION:
                raise PermissionError(1, "Operation not permitted")

    refusal = tcp.tune_stream(Refusing(), "cubic")  # type: ignore[arg-type]
    assert "not allowed without privileges" in refusal
    assert "tcp_allowed_congestion_control" in refusal
