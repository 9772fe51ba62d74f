"""A client gets a tunnel, or is told why not."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from opentsm.limits import AUTH_ATTEMPTS_PER_MINUTE
from opentsm.protocol import actions as a
from opentsm.protocol.states import Client as State
from opentsm.server.auth.edit import set_account
from opentsm.server.auth.passwords import hash_password
from opentsm.types import Code, Flow, PathMode, Protocol, Service, Transport
from opentsm.wire.messages import AddressFamilies
from tests.unit.server.harness import Client, Site, configuration, running, until

ECHO = "echo = 7"
PLAIN = """
[tscf-port.plain]
address = "127.0.0.1"
port = 0
transport-protocol = "tcp"
"""


@pytest.fixture
def accounts(certificates_folder: Path, tmp_path: Path) -> str:
    """Authentication settings with the account alice, password secret, and bob with a fixed address."""
    file = tmp_path / "passwords"
    set_account(file, "alice", hash_password(b"secret"))
    set_account(file, "bob", hash_password(b"secret"), {"address": "10.64.1.77"})
    return f'methods = ["password"]\npassword-file = "{file}"'


async def test_a_client_is_configured_and_hears_itself_in_the_tunnel(certificates_folder: Path) -> None:
    async with running(certificates_folder, configuration(certificates_folder, realm=ECHO)) as site:
        client = await site.up()
        told = client.session.configuration
        assert told is not None
        assert told.lease.ipv4 is not None
        assert told.lease.ipv6 is not None
        assert told.lease.ipv4.network.prefixlen == 16
        assert told.lease.ipv6.network.prefixlen == 64
        assert told.services == (Service.SIP, Service.DDT)
        assert told.observed_address is not None
        assert str(told.observed_address[0]) == "127.0.0.1"
        for ipv6, far in ((False, "10.64.0.1"), (True, "fd00:64::1")):
            inner = client.socket(ipv6=ipv6)
            assert inner.send(b"hello", far, 7) is None
            _, source, path = await inner.heard(b"hello")
            assert (source, path) == ((far, 7), 0)


async def test_two_clients_talk_to_each_other_unless_that_is_blocked(certificates_folder: Path) -> None:
    async with running(certificates_folder, configuration(certificates_folder)) as site:
        one, other = (await site.up()).socket(), (await site.up()).socket()
        assert one.address != other.address
        one.send(b"hi", other.address, other.port)
        assert (await other.heard(b"hi"))[1] == (one.address, one.port)
    text = configuration(certificates_folder).replace('"DDT"]', '"DDT", "inter-client-block"]')
    async with running(certificates_folder, text) as site:
        one, other = (await site.up()).socket(), (await site.up()).socket()
        one.send(b"hi", other.address, other.port)
        await until(lambda: site.counter("drop_inner_client_block") == 1)
        assert other.received == []


@pytest.mark.parametrize("families", [AddressFamilies.IPV4, AddressFamilies.IPV6])
async def test_a_client_gets_the_families_it_asks_for(
    certificates_folder: Path, families: AddressFamilies
) -> None:
    async with running(certificates_folder, configuration(certificates_folder)) as site:
        client = await site.up(families=families)
        assert [":" in address for address in client.inner] == [families is AddressFamilies.IPV6]


async def test_passwords(certificates_folder: Path, accounts: str) -> None:
    async with running(
        certificates_folder, configuration(certificates_folder, authentication=accounts)
    ) as site:
        await site.up(username="alice", password=b"secret")
        for username, password in (("alice", b"wrong"), ("nobody", b"secret"), (None, None)):
            refused = await site.client(username=username, password=password).connect()
            assert refused.ended is not None
            assert (refused.ended.code, refused.ended.text) == (Code.UNAUTHORIZED, "")
        assert len(site.server.hub.registry) == 1
        assert site.server.facts().pools[0].leased == 1, "a refused client is leased nothing"


async def test_a_guesser_is_told_to_wait(certificates_folder: Path, accounts: str) -> None:
    async with running(
        certificates_folder, configuration(certificates_folder, authentication=accounts)
    ) as site:
        await site.client(username="alice", password=b"wrong").connect()
        limiter = site.server.hub.door.limiter
        assert limiter.statistics().failures == 1
        for _ in range(2 * AUTH_ATTEMPTS_PER_MINUTE):  # so many that no slow machine lets them be forgotten
            limiter.failed("127.0.0.1", time.monotonic())
        late = await site.client(username="alice", password=b"secret").connect()
        assert late.ended is not None
        assert late.ended.code is Code.RATE_LIMITED
        assert late.ended.retry_after is not None
        assert 0 < late.ended.retry_after <= 120


async def test_a_fixed_address_is_kept_for_its_account(certificates_folder: Path, accounts: str) -> None:
    async with running(
        certificates_folder, configuration(certificates_folder, authentication=accounts)
    ) as site:
        bob = await site.up(username="bob", password=b"secret")
        assert "10.64.1.77" in bob.inner
        second = await site.client(username="bob", password=b"secret").connect()
        assert second.ended is not None
        assert (second.ended.code, second.ended.text) == (
            Code.NO_ADDRESS,
            "your address 10.64.1.77 is not free",
        )
        bob.cut()
        await until(lambda: site.server.facts().interfaces[0].persistent == 1, "the session is persistent")
        third = await site.up(username="bob", password=b"secret")
        assert "10.64.1.77" in third.inner
        assert len(site.server.hub.registry) == 1


async def test_a_client_certificate_is_enough(certificates_folder: Path) -> None:
    text = configuration(
        certificates_folder,
        authentication='methods = ["certificate"]',
        tls=f'client-auth = "request"\nclient-ca = "{certificates_folder}/ca.pem"',
    )
    async with running(certificates_folder, text) as site:
        await site.up(profile=site.certificate_profile())
        assert [record.value.session.identity for record in site.server.hub.registry] == ["alice"]
        without = await site.client().connect()
        assert without.ended is not None
        assert without.ended.code is Code.UNAUTHORIZED


async def test_an_exhausted_pool_says_so_and_recovers(certificates_folder: Path) -> None:
    text = configuration(certificates_folder).replace("10.64.1.0/24", "10.64.1.1")
    async with running(certificates_folder, text) as site:
        first = await site.up()
        second = await site.client().connect()
        assert second.ended is not None
        assert (second.ended.code, second.ended.text) == (Code.NO_ADDRESS, "no inner address is free")
        status = site.server.report.status()
        assert status["interfaces"][0]["refusals"] == {"pool-exhausted": 1}
        assert first.session.state is State.ACTIVE


async def test_max_tunnels_counts_sessions(certificates_folder: Path) -> None:
    text = configuration(certificates_folder, interface="max-tunnels = 1")
    async with running(certificates_folder, text) as site:
        first = await site.up()
        second = await site.client().connect()
        assert second.ended is not None
        assert (second.ended.code, second.ended.text) == (Code.TOO_MANY_TUNNELS, "all 1 tunnels are in use")
        first.act("close")
        await until(lambda: len(site.server.hub.registry) == 0)
        await site.up()


async def test_a_disabled_interface_turns_new_clients_away(certificates_folder: Path) -> None:
    text = configuration(certificates_folder, interface='state = "disabled"')
    async with running(certificates_folder, text) as site:
        refused = await site.client().connect()
        assert refused.ended is not None
        assert (refused.ended.code, refused.ended.text) == (Code.SHUTTING_DOWN, "out of service")


def datagram_packets(site: Site, client: Client) -> int:
    """Packets that the server has had by the client's datagram tunnel."""
    detail = site.server.report.tunnel(f"{client.tsid:016x}")
    return int(detail["paths"]["datagram"]["rx_packets"])


