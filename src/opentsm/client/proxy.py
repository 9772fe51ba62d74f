"""Ways out through a proxy: HTTP CONNECT (RFC 9110 section 9.3.6) and SOCKS5 (RFC 1928, RFC 1929).

A handshake is a generator: it yields bytes to send (or nothing), is sent bytes that came, and returns when
the connection is through. It never takes more than the proxy's own bytes, since the server may speak first.
So it asks for what it needs: it yields ``Want(send, count)``, ``count`` bytes to be read next.
"""

from __future__ import annotations

import base64
from collections.abc import Generator
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final
from urllib.parse import unquote

from opentsm.client.address import split_url
from opentsm.errors import ConfigError, RemoteProtocolError

MAX_RESPONSE_HEAD: Final = 16 * 1024
"""Bytes of a proxy's HTTP response head; the largest seen in practice (cookies, error pages' headers) is
a few kilobytes."""

_DEFAULT_PORTS: Final = {"http": 8080, "socks5": 1080}
_SOCKS_REPLIES: Final = {
    1: "general failure",
    2: "not allowed by the proxy's rules",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "time to live expired",
    7: "CONNECT is not supported",
    8: "address type not supported",
}


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy to go through.

    Args:
        kind: ``http`` (CONNECT) or ``socks5``.
        username, password: for the proxy, where it asks.
    """

    kind: str
    host: str
    port: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.kind}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Want:
    """Next step of a handshake: send these bytes, then read exactly ``count``."""

    send: bytes
    count: int


Handshake = Generator[Want, bytes, None]


def parse_proxy(text: str) -> Proxy:
    """``http://[USER:PASSWORD@]HOST:PORT`` or ``socks5://...``.

    Raises:
        ConfigError: it is neither.
    """
    shape = "write http://HOST:PORT or socks5://HOST:PORT, with USER:PASSWORD@ before the host if needed"
    parts = split_url(text, shape)
    kind = "socks5" if parts.scheme == "socks5h" else parts.scheme
    if kind not in _DEFAULT_PORTS:
        raise ConfigError(f"{parts.scheme!r} is no kind of proxy we know", hint=shape)
    username = unquote(parts.username) if parts.username is not None else None
    password = unquote(parts.password) if parts.password is not None else None
    return Proxy(kind, parts.hostname or "", parts.port or _DEFAULT_PORTS[kind], username, password)


def handshake(proxy: Proxy, host: str, port: int) -> Handshake:
    """The handshake that asks ``proxy`` for a connection to host and port.

    Raises (while it runs):
        RemoteProtocolError: the proxy refuses, or what it says is no answer.
    """
    begin = _http_untrusted if proxy.kind == "http" else _socks_untrusted
    return begin(proxy, host, port)


# -- HTTP CONNECT -----------------------------------------------------------------------------------------


def _http_untrusted(proxy: Proxy, host: str, port: int) -> Handshake:
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.username is not None:
        pair = f"{proxy.username}:{proxy.password or ''}".encode()
        lines.append("Proxy-Authorization: Basic " + base64.b64encode(pair).decode())
    head = yield Want("\r\n".join([*lines, "", ""]).encode(), 1)
    # One byte at a time: what follows the empty line belongs to the server.
    while not head.endswith((b"\r\n\r\n", b"\n\n")):
        if len(head) > MAX_RESPONSE_HEAD:
            raise RemoteProtocolError("proxy-error", "its HTTP response head never ends")
        head += yield Want(b"", 1)
    _check_status_untrusted(head)


def _check_status_untrusted(head: bytes) -> None:
    line = head.split(b"\n", 1)[0].decode("latin-1").strip()
    version, _, status = line.partition(" ")
    if not version.startswith("HTTP/") or not status[:3].isdigit():
        raise RemoteProtocolError("proxy-error", f"no HTTP response, but {line[:80]!r}: is it an HTTP proxy?")
    if status.startswith("407"):
        raise RemoteProtocolError("proxy-error", "the proxy wants a user name and a password (407)")
    if not status.startswith("2"):
        raise RemoteProtocolError("proxy-error", f"the proxy answered {status[:80]!r}")


# -- SOCKS5 -----------------------------------------------------------------------------------------------


def _socks_untrusted(proxy: Proxy, host: str, port: int) -> Handshake:
    methods = b"\x00\x02" if proxy.username is not None else b"\x00"
    chosen = yield Want(bytes([5, len(methods)]) + methods, 2)
    if chosen[0] != 5:
        raise RemoteProtocolError("proxy-error", "no SOCKS5 answer: is it a SOCKS5 proxy?")
    if chosen[1] == 2 and proxy.username is not None:
        yield from _socks_login_untrusted(proxy.username, proxy.password or "")
    elif chosen[1] != 0:
        raise RemoteProtocolError("proxy-error", "the proxy wants a user name and a password")
    reply = yield Want(b"\x05\x01\x00" + _socks_address(host) + port.to_bytes(2, "big"), 5)
    if reply[0] != 5:
        raise RemoteProtocolError("proxy-error", "a broken SOCKS5 reply")
    if reply[1] != 0:
        why = _SOCKS_REPLIES.get(reply[1], f"code {reply[1]}")
        raise RemoteProtocolError("proxy-error", f"the proxy answered: {why}")
    # The bound address, which nobody needs: its first byte is read already.
    lengths = {1: 4, 3: 1 + reply[4], 4: 16}
    if reply[3] not in lengths:
        raise RemoteProtocolError("proxy-error", "a broken SOCKS5 reply")
    yield Want(b"", lengths[reply[3]] - 1 + 2)


def _socks_login_untrusted(username: str, password: str) -> Handshake:
    name, secret = username.encode()[:255], password.encode()[:255]
    answer = yield Want(bytes([1, len(name)]) + name + bytes([len(secret)]) + secret, 2)
    if answer[1] != 0:
        raise RemoteProtocolError("proxy-error", "the proxy refused the user name or password")


def _socks_address(host: str) -> bytes:
    try:
        packed = ip_address(host).packed
    except ValueError:
        name = host.encode("idna")[:255]
        return bytes([3, len(name)]) + name
    return bytes([1 if len(packed) == 4 else 4]) + packed
