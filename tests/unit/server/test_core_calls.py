"""Calls through a whole server: between tunnels, and between a tunnel and the server's own network."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from opentsm.sbc import account_line
from opentsm.types import SocketAddress
from tests.unit.server.harness import Site, configuration, running, until
from tests.unit.server.phones import PACKETS, Party, on_the_network, speak, tunnelled, tunnelled_by_tcp

DOMAIN = "example.test"
INNER: SocketAddress = ("10.64.0.2", 5060)
CORE: SocketAddress = (
    f"127.{os.getpid() >> 16 & 127 | 64}.{os.getpid() >> 8 & 255}.{os.getpid() & 255}",
    5060,
)
"""The server on its own network: an address of this process's own, so that tests can run side by side."""
SBC = """
[sbc.calls]
realm = "core"
domain = "example.test"
address = "10.64.0.2"
address6 = "fd00:64::2"
users-file = "{folder}/sip-users"
cdr-file = "{folder}/calls.jsonl"
database = "{folder}/sbc.db"
core-address = "{core}"
core-phones = "127.0.0.0/8"

[trunk.provider]
sbc = "calls"
address = "127.0.0.1"
port = {trunk}
transport = "{transport}"
numbers = "+"
"""


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@asynccontextmanager
async def scene(folder: Path, tmp_path: Path, transport: str) -> AsyncIterator[tuple[Site, Party, Party]]:
    """A server, Alice in a tunnel and registered, and a provider's trunk."""
    lines = [account_line(name, DOMAIN, f"{name}-secret", "MD5") for name in ("alice", "bob", "carol")]
    (tmp_path / "sip-users").write_text("\n".join(lines) + "\n")
    trunk = free_port()
    more = SBC.format(folder=tmp_path, core=CORE[0], trunk=trunk, transport=transport)
    async with running(folder, configuration(folder, more=more)) as site:
        provider = await on_the_network("pstn", CORE[0], CORE, trunk, transport)
        alice = tunnelled(await site.up(), "alice", DOMAIN, INNER)
        alice.phone.register()
        await until(lambda: alice.phone.registered == ["200"], "alice's registration")
        try:
            yield site, alice, provider
        finally:
            await alice.close()
            await provider.close()


def place(sdp: str) -> SocketAddress:
    address = re.search(r"^c=IN IP[46] (\S+)", sdp, re.MULTILINE)
    port = re.search(r"^m=audio (\d+)", sdp, re.MULTILINE)
    assert address is not None
    assert port is not None
    return address[1], int(port[1])


