"""A tunnel as its user sees it: what it says of itself, its sockets, its end."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import threading
from pathlib import Path as FilePath
from typing import Any

import pytest

import opentsm
from opentsm import notifications as n
from opentsm.admin.certificates import Issued
from opentsm.client import planes
from opentsm.errors import ConnectError, RefusedError, TunnelClosedError
from opentsm.types import Code, Path, PathMode, Service, ServiceAction
from opentsm.wire.messages import ServiceRequest
from tests.unit.client.peer import ECHO_PORT, GATEWAY, PASSWORD, Peer, running_peer, running_wire, until

ECHO = (GATEWAY, ECHO_PORT)


async def test_a_tunnel_says_what_the_server_gave(peer: Peer, ca: bytes) -> None:
    async with opentsm.connect(peer.url, ca=ca) as tunnel:
        assert str(tunnel.inner_address) == "10.99.0.11"
        assert tunnel.inner_addresses == (tunnel.inner_address,)
        assert tunnel.observed_address == tunnel.local_address
        assert tunnel.services == (Service.DDT,)
        assert tunnel.tsid in peer.clients
        assert (tunnel.state, tunnel.ddt_state) == ("active", "absent")
        assert tunnel.configuration.inner_mtu == 1400
    assert tunnel.state == "closed"
    assert not peer.clients


@pytest.mark.parametrize("secure", [True, False], ids=["tls-dtls", "tcp-udp"])
async def test_media_goes_by_the_pair_of_the_stream(certificate: Issued, ca: bytes, secure: bool) -> None:
    async with (
        running_peer(certificate if secure else None) as peer,
        opentsm.connect(peer.url, ca=ca) as tunnel,
        tunnel.socket() as sock,
    ):
        sock.setsockopt(opentsm.SOL_TSM, opentsm.SO_TSM_TRANSPORT, PathMode.DATAGRAM)
        sock.bind()
        assert sock.getsockopt(opentsm.SOL_TSM, opentsm.SO_TSM_PATH) == Path.STREAM
        await tunnel.wait_ddt_enabled(sock)
        assert sock.getsockopt(opentsm.SOL_TSM, opentsm.SO_TSM_PATH) == Path.DATAGRAM
        await sock.sendto(b"ping", ECHO)
        assert await sock.recvfrom() == (b"ping", ECHO)
        numbers = tunnel.statistics()
        assert numbers.datagram.tx_packets == 1
        assert numbers.stream.tx_packets == 1, "what begins on a datagram tunnel goes by both at first"
        assert numbers.stream.rx_packets + numbers.datagram.rx_packets == 1


async def test_notifications_name_the_socket_and_hand_the_opaque_value_back(peer: Peer, ca: bytes) -> None:
    told: list[tuple[n.Notification, Any]] = []
    opaque = object()
    async with opentsm.connect(peer.url, ca=ca) as tunnel:
        sock = tunnel.socket()
        sock.bind()
        other = tunnel.socket()
        other.bind()
        tunnel.on_notification(lambda what, value: told.append((what, value)), opaque)
        notifications = tunnel.notifications()
        tunnel.set_mode(sock, PathMode.DATAGRAM)
        await tunnel.wait_ddt_enabled(sock)
        tunnel.set_mode(sock, PathMode.STREAM)
        seen = [await anext(notifications) for _ in range(6)]
    switches = [seen.pop(3), seen.pop(4)]
    assert [what.kind for what in seen] == ["ddt-available", "ddt-up", "ddt-enabled", "ddt-disabled"]
    ready = "the datagram tunnel is ready for it"
    assert switches == [
        n.PathSwitched((sock,), "up", Path.DATAGRAM, ready),
        n.PathSwitched((sock,), "up", Path.STREAM, "switched"),
    ]
    assert isinstance(seen[2], n.DdtEnabled)
    assert seen[2].sockets == (sock,)
    assert isinstance(seen[3], n.DdtDisabled)
    assert (seen[3].sockets, seen[3].reason) == ((sock,), "switched")
    assert [what for what, _ in told if what not in switches][:4] == seen
    assert all(value is opaque for _, value in told)
    assert [what.kind async for what in notifications][-1] == "tunnel-terminated"


async def test_the_switch_is_flipped_under_traffic_and_nothing_is_lost_or_doubled(
    peer: Peer, ca: bytes
) -> None:
    """20 flips while packets go both ways, each packet counted at both ends."""
    async with opentsm.connect(peer.url, ca=ca) as tunnel, tunnel.socket() as sock:
        sock.bind()
        received: list[int] = []
        sent = 0
        paths = set()

        echoed = asyncio.Event()

        async def read() -> None:
            while True:
                received.append(int((await sock.recvfrom())[0]))
                echoed.set()

        reader = asyncio.create_task(read())
        for flip in range(20):
            wanted = Path.DATAGRAM if flip % 2 == 0 else Path.STREAM
            sock.set_mode(PathMode(wanted))
            moved_at = None
            # Some packets after the move too; never more under way than the queues on the way hold.
            while moved_at is None or sent < moved_at + 20:
                if moved_at is None and sock.path is wanted:
                    moved_at = sent
                for _ in range(5 if sent - len(received) < 100 else 0):
                    assert sock.sendto_nowait(str(sent).zfill(160).encode(), ECHO) is None
                    sent += 1
                paths.add(sock.path)
                await echoed.wait()
                echoed.clear()
        await until(lambda: len(received) >= sent)
        reader.cancel()
        numbers = tunnel.statistics()
    assert paths == {Path.STREAM, Path.DATAGRAM}
    assert sorted(received) == list(range(sent))
    assert peer.echoed == sent
    assert numbers.stream.tx_packets + numbers.datagram.tx_packets >= sent
    assert min(numbers.stream.tx_packets, numbers.datagram.tx_packets) > 0


async def test_without_the_service_ddt_is_not_available_and_traffic_goes_on(
    certificate: Issued, ca: bytes
) -> None:
    async with (
        running_peer(certificate, services=frozenset()) as peer,
        opentsm.connect(peer.url, ca=ca) as tunnel,
    ):
        notifications = tunnel.notifications()
        async with tunnel.socket() as sock:
            sock.set_mode(PathMode.DATAGRAM)
            sock.bind()
            with pytest.raises(RefusedError, match="service-unavailable"):
                await tunnel.wait_ddt_enabled(sock)
            assert await anext(notifications) == n.DdtAvailable(False)
            assert tunnel.ddt_available is False
            await sock.sendto(b"still here", ECHO)
            assert (await sock.recvfrom())[0] == b"still here"
            assert (sock.mode, sock.path) == (PathMode.DATAGRAM, Path.STREAM)


async def test_a_dead_datagram_path_is_noticed_and_media_is_back_on_the_stream(peer: Peer, ca: bytes) -> None:
    async with (
        running_wire(peer) as wire,
        opentsm.connect(f"tls://127.0.0.1:{wire.port}", ca=ca) as tunnel,
        tunnel.socket() as sock,
    ):
        sock.set_mode(PathMode.DATAGRAM)
        sock.bind()
        await tunnel.wait_ddt_enabled(sock)
        assert wire.udp_carried > 0
        notifications = tunnel.notifications()
        wire.udp_blocked = True
        silent = await anext(notifications)
        assert isinstance(silent, n.PathSilent)
        assert (silent.path, silent.silent < 1.0) == (Path.DATAGRAM, True)
        back = await anext(notifications)
        assert isinstance(back, n.DdtDisabled)
        assert (back.sockets, back.reason) == ((sock,), "path-silent")
        assert sock.path is Path.STREAM
        await until(lambda: _told_to_hold(peer))
        await sock.sendto(b"by stream", ECHO)
        assert (await sock.recvfrom())[0] == b"by stream"
        wire.udp_blocked = False
        await tunnel.wait_ddt_enabled(sock)


def _told_to_hold(peer: Peer) -> bool:
    """The peer has been told to send the media by the stream meanwhile."""
    last = [message for message in peer.heard if isinstance(message, ServiceRequest)][-1]
    return (last.action, last.mode) == (ServiceAction.ENABLE, PathMode.STREAM)


async def test_auto_weighs_both_paths_and_says_why(peer: Peer, ca: bytes) -> None:
    async with opentsm.connect(peer.url, ca=ca) as tunnel, tunnel.socket() as sock:
        sock.set_mode(PathMode.AUTO)
        sock.bind()
        decision = None
        async with asyncio.timeout(20):
            async for notification in tunnel.notifications():
                if isinstance(notification, n.PathDecided) and notification.decision.datagram is not None:
                    decision = notification.decision
                    break
        assert decision is not None
        assert decision.stream is not None
        assert decision.datagram is not None
        # On a loopback there is nothing to choose between them: the call stays where it began.
        assert (decision.path, decision.moved) == (Path.STREAM, False)
        assert min(decision.stream.mos, decision.datagram.mos) > 4
        assert sock.getsockopt(opentsm.SOL_TSM, opentsm.SO_TSM_TRANSPORT) == PathMode.AUTO
        assert sock.path is Path.STREAM


async def test_a_wrong_password_is_a_refusal_with_the_servers_words(peer: Peer, ca: bytes) -> None:
    peer.password = PASSWORD
    with pytest.raises(RefusedError, match="who are you") as refused:
        await opentsm.connect(peer.url, ca=ca, username="alice", password="guess")
    assert refused.value.code == "unauthorized"
    async with opentsm.connect(peer.url, ca=ca, username="alice", password=PASSWORD) as tunnel:
        assert tunnel.state == "active"


async def test_a_server_without_room_sends_the_client_to_the_next(certificate: Issued, ca: bytes) -> None:
    async with running_peer(certificate) as full, running_peer(certificate) as free:
        full.refuse = Code.NO_ADDRESS
        async with opentsm.connect([full.url, free.url], ca=ca) as tunnel:
            assert tunnel.server.port == free.port
        with pytest.raises(RefusedError, match="no-address"):
            await opentsm.connect(full.url, ca=ca)


async def test_what_is_no_server_of_ours_on_plain_tcp_is_said(peer: Peer) -> None:
    async def ssh(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(ssh, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        with pytest.raises(ConnectError, match="may be no OpenTSM server"):
            await opentsm.connect(f"tcp://127.0.0.1:{port}")


async def test_control_messages_and_inner_packets_are_written_down(
    peer: Peer, ca: bytes, tmp_path: FilePath
) -> None:
    log, pcap = tmp_path / "messages.jsonl", tmp_path / "inner.pcap"
    async with opentsm.connect(
        peer.url, ca=ca, username="alice", password=PASSWORD, message_log=log, pcap=pcap
    ) as tunnel:
        sock = tunnel.socket()
        await sock.sendto(b"find me in the file", ECHO)
        await sock.recvfrom()
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(r["direction"], r["message"]) for r in records] == [
        ("sent", "configuration-request"),
        ("received", "configuration-response"),
        ("sent", "release-request"),
        ("received", "release-response"),
    ]
    assert PASSWORD not in log.read_text()
    assert pcap.read_bytes().count(b"find me in the file") == 2


async def test_tunnels_of_a_loop_share_one_plane_that_ends_with_the_last(peer: Peer, ca: bytes) -> None:
    def packet_threads() -> int:
        tasks = FilePath("/proc/self/task").iterdir()
        return sum((task / "comm").read_text().startswith("tsm-worker") for task in tasks)

    await until(lambda: packet_threads() == 1)  # the peer's; a thread names itself
    async with opentsm.connect(peer.url, ca=ca) as first, opentsm.connect(peer.url, ca=ca) as second:
        assert first.plane is second.plane
        await until(lambda: packet_threads() == 1 + planes.CLIENT_WORKERS)
    await until(lambda: packet_threads() == 1)


async def test_a_connect_that_is_cancelled_leaves_nothing(peer: Peer, ca: bytes) -> None:
    """At each of many moments: before the look-up, during TLS, while waiting for the configuration."""

    def held() -> int:
        gc.collect()  # an ended engine's descriptors go with its object
        # Threads of Python's own are the event loop's pool, which grows as it likes.
        packet_threads = len(os.listdir("/proc/self/task")) - threading.active_count()
        return len(os.listdir("/proc/self/fd")) + packet_threads

    async with opentsm.connect(peer.url, ca=ca):
        pass
    await until(lambda: not peer.clients)
    before = held()
    for turns in range(12):
        task = asyncio.ensure_future(_connect_and_close(peer.url, ca))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await until(lambda: held() <= before)  # the peer notices the ends in its own time


async def _connect_and_close(url: str, ca: bytes) -> None:
    async with opentsm.connect(url, ca=ca):
        await asyncio.Event().wait()


async def test_a_closed_tunnel_closes_its_sockets_and_says_so(peer: Peer, ca: bytes) -> None:
    tunnel = await opentsm.connect(peer.url, ca=ca)
    sock = tunnel.socket()
    sock.bind()
    waiting = asyncio.create_task(sock.recvfrom())
    await asyncio.sleep(0)
    await tunnel.close()
    with pytest.raises(TunnelClosedError, match="local-close"):
        await waiting
    with pytest.raises(TunnelClosedError):
        sock.sendto_nowait(b"x", ECHO)
    with pytest.raises(TunnelClosedError):
        tunnel.socket().bind()
    await tunnel.close()  # twice does no harm
    assert await tunnel.wait_closed() == "local-close"
