"""Kamailio and rtpengine as the SBC behind the server, with the files that docs/kamailio.md offers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

from opentsm.lab.serving import Shape
from opentsm.lab.waiting import until_now
from tests.e2e.interop.baresip import Account, Baresip
from tests.e2e.interop.kamailio import ADDRESS, Kamailio
from tests.e2e.interop.phones import judged, talk
from tests.e2e.interop.programs import require
from tests.e2e.interop.sipp import ALL_BUT_A_FEW, CALLS, SECONDS, Sipp
from tests.e2e.interop.world import CLEAR, SPEECH, TAIL, World, check_outer_wire, require_pesq, world

pytestmark = [pytest.mark.netns, pytest.mark.timeout(300)]

USERS: Final = ("alice", "bob", "carol", "dave")


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Kamailio]]:
    require("kamailio", "rtpengine-daemon")
    shape = Shape(sip_server=f"{ADDRESS}:5060")
    with (
        world(tmp_path_factory.mktemp("kamailio"), USERS, shape) as lab,
        Kamailio(lab, USERS) as kamailio,
    ):
        yield lab, kamailio


def test_two_phones_hear_each_other_clearly(behind: tuple[World, Kamailio]) -> None:
    require("baresip-core")
    require_pesq()
    lab, _ = behind
    with lab.up("alice"), lab.up("bob"), lab.lab["firewall1"].capture("wan0") as wire:
        accounts = (Account("alice", ADDRESS, "tcp"), Account("bob", ADDRESS))
        phones = {
            one.user: Baresip(lab.host(one.user), lab.folder, one, seconds=SPEECH + TAIL) for one in accounts
        }
        talk(phones["alice"], phones["bob"], "bob")
        scores = judged(phones)
    assert min(scores.values()) >= CLEAR, scores
    check_outer_wire(lab, wire.packets)
    assert any(packet.is_dtls for packet in wire.packets)


def test_300_calls_with_speech_at_20_a_second(behind: tuple[World, Kamailio]) -> None:
    require("sip-tester")
    lab, kamailio = behind
    until_now(kamailio.idle, within=60, what="rtpengine to let go of earlier calls")
    before = kamailio.metrics()
    with lab.up("carol") as first, lab.up("dave") as second:
        caller = Sipp(lab.host("carol"), lab.folder, first.address(), "carol", "dave", ADDRESS)
        callee = Sipp(lab.host("dave"), lab.folder, second.address(), "dave", server=ADDRESS)
        caller.register()
        callee.register()
        answering = callee.answer()
        caller.run(caller.call(), within=120)
        answering.finish()
        passed = {user: lab.passed(user) for user in ("carol", "dave")}
    until_now(kamailio.idle, within=60, what="rtpengine to let go of the calls")
    after = kamailio.metrics()
    grown = {name: after[name] - before.get(name, 0.0) for name in after}
    assert grown["rtpengine_sessions_total"] == CALLS, grown
    # Speech and its echo both went through rtpengine, and reached both ends.
    speech = CALLS * SECONDS * 50
    assert grown["rtpengine_packets_total"] >= ALL_BUT_A_FEW * 2 * speech, grown
    assert min(*passed["carol"], *passed["dave"]) >= ALL_BUT_A_FEW * speech, passed
