"""A session through its life: lost streams, resume, thieves, goodbye."""

from __future__ import annotations

import asyncio
import json
import secrets
from pathlib import Path
from typing import Any

import pytest

from opentsm.protocol import actions as a
from opentsm.protocol.server import ServerSession
from opentsm.protocol.states import Client as State
from opentsm.protocol.states import Server as ServerState
from opentsm.types import (
    UNASSIGNED_TSID,
    Code,
    Flow,
    PathMode,
    Protocol,
    Service,
    ServiceAction,
    Transport,
    Tsid,
)
from opentsm.types import Path as TunnelPath
from opentsm.wire.codec import encode
from opentsm.wire.messages import (
    ConfigurationRequest,
    ConfigurationResponse,
    Message,
    ReleaseRequest,
    ServiceRequest,
)
from tests.unit.server.harness import Client, Site, configuration, running, until

ECHO = "echo = 7"


async def lose(site: Site, client: Client) -> None:
    """The client's stream is gone, and the server knows it."""
    client.cut()
    await until(lambda: client.stream is None, "the stream is gone")
    await until(lambda: site.server.facts().interfaces[0].persistent == 1, "the session is persistent")


async def test_a_client_that_comes_back_has_its_address_and_its_sockets(certificates_folder: Path) -> None:
    async with running(certificates_folder, configuration(certificates_folder, realm=ECHO)) as site:
        client = await site.up()
        inner, before = client.socket(), client.inner
        await lose(site, client)
        client.redial()
        await until(lambda: client.seen.last(a.Resumed), "resumed")
        assert client.inner == before
        inner.send(b"again", "10.64.0.1", 7)
        await inner.heard(b"again")
        assert site.server.facts().interfaces[0].total == 1


async def test_resume_while_the_server_still_believes_in_the_old_stream(certificates_folder: Path) -> None:
    """The client's network has changed: the old stream is dead, but nothing has told the server."""
    async with running(certificates_folder, configuration(certificates_folder, realm=ECHO)) as site:
        client = await site.up()
        inner, old = client.socket(), client.stream
        (record,) = site.server.hub.registry
        client.act("path_lost", TunnelPath.STREAM, "network-changed")
        client.redial()
        await until(lambda: client.seen.last(a.Resumed), "resumed")
        await until(lambda: [e.tunnel for e in client.seen.closed] == [old], "the old stream was closed")
        assert record.value.state is ServerState.ACTIVE
        inner.send(b"again", "10.64.0.1", 7)
        await inner.heard(b"again")


async def test_a_datagram_tunnel_outlives_its_stream(certificates_folder: Path) -> None:
    async with running(certificates_folder, configuration(certificates_folder, realm=ECHO)) as site:
        client = await site.up()
        inner = client.socket()
        client.act("set_mode", Flow(Protocol.UDP, inner.port), PathMode.DATAGRAM)
        await until(lambda: client.seen.last(a.DdtEnabled))
        await lose(site, client)
        inner.send(b"in between", "10.64.0.1", 7)
        assert (await inner.heard(b"in between"))[2] == 1
        client.redial()
        await until(lambda: client.seen.last(a.Resumed))
        inner.send(b"after", "10.64.0.1", 7)
        assert (await inner.heard(b"after"))[2] == 1


async def test_a_stolen_tsid_gets_nothing_and_harms_nobody(certificates_folder: Path) -> None:
    async with running(certificates_folder, configuration(certificates_folder, realm=ECHO)) as site:
        client = await site.up()
        inner = client.socket()
        thief = await site.hostile_stream()
        for proof in (bytes(32), secrets.token_bytes(32)):
            request = ConfigurationRequest(
                tsid=client.tsid, sequence=1, client_id=b"thief", resume_proof=proof
            )
            await thief.send(encode(request))
            answer = await thief.message()
            assert isinstance(answer, ConfigurationResponse)
            assert (answer.code, answer.resume_secret, answer.inner_ipv4) == (Code.RESUME_REFUSED, None, None)
        for message in messages_in_the_name_of(client.tsid):
            await thief.send(encode(message))
        thief.writer.close()
        inner.send(b"undisturbed", "10.64.0.1", 7)
        await inner.heard(b"undisturbed")
        assert client.session.state is State.ACTIVE
        assert len(site.server.hub.registry) == 1


def messages_in_the_name_of(tsid: Tsid) -> list[Message]:
    return [
        ReleaseRequest(tsid=tsid, sequence=2),
        ServiceRequest(tsid=tsid, sequence=3, service=Service.DDT, action=ServiceAction.ENABLE),
    ]


async def test_a_wrong_tsid_on_an_own_tunnel_is_dropped_and_counted(certificates_folder: Path) -> None:
    async with running(certificates_folder, configuration(certificates_folder, realm=ECHO)) as site:
        one, other = await site.up(), await site.up()
        one.send(ReleaseRequest(tsid=other.tsid, sequence=9))
        await until(lambda: site.counter("drop_control_wrong_tsid") == 1)
        assert {one.session.state, other.session.state} == {State.ACTIVE}
        assert len(site.server.hub.registry) == 2