async def media_by_ddt(site: Site, client: Client) -> None:
    """The client's media moves to a datagram tunnel, and back."""
    inner = client.socket()
    flow = Flow(Protocol.UDP, inner.port)
    client.act("set_mode", flow, PathMode.DATAGRAM)
    await until(lambda: client.seen.last(a.DdtEnabled), "the flow is on the DDT")
    async with asyncio.timeout(20):  # what begins on a DDT goes by both at first; the first copy counts
        while True:
            inner.received.clear()
            inner.send(b"by datagram", "10.64.0.1", 7)
            back = (await inner.heard(b"by datagram"))[2] == 1
            if back and datagram_packets(site, client):
                break
    (record,) = site.server.hub.registry
    assert record.ddt_tsid not in (None, client.tsid)
    client.act("set_mode", flow, PathMode.STREAM)
    await until(lambda: client.seen.last(a.DdtDisabled), "the flow is on the stream again")
    inner.send(b"by stream", "10.64.0.1", 7)
    assert (await inner.heard(b"by stream"))[2] == 0


async def test_media_moves_to_a_dtls_tunnel_on_the_same_port(certificates_folder: Path) -> None:
    async with running(certificates_folder, configuration(certificates_folder, realm=ECHO)) as site:
        client = await site.up()
        await media_by_ddt(site, client)
        assert datagram_packets(site, client) >= 1
        detail = site.server.report.tunnel(f"{client.tsid:016x}")
        assert detail["inner"] == client.inner


