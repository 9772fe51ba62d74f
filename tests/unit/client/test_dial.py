"""Which server is tried when, who wins, and what the error says when nobody does."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

import opentsm
from opentsm.admin.certificates import Issued
from opentsm.client import dial
from opentsm.client.address import ServerAddress, parse_server
from opentsm.client.dial import Dialer
from opentsm.client.settings import TlsSettings
from opentsm.errors import ConnectError
from opentsm.limits import CONNECT_STAGGER
from opentsm.types import Transport
from opentsm.userplane.plane import Plane
from tests.unit.client.peer import Peer, make_authority, running_peer, server_certificate


@pytest.fixture
def dead_port() -> int:
    """A port where nothing listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
async def mute_port() -> AsyncIterator[int]:
    """A port that takes connections and never says a word."""

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        while await reader.read(1024):
            pass
        writer.close()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.fixture
async def plane() -> AsyncIterator[Plane]:
    plane = Plane()
    plane.start()
    yield plane
    await plane.close()


async def test_a_dead_first_server_costs_no_waiting(peer: Peer, ca: bytes, dead_port: int) -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    async with opentsm.connect([f"tls://127.0.0.1:{dead_port}", peer.url], ca=ca) as tunnel:
        assert tunnel.server.port == peer.port
    assert loop.time() - begun < 10 * CONNECT_STAGGER


async def test_a_mute_first_server_is_passed_after_the_stagger_and_then_closed(
    peer: Peer, ca: bytes, mute_port: int, plane: Plane
) -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    dialer = Dialer(plane, tls=TlsSettings(ca_pem=ca))
    won = await dialer.dial((parse_server(f"tls://127.0.0.1:{mute_port}"), parse_server(peer.url)))
    assert won.server.port == peer.port
    assert loop.time() - begun >= CONNECT_STAGGER
    won.opening.abandon()


async def test_attempts_are_made_in_order_families_taking_turns(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 8305 section 4: the name's addresses alternate; the next server comes after them."""
    tried: list[str] = []
    names = {
        "both": ["2001:db8::1", "2001:db8::2", "192.0.2.1", "192.0.2.2"],
        "last": ["192.0.2.9"],
    }

    async def look_up(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET6 if ":" in a else socket.AF_INET, 0, 0, "", (a, port)) for a in names[host]]

    async def connect(self: Dialer, candidate: dial._Candidate) -> socket.socket:
        tried.append(candidate.address[0])
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
    monkeypatch.setattr(Dialer, "_connect", connect)
    dialer = Dialer(plane, tls=TlsSettings())
    servers = (ServerAddress(Transport.TCP, "both"), ServerAddress(Transport.TCP, "last"))
    with pytest.raises(ConnectError, match="after 5 attempts"):
        await dialer.dial(servers)
    of_both = [address for address in tried if address != "192.0.2.9"]
    assert of_both == ["2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2"]
    assert "192.0.2.9" in tried


async def test_the_error_lists_every_attempt_with_its_remedy(
    peer: Peer, dead_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_such_name(host: str, port: int, **_: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", no_such_name)
    servers = [f"tls://127.0.0.1:{dead_port}", "tls://no.such.name.example", peer.url]
    with pytest.raises(ConnectError) as failed:
        await opentsm.connect(servers, ca=make_authority("somebody else").chain_pem)
    text = str(failed.value)
    assert "after 3 attempts" in text
    assert f"tls://127.0.0.1:{dead_port}: refused" in text
    assert "is the server running" in text
    assert "tls://no.such.name.example:443: name-not-found" in text
    assert "check the spelling" in text
    assert f"{peer.url}: tls_unknown_issuer" in text


async def test_a_certificate_for_another_name_is_said(authority: Issued, ca: bytes) -> None:
    async with running_peer(server_certificate(authority, "192.0.2.1")) as peer:
        with pytest.raises(ConnectError, match=r"tls_name_mismatch.*name in the certificate"):
            await opentsm.connect(peer.url, ca=ca)
        # The name it does have may be given.
        async with opentsm.connect(peer.url, ca=ca, server_name="192.0.2.1") as tunnel:
            assert tunnel.state == "active"


async def test_the_pin_decides(peer: Peer, certificate: Issued) -> None:
    with pytest.raises(ConnectError, match=r"tls_pin_mismatch.*(pin|between)"):
        await opentsm.connect(peer.url, pin_sha256="00" * 32, verify=False)
    async with opentsm.connect(peer.url, pin_sha256=certificate.pin, verify=False) as tunnel:
        assert tunnel.state == "active"


async def test_a_server_that_speaks_no_tls_is_said(ca: bytes) -> None:
    async with running_peer(None) as peer:
        with pytest.raises(ConnectError, match="tls"):
            await opentsm.connect(f"tls://127.0.0.1:{peer.port}", ca=ca)


async def test_a_server_that_does_not_answer_is_given_up(
    mute_port: int, ca: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "CONNECT_TIMEOUT", 0.2)
    with pytest.raises(ConnectError, match=r"timeout.*firewall"):
        await opentsm.connect(f"tls://127.0.0.1:{mute_port}", ca=ca)
