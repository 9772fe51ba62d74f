"""The service on a user plane that only remembers what it was told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from opentsm.errors import ConfigError
from opentsm.sbc.digest import ha1, response
from opentsm.sbc.headers import credentials_untrusted
from opentsm.sbc.message import Request, Response, parse_untrusted
from opentsm.sbc.parties import Client
from opentsm.sbc.quality import PathSwitch
from opentsm.sbc.service import SbcService
from opentsm.sbc.settings import SbcSettings
from opentsm.sbc.users import Users, account_line
from opentsm.store import MemoryStore, SqliteStore, Store
from opentsm.types import Flow, SocketAddress
from opentsm.userplane.plane import Plane

SBC, ALICE, BOB = "10.64.0.1", ("10.64.0.2", 5060), ("10.64.0.3", 5060)
CLIENTS = {
    "10.64.0.2": Client("alice", 2, 2, ("10.64.0.2",)),
    "10.64.0.3": Client("bob", 3, 3, ("10.64.0.3",)),
}


@dataclass
class LegCounts:
    packets: int = 1000
    bytes: int = 172_000
    dropped: int = 0
    lost: int = 10
    expected: int = 1010
    jitter_us: int = 2000
    by_datagram: int = 900
    idle_ms: int = 0
    wrong: int = 0
    stranger: SocketAddress | None = None
    rtcp_packets: int = 0
    report_blocks: int = 0
    reported_lost: int = 0
    reported_jitter: int = 0
    rtt_us: int = 0


@dataclass
class Counts:
    a: LegCounts = field(default_factory=LegCounts)
    b: LegCounts = field(default_factory=LegCounts)


@dataclass
class FakeCore:
    """The commands of a user plane, written down."""

    sent: list[tuple[SocketAddress, bytes]] = field(default_factory=list)
    sockets: set[int] = field(default_factory=set)
    relays: dict[int, dict[str, Any]] = field(default_factory=dict)
    refuse_relays: bool = False
    taken: bool = False
    count: int = 0

    def udp_open(self, *, session: int | None, address: str, port: int, queue: int = 256) -> tuple[int, int]:
        if self.taken:
            raise OSError("address in use")
        self.count += 1
        self.sockets.add(self.count)
        return self.count, port

    def udp_send(self, socket: int, data: bytes, address: str, port: int, tos: int = 0) -> str | None:
        assert socket in self.sockets
        self.sent.append(((address, port), data))
        return None

    def udp_close(self, socket: int) -> None:
        self.sockets.remove(socket)

    def relay_open(
        self,
        *,
        local_a: SocketAddress,
        local_b: SocketAddress,
        remote_a: SocketAddress | None,
        remote_b: SocketAddress | None,
        early_a: Sequence[str] = (),
        early_b: Sequence[str] = (),
        core_a: bool = False,
        core_b: bool = False,
        rtp: bool = True,
        rtcp: bool = False,
    ) -> int:
        if self.refuse_relays:
            raise OSError("no more")
        self.count += 1
        self.relays[self.count] = {"remote_a": remote_a, "remote_b": remote_b}
        return self.count

    def relay_update(
        self,
        relay: int,
        *,
        remote_a: SocketAddress | None = None,
        remote_b: SocketAddress | None = None,
        follow: tuple[bool, bool] | None = None,
    ) -> None:
        self.relays[relay].update({"remote_b": remote_b})

    def relay_close(self, relay: int) -> Counts:
        del self.relays[relay]
        return Counts()

    def relay_stats(self, relay: int) -> Counts:
        return Counts()


@dataclass
class FakePlane:
    core: FakeCore = field(default_factory=FakeCore)
    handlers: dict[int, Callable[[bytes, SocketAddress, int], None]] = field(default_factory=dict)

    def watch_socket(self, socket: int, handler: Callable[[bytes, SocketAddress, int], None]) -> None:
        self.handlers[socket] = handler

    def unwatch_socket(self, socket: int) -> None:
        del self.handlers[socket]

    def receive(self, data: bytes, source: SocketAddress) -> list[Request | Response]:
        """Hand in one datagram; what was sent because of it."""
        before = len(self.core.sent)
        (handler,) = self.handlers.values()
        handler(data, source, 0)
        return [parse_untrusted(sent) for _, sent in self.core.sent[before:]]


@dataclass
class FakeTunnels:
    flows: dict[str, set[Flow]] = field(default_factory=dict)

    def media_flows(self, address: str, flows: Sequence[Flow], active: bool) -> None:
        known = self.flows.setdefault(address, set())
        self.flows[address] = known | set(flows) if active else known - set(flows)

    def unbound(self, address: str) -> int:
        return 0

    def delay_ms(self, address: str) -> float:
        return 25.0

    def switches(self, address: str) -> Sequence[PathSwitch]:
        return ()


def make(plane: FakePlane, store: Store | None = None, tmp_path: Path | None = None) -> SbcService:
    cdr = tmp_path / "calls.jsonl" if tmp_path is not None else None
    settings = SbcSettings(domain="example.org", address=SBC, cdr_file=cdr)
    users = Users.from_passwords("example.org", {"alice": "a", "bob": "b"})
    return SbcService(plane, settings, store, CLIENTS.get, tunnels=FakeTunnels(), credentials=users)


def message(
    start: str, cseq: str, user: str, to: str, *more: str, body: str = "", call_id: str = "c1"
) -> bytes:
    address = ALICE[0] if user == "alice" else BOB[0]
    lines = [
        start,
        f"Via: SIP/2.0/UDP {address}:5060;branch=z9hG4bK{cseq.replace(' ', '')}{user}",
        f"From: <sip:{user}@example.org>;tag={user}tag",
        f"To: {to}",
        f"Call-ID: {call_id}",
        f"CSeq: {cseq}",
        *more,
        f"Content-Length: {len(body)}",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


def register(plane: FakePlane, user: str, source: SocketAddress, password: str) -> int:
    """Register with digest; the final code."""
    uri, to = "sip:example.org", f"<sip:{user}@example.org>"
    contact = f"Contact: <sip:{user}@{source[0]}>"
    call_id = f"r-{user}"
    (challenge,) = plane.receive(
        message(f"REGISTER {uri} SIP/2.0", "1 REGISTER", user, to, contact, call_id=call_id), source
    )
    params = credentials_untrusted(challenge.lines("WWW-Authenticate")[0])
    digest = response(
        params["algorithm"],
        ha1(params["algorithm"], user, "example.org", password),
        nonce=params["nonce"],
        count="00000001",
        cnonce="x",
        method="REGISTER",
        uri=uri,
    )
    nonce, algorithm = params["nonce"], params["algorithm"]
    authorization = (
        f'Authorization: Digest username="{user}", realm="example.org", nonce="{nonce}", uri="{uri}", '
        f'qop=auth, nc=00000001, cnonce="x", response="{digest}", algorithm={algorithm}'
    )
    (answer,) = plane.receive(
        message(f"REGISTER {uri} SIP/2.0", "2 REGISTER", user, to, contact, authorization, call_id=call_id),
        source,
    )
    assert isinstance(answer, Response)
    return answer.code


SDP = "v=0\r\nc=IN IP4 {}\r\nm=audio {} RTP/AVP 0\r\n"
TYPE = "Content-Type: application/sdp"


def call(plane: FakePlane) -> None:
    """Alice calls Bob, who answers."""
    invite = message(
        "INVITE sip:bob@example.org SIP/2.0",
        "5 INVITE",
        "alice",
        "<sip:bob@example.org>",
        f"Contact: <sip:alice@{ALICE[0]}>",
        TYPE,
        body=SDP.format(ALICE[0], 16000),
    )
    trying, forwarded = plane.receive(invite, ALICE)
    assert isinstance(trying, Response)
    assert isinstance(forwarded, Request)
    ok = Response(200, "OK")
    ok.headers = [
        item for item in forwarded.headers if item[0] in ("Via", "From", "Call-ID", "CSeq", "Record-Route")
    ]
    ok.headers += [("To", "<sip:bob@example.org>;tag=bobtag"), ("Contact", f"<sip:bob@{BOB[0]}>")]
    ok.headers.append(("Content-Type", "application/sdp"))
    ok.with_body(SDP.format(BOB[0], 18000).encode())
    (answered,) = plane.receive(ok.encode(), BOB)
    assert isinstance(answered, Response)
    assert answered.code == 200


def hang_up(plane: FakePlane) -> None:
    to = "<sip:bob@example.org>;tag=bobtag"
    (bye,) = plane.receive(message(f"BYE sip:bob@{BOB[0]} SIP/2.0", "6 BYE", "alice", to), ALICE)
    done = Response(200, "OK")
    done.headers = list(bye.headers)
    plane.receive(done.encode(), BOB)


async def test_a_call_leaves_a_record_with_its_quality(tmp_path: Path) -> None:
    plane, store = FakePlane(), MemoryStore()
    service = make(plane, store, tmp_path)
    await service.start()
    assert register(plane, "alice", ALICE, "a") == register(plane, "bob", BOB, "b") == 200
    call(plane)
    assert len(plane.core.relays) == 2
    status = service.status()
    assert (status["calls"], status["active_calls"][0]["state"]) == (1, "answered")
    hang_up(plane)
    assert plane.core.relays == {}
    (record,) = await store.calls()
    assert (record["caller"], record["callee"]) == ("alice@example.org", "bob@example.org")
    assert record["caller_tunnel"] == {"client": "alice", "tsid": "0000000000000002"}
    assert (record["ended_by"], record["reason"], record["codec"]) == ("caller", "hung-up", "PCMU")
    heard = record["from_caller"]
    assert (heard["packets"], heard["lost"], heard["datagram_percent"]) == (1000, 10, 90.0)
    assert 3.5 < heard["mos"] < 4.4
    assert heard["delay_ms"] == 130.0
    await service.close()
    assert [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()] == [record]
    assert plane.core.sockets == set()


async def test_registrations_survive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "opentsm.db"
    store = await SqliteStore.open(path)
    plane = FakePlane()
    service = make(plane, store)
    await service.start()
    assert register(plane, "alice", ALICE, "a") == register(plane, "bob", BOB, "b") == 200
    await service.close()
    await store.close()

    store, plane = await SqliteStore.open(path), FakePlane()
    service = make(plane, store)
    await service.start()
    call(plane)
    await service.close()
    await store.close()


async def test_a_standing_call_is_written_down_when_the_server_stops() -> None:
    plane, store = FakePlane(), MemoryStore()
    service = make(plane, store)
    await service.start()
    register(plane, "alice", ALICE, "a")
    register(plane, "bob", BOB, "b")
    call(plane)
    await service.close()
    (record,) = await store.calls()
    assert (record["ended_by"], record["reason"]) == ("server", "shut-down")
    assert plane.core.relays == {}


async def test_a_closed_session_ends_its_calls() -> None:
    plane, store = FakePlane(), MemoryStore()
    service = make(plane, store)
    await service.start()
    register(plane, "alice", ALICE, "a")
    register(plane, "bob", BOB, "b")
    call(plane)
    before = len(plane.core.sent)
    service.client_lost(["10.64.0.3"])
    ((target, data),) = plane.core.sent[before:]
    assert target == ALICE
    assert data.startswith(b"BYE ")
    (record,) = await store.calls()
    assert record["reason"] == "tunnel-lost"
    await service.close()


async def test_a_refused_relay_costs_only_that_calls_media() -> None:
    plane = FakePlane()
    plane.core.refuse_relays = True
    service = make(plane)
    await service.start()
    register(plane, "alice", ALICE, "a")
    register(plane, "bob", BOB, "b")
    call(plane)
    assert service.counters["relay-failed"] == 2
    hang_up(plane)
    await service.close()


async def test_repeats_happen_by_themselves() -> None:
    plane = FakePlane()
    service = make(plane)
    await service.start()
    register(plane, "alice", ALICE, "a")
    register(plane, "bob", BOB, "b")
    to = "<sip:bob@example.org>"
    plane.receive(message("MESSAGE sip:bob@example.org SIP/2.0", "9 MESSAGE", "alice", to), ALICE)
    sent = len(plane.core.sent)
    async with asyncio.timeout(30):
        while len(plane.core.sent) == sent:
            await asyncio.get_running_loop().run_in_executor(None, lambda: None)
    assert plane.core.sent[sent] == plane.core.sent[sent - 1]
    await service.close()


async def test_one_bad_datagram_is_counted_and_the_next_is_served() -> None:
    plane = FakePlane()
    service = make(plane)
    await service.start()
    assert plane.receive(b"\xff\x00garbage", ALICE) == []
    assert service.counters["sip-truncated"] == 1
    options = message("OPTIONS sip:example.org SIP/2.0", "1 OPTIONS", "alice", "<sip:example.org>")
    (answer,) = plane.receive(options, ALICE)
    assert isinstance(answer, Response)
    assert answer.code == 200
    await service.close()


async def test_a_mistake_of_ours_is_reported_and_costs_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    plane = FakePlane()
    service = make(plane)
    await service.start()
    with monkeypatch.context() as patch:
        patch.setattr("opentsm.sbc.core.parse_head_untrusted", lambda data: 1 / 0)
        assert plane.receive(b"OPTIONS sip:example.org SIP/2.0\r\n\r\n", ALICE) == []
    assert service.counters["internal-error"] == 1
    assert register(plane, "alice", ALICE, "a") == 200
    await service.close()


async def test_what_cannot_work_is_said_at_the_start(tmp_path: Path) -> None:
    plane = FakePlane()
    settings = SbcSettings(domain="example.org", address=SBC)
    with pytest.raises(ConfigError, match="no SIP accounts"):
        await SbcService(plane, settings, None, CLIENTS.get).start()
    plane.core.taken = True
    with pytest.raises(ConfigError, match="cannot listen"):
        await make(plane).start()
    with pytest.raises(ConfigError, match="call records cannot be written"):
        await make(FakePlane(), tmp_path=tmp_path / "none").start()


async def test_accounts_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_text(account_line("alice", "example.org", "a", "MD5"))
    plane = FakePlane()
    settings = SbcSettings(domain="example.org", address=SBC, users_file=path)
    service = SbcService(plane, settings, None, CLIENTS.get)
    await service.start()
    assert register(plane, "alice", ALICE, "a") == 200
    await service.close()


def test_the_real_user_plane_has_what_the_service_needs() -> None:
    """Checked by mypy: a Plane is what the service takes."""

    def takes(plane: Plane) -> SbcService:
        return SbcService(plane, SbcSettings(domain="x", address=SBC), None, CLIENTS.get)

    assert callable(takes)
