"""The targets of a fall-back: what a listener loses when UDP dies in mid-call, and when it comes back.

50 packets/s both ways, 40 ms round trip. Several calls at once, each caught at another moment of its life.
The figures are promises of docs/protocol.md.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import pytest

from opentsm.lab.firewall import everything, one_way, udp_blocked
from opentsm.lab.topology import Lab, LabSpec
from opentsm.types import Path
from tests.e2e.tunnels.harness import ServerProcess, in_host
from tests.e2e.tunnels.talking import PACKET_TIME, Call, calls, lasting, more, until_all

pytestmark = [pytest.mark.netns, pytest.mark.timeout(240)]

SILENT_BLOCK = 0.200
"""Seconds of media a direction may lose when UDP dies silently."""

REJECTED = 0.060
"""And when a router answers."""

BACK_WITHIN = 3.0
"""Seconds from the return of UDP to media on the DDT, in the first minute of a block."""

CALLS = 4


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(LabSpec()) as lab:
        lab.wan().set(delay=0.020)
        yield lab


Change = Callable[[Lab], None]


def firewall(policy_of: Callable[[], object]) -> Change:
    return lambda lab: lab.firewall().apply(policy_of())  # type: ignore[arg-type]


OPEN: Change = firewall(everything)
BLOCKS: dict[str, tuple[Change, Change, float, float]] = {
    "silent-short": (firewall(udp_blocked), OPEN, 2.3, SILENT_BLOCK),
    "silent-long": (firewall(udp_blocked), OPEN, 16.0, SILENT_BLOCK),
    "uplink-only": (firewall(lambda: one_way("up", "udp")), OPEN, 4.1, SILENT_BLOCK),
    "downlink-only": (firewall(lambda: one_way("down", "udp")), OPEN, 9.7, SILENT_BLOCK),
    "rejected": (firewall(lambda: udp_blocked(how="reject")), OPEN, 6.9, REJECTED),
    "near-the-server": (
        lambda lab: lab.wan().set(udp="drop"),
        lambda lab: lab.wan().set(udp="pass"),
        3.0,
        SILENT_BLOCK,
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_costs_a_syllable_and_its_end_nothing(lab: Lab, server: ServerProcess, name: str) -> None:
    block, unblock, lasts, at_most = BLOCKS[name]

    async def scenario() -> None:
        async with calls(server, lab["core"], CALLS) as running:
            blocked = time.monotonic()
            await asyncio.to_thread(block, lab)
            await until_all(running, Path.STREAM, within=5, what="the fall-back")
            await lasting(max(0.0, blocked + lasts - time.monotonic()))
            opened = time.monotonic()
            await asyncio.to_thread(unblock, lab)
            back = await until_all(running, Path.DATAGRAM, within=30, what="the return")
            await more(running, 100)
            report(name, running, blocked, opened, back)
            for call in running:
                check_copies(call)
                for lost in call.lost(blocked - 0.1, opened - 0.1):
                    assert lost * PACKET_TIME <= at_most + 1e-9, f"{lost} packets lost in the block"
                ended = min(flow.sent[-10] for flow in call.flows)
                assert call.lost(opened - 0.1, ended) == (0, 0), "something was lost on the way back"
            assert max(back.values()) - opened <= BACK_WITHIN

    in_host(lab["phone1"], scenario)


def check_copies(call: Call) -> None:
    assert [flow.report().duplicated for flow in call.flows] == [0, 0], "a copy reached the application"


def report(name: str, running: list[Call], blocked: float, opened: float, back: dict[int, float]) -> None:
    """The figures, for those who look (pytest -s)."""
    lost = [call.lost(blocked - 0.1, opened - 0.1) for call in running]
    print(f"{name}: lost (up, down) {lost}, back after {[round(at - opened, 2) for at in back.values()]} s")
