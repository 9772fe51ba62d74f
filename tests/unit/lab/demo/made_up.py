"""A call with known fates, for the tests of what is measured and drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from opentsm.client.phone.speech import speech
from opentsm.lab.demo.measure import Fate, between, numbers
from opentsm.lab.demo.stage import Wire
from opentsm.lab.demo.story import SWITCHED, Direction, Mark, Played, Span
from opentsm.types import Path

PLAYOUT = 0.060
WIRE = Wire(Counter({"TCP/443": 700, "UDP/443": 300}), Counter({"TCP/443": 70_000, "UDP/443": 60_000}))


def packets(
    seconds: float,
    *,
    moved: float = 1e9,
    lost: Callable[[int], bool] = lambda n: False,
    late: Callable[[int], bool] = lambda n: False,
) -> list[Fate]:
    """50 packets a second, 65 ms on the way, the late ones 200; on the datagram tunnel from ``moved`` on."""
    found = []
    for n in range(round(seconds * 50)):
        sent = n * 0.02
        came = None if lost(n) else sent + (0.2 if late(n) else 0.065)
        path = Path.DATAGRAM if sent >= moved else Path.STREAM
        found.append(Fate(sent, came, came is not None and not late(n), path, n * 160))
    return found


def played() -> Played:
    """Six seconds on a stream where every tenth packet is late, six on a DDT where one in fifty is lost."""
    spans = [Span("before the switch", 0.0, 6.0), Span("after the switch", 6.0, 12.0)]
    ways = []
    for name in ("alice to bob", "bob to alice"):
        all_of_it = packets(
            12.0, moved=6.0, late=lambda n: n < 300 and n % 10 == 3, lost=lambda n: n >= 300 and n % 50 == 7
        )
        measured = [numbers(between(all_of_it, s.begin, s.end), PLAYOUT, 3.21) for s in spans]
        ways.append(Direction(name, all_of_it, speech(12.0), 0, measured, 0))
    marks = [Mark(5.5, "switch <turned>"), Mark(6.0, "on the datagram tunnel")]
    return Played(SWITCHED, marks, spans, ways, WIRE)
