"""Call detail records: what is kept of a call when it is over."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from opentsm.engine.quality import Codec

from .dialogs import Call, Party
from .parties import Side
from .quality import Counts, Direction, LegCounts, PathTrace, codec_for, direction


def make_record(
    call: Call,
    relays: Sequence[Counts],
    traces: Mapping[Side, PathTrace],
    *,
    epoch: float,
    network_delay_ms: float,
) -> dict[str, Any]:
    """The record of an ended call, ready for JSON.

    Args:
        relays: last numbers of its RTP relays; empty if media was not relayed.
        traces: which path each party's media came by, over time.
        epoch: what to add to the core's clock to get seconds since 1970.
        network_delay_ms: one way between the parties' tunnels, for the E-model.
    """
    ended = call.ended if call.ended is not None else call.started
    answered = call.answered
    codec = codec_for(call.media.codec)
    heard = {
        Side.CALLER: _direction([relay.a for relay in relays], codec, network_delay_ms),
        Side.CALLEE: _direction([relay.b for relay in relays], codec, network_delay_ms),
    }
    return {
        "call_id": _text(call.key.call_id),
        "caller": _text(call.caller.aor),
        "callee": _text(call.callee.aor),
        "caller_tunnel": _tunnel(call.caller),
        "callee_tunnel": _tunnel(call.callee),
        "started": _time(call.started + epoch),
        "answered": _time(answered + epoch) if answered is not None else None,
        "ended": _time(ended + epoch),
        "ended_at": round(ended + epoch, 3),
        "setup_s": round((answered if answered is not None else ended) - call.started, 3),
        "duration_s": round(ended - answered, 3) if answered is not None else 0.0,
        "ended_by": call.ended_by,
        "reason": call.reason,
        "code": call.code,
        "codec": _text(call.media.codec),
        "sdp_corrected": call.media.corrected,
        "from_caller": heard[Side.CALLER],
        "from_callee": heard[Side.CALLEE],
        "path": {side.value: traces[side].changes if side in traces else [] for side in Side},
    }


def _direction(legs: Sequence[LegCounts], codec: Codec, delay: float) -> dict[str, Any] | None:
    if not legs:
        return None
    judged: Direction = direction(legs, codec, delay)
    return dataclasses.asdict(judged)


def _tunnel(party: Party) -> dict[str, str] | None:
    if party.client is None:
        return None
    return {"client": party.client.name, "tsid": f"{party.client.tsid:016x}"}


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _text(text: str) -> str:
    """A peer's text may hold what is no UTF-8."""
    return text.encode("utf-8", "replace").decode()
