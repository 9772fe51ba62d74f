"""What a client can do wrong, on purpose or not, while two others talk through a whole server: it gets a
clear answer, the operator a counter and a line with its tunnel, and the others notice nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from opentsm.sbc import account_line
from opentsm.server.auth.edit import set_account
from opentsm.server.auth.passwords import hash_password
from tests.sim.sbc.phone import Leg, Phone
from tests.unit.server.harness import Client, Site, configuration, running, until
from tests.unit.server.phones import Party, media_socket, speak, tunnelled
from tests.unit.server.test_core_calls import DOMAIN, INNER, place

NAMES = ("alice", "bob", "mallory")
SBC = """
[sbc.calls]
realm = "core"
domain = "example.test"
address = "10.64.0.2"
users-file = "{folder}/sip-users"
cdr-file = "{folder}/calls.jsonl"
"""


@pytest.fixture(scope="module")
def passwords(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("accounts") / "passwords"
    for name in NAMES:
        set_account(file, name, hash_password(b"secret"))
    return file


@dataclass
class Scene:
    """Alice and Bob talk; Mallory is in a tunnel of her own, registered."""

    site: Site
    alice: Party
    bob: Party
    mallory: Party
    tunnel: Client
    alices: Client
    leg: Leg

    @property
    def counters(self) -> Mapping[str, int]:
        counters: Mapping[str, int] = self.site.server.calls.status()[0]["counters"]
        return counters

    def look(self) -> None:
        """What the SBC does by itself every few seconds."""
        self.site.server.calls._running["calls"].service._sample()

    async def assert_undisturbed(self) -> None:
        """Both still hear each other: every packet, and nothing else."""
        there = self.bob.phone.calls[self.leg.call_id]
        assert self.leg.state == there.state == "answered"
        self.alice.media.heard.clear()
        self.bob.media.heard.clear()
        await speak(self.alice, place(self.leg.far_sdp), self.bob, first=1000)
        await speak(self.bob, place(there.far_sdp), self.alice, first=1000)
        for party in (self.alice, self.bob):
            assert sorted(party.media.numbers()) == list(range(1000, 1050))


@asynccontextmanager
async def scene(folder: Path, tmp_path: Path, passwords: Path) -> AsyncIterator[Scene]:
    lines = [account_line(name, DOMAIN, f"{name}-secret", "MD5") for name in (*NAMES, "carol")]
    (tmp_path / "sip-users").write_text("\n".join(lines) + "\n")
    authentication = f'methods = ["password"]\npassword-file = "{passwords}"'
    text = configuration(folder, more=SBC.format(folder=tmp_path), authentication=authentication)
    async with running(folder, text) as site:
        tunnels = [await site.up(username=name, password=b"secret") for name in NAMES]
        parties = [
            tunnelled(tunnel, name, DOMAIN, INNER) for tunnel, name in zip(tunnels, NAMES, strict=True)
        ]
        for party in parties:
            party.phone.register()
            await until(lambda party=party: party.phone.registered == ["200"], "registrations")  # type: ignore[misc]
        alice, bob, mallory = parties
        leg = alice.phone.call("bob")
        await until(lambda: leg.state == "answered", "the answer")
        await speak(alice, place(leg.far_sdp), bob)
        try:
            yield Scene(site, alice, bob, mallory, tunnels[2], tunnels[0], leg)
        finally:
            for party in parties:
                await party.close()


Ask = Callable[[Phone], None]


def wrong_password(phone: Phone) -> None:
    phone.password = "guess"
    phone.register()


def malformed_sdp(phone: Phone) -> None:
    sdp = phone.sdp
    phone.sdp = lambda leg, direction="": sdp(leg).replace("m=audio ", "m=audio x")  # type: ignore[method-assign]
    phone.call("bob")


def too_many_streams(phone: Phone) -> None:
    sdp = phone.sdp
    more = "m=audio 4000 RTP/AVP 0\r\n" * 20
    phone.sdp = lambda leg, direction="": sdp(leg) + more  # type: ignore[method-assign]
    phone.call("bob")


def unregistered(phone: Phone) -> None:
    phone.register(expires=0)
    done = len(phone.registered)

    def called() -> None:
        if len(phone.registered) > done:
            phone.call("bob")
        else:
            phone.network.after(0.01, called)

    called()


ASKED: dict[str, tuple[Ask, int, str]] = {
    "unknown user": (lambda phone: void(phone.call("nobody")), 404, "unknown-user"),
    "user who is away": (lambda phone: void(phone.call("carol")), 480, "user-not-registered"),
    "wrong password": (wrong_password, 401, "register-wrong-password"),
    "somebody else's name": (lambda phone: phone.register(user="alice"), 403, "register-foreign-name"),
    "unregistered caller": (unregistered, 403, "caller-unregistered"),
    "call in another's name": (
        lambda phone: void(phone.call("bob", from_user="alice")),
        403,
        "caller-foreign-name",
    ),
    "malformed SDP": (malformed_sdp, 488, "bad-sdp"),
    "SDP with too many streams": (too_many_streams, 488, "sdp-too-many-streams"),
}


def void(_: object) -> None:
    """An expression as a statement."""


@pytest.mark.parametrize("name", ASKED)
async def test_what_is_asked_for_wrongly(
    name: str, certificates_folder: Path, tmp_path: Path, passwords: Path
) -> None:
    ask, code, event = ASKED[name]
    async with scene(certificates_folder, tmp_path, passwords) as here:
        with capture_logs() as logs:
            ask(here.mallory.phone)
            await until(lambda: here.counters.get(event), event)
            await until(lambda: code in here.mallory.phone.answers[-2:], str(code))
        assert tsids(logs, event) == {f"{here.tunnel.tsid:016x}"}
        assert here.bob.phone.received == ["INVITE"], "nothing of it reached Bob"
        await here.assert_undisturbed()


def tsids(logs: list[Any], event: str) -> set[str]:
    lines = [line for line in logs if line["event"] == event]
    assert lines
    return {line["tsid"] for line in lines}


async def test_a_call_ended_by_a_third_party(
    certificates_folder: Path, tmp_path: Path, passwords: Path
) -> None:
    async with scene(certificates_folder, tmp_path, passwords) as here:
        leg = here.leg
        stolen = Leg(leg.call_id, leg.own_tag, leg.far, leg.target, outgoing=True)
        stolen.far_tag, stolen.routes, stolen.events = leg.far_tag, leg.routes, [leg.events[0]]
        with capture_logs() as logs:
            here.mallory.phone.in_dialog(stolen, "BYE")
            await until(lambda: stolen.events[-1] == "BYE 403", "the answer")
        assert tsids(logs, "not-a-party") == {f"{here.tunnel.tsid:016x}"}
        await here.assert_undisturbed()


async def test_rtp_of_a_third_party(certificates_folder: Path, tmp_path: Path, passwords: Path) -> None:
    """It has learnt the ports of the call, and means to be heard in it, or to have its media sent there."""
    async with scene(certificates_folder, tmp_path, passwords) as here:
        there = here.bob.phone.calls[here.leg.call_id]
        with capture_logs() as logs:
            for number in range(10):
                for sdp in (here.leg.far_sdp, there.far_sdp):
                    here.mallory.media.send(here.mallory.media.packet(5000 + number), *place(sdp))
            await until(lambda: here.site.counter("drop_relay_wrong_source") >= 20, "the drops")
            here.look()
        lines = [line for line in logs if line["event"] == "media-from-stranger"]
        assert {line["tsid"] for line in lines} == {f"{here.tunnel.tsid:016x}"}
        assert {line["client"] for line in lines} == {"mallory"}
        assert sum(line["packets"] for line in lines) == 20
        assert {line["call_id"] for line in lines} == {here.leg.call_id}
        assert here.counters["media-from-stranger"] == 2
        assert not here.mallory.media.heard
        assert not set(here.bob.media.numbers()) & set(range(5000, 5010))
        await here.assert_undisturbed()


async def test_media_to_a_port_that_was_not_negotiated(
    certificates_folder: Path, tmp_path: Path, passwords: Path
) -> None:
    """Alice's second media socket sends to a port of the SBC that belongs to no call."""
    async with scene(certificates_folder, tmp_path, passwords) as here:
        address, port = place(here.leg.far_sdp)
        with capture_logs() as logs:
            for number in range(7):
                here.alice.media.send(here.alice.media.packet(number), address, port + 1000)
            await until(lambda: here.site.counter("drop_socket_unbound") >= 7, "the drops")
            here.look()
        (line,) = [line for line in logs if line["event"] == "media-to-closed-port"]
        assert (line["tsid"], line["client"], line["packets"]) == (f"{here.alices.tsid:016x}", "alice", 7)
        assert here.counters["media-to-closed-port"] == 1
        await here.assert_undisturbed()


async def test_media_from_another_port_of_the_party_itself(
    certificates_folder: Path, tmp_path: Path, passwords: Path
) -> None:
    """The first packet has shown where Alice sends from; a second source of hers is not mixed in."""
    async with scene(certificates_folder, tmp_path, passwords) as here:
        second = media_socket(here.alices)
        for number in range(5):
            second.send(second.packet(7000 + number), *place(here.leg.far_sdp))
        await until(lambda: here.site.counter("drop_relay_wrong_source") >= 5, "the drops")
        assert not set(here.bob.media.numbers()) & set(range(7000, 7005))
        await here.assert_undisturbed()
