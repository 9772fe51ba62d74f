"""baresip, unchanged, in calls whose network or server fails in the middle: they go on, and sound well."""

from __future__ import annotations

import signal
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from opentsm.client.phone.g711 import RATE
from opentsm.lab.firewall import tcp_443_only, tcp_udp_443
from opentsm.lab.serving import Shape
from opentsm.lab.waiting import until_now
from tests.e2e.interop.baresip import Account, Baresip
from tests.e2e.interop.phones import talk
from tests.e2e.interop.programs import PATIENCE, require
from tests.e2e.interop.world import CLEAR, TAIL, World, require_pesq, score, world

pytestmark = [pytest.mark.netns, pytest.mark.timeout(300)]

LONG: Final = 16.0
"""Seconds of speech: some before the failure, some during it, the rest after it."""

AFTER: Final = 8.0
"""The last seconds of it, when a server that was killed is back."""

SOME: Final = 75
"""Packets that make a stretch of speech: a second and a half."""

DELAY: Final = 0.020
"""Seconds each way: a round trip of 40 ms to the server."""

UNDERSTOOD: Final = {"silent_block_of_udp": 3.1, "another_network": 2.8}
"""PESQ of the worst eight or ten seconds, those with the failure in them. 3.4 to 3.7 was seen with the block,
which costs one to three packets, and 3.1 to 3.7 with the move, which costs a dozen of the mover's; how much a
lost syllable costs depends on the syllable."""


@dataclass
class Evening:
    """The phones by call and user, and the server's records by caller."""

    phones: dict[str, dict[str, Baresip]]
    records: dict[str, dict[str, Any]]


Turn = Callable[[World, tuple[str, str]], None]


def talked(world: World, pair: tuple[str, str], turn: Turn) -> dict[str, Baresip]:
    """A call of two baresips behind `opentsm up`, on the datagram tunnel when ``turn`` comes."""
    one, two = pair
    with world.up(one), world.up(two):
        phones = {
            user: Baresip(world.host(user), world.folder, Account(user), seconds=LONG + TAIL) for user in pair
        }

        def meanwhile() -> None:
            more_sent(world, pair, "datagram", 2 * SOME)
            turn(world, pair)

        talk(phones[one], phones[two], two, meanwhile)
    return phones


def more_sent(world: World, pair: tuple[str, str], path: str, packets: int = SOME) -> None:
    enough = {user: world.sent(user)[path] + packets for user in pair}
    for user in pair:
        until_now(
            lambda user=user: world.sent(user)[path] >= enough[user],  # type: ignore[misc]
            within=PATIENCE,
            what=f"media of {user} by {path}",
        )


def more_heard(world: World, pair: tuple[str, str]) -> None:
    """Packets come out of both tunnels."""
    enough = {user: world.passed(user)[1] + SOME for user in pair}
    for user in pair:
        until_now(
            lambda user=user: world.passed(user)[1] >= enough[user],  # type: ignore[misc]
            within=PATIENCE,
            what=f"media for {user}",
        )


def silent_block_of_udp(world: World, pair: tuple[str, str]) -> None:
    """The firewall of both begins to swallow UDP, and some seconds later lets it pass again."""
    server = world.lab["server"].ipv4, world.lab["server"].ipv6
    world.lab.firewall(1).apply(tcp_443_only(*server))
    more_sent(world, pair, "stream")
    more_heard(world, pair)
    world.lab.firewall(1).apply(tcp_udp_443(*server))
    more_sent(world, pair, "datagram")


def another_network(world: World, pair: tuple[str, str]) -> None:
    """The caller's machine is carried into another house; for a moment it has no network at all."""
    (before,) = (one["outer"] for one in world.server.tunnels() if one["identity"] == pair[0])
    world.lab.rehome(3, 3)
    until_now(
        lambda: [
            one for one in world.server.tunnels() if one["identity"] == pair[0] and one["outer"] != before
        ],
        within=PATIENCE,
        what="the tunnel to come along",
    )
    more_heard(world, pair)


