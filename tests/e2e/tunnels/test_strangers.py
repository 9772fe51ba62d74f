"""Whatever strangers and bad clients send, they get nothing and nobody else notices."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from opentsm.client.tunnel import Tunnel, connect
from opentsm.lab.topology import Lab, LabSpec
from opentsm.lab.traffic import MediaFlow, MediaReceiver, MediaSender, send_all
from opentsm.lab.waiting import until
from opentsm.tasks import cancel, spawn
from opentsm.types import Code, PathMode, Service, ServiceAction, Tsid
from opentsm.userplane.plane import Plane
from opentsm.wire.codec import encode
from opentsm.wire.messages import ConfigurationRequest, ReleaseRequest, ServiceRequest
from tests.e2e.tunnels.harness import PASSWORD, USER, ServerProcess, in_host, login, start_echo
from tests.e2e.tunnels.stranger import RawStream, garbage, throw_at_tcp, throw_at_udp

pytestmark = pytest.mark.netns


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(LabSpec(phones=2, emulate=False)) as lab:
        yield lab


@asynccontextmanager
async def victim(server: ServerProcess, echo: tuple[str, int]) -> AsyncIterator[Tunnel]:
    """A call on a DDT that must not lose or double a packet while the block runs."""
    async with connect(**login(server)) as tunnel:
        receiver, flow = MediaReceiver(), MediaFlow(1)
        receiver.expect(flow)
        voice, _ = await tunnel.create_datagram_endpoint(
            lambda: receiver, remote_addr=echo, mode=PathMode.DATAGRAM
        )
        await tunnel.wait_ddt_enabled(voice)
        talking = spawn("media", send_all([MediaSender(voice, flow)], seconds=60))
        await receiver.heard([flow])
        yield tunnel
        mark = len(flow.numbers) + 25
        await until(lambda: len(flow.numbers) >= mark, what="the victim's call to go on")
        await cancel(talking)
        await until(lambda: len(flow.numbers) >= len(flow.sent), what="the victim's last packets")
        assert (flow.report().lost, flow.report().duplicated) == (0, 0)
        assert tunnel.state == "active"
        assert tunnel.ddt_state == "up"


@asynccontextmanager
async def a_plane() -> AsyncIterator[Plane]:
    plane = Plane()
    plane.start()
    try:
        yield plane
    finally:
        await plane.close()


def test_a_stolen_tsid_without_the_tls_session_is_worth_nothing(lab: Lab, server: ServerProcess) -> None:
    echo = start_echo(lab)
    target = (server.host.ipv4, 443)

    async def scenario() -> None:
        async with victim(server, echo) as tunnel, a_plane() as plane:
            status = server.tunnels()[0]
            before = server.counters()
            stolen = [Tsid(int(status[name], 16)) for name in ("tsid", "ddt_tsid")]
            for tsid in stolen:
                await asyncio.to_thread(try_dtls, lab, target, tsid)
                thief = RawStream(plane)
                await thief.open(target)
                thief.send(encode(ConfigurationRequest(tsid=tsid, sequence=1, resume_proof=garbage(1, 32))))
                await until(lambda t=thief: t.messages or t.closed)  # type: ignore[misc]
                answers = {getattr(message, "code", None) for message in thief.messages}
                assert Code.SUCCESS not in answers
            assert server.counters()["datagrams_ready"] == before["datagrams_ready"]
            assert tunnel.state == "active"

    in_host(lab["phone1"], scenario)


def try_dtls(lab: Lab, target: tuple[str, int], tsid: int) -> None:
    """OpenSSL's own client with the right identity and a wrong key."""
    command = (
        f"timeout 3 openssl s_client -dtls1_2 -connect {target[0]}:{target[1]} -cipher PSK-AES128-GCM-SHA256"
        f" -psk_identity {tsid:016x} -psk {'ab' * 32} </dev/null"
    )
    done = lab["phone2"].run(["sh", "-c", command], check=False)
    # The attempt was a real one: the server's hello came back. What it led to, the server's counters tell.
    assert "DTLSv1.2" in done.stdout, done.stdout