async def test_plain_tcp_pairs_with_udp(certificates_folder: Path) -> None:
    text = configuration(
        certificates_folder, realm=ECHO, interface="plain-transports = true", more=PLAIN
    ).replace('ports = ["v4"]', 'ports = ["v4", "plain"]')
    async with running(certificates_folder, text) as site:
        client = await site.up(transport=Transport.TCP, port="plain")
        await media_by_ddt(site, client)


async def test_ipv6_outside(certificates_folder: Path) -> None:
    text = configuration(certificates_folder, realm=ECHO).replace('address = "127.0.0.1"', 'address = "::1"')
    async with running(certificates_folder, text) as site:
        client = await site.up(host="::1")
        await media_by_ddt(site, client)


async def test_without_the_service_there_is_no_ddt_and_the_tunnel_goes_on(certificates_folder: Path) -> None:
    text = configuration(certificates_folder, realm=ECHO).replace('["SIP", "DDT"]', '["SIP"]')
    async with running(certificates_folder, text) as site:
        client = await site.up()
        inner = client.socket()
        client.act("set_mode", Flow(Protocol.UDP, inner.port), PathMode.DATAGRAM)
        await until(lambda: client.seen.last(a.DdtAvailable) is not None)
        assert client.seen.last(a.DdtAvailable).available is False
        inner.send(b"still here", "10.64.0.1", 7)
        assert (await inner.heard(b"still here"))[2] == 0


@contextmanager
def udp_server() -> Iterator[tuple[int, Callable[[], bytes]]]:
    """A UDP socket of this machine: its port, and what it has received."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        one.setblocking(False)

        def heard() -> bytes:
            try:
                return one.recv(4096)
            except BlockingIOError:
                return b""

        yield one.getsockname()[1], heard


async def test_the_userspace_core_reaches_what_is_routed_and_nothing_else(certificates_folder: Path) -> None:
    text = configuration(certificates_folder, realm='routes = ["127.0.0.1"]')
    async with running(certificates_folder, text) as site:
        inner = (await site.up(families=AddressFamilies.IPV4)).socket()
        with udp_server() as (number, heard):
            inner.send(b"to the core", "127.0.0.1", number)
            await until(lambda: heard() == b"to the core")
        inner.send(b"elsewhere", "127.0.0.2", number)
        await until(lambda: site.counter("drop_inner_no_route") == 1)


async def test_policies_deny_and_redirect(certificates_folder: Path) -> None:
    text = configuration(
        certificates_folder,
        realm=ECHO,
        pool='protocol-policies = ["closed", "moved"]',
        more="""
[tscf-protocol-policy.closed]
destination = "10.64.0.1"
transport = "udp"
port = 9
action = "deny"

[tscf-protocol-policy.moved]
destination = "192.0.2.1"
transport = "udp"
port = 5060
action = "redirect"
redirect-address = "10.64.0.1"
redirect-port = 7
""",
    )
    async with running(certificates_folder, text) as site:
        inner = (await site.up()).socket()
        inner.send(b"moved", "192.0.2.1", 5060)
        assert (await inner.heard(b"moved"))[1] == ("192.0.2.1", 5060), "the answer has its old face"
        inner.send(b"closed", "10.64.0.1", 9)
        await until(lambda: site.counter("drop_inner_policy_denied") == 1)


async def test_a_data_flow_limits_a_client(certificates_folder: Path) -> None:
    text = configuration(
        certificates_folder,
        realm=ECHO,
        pool='data-flow = "slow"',
        more='[tscf-data-flow.slow]\nupstream-rate = "1 KB/s"\ngroup-size = 1',
    )
    async with running(certificates_folder, text) as site:
        inner = (await site.up()).socket()
        for _ in range(10):
            inner.send(bytes(1000), "10.64.0.1", 7)
        await until(lambda: site.counter("drop_inner_rate_limited") > 0)
