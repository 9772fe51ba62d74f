"""A test call to the server's echo (RFC 862): the same speech on each path, and what would be heard of it.

Our own packets come back, so every packet's round trip is known, and loss and lateness are those of both
directions together. The score takes half the round trip as the delay and is therefore a little pessimistic
about loss: a real call loses in one direction only what this test loses in two.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from opentsm.client.phone.media import Identity, MediaSession
from opentsm.client.phone.ports import Datagrams, Sockets, SwitchedTransport, received_path
from opentsm.client.phone.report import count_paths
from opentsm.client.phone.rtp import PTIME
from opentsm.client.phone.score import judge
from opentsm.errors import RemoteProtocolError
from opentsm.types import Path, PathMode, SocketAddress

ECHO_PORT: Final = 7

DRAIN: Final = 1.0
"""Seconds for which packets may still come back after the last was sent: longer than most TCP stalls."""

MOVE_PATIENCE: Final = 10.0
"""Seconds to wait until the flow is on the path that is to be tested."""

GOOD_MOS: Final = 4.0
FAIR_MOS: Final = 3.6
"""Where users are satisfied, and where many are not (ITU-T G.109, by way of G.107's MOS)."""

_POLL: Final = 0.05


@dataclass(frozen=True, slots=True)
class PathVerdict:
    """One path as a caller would find it.

    Attributes:
        tested: False: no packet could be sent this way; ``note`` says why.
        sent_by: packets by the path they really left on.
        round_trip_ms, round_trip_p95_ms: median and 95th percentile; None: nothing came back.
        lost_percent: never came back. late_percent: came back too late for the play-out buffer.
    """

    path: str
    tested: bool = False
    note: str = ""
    sent: int = 0
    received: int = 0
    sent_by: dict[str, int] | None = None
    round_trip_ms: float | None = None
    round_trip_p95_ms: float | None = None
    jitter_ms: float = 0.0
    lost_percent: float = 0.0
    late_percent: float = 0.0
    mos: float | None = None

    @property
    def word(self) -> str:
        if self.mos is None:
            return "no way through"
        return "good" if self.mos >= GOOD_MOS else "fair" if self.mos >= FAIR_MOS else "bad"

    def as_dict(self) -> dict[str, Any]:
        values = {k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(self).items()}
        return {**values, "verdict": self.word}


class EchoTest:
    """One path's test: a media session that hears itself.

    Args:
        echo: address and port of the echo service.
    """

    def __init__(
        self, echo: SocketAddress, samples: array[int], playout: float | None, identity: Identity
    ) -> None:
        self.media = MediaSession(identity, samples, loop=True, playout=playout)
        self.strangers = 0
        self._echo = echo
        self._sent_at: dict[int, float] = {}
        self._round_trips: list[float] = []

    def tick(self, now: float, path: Path) -> list[bytes]:
        packets = self.media.tick(now, path)
        for record in self.media.sent[-len(packets) :]:
            self._sent_at[record.sequence] = now
        return packets

    def receive(self, now: float, data: bytes, source: SocketAddress, path: Path | None) -> None:
        """Something has come; only what is our own, from the echo, counts."""
        own = data[8:12] == self.media.identity.ssrc.to_bytes(4, "big")
        if source != self._echo or not own:
            self.strangers += 1
            return
        with contextlib.suppress(RemoteProtocolError):  # a broken echo of ours is a lost packet
            self.media.receive_untrusted(now, data, path)
            sent = self._sent_at.pop(int.from_bytes(data[2:4], "big"), None)
            if sent is not None:
                self._round_trips.append(now - sent)

    def verdict(self, path: Path, now: float) -> PathVerdict:
        """What was found, when nothing more will come."""
        name = path.name.lower()
        media = self.media
        sent_by = count_paths(media.sent)
        if not self._round_trips:
            note = "nothing came back: is the echo service on (realm, echo)?"
            return PathVerdict(name, True, note, media.numbers.sent, 0, sent_by, lost_percent=100.0)
        media.advance(now)
        trips = sorted(self._round_trips)
        median = trips[(len(trips) - 1) // 2]
        # Lost packets at either end of the test are no gaps for the play-out buffer: count them by hand.
        lost = 100.0 * (media.numbers.sent - len(trips)) / media.numbers.sent
        score = judge(median / 2 + media.playout.delay, media.counts.late_percent, lost)
        return PathVerdict(
            path=name,
            tested=True,
            sent=media.numbers.sent,
            received=len(trips),
            sent_by=sent_by,
            round_trip_ms=1000.0 * median,
            round_trip_p95_ms=1000.0 * trips[(len(trips) - 1) * 95 // 100],
            jitter_ms=media.reception.jitter_ms if media.reception is not None else 0.0,
            lost_percent=lost,
            late_percent=score.late_percent,
            mos=score.mos,
        )


async def run_call_test(
    sockets: Sockets,
    echo: SocketAddress,
    samples: array[int],
    *,
    seconds: float = 8.0,
    playout: float | None = 0.060,
    paths: Sequence[Path] = (Path.STREAM, Path.DATAGRAM),
) -> list[PathVerdict]:
    """Test each path in turn.

    Raises:
        OSError: no free port. TunnelClosedError: the tunnel is closed.
    """
    return [await _test_path(sockets, echo, samples, seconds, playout, path) for path in paths]


async def _test_path(
    sockets: Sockets,
    echo: SocketAddress,
    samples: array[int],
    seconds: float,
    playout: float | None,
    path: Path,
) -> PathVerdict:
    loop = asyncio.get_running_loop()
    identity = Identity(secrets.randbits(32), secrets.randbits(15), secrets.randbits(32))
    test = EchoTest(echo, samples, playout, identity)
    transport, protocol = await sockets.create_datagram_endpoint(Datagrams, (str(sockets.inner_address), 0))
    protocol.handler = lambda data, source: test.receive(loop.time(), data, source, received_path(transport))
    try:
        transport.set_mode(PathMode(int(path)))
        if not await _on_path(transport, path):
            note = "the flow did not get there: DDT is not on offer, or UDP does not get through"
            return PathVerdict(path.name.lower(), note=note)
        await _talk(test, transport, echo, round(seconds / PTIME))
        await asyncio.sleep(DRAIN)
        return test.verdict(path, loop.time())
    finally:
        transport.close()


async def _talk(test: EchoTest, transport: SwitchedTransport, echo: SocketAddress, packets: int) -> None:
    """A packet every 20 ms, by the clock."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    for number in range(packets):
        await asyncio.sleep(max(0.0, start + number * PTIME - loop.time()))
        for packet in test.tick(loop.time(), transport.path):
            transport.sendto(packet, echo)


async def _on_path(transport: SwitchedTransport, path: Path) -> bool:
    """Wait until the flow is where it is wanted; False: it will not get there soon."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(MOVE_PATIENCE):
            while transport.path is not path:  # noqa: ASYNC110  # any Sockets: not all have notifications
                await asyncio.sleep(_POLL)
    return transport.path is path
