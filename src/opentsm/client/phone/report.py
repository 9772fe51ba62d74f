"""One call in numbers, for people and for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from opentsm.client.phone.media import MediaSession
from opentsm.client.phone.records import ReceivedPacket, SentPacket
from opentsm.client.phone.score import Score


@dataclass(frozen=True, slots=True)
class CallReport:
    """What this end knows of a call; percentages are of what the far end sent.

    Attributes:
        path: where our media goes. sent_by, received_by: packets by path (``unknown`` where the tunnel does
            not say). lost_percent: never came; late_percent: came after their moment in the play-out buffer.
        playout_ms: the buffer's delay at the end. round_trip_ms: by RTCP, None: no report came.
        mos: E-model over delay, loss and lateness. remote_loss_percent: what the far end says it lost.
        skipped: packets that were not sent because this machine was too busy.
    """

    peer: str = ""
    incoming: bool = False
    seconds: float = 0.0
    path: str = ""
    codec: str = ""
    sent: int = 0
    sent_by: Mapping[str, int] = field(default_factory=dict)
    received: int = 0
    received_by: Mapping[str, int] = field(default_factory=dict)
    lost_percent: float = 0.0
    late_percent: float = 0.0
    jitter_ms: float = 0.0
    round_trip_ms: float | None = None
    playout_ms: float = 0.0
    delay_ms: float = 0.0
    mos: float | None = None
    remote_loss_percent: float | None = None
    keys: str = ""
    skipped: int = 0
    drops: Mapping[str, int] = field(default_factory=dict)
    end_code: int | None = None
    end_reason: str = ""
    ended_by: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON; numbers to the precision they were measured with."""
        return {key: _rounded(value) for key, value in asdict(self).items()}


def media_report(media: MediaSession, **known: Any) -> CallReport:
    """The report of a call's audio so far; ``known`` are the fields that media knows nothing of."""
    heard = media.reception
    verdict: Score | None = media.score() if heard is not None else None
    return CallReport(
        codec=media.codec.encoding.lower(),
        sent=media.numbers.sent,
        sent_by=count_paths(media.sent),
        received=heard.received if heard is not None else 0,
        received_by=count_paths(media.received),
        lost_percent=verdict.lost_percent if verdict else 0.0,
        late_percent=verdict.late_percent if verdict else 0.0,
        jitter_ms=heard.jitter_ms if heard is not None else 0.0,
        round_trip_ms=None if media.round_trip is None else 1000.0 * media.round_trip,
        playout_ms=1000.0 * media.playout.delay,
        delay_ms=verdict.delay_ms if verdict else 0.0,
        mos=verdict.mos if verdict else None,
        remote_loss_percent=None if media.remote_loss is None else 100.0 * media.remote_loss,
        keys=media.keys.digits,
        skipped=media.numbers.skipped,
        drops=dict(media.numbers.drops),
        **known,
    )


def count_paths(packets: Iterable[SentPacket] | Iterable[ReceivedPacket]) -> dict[str, int]:
    """Packets by the path they took."""
    names = (packet.path.name.lower() if packet.path is not None else "unknown" for packet in packets)
    return dict(Counter(names))


def _rounded(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value
