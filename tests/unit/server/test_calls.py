"""The server's part in calls: who an address is, what media does to steering, and what ends with what."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from opentsm.config import load, loads
from opentsm.errors import ConfigError
from opentsm.sbc import account_line
from opentsm.server import Server
from opentsm.server.calls import Media, read_accounts
from opentsm.server.server import check
from opentsm.types import Flow, PathMode, Protocol
from opentsm.userplane._core import FlowStats
from tests.unit.server.harness import Client, Inner, Site, configuration, running, until

DOMAIN = "example.test"
SBC = """
[sbc.calls]
realm = "core"
domain = "example.test"
address = "10.64.0.2"
users-file = "{folder}/sip-users"
cdr-file = "{folder}/calls.jsonl"
database = "{folder}/sbc.db"
"""
OPTIONS = (
    "OPTIONS sip:example.test SIP/2.0\r\nVia: SIP/2.0/UDP {address}:{port};branch=z9hG4bK{number}\r\n"
    "From: <sip:a@example.test>;tag=1\r\nTo: <sip:example.test>\r\nCall-ID: {number}\r\nCSeq: 1 OPTIONS\r\n"
    "Max-Forwards: 70\r\nContent-Length: 0\r\n\r\n"
)


@pytest.fixture
def text(certificates_folder: Path, tmp_path: Path) -> str:
    (tmp_path / "sip-users").write_text(account_line("alice", DOMAIN, "secret", "MD5") + "\n")
    return configuration(certificates_folder, more=SBC.format(folder=tmp_path))


@pytest.fixture
async def site(certificates_folder: Path, text: str) -> AsyncIterator[Site]:
    async with running(certificates_folder, text) as site:
        yield site


def rows(site: Site, client: Client) -> list[FlowStats]:
    record = site.server.hub.registry.by_address(ip_address(client.inner[0]))
    assert record is not None
    return site.server.hub.core.flow_stats(record.session)


def modes(site: Site, client: Client) -> dict[int, tuple[int, bool]]:
    return {row.port: (row.mode, row.media) for row in rows(site, client)}


def media(site: Site) -> Media:
    return site.server.calls._media


def flow(port: int) -> Flow:
    return Flow(Protocol.UDP, port, far=(ip_address("10.64.0.2"), 20000))


async def ask_options(inner: Inner) -> bytes:
    request = OPTIONS.format(address=inner.address, port=inner.port, number=inner.port)
    inner.send(request.encode(), "10.64.0.2", 5060)
    await until(lambda: inner.received, "an answer of the SBC")
    return inner.received[0][0]


async def test_the_sbc_answers_in_the_tunnel_and_is_told_as_the_sip_server(site: Site) -> None:
    client = await site.up()
    assert client.session.configuration is not None
    assert client.session.configuration.lease.sip_server == (ip_address("10.64.0.2"), 5060)
    assert (await ask_options(client.socket())).startswith(b"SIP/2.0 ")


async def test_a_pools_own_sip_server_comes_before_the_sbc(certificates_folder: Path, text: str) -> None:
    own = text.replace("[tscf-interface", 'sip-server = "10.64.0.1:5070"\n[tscf-interface')
    async with running(certificates_folder, own) as site:
        client = await site.up()
        assert client.session.configuration is not None
        assert client.session.configuration.lease.sip_server == (ip_address("10.64.0.1"), 5070)


async def test_media_is_known_before_its_first_packet_and_forgotten_after(site: Site) -> None:
    client = await site.up()
    flows = [flow(4000), flow(4001)]
    media(site).media_flows(client.inner[0], flows, True)
    assert modes(site, client) == {4000: (2, True), 4001: (2, True)}
    assert all(row.far is None for row in rows(site, client))
    media(site).media_flows(client.inner[0], flows, True)
    media(site).media_flows(client.inner[0], flows, False)
    assert len(rows(site, client)) == 2, "a second call uses the same ports"
    media(site).media_flows(client.inner[0], flows, False)
    assert rows(site, client) == []
    assert media(site).rows == {}


async def test_the_clients_own_switch_counts_more_before_and_after(site: Site) -> None:
    client = await site.up()
    before, after = client.socket(), client.socket()
    client.act("set_mode", Flow(Protocol.UDP, before.port), PathMode.DATAGRAM)
    await until(lambda: modes(site, client).get(before.port) == (1, True), "the client's row")
    flows = [flow(before.port), flow(after.port)]
    media(site).media_flows(client.inner[0], flows, True)
    assert modes(site, client) == {before.port: (1, True), after.port: (2, True)}
    client.act("set_mode", Flow(Protocol.UDP, after.port), PathMode.DATAGRAM)
    await until(lambda: modes(site, client)[after.port] == (1, True), "the client's change")
    media(site).media_flows(client.inner[0], flows, False)
    assert modes(site, client) == {before.port: (1, True), after.port: (1, True)}


async def test_media_of_a_client_that_is_gone_is_no_error(site: Site) -> None:
    client = await site.up()
    address = client.inner[0]
    media(site).media_flows(address, [flow(4000)], True)
    client.act("close")
    await until(lambda: len(site.server.hub.registry) == 0, "the client's end")
    assert media(site).rows == {}
    media(site).media_flows(address, [flow(4000)], False)
    assert media(site).delay_ms(address) == 0.0


async def test_the_delay_is_half_a_round_trip_of_the_tunnel(site: Site) -> None:
    client = await site.up()
    record = site.server.hub.registry.by_address(ip_address(client.inner[0]))
    assert record is not None
    assert record.value.stream is not None
    stats = site.server.hub.core.tunnel_stats(record.value.stream)
    assert 0 < media(site).delay_ms(client.inner[0]) < 1000
    assert stats.rtt_us or stats.tcp_rtt_us


async def test_identities_are_those_of_the_tunnels(site: Site) -> None:
    client = await site.up()
    found = site.server.calls._identity_of(client.inner[0], "core")
    assert found is not None
    assert (found.addresses, found.tsid) == (tuple(client.inner), int(client.tsid))
    assert found.may_register("alice"), "an anonymous tunnel has no name: the SIP password decides"
    assert site.server.calls._identity_of(client.inner[0], "elsewhere") is None
    assert site.server.calls._identity_of("10.64.1.250", "core") is None


async def test_the_operator_sees_it(site: Site) -> None:
    await ask_options((await site.up()).socket())
    (sbc,) = site.server.report.status()["sbcs"]
    assert json.dumps(sbc)
    assert (sbc["sbc"], sbc["domain"], sbc["calls"], sbc["active_calls"]) == ("calls", DOMAIN, 0, [])
    assert isinstance(sbc["counters"], dict)


async def test_a_reload_leaves_it_and_says_what_waits(
    certificates_folder: Path, text: str, tmp_path: Path
) -> None:
    file = tmp_path / "server.toml"
    file.write_text(text)
    async with running(certificates_folder, load(file), file=file) as site:
        file.write_text(text.replace("10.64.0.2", "10.64.0.3"))
        assert await site.server.reload() == []
        assert site.server.waiting == ["sbc calls: address: 10.64.0.2 -> 10.64.0.3 (after a restart)"]
        assert (await ask_options((await site.up()).socket())).startswith(b"SIP/2.0 ")


async def test_after_a_stop_the_address_can_be_had_again(certificates_folder: Path, text: str) -> None:
    for _ in range(2):
        async with running(certificates_folder, text) as site:
            assert site.server.report.status()["sbcs"][0]["running"]
        assert site.server.calls.status() == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [("alice:example.test:short\n", "this is no SIP account"), (None, "users-file")],
)
async def test_bad_accounts_are_found_by_check_and_start(
    text: str, tmp_path: Path, content: str | None, problem: str
) -> None:
    accounts = tmp_path / "sip-users"
    if content is None:
        accounts.unlink()
    else:
        accounts.write_text(content)
    settings = loads(text)
    with pytest.raises(ConfigError, match=problem):
        check(settings)
    with pytest.raises(ConfigError, match=problem):
        await Server(settings).start()


def test_accounts_are_those_of_the_domain(text: str) -> None:
    accounts = read_accounts(loads(text))
    assert accounts["calls"].knows("alice")
    assert not accounts["calls"].knows("bob")
