"""Call detail records: what is kept of a call when it is over."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from opentsm.engine.quality import Codec

from .actions import RelayKey
from .dialogs import Call, Party
from .parties import Side
from .quality import Counts, Direction, LegCounts, PathSwitch, PathTrace, codec_for, direction, reported


def make_record(
    call: Call,
    relays: Sequence[tuple[RelayKey, Counts]],
    traces: Mapping[Side, PathTrace],
    switches: Mapping[Side, Sequence[PathSwitch]],
    *,
    epoch: float,
    network_delay_ms: float,
) -> dict[str, Any]:
    """The record of an ended call, ready for JSON.

    Args:
        relays: last numbers of its relays; empty if media was not relayed.
        traces: which path each party's media came by, over time.
        switches: the changes of path of each party's tunnels, with their reasons; those of the call are kept.
        epoch: what to add to the core's clock to get seconds since 1970.
        network_delay_ms: one way between the parties' tunnels, for the E-model, where their RTCP does not
        tell.
    """
    ended = call.ended if call.ended is not None else call.started
    answered = call.answered
    codec = codec_for(call.media.codec)
    legs = {Side.CALLER: _Legs(call, relays, "a"), Side.CALLEE: _Legs(call, relays, "b")}
    trips = [legs[side].round_trip_ms for side in Side]
    delay = sum(trip for trip in trips if trip is not None) / 2.0 if None not in trips else network_delay_ms
    return {
        "call_id": _text(call.key.call_id),
        "caller": _text(call.caller.aor),
        "callee": _text(call.callee.aor),
        "caller_tunnel": _tunnel(call.caller),
        "callee_tunnel": _tunnel(call.callee),
        "caller_trunk": call.caller.trunk or None,
        "callee_trunk": call.callee.trunk or None,
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
        "media": [{"kind": _text(kind), "codec": _text(name)} for kind, name in call.media.kinds.values()],
        "sdp_corrected": call.media.corrected,
        "from_caller": _direction(call, legs, Side.CALLER, codec, delay),
        "from_callee": _direction(call, legs, Side.CALLEE, codec, delay),
        "path": {side.value: traces[side].changes if side in traces else [] for side in Side},
        "path_switches": {
            side.value: [
                {
                    "at": round(one.at - call.started, 1),
                    "direction": one.direction,
                    "path": one.path.name.lower(),
                    "reason": one.reason,
                }
                for one in switches.get(side, ())
                if call.started <= one.at <= ended
            ]
            for side in Side
        },
    }


class _Legs:
    """One party's side of a call's relays: of what is spoken, or where nothing is, of all media."""

    def __init__(self, call: Call, relays: Sequence[tuple[RelayKey, Counts]], leg: str) -> None:
        spoken = [one for one in relays if call.media.kinds.get(one[0].stream, ("",))[0] == "audio"]
        chosen = [(key.part, getattr(counts, leg)) for key, counts in spoken or relays]
        self.media: list[LegCounts] = [counts for part, counts in chosen if part == "rtp"]
        self.all: list[LegCounts] = [counts for _, counts in chosen]
        trips = [counts.rtt_us for counts in self.all if counts.rtt_us]
        self.round_trip_ms = trips[-1] / 1000.0 if trips else None


def _direction(
    call: Call, legs: Mapping[Side, _Legs], side: Side, codec: Codec, delay: float
) -> dict[str, Any] | None:
    if not legs[side].media:
        return None
    judged: Direction = direction(legs[side].media, codec, delay)
    told = reported(legs[side.other].all, judged.packets - judged.dropped, call.media.codec)
    return dataclasses.asdict(judged) | {"reported": dataclasses.asdict(told) if told is not None else None}


def _tunnel(party: Party) -> dict[str, str] | None:
    if party.client is None:
        return None
    return {"client": party.client.name, "tsid": f"{party.client.tsid:016x}"}


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _text(text: str) -> str:
    """A peer's text may hold what is no UTF-8."""
    return text.encode("utf-8", "replace").decode()
