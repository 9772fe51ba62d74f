"""An answered call as JSON, and back: what the next process needs to hand on its BYE and its media.

Only answered calls are kept. One that still rings is held together by transactions, which end with the
process; its caller places it again.
"""

from __future__ import annotations

from typing import Any, Final

from .dialogs import Call, CallKey, CallState, Party
from .hop import Hop
from .media import MediaSession, Pools

SEQUENCE_GAP: Final = 1_000
"""Added to both parties' CSeq: requests may have passed that were not written down, and a BYE of ours must
come after them (RFC 3261 section 12.2.1.1 wants higher, not next)."""


def kept_call(call: Call, offset: float) -> dict[str, Any]:
    """The call as values that JSON has.

    Args:
        offset: seconds from the core's clock to the time since 1970.
    """
    return {
        "call_id": call.key.call_id,
        "tag": call.key.tag,
        "serial": call.serial,
        "sequence": call.sequence,
        "code": call.code,
        "times": [
            None if at is None else at + offset
            for at in (call.started, call.ringing, call.answered, call.until)
        ],
        "caller": _kept_party(call.caller),
        "callee": _kept_party(call.callee),
        "media": call.media.kept(),
    }


def restored_call(kept: dict[str, Any], pools: Pools, offset: float, *, anchoring: bool) -> Call:
    """The call again, with its ports taken; its media is still to be opened.

    Raises:
        NoPorts: one of its ports has another owner now. KeyError, TypeError, ValueError: ``kept`` is not what
            this version writes.
    """
    started, ringing, answered, until = (None if at is None else at - offset for at in kept["times"])
    caller, callee = _restored_party(kept["caller"]), _restored_party(kept["callee"])
    media = MediaSession.restored(kept["serial"], pools, kept["media"], anchoring=anchoring)
    return Call(
        key=CallKey(kept["call_id"], kept["tag"]),
        serial=kept["serial"],
        caller=caller,
        callee=callee,
        media=media,
        started=started or 0.0,
        sequence=kept["sequence"],
        state=CallState.ANSWERED,
        ringing=ringing,
        answered=answered,
        code=kept["code"],
        until=until,
    )


def _kept_party(party: Party) -> dict[str, Any]:
    hop = party.hop
    return {
        "aor": party.aor,
        "hop": [hop.transport, *hop.local, *hop.remote, hop.core],
        "tag": party.tag,
        "contact": party.contact,
        "sequence": party.sequence,
        "header": party.header,
        "addresses": sorted(party.addresses),
        "trunk": party.trunk,
    }


def _restored_party(kept: dict[str, Any]) -> Party:
    transport, local, local_port, remote, remote_port, core = kept["hop"]
    return Party(
        aor=kept["aor"],
        hop=Hop(transport, (local, local_port), (remote, remote_port), core),
        client=None,
        tag=kept["tag"],
        contact=kept["contact"],
        sequence=kept["sequence"] + SEQUENCE_GAP,
        header=kept["header"],
        addresses=set(kept["addresses"]),
        trunk=kept["trunk"],
    )