async def test_a_stolen_session_on_another_kind_of_tunnel_is_refused(certificates_folder: Path) -> None:
    """What began encrypted cannot be resumed in the clear, even with a proof."""
    text = configuration(
        certificates_folder,
        interface="plain-transports = true",
        more='[tscf-port.plain]\naddress = "127.0.0.1"\nport = 0\ntransport-protocol = "tcp"',
    ).replace('ports = ["v4"]', 'ports = ["v4", "plain"]')
    async with running(certificates_folder, text) as site:
        client = await site.up()
        await lose(site, client)
        client.transport = Transport.TCP
        client._number = site.server.port("plain")
        client.redial()
        await until(lambda: isinstance(client.seen.messages[-1], ConfigurationResponse), "an answer")
        await until(lambda: client.seen.last(a.TunnelUp).address_changed, "a fresh tunnel")
        assert not client.seen.last(a.Resumed)


async def test_who_never_asks_is_closed(certificates_folder: Path) -> None:
    async with running(certificates_folder, configuration(certificates_folder)) as site:
        stranger = await site.hostile_stream()
        await until(lambda: len(site.server.hub.unconfigured) == 1)
        (peer,) = site.server.hub.unconfigured
        deadline = peer.session.deadline()
        assert deadline is not None
        assert deadline.reason == "configuration"
        peer.session.tick(deadline.at)  # as if the time had come
        peer.settle()
        await stranger.ended()
        assert not site.server.hub.unconfigured


async def test_goodbye_tells_clients_when_to_come_back(certificates_folder: Path) -> None:
    async with running(certificates_folder, configuration(certificates_folder)) as site:
        client = await site.up()
        await site.server.stop()
        told = [message for message in client.seen.messages if isinstance(message, ReleaseRequest)]
        assert [message.code for message in told] == [Code.SHUTTING_DOWN]
        assert told[0].retry_after_ms is not None
        assert told[0].retry_after_ms >= 500
        await until(lambda: client.seen.closed, "the stream is closed")
        assert client.session.state is State.PERSISTENT, "such a client comes back by itself"
        assert site.server.listeners.opened == site.server.listeners.closed == 2


async def test_a_release_gives_the_address_back(certificates_folder: Path) -> None:
    async with running(certificates_folder, configuration(certificates_folder)) as site:
        client = await site.up()
        client.act("close")
        await until(lambda: len(site.server.hub.registry) == 0)
        pool = site.server.facts().pools[0]
        assert (pool.leased, pool.resting) == (0, 1)


async def test_a_client_that_fails_us_costs_nobody_else_anything(
    certificates_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(certificates_folder, configuration(certificates_folder, realm=ECHO)) as site:
        victim, other = await site.up(), await site.up()
        record = site.server.hub.registry.by_stream_tsid(victim.tsid)
        assert record is not None

        receive, failing = ServerSession.receive, record.value.session

        def broken(session: ServerSession, *args: Any) -> None:
            if session is failing:
                raise RuntimeError("a bug of ours")
            receive(session, *args)

        monkeypatch.setattr(ServerSession, "receive", broken)
        victim.send(ServiceRequest(tsid=victim.tsid, sequence=5, service=3, action=4))
        await until(lambda: site.counter("peer_crashed") == 1)
        await until(lambda: victim.seen.closed)
        inner = other.socket()
        inner.send(b"fine", "10.64.0.1", 7)
        await inner.heard(b"fine")
        assert [r.stream_tsid for r in site.server.hub.registry] == [other.tsid]
        assert site.server.facts().pools[0].leased == 1


async def test_the_data_log_has_messages_and_no_secrets(certificates_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "control.jsonl"
    text = configuration(certificates_folder, interface="control-log = true").replace(
        'admin-socket = ""', f'admin-socket = ""\ndata-log = "{file}"'
    )
    async with running(certificates_folder, text) as site:
        client = await site.up(username="someone")
        client.act("close")
        await until(lambda: len(site.server.hub.registry) == 0)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(one["direction"], one["message"]) for one in lines] == [
        ("in", "configuration-request"),
        ("out", "configuration-response"),
        ("in", "release-request"),
        ("out", "release-response"),
    ]
    assert {one["interface"] for one in lines} == {"access"}
    assert lines[1]["resume_secret"] == "<redacted>"


async def test_many_clients_at_once(certificates_folder: Path) -> None:
    async with running(certificates_folder, configuration(certificates_folder)) as site:
        clients = await asyncio.gather(*(site.up() for _ in range(100)))
        addresses = {address for client in clients for address in client.inner}
        assert len(addresses) == 200, "nobody shares an address"
        page = site.server.report.tunnels(after=0, limit=60, match="")
        rest = site.server.report.tunnels(after=page["next"], limit=60, match="")
        assert len(page["tunnels"]) + len(rest["tunnels"]) == 100
        assert rest["next"] is None


async def test_a_request_without_a_tsid_of_its_own_is_the_only_first_one(certificates_folder: Path) -> None:
    """Anything else before the configuration is dropped, and the client may still be configured."""
    async with running(certificates_folder, configuration(certificates_folder)) as site:
        stranger = await site.hostile_stream()
        for message in messages_in_the_name_of(UNASSIGNED_TSID)[1:]:
            await stranger.send(encode(message))
            await stranger.message()
        await stranger.send(encode(ConfigurationRequest(tsid=UNASSIGNED_TSID, sequence=1)))
        answer = await stranger.message()
        assert isinstance(answer, ConfigurationResponse)
        assert answer.code is Code.SUCCESS
        stranger.writer.close()