async def the_record(tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "calls.jsonl"
    await until(lambda: file.exists() and file.read_text().endswith("\n"), "the call's record")
    (line,) = file.read_text().splitlines()
    record: dict[str, Any] = json.loads(line)
    return record


@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize("way", ["out", "in"])
async def test_speech_passes_between_a_tunnel_and_a_trunk(
    certificates_folder: Path, tmp_path: Path, transport: str, way: str
) -> None:
    async with scene(certificates_folder, tmp_path, transport) as (site, alice, provider):
        caller, callee = (alice, provider) if way == "out" else (provider, alice)
        leg = caller.phone.call("+4930" if way == "out" else "alice")
        await until(lambda: leg.state == "answered", "the answer")
        there = callee.phone.calls[leg.call_id]
        await until(lambda: not callee.phone._unacked, "the ACK")
        await speak(caller, place(leg.far_sdp), callee)
        await speak(callee, place(there.far_sdp), caller)
        # Each echoes the other's last sender report, and tells of losses on the way.
        for number in range(1, 3):
            for one, sdp, seen in ((caller, leg.far_sdp, number - 1), (callee, there.far_sdp, number)):
                before, (address, port) = site.counter("relayed"), place(sdp)
                report = one.media.report(number << 16, echo=seen << 16, lost=3)
                one.media.send(report, address, port + 1)
                await until(lambda before=before: site.counter("relayed") > before, "a report")  # type: ignore[misc]
        callee.phone.hang_up(there)
        await until(lambda: leg.state == "ended", "the end of the call")
        record = await the_record(tmp_path)
        store = site.server.calls._running["calls"].store
        assert store is not None
        (stored,) = await store.calls()
        assert json.loads(json.dumps(stored)) == record, "the store has it as well"
    trunk, other = ("callee", "caller") if way == "out" else ("caller", "callee")
    assert (record[f"{trunk}_trunk"], record[f"{trunk}_tunnel"]) == ("provider", None)
    assert (record[f"{other}_trunk"], record[f"{other}_tunnel"]["client"]) == (None, "anonymous")
    assert (record["ended_by"], record["reason"], record["codec"]) == ("callee", "hung-up", "PCMU")
    for direction in ("from_caller", "from_callee"):
        assert (record[direction]["packets"], record[direction]["lost"]) == (PACKETS, 0)
        assert record[direction]["mos"] > 3.5
        told = record[direction]["reported"]
        assert (told["reports"], told["lost"], told["loss_percent"]) == (2, 3, 6.0)
        assert told["round_trip_ms"] is not None
    assert record["path"][other] == [] or record["path"][other][0][1] == "stream"


async def test_what_the_callee_says_before_its_answer_is_heard(
    certificates_folder: Path, tmp_path: Path
) -> None:
    """Announcements of a network come before the call is answered, or never is."""
    async with scene(certificates_folder, tmp_path, "udp") as (_, alice, provider):
        provider.phone.behaviour = "ring"
        leg = alice.phone.call("+4930")
        await until(lambda: leg.state == "ringing", "ringing")
        await speak(provider, place(provider.phone.calls[leg.call_id].far_sdp), alice)
        alice.phone.cancel(leg)
        await until(lambda: leg.code == 487, "the end")


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_a_phone_on_inner_tcp_calls_and_is_called(
    certificates_folder: Path, tmp_path: Path, transport: str
) -> None:
    """By a phone in another tunnel on UDP, and by a trunk; always on the connection it registered by."""
    async with scene(certificates_folder, tmp_path, transport) as (site, alice, provider):
        bob = await tunnelled_by_tcp(await site.up(), "bob", DOMAIN, INNER)
        bob.phone.register()
        await until(lambda: bob.phone.registered == ["200"], "the registration")
        for caller, callee, whom in (
            (alice, bob, "bob"),
            (bob, alice, "alice"),
            (provider, bob, "bob"),
            (bob, provider, "+4930"),
        ):
            leg = caller.phone.call(whom)
            await until(lambda leg=leg: leg.state == "answered", "the answer")  # type: ignore[misc]
            there = callee.phone.calls[leg.call_id]
            callee.media.heard.clear()
            caller.media.heard.clear()
            await speak(caller, place(leg.far_sdp), callee)
            await speak(callee, place(there.far_sdp), caller)
            callee.phone.hang_up(there)
            await until(lambda leg=leg: leg.state == "ended", "the end")  # type: ignore[misc]
        # The trunk has opened one for its call, and we one to it for ours.
        with_trunk = 2 if transport == "tcp" else 0
        assert site.server.calls.status()[0]["connections"] == 1 + with_trunk
        await bob.close()
        await until(
            lambda: site.server.calls.status()[0]["connections"] == with_trunk, "the end of bob's connection"
        )


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_a_desk_phone_and_a_tunnelled_one_call_each_other(
    certificates_folder: Path, tmp_path: Path, transport: str
) -> None:
    async with scene(certificates_folder, tmp_path, "udp") as (_, alice, provider):
        desk = await on_the_network("bob", DOMAIN, CORE, free_port(), transport)
        desk.phone.register()
        await until(lambda: desk.phone.registered == ["200"], "the desk phone's registration")
        for caller, callee in ((alice, desk), (desk, alice)):
            leg = caller.phone.call(callee.phone.name)
            await until(lambda leg=leg: leg.state == "answered", "the answer")  # type: ignore[misc]
            await speak(caller, place(leg.far_sdp), callee, first=100)
            caller.phone.hang_up(leg)
            there = callee.phone.calls[leg.call_id]
            await until(lambda there=there: there.state == "ended", "the end")  # type: ignore[misc]
        await desk.close()
        assert not provider.phone.received


async def test_a_client_that_is_gone_leaves_no_connection_behind(
    certificates_folder: Path, tmp_path: Path
) -> None:
    async with scene(certificates_folder, tmp_path, "udp") as (site, _, _provider):
        client = await site.up()
        bob = await tunnelled_by_tcp(client, "bob", DOMAIN, INNER)
        bob.phone.register()
        await until(lambda: bob.phone.registered == ["200"], "the registration")
        assert site.server.calls.status()[0]["connections"] == 1
        client.act("close")
        await until(lambda: site.server.calls.status()[0]["connections"] == 0, "the end of his connection")
        await bob.close()


@pytest.mark.parametrize("whom", ["bob", "+4930"])
async def test_a_call_between_ipv6_and_ipv4(certificates_folder: Path, tmp_path: Path, whom: str) -> None:
    """Alice has both families and speaks SIP by the one, the other side is on the other."""
    async with scene(certificates_folder, tmp_path, "udp") as (site, _, provider):
        six = tunnelled(await site.up(), "carol", DOMAIN, ("fd00:64::2", 5060))
        bob = tunnelled(await site.up(), "bob", DOMAIN, INNER)
        for party in (six, bob):
            party.phone.register()
            await until(lambda party=party: party.phone.registered == ["200"], "registrations")  # type: ignore[misc]
        callee = bob if whom == "bob" else provider
        leg = six.phone.call(whom)
        await until(lambda: leg.state == "answered", "the answer")
        there = callee.phone.calls[leg.call_id]
        assert place(leg.far_sdp)[0] == "fd00:64::2"
        assert place(there.far_sdp)[0] in (INNER[0], CORE[0])
        await speak(six, place(leg.far_sdp), callee)
        await speak(callee, place(there.far_sdp), six)
        callee.phone.hang_up(there)
        await until(lambda: leg.state == "ended", "the end")
        for party in (six, bob):
            await party.close()


async def test_an_idle_phone_is_rung_through_its_stream_and_may_answer_from_elsewhere(
    certificates_folder: Path, tmp_path: Path
) -> None:
    """Bob's laptop has another tunnel by now: his answer and his media come from there."""
    async with scene(certificates_folder, tmp_path, "udp") as (site, alice, _):
        bob = tunnelled(await site.up(), "bob", DOMAIN, INNER)
        bob.phone.register()
        await until(lambda: bob.phone.registered == ["200"], "the registration")
        bob.paths.clear()
        elsewhere = tunnelled(await site.up(), "bob", DOMAIN, INNER)
        assert elsewhere.phone.address != bob.phone.address
        bob.wire.sender, bob.media = elsewhere.wire.sender, elsewhere.media
        bob.phone.media_port, bob.phone.media_address = bob.media.port, bob.media.address
        elsewhere.phone.receive = bob.phone.receive  # type: ignore[method-assign]
        leg = alice.phone.call("bob")
        await until(lambda: leg.state == "answered", "the answer")
        assert bob.paths[0] == 0, "the INVITE came by the stream"
        there = bob.phone.calls[leg.call_id]
        await speak(alice, place(leg.far_sdp), bob)
        await speak(bob, place(there.far_sdp), alice)
        bob.phone.hang_up(there)
        await until(lambda: leg.state == "ended", "the end")
        record = await the_record(tmp_path)
        assert (record["callee"], record["ended_by"]) == ("bob@example.test", "callee")
        for party in (bob, elsewhere):
            await party.close()


async def test_core_ports_can_be_had_again_after_the_call(certificates_folder: Path, tmp_path: Path) -> None:
    async with scene(certificates_folder, tmp_path, "udp") as (site, alice, provider):
        leg = alice.phone.call("+4930")
        await until(lambda: leg.state == "answered", "the answer")
        address, port = place(provider.phone.calls[leg.call_id].far_sdp)
        assert address == CORE[0]
        alice.phone.hang_up(leg)
        await until(lambda: site.server.calls.status()[0]["calls"] == 0, "the end")

        def is_free() -> bool:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
                try:
                    one.bind((address, port))
                except OSError:
                    return False
                return True

        await until(is_free, "the socket's end")