def test_a_client_with_its_own_tunnel_cannot_touch_another(lab: Lab, server: ServerProcess) -> None:
    echo = start_echo(lab)

    async def scenario() -> None:
        async with victim(server, echo), a_plane() as plane:
            status = server.tunnels()[0]
            theirs = Tsid(int(str(status["tsid"]), 16))
            address = next(str(a) for a in status["inner"] if ":" not in str(a))
            bad = RawStream(plane)
            await bad.open((server.host.ipv4, 443))
            answer = await bad.configure(USER, PASSWORD)
            assert answer.code is Code.SUCCESS
            before = server.counters()
            bad.send(encode(ReleaseRequest(tsid=theirs, sequence=2)))
            bad.send(
                encode(
                    ServiceRequest(tsid=theirs, sequence=3, service=Service.DDT, action=ServiceAction.ENABLE)
                )
            )
            # A packet under the victim's address, through our own tunnel.
            plane.core.session_open(1, role="client", addresses=[address], sink="local")
            plane.core.attach(1, bad.tunnel, answer.tsid)
            liar, _ = plane.core.udp_open(session=1, address=address, port=0)
            for _ in range(10):
                assert plane.core.udp_send(liar, b"spoofed", echo[0], echo[1]) is None
            after = await until(lambda: _grown(before, server.counters()))
            assert after["drop_inner_spoofed_source"] == 10
            assert after["drop_control_wrong_tsid"] == 2

    in_host(lab["phone1"], scenario)


def _grown(before: dict[str, int], now: dict[str, int]) -> dict[str, int] | None:
    grown = {name: now[name] - before.get(name, 0) for name in now}
    return grown if grown["drop_inner_spoofed_source"] >= 10 else None


def test_garbage_on_every_transport_is_counted_and_hurts_nobody(lab: Lab, server: ServerProcess) -> None:
    echo = start_echo(lab)
    target = (server.host.ipv4, 443)

    async def scenario() -> None:
        async with victim(server, echo), a_plane() as plane:
            before = server.counters()
            for seed in range(10):
                await throw_at_tcp(target, garbage(seed, 300))
            web = await throw_at_tcp(target, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"opentsm" not in web.lower(), "more said to a stranger than needed"
            throw_at_udp(
                target, [garbage(seed, 100 + seed) for seed in range(50)] + [b"", b"\x16", b"\x17" * 1400]
            )
            for seed, after_login in ((1, False), (2, True)):
                peer = RawStream(plane)
                await peer.open(target)
                if after_login:
                    await peer.configure(USER, PASSWORD)
                peer.send(b"\x00" + garbage(seed, 50))
                await until(lambda p=peer: p.closed, what="the server to close on a bad frame")  # type: ignore[misc]
            grown = {name: n - before.get(name, 0) for name, n in server.counters().items()}
            assert grown["tls_handshake_failed"] >= 11
            assert grown["drop_stray_datagram"] + grown["drop_record_malformed"] >= 50
            assert grown["drop_frame_malformed"] == 2

    in_host(lab["phone1"], scenario)


def test_truncated_oversized_and_malformed_messages_leave_the_tunnel_or_close_it(
    lab: Lab, server: ServerProcess
) -> None:
    echo = start_echo(lab)
    header = bytes([0x10, 0, 5, 1]) + bytes(8) + bytes(4)

    async def scenario() -> None:
        async with victim(server, echo), a_plane() as plane:
            for bytes_sent in (header[:9], header + b"\x00\x15\xff\xff", bytes([0x10, 0, 5, 65]) + bytes(12)):
                peer = RawStream(plane)
                await peer.open((server.host.ipv4, 443))
                answer = await peer.configure(USER, PASSWORD)
                peer.send(bytes_sent)
                if len(bytes_sent) < 10:
                    # Half a message: the server waits for the rest, and only this client waits with it.
                    plane.core.close(peer.tunnel)
                await until(lambda p=peer: p.closed)  # type: ignore[misc]
                assert answer.code is Code.SUCCESS

    in_host(lab["phone1"], scenario)


def test_openssl_as_a_tls_client_is_served(lab: Lab, server: ServerProcess) -> None:
    """Somebody else's TLS stack meets ours on the wire, certificate and ALPN included."""
    command = (
        f"openssl s_client -connect {server.host.ipv4}:443 -CAfile {server.folder / 'ca.pem'} -alpn opentsm/1"
        " -verify_return_error -verify_hostname server.test </dev/null"
    )

    def attempt() -> subprocess.CompletedProcess[str]:
        return lab["phone1"].run(["sh", "-c", command], check=False)

    done = attempt()
    assert "Verify return code: 0 (ok)" in done.stdout
    assert "ALPN protocol: opentsm/1" in done.stdout
    assert "TLSv1.3" in done.stdout
