"""baresip and linphone, unchanged, behind a firewall: calls through the embedded SBC that sound well."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from opentsm.lab.capture import Packet
from opentsm.lab.serving import Shape
from opentsm.lab.waiting import until_now
from tests.e2e.interop.baresip import Account, Baresip
from tests.e2e.interop.linphone import Linphone
from tests.e2e.interop.phones import judged, talk
from tests.e2e.interop.programs import PATIENCE, require
from tests.e2e.interop.world import (
    CLEAR,
    SPEECH,
    TAIL,
    World,
    check_outer_wire,
    require_pesq,
    world,
)
from tests.e2e.up.harness import OPENTSM, reach

pytestmark = [pytest.mark.netns, pytest.mark.timeout(300)]

SOME: Final = 75
"""Packets that make a stretch of speech: a second and a half."""

PLAYED: Final = SPEECH + TAIL

LONG: Final = 18.0
"""Seconds of speech in which media is switched twice, by commands that take their time on a busy machine."""

USERS: Final = ("alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy")


@dataclass
class Outcome:
    """What a call left behind.

    Attributes:
        scores: PESQ of what each user heard. sent: media packets by user and path, as each client counted
            them.
    """

    scores: dict[str, float] = field(default_factory=dict)
    sent: dict[str, dict[str, int]] = field(default_factory=dict)


def between(world: World, pair: tuple[str, str], *options: str, transport: str = "udp") -> Outcome:
    """A call of two baresips, each behind an `opentsm up` with these options."""
    outcome = Outcome()
    one, two = pair
    with world.up(one, *options), world.up(two, *options):
        phones = {
            one: Baresip(world.host(one), world.folder, Account(one, transport=transport), seconds=PLAYED),
            two: Baresip(world.host(two), world.folder, Account(two), seconds=PLAYED),
        }

        def count() -> None:
            for user in pair:
                until_now(
                    lambda user=user: sum(world.sent(user).values()) > SPEECH * 50,  # type: ignore[misc]
                    within=PATIENCE,
                    what=f"the speech of {user} to have left",
                )
                outcome.sent[user] = world.sent(user)

        talk(phones[one], phones[two], two, count)
        outcome.scores = judged(phones)
    return outcome


def on_the_stream(world: World) -> Outcome:
    return between(world, ("alice", "bob"), "--no-ddt")


def on_the_datagram_tunnel(world: World) -> Outcome:
    return between(world, ("carol", "dave"))


def signalled_by_tcp(world: World) -> Outcome:
    return between(world, ("ivan", "judy"), transport="tcp")


def switched_in_mid_call(world: World) -> Outcome:
    """From the stream to the datagram tunnel and back, while both speak."""
    outcome = Outcome()
    pair = ("erin", "frank")
    with world.up("erin", "--no-ddt"), world.up("frank", "--no-ddt"):
        phones = {
            user: Baresip(world.host(user), world.folder, Account(user), seconds=LONG + TAIL) for user in pair
        }

        def some_more(path: str) -> None:
            for user in pair:
                enough = world.sent(user)[path] + SOME
                until_now(
                    lambda user=user, enough=enough: world.sent(user)[path] >= enough,  # type: ignore[misc]
                    within=PATIENCE,
                    what=f"media of {user} by {path}",
                )

        def turn() -> None:
            some_more("stream")
            # As a user does it, and as a program does.
            world.host("erin").run([*OPENTSM, "media", "datagram"], env=None)
            world.asked("frank", "media", mode="datagram")
            some_more("datagram")
            for user in pair:
                world.asked(user, "media", mode="stream")
            some_more("stream")
            outcome.sent = {user: world.sent(user) for user in pair}

        talk(phones["erin"], phones["frank"], "frank", turn)
        outcome.scores = judged(phones, LONG)
    return outcome


def linphone_and_one_program(world: World) -> Outcome:
    """linphone with the whole machine in the tunnel calls a baresip that is alone in its own."""
    outcome = Outcome()
    prefix = [*OPENTSM, "run", *reach(world.server, user="heidi"), "--"]
    with world.up("grace"):
        linphone = Linphone(world.host("grace"), world.folder, Account("grace"), seconds=PLAYED)
        baresip = Baresip(world.host("heidi"), world.folder, Account("heidi"), seconds=PLAYED, prefix=prefix)
        talk(linphone, baresip, "heidi")
        outcome.scores = judged({"grace": linphone, "heidi": baresip})
    return outcome


CALLS: Final = {
    call.__name__: call
    for call in (
        on_the_stream,
        on_the_datagram_tunnel,
        signalled_by_tcp,
        switched_in_mid_call,
        linphone_and_one_program,
    )
}


@dataclass
class Evening:
    """All calls, which ran side by side, and what passed the firewall meanwhile."""

    world: World
    calls: dict[str, Future[Outcome]]
    wire: list[Packet]

    def outcome(self, name: str) -> Outcome:
        return self.calls[name].result()


@pytest.fixture(scope="module")
def evening(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evening]:
    require("baresip-core", "linphone-cli")
    require_pesq()
    folder = tmp_path_factory.mktemp("phones")
    with contextlib.ExitStack() as stack:
        world_ = stack.enter_context(world(folder, USERS, Shape(sbc=True)))
        wire = stack.enter_context(world_.lab["firewall1"].capture("wan0"))
        with ThreadPoolExecutor(len(CALLS)) as threads:
            calls = {name: threads.submit(call, world_) for name, call in CALLS.items()}
        wire.stop()
        yield Evening(world_, calls, wire.packets)


@pytest.mark.parametrize("name", CALLS)
def test_both_hear_each_other_clearly(evening: Evening, name: str) -> None:
    scores = evening.outcome(name).scores
    assert len(scores) == 2
    assert min(scores.values()) >= CLEAR, scores


def test_media_took_the_path_it_should(evening: Evening) -> None:
    for user, sent in evening.outcome("on_the_stream").sent.items():
        assert sent["datagram"] == 0, user
    for name in ("on_the_datagram_tunnel", "signalled_by_tcp"):
        for user, sent in evening.outcome(name).sent.items():
            # Known by its SDP before its first packet; a few leave while the tunnel is still being made.
            assert sent["stream"] <= SOME / 3 < sent["datagram"], (name, user, sent)
    for user, sent in evening.outcome("switched_in_mid_call").sent.items():
        assert min(sent.values()) >= SOME, (user, sent)


def test_nothing_but_port_443_was_seen_outside(evening: Evening) -> None:
    check_outer_wire(evening.world, evening.wire)
    assert any(packet.is_dtls for packet in evening.wire)


def test_the_server_has_a_record_of_each_call(evening: Evening) -> None:
    server = evening.world.server
    records: list[dict[str, Any]] = until_now(
        lambda: found if len(found := server.call_records()) == len(CALLS) else None, what="all records"
    )
    assert {record["reason"] for record in records} == {"hung-up"}
    for record in records:
        for direction in ("from_caller", "from_callee"):
            assert record[direction]["packets"] > SPEECH * 50
            assert record[direction]["lost"] == 0
