"""300 calls at 20 a second through the embedded SBC, with speech both ways."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

import pytest

from opentsm.lab.serving import Shape
from opentsm.lab.waiting import until_now
from tests.e2e.interop.programs import require
from tests.e2e.interop.sipp import ALL_BUT_A_FEW, CALLS, SBC, SECONDS, Sipp
from tests.e2e.interop.world import check_outer_wire, world

pytestmark = [pytest.mark.netns, pytest.mark.timeout(300)]


CORE: Final = "10.200.1.0/24"
CORE_SIP: Final = "10.200.1.1"
"""The server's own network, and its address there, in the lab."""


@pytest.mark.parametrize("where", ["tunnelled", "on the core"])
def test_300_calls_with_speech_at_20_a_second(tmp_path: Path, where: str) -> None:
    """The caller is behind a tunnel; the callee is, too, or on the network behind the server."""
    require("sip-tester")
    shape = Shape(sbc=True, sbc_more=f'core-address = "{CORE_SIP}"\ncore-phones = ["{CORE}"]\n')
    with (
        world(tmp_path, ("alice", "bob"), shape) as lab,
        lab.up("alice") as first,
        lab.lab["firewall1"].capture("wan0", max_packets=2_000_000, snap_length=64) as wire,
        contextlib.ExitStack() as stack,
    ):
        core = lab.lab["core"]
        host, address, sip = core, core.ipv4, CORE_SIP
        if where == "tunnelled":
            host, address, sip = lab.host("bob"), stack.enter_context(lab.up("bob")).address(), SBC
        caller = Sipp(lab.host("alice"), tmp_path, first.address(), "alice", "bob")
        callee = Sipp(host, tmp_path, address, "bob", server=sip)
        caller.register()
        callee.register()
        answering = callee.answer()
        caller.run(caller.call(), within=120)
        records = until_now(
            lambda: found if len(found := lab.server.call_records()) == CALLS else None,
            what="a record of every call",
        )
        answering.finish()
        # Calls that are over have left nothing behind in the client's book.
        assert lab.asked("alice")["calls"] == 0
    assert {record["reason"] for record in records} == {"hung-up"}
    for direction in ("from_caller", "from_callee"):
        legs = [record[direction] for record in records]
        assert min(leg["packets"] for leg in legs) > 0, direction
        assert sum(leg["packets"] for leg in legs) >= ALL_BUT_A_FEW * CALLS * SECONDS * 50, direction
        assert sum(leg["lost"] for leg in legs) <= (1 - ALL_BUT_A_FEW) * CALLS * SECONDS * 50, direction
    check_outer_wire(lab, wire.packets)
    assert any(packet.is_dtls for packet in wire.packets)
