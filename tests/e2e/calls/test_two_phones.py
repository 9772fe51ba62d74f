"""Two phones behind a firewall call each other through the embedded SBC and move to the DDT in mid-call."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from opentsm.client.phone.call import Call, CallError, CallSettings
from opentsm.client.phone.core import Account
from opentsm.client.phone.phone import Phone
from opentsm.client.phone.speech import speech
from opentsm.client.tunnel import connect
from opentsm.lab.firewall import tcp_udp_443
from opentsm.lab.serving import PASSWORD, SIP_DOMAIN, ServerProcess, Shape, make_credentials
from opentsm.lab.topology import Lab, LabSpec
from opentsm.lab.waiting import until, until_now
from opentsm.types import Path as TunnelPath
from opentsm.types import PathMode
from tests.e2e.tunnels.harness import in_host, login

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]

SOME: Final = 75
"""Packets that make a stretch of speech: a second and a half."""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(LabSpec(phones=2, emulate=False)) as lab:
        lab.firewall().apply(tcp_udp_443(lab["server"].ipv4, lab["server"].ipv6))
        yield lab


@pytest.fixture
def server(lab: Lab, tmp_path: Path) -> Iterator[ServerProcess]:
    make_credentials(tmp_path, lab["server"], ("alice", "bob"))
    server = ServerProcess(lab["server"], tmp_path, Shape(sbc=True))
    server.start()
    yield server
    server.stop()


@asynccontextmanager
async def a_phone(
    server: ServerProcess, user: str, sip_password: str = PASSWORD, transport: str = "udp"
) -> AsyncIterator[Phone]:
    """A phone on a tunnel of the user's, at the SIP server that the tunnel was told of."""
    async with connect(**{**login(server), "username": user}) as tunnel:
        told = tunnel.configuration.lease.sip_server
        assert told is not None
        account = Account(user, SIP_DOMAIN, sip_password)
        async with Phone(tunnel, account, server=(str(told[0]), told[1]), transport=transport) as phone:
            yield phone


def settings() -> CallSettings:
    return CallSettings(samples=speech(5), loop=True)


class Bob:
    """Answers one call, in a thread whose sockets are those of phone 2."""

    def __init__(self, server: ServerProcess, transport: str = "udp") -> None:
        self.transport = transport
        self.ready = threading.Event()
        self.call: Call | None = None
        self._server = server
        self._loop: asyncio.AbstractEventLoop | None = None

    async def live(self) -> Call:
        self._loop = asyncio.get_running_loop()
        async with a_phone(self._server, "bob", transport=self.transport) as phone:
            await phone.register()
            self.ready.set()
            self.call = await phone.answer(await phone.next_call(), settings())
            await self.call.ended()
            return self.call

    def move(self) -> None:
        """Turn his media switch to the datagram tunnel."""
        assert self._loop is not None
        assert self.call is not None
        self._loop.call_soon_threadsafe(self.call.set_mode, PathMode.DATAGRAM)


def heard_by(call: Call, path: TunnelPath) -> int:
    return sum(packet.path is path for packet in list(call.media.received))


async def talk(alice: Call, bob: Bob, path: TunnelPath) -> None:
    """Speech both ways on this path."""
    await until(lambda: heard_by(alice, path) >= SOME, within=30, what=f"alice hears by {path.name}")
    assert bob.call is not None
    there = bob.call
    await until(lambda: heard_by(there, path) >= SOME, within=30, what=f"bob hears by {path.name}")


async def call_bob(server: ServerProcess, bob: Bob, transport: str = "udp") -> tuple[Call, dict[str, Any]]:
    """Alice's side of the story; returns her call and what the server said of it meanwhile."""
    async with a_phone(server, "alice", transport=transport) as phone:
        await phone.register()
        assert await asyncio.to_thread(bob.ready.wait, 30)
        call = await phone.call("bob", settings())
        await call.answered()
        await talk(call, bob, TunnelPath.STREAM)
        call.set_mode(PathMode.DATAGRAM)
        bob.move()
        await talk(call, bob, TunnelPath.DATAGRAM)
        status = await asyncio.to_thread(server.command, "status")
        await call.hang_up()
        return call, status


@pytest.mark.parametrize(("alices", "bobs"), [("udp", "udp"), ("tcp", "tcp"), ("tcp", "udp")])
def test_speech_moves_to_the_ddt_in_mid_call_and_nothing_is_lost(
    lab: Lab, server: ServerProcess, alices: str, bobs: str
) -> None:
    """SIP by inner UDP, and by inner TCP, where both ends of it are without a kernel."""
    bob = Bob(server, bobs)
    with ThreadPoolExecutor(1) as threads:
        bobs_end = threads.submit(in_host, lab["phone2"], bob.live)
        alice, status = in_host(lab["phone1"], lambda: call_bob(server, bob, alices))
        his = bobs_end.result(30)
    for call in (alice, his):
        heard = call.media.reception
        assert heard is not None
        assert (heard.lost, dict(call.media.numbers.drops)) == (0, {})
        assert [one.what for one in call.changes if one.what.startswith("path")] == [
            "path: stream",
            "path: datagram",
        ]
    # Both beginnings are whole: what overtakes the callee's answer on the way to the SBC is relayed too.
    assert his.media.received[0].sequence == alice.media.sent[0].sequence
    assert alice.media.received[0].sequence == his.media.sent[0].sequence
    (sbc,) = status["sbcs"]
    (running,) = sbc["active_calls"]
    assert (running["caller"], running["callee"]) == (f"alice@{SIP_DOMAIN}", f"bob@{SIP_DOMAIN}")
    check_record(server)


def check_record(server: ServerProcess) -> None:
    until_now(server.call_records, what="the call's record")
    (record,) = server.call_records()
    assert (record["caller"], record["callee"]) == (f"alice@{SIP_DOMAIN}", f"bob@{SIP_DOMAIN}")
    assert (record["caller_tunnel"]["client"], record["callee_tunnel"]["client"]) == ("alice", "bob")
    assert (record["ended_by"], record["reason"]) == ("caller", "hung-up")
    assert record["codec"].upper().startswith("PCM")
    for direction in ("from_caller", "from_callee"):
        assert (record[direction]["lost"], record[direction]["packets"] >= 2 * SOME) == (0, True)
        assert 0 < record[direction]["datagram_percent"] < 100


@pytest.mark.parametrize(
    ("what", "code"), [("unknown user", 404), ("wrong SIP password", 401), ("other's name", 403)]
)
def test_what_is_refused(lab: Lab, server: ServerProcess, what: str, code: int) -> None:
    async def unknown_user() -> None:
        async with a_phone(server, "alice") as phone:
            await phone.register()
            await (await phone.call("nobody")).answered()

    async def wrong_password() -> None:
        async with a_phone(server, "alice", "wrong") as phone:
            await phone.register()

    async def others_name() -> None:
        """Bob's right SIP password does not help in alice's tunnel."""
        async with connect(**login(server)) as tunnel:
            account = Account("bob", SIP_DOMAIN, PASSWORD)
            async with Phone(tunnel, account, server=("10.64.0.2", 5060)) as phone:
                await phone.register()

    scenarios: dict[str, Callable[[], Awaitable[None]]] = {
        "unknown user": unknown_user,
        "wrong SIP password": wrong_password,
        "other's name": others_name,
    }
    with pytest.raises(CallError) as refused:
        in_host(lab["phone1"], scenarios[what])
    assert refused.value.code == code