def killed_server(world: World, pair: tuple[str, str]) -> None:
    """The server's process is killed, and another one finds its store."""
    world.server.stop(signal.SIGKILL)
    world.server.start()
    more_heard(world, pair)


def by_killed_server(folder: Path) -> Evening:
    """A call in a world of its own, for its server is killed."""
    pair = ("erin", "frank")
    with world(folder, pair, Shape(sbc=True), delay=DELAY) as world_:
        phones = talked(world_, pair, killed_server)
        return Evening({"killed_server": phones}, records(world_, 1))


def by_bad_networks(folder: Path) -> Evening:
    """Two calls side by side: the one's firewall changes, and the other's caller leaves its network."""
    disturbed, mover = ("alice", "bob"), ("carol", "dave")
    with (
        world(folder, (*disturbed, *mover), Shape(sbc=True), sites=3, delay=DELAY) as world_,
        ThreadPoolExecutor(2) as threads,
    ):
        calls = {
            "silent_block_of_udp": threads.submit(talked, world_, disturbed, silent_block_of_udp),
            "another_network": threads.submit(talked, world_, mover, another_network),
        }
        phones = {name: call.result() for name, call in calls.items()}
        return Evening(phones, records(world_, 2))


def records(world: World, count: int) -> dict[str, dict[str, Any]]:
    """The records of so many calls, by caller."""
    found = until_now(
        lambda: found if len(found := world.server.call_records()) == count else None, what="all records"
    )
    return {record["caller"].partition("@")[0]: record for record in found}


@pytest.fixture(scope="module")
def evening(tmp_path_factory: pytest.TempPathFactory) -> Evening:
    require("baresip-core")
    require_pesq()
    with ThreadPoolExecutor(2) as threads:
        ends = [
            threads.submit(what, tmp_path_factory.mktemp(what.__name__))
            for what in (by_bad_networks, by_killed_server)
        ]
        one, two = (end.result() for end in ends)
    return Evening({**one.phones, **two.phones}, {**one.records, **two.records})


def from_its_end(heard: array[int]) -> array[int]:
    """A recording shifted to where its last words are in what was played: baresip records nothing while it
    hears nothing, so each silence makes it shorter."""
    missing = round((LONG + TAIL) * RATE) - len(heard)
    return array("h", bytes(2 * max(0, missing))) + heard


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_both_understand_each_other_all_the_time(evening: Evening, name: str) -> None:
    scores = {user: score(phone.heard(), 0.0, LONG) for user, phone in evening.phones[name].items()}
    print(scores)
    assert len(scores) == 2
    assert min(scores.values()) >= UNDERSTOOD[name], scores


def test_both_hear_each_other_clearly_once_the_killed_server_is_back(evening: Evening) -> None:
    phones = evening.phones["killed_server"]
    scores = {u: score(from_its_end(phone.heard()), LONG - AFTER, LONG) for u, phone in phones.items()}
    print(scores)
    assert len(scores) == 2
    assert min(scores.values()) >= CLEAR, scores


def test_the_records_say_that_a_phone_ended_each_call(evening: Evening) -> None:
    ends = {
        user: (one["reason"], one["ended_by"] in ("caller", "callee"))
        for user, one in evening.records.items()
    }
    assert ends == dict.fromkeys(("alice", "carol", "erin"), ("hung-up", True))


def test_the_record_says_which_path_media_took_and_why(evening: Evening) -> None:
    record = evening.records["alice"]
    for side in ("caller", "callee"):
        assert [path for _, path in record["path"][side]][-3:] == ["datagram", "stream", "datagram"]
        down = [one for one in record["path_switches"][side] if one["direction"] == "down"]
        assert [(one["path"], one["reason"]) for one in down][-2:] == [
            ("stream", "the client holds it"),
            ("datagram", "the client asked for it"),
        ]
    for direction in ("from_caller", "from_callee"):
        assert record[direction]["packets"] >= LONG * 50
