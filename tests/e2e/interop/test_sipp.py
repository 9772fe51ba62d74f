"""300 calls at 20 a second through the embedded SBC, both ends behind tunnels, with speech both ways."""

from __future__ import annotations

from pathlib import Path

import pytest

from opentsm.lab.serving import Shape
from opentsm.lab.waiting import until_now
from tests.e2e.interop.programs import require
from tests.e2e.interop.sipp import ALL_BUT_A_FEW, CALLS, SECONDS, Sipp
from tests.e2e.interop.world import check_outer_wire, world

pytestmark = [pytest.mark.netns, pytest.mark.timeout(300)]


def test_300_calls_with_speech_at_20_a_second(tmp_path: Path) -> None:
    require("sip-tester")
    with (
        world(tmp_path, ("alice", "bob"), Shape(sbc=True)) as lab,
        lab.up("alice") as first,
        lab.up("bob") as second,
        lab.lab["firewall1"].capture("wan0", max_packets=2_000_000, snap_length=64) as wire,
    ):
        caller = Sipp(lab.host("alice"), tmp_path, first.address(), "alice", "bob")
        callee = Sipp(lab.host("bob"), tmp_path, second.address(), "bob")
        caller.register()
        callee.register()
        answering = callee.answer()
        caller.run(caller.call(), within=120)
        records = until_now(
            lambda: found if len(found := lab.server.call_records()) == CALLS else None,
            what="a record of every call",
        )
        answering.finish()
        status = {user: lab.asked(user) for user in ("alice", "bob")}
    assert {record["reason"] for record in records} == {"hung-up"}
    for direction in ("from_caller", "from_callee"):
        legs = [record[direction] for record in records]
        assert min(leg["packets"] for leg in legs) > 0, direction
        assert sum(leg["packets"] for leg in legs) >= ALL_BUT_A_FEW * CALLS * SECONDS * 50, direction
        assert sum(leg["lost"] for leg in legs) <= (1 - ALL_BUT_A_FEW) * CALLS * SECONDS * 50, direction
    # Calls that are over have left nothing behind in the clients' books.
    assert {user: answer["calls"] for user, answer in status.items()} == {"alice": 0, "bob": 0}
    check_outer_wire(lab, wire.packets)
    assert any(packet.is_dtls for packet in wire.packets)
