"""Proxies: the handshakes step by step, hostile answers, and a whole tunnel through each kind."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

import opentsm
from opentsm.client.proxy import MAX_RESPONSE_HEAD, Handshake, Proxy, handshake, parse_proxy
from opentsm.errors import ConfigError, ConnectError, RemoteProtocolError
from opentsm.types import Path, PathMode
from tests.unit.client.peer import Peer


def converse(steps: Handshake, answer: bytes) -> tuple[bytes, bytes]:
    """Run a handshake against a fixed answer: (what was sent, what was left unread)."""
    sent = b""
    try:
        want = next(steps)
        while True:
            sent += want.send
            if len(answer) < want.count:
                raise EOFError
            chunk, answer = answer[: want.count], answer[want.count :]
            want = steps.send(chunk)
    except StopIteration:
        return sent, answer


def test_connect_asks_for_the_server_and_leaves_its_bytes_alone() -> None:
    proxy = parse_proxy("http://alice:s%40fe@proxy.example:3128")
    assert (proxy.host, proxy.port, proxy.password) == ("proxy.example", 3128, "s@fe")
    sent, rest = converse(handshake(proxy, "2001:db8::1", 443), b"HTTP/1.1 200 OK\r\nVia: x\r\n\r\nserver")
    assert sent.startswith(b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n")
    assert b"Proxy-Authorization: Basic YWxpY2U6c0BmZQ==\r\n\r\n" in sent
    assert rest == b"server"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 407 Authentication Required\r\n\r\n", "user name and a password"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "403 Forbidden"),
        (b"220 mail.example ESMTP\r\n\r\n", "is it an HTTP proxy"),
        (b"HTTP/1.1 200 OK\r\n" + b"x" * 2 * MAX_RESPONSE_HEAD, "never ends"),
    ],
)
def test_http_refusals_are_told_apart(answer: bytes, said: str) -> None:
    with pytest.raises(RemoteProtocolError, match=said):
        converse(handshake(Proxy("http", "proxy", 8080), "host", 443), answer)


def test_socks_logs_in_and_skips_the_bound_address() -> None:
    proxy = Proxy("socks5", "proxy", 1080, "alice", "secret")
    answer = b"\x05\x02" + b"\x01\x00" + b"\x05\x00\x00\x03\x04host\x01\xbb" + b"server"
    sent, rest = converse(handshake(proxy, "tsm.example", 443), answer)
    assert sent == (
        b"\x05\x02\x00\x02" + b"\x01\x05alice\x06secret" + b"\x05\x01\x00\x03\x0btsm.example\x01\xbb"
    )
    assert rest == b"server"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"\x05\xff", "user name and a password"),
        (b"HT", "is it a SOCKS5 proxy"),
        (b"\x05\x00\x05\x02\x00\x01\x00", "not allowed"),
        (b"\x05\x00\x05\x00\x00\x09\x00", "broken"),
    ],
)
def test_socks_refusals_are_told_apart(answer: bytes, said: str) -> None:
    with pytest.raises(RemoteProtocolError, match=said):
        converse(handshake(Proxy("socks5", "proxy", 1080), "192.0.2.1", 443), answer)


@given(kind=st.sampled_from(["http", "socks5"]), answer=st.binary(max_size=300))
def test_whatever_a_proxy_says_it_is_an_answer_or_an_error_of_its_own(kind: str, answer: bytes) -> None:
    try:
        _, rest = converse(handshake(Proxy(kind, "proxy", 1, "a", "b"), "host", 443), answer)
    except (RemoteProtocolError, EOFError):
        return
    assert answer.endswith(rest)


@pytest.mark.parametrize("text", ["ftp://host:1", "http://", "socks5://host:0", "http://host:x"])
def test_what_is_no_proxy_is_said(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_proxy(text)


async def _http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[str, int]:
    head = await reader.readuntil(b"\r\n\r\n")
    host, _, port = head.split()[1].decode().rpartition(":")
    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
    return host, int(port)


async def _socks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[str, int]:
    await reader.readexactly(3)
    writer.write(b"\x05\x00")
    request = await reader.readexactly(10)
    writer.write(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
    return ".".join(map(str, request[4:8])), int.from_bytes(request[8:], "big")


@pytest.mark.parametrize("kind", ["http", "socks5"])
async def test_a_tunnel_goes_through_and_media_goes_straight_on(peer: Peer, ca: bytes, kind: str) -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        far_reader, far_writer = await asyncio.open_connection(
            *await (_http if kind == "http" else _socks)(reader, writer)
        )
        await asyncio.gather(_carry(reader, far_writer), _carry(far_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with (
        server,
        opentsm.connect(peer.url, ca=ca, proxy=f"{kind}://127.0.0.1:{port}") as tunnel,
        tunnel.socket() as sock,
    ):
        assert connections == 1
        sock.set_mode(PathMode.DATAGRAM)
        sock.bind()
        await tunnel.wait_ddt_enabled(sock)
        assert sock.path is Path.DATAGRAM


async def test_a_proxy_that_is_not_there_is_said(peer: Peer, ca: bytes) -> None:
    with pytest.raises(ConnectError, match="refused"):
        await opentsm.connect(peer.url, ca=ca, proxy="http://127.0.0.1:1")


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
