"""What a session's events and endings are to the application: notifications and exceptions."""

from __future__ import annotations

from typing import Final

from opentsm.client import notifications as n
from opentsm.client.binding import Bindings
from opentsm.engine.steering import Decision, explain
from opentsm.errors import ConnectError, RefusedError, TunnelClosedError, TunnelError
from opentsm.protocol import actions as a
from opentsm.protocol.core import code_label
from opentsm.types import Path, PathMode
from opentsm.wire.messages import PathDecision

READY: Final = "the datagram tunnel is ready for it"


def told(event: a.SessionEvent, bindings: Bindings) -> n.Notification | None:
    """What the application hears of a session's event; None: nothing."""
    match event:
        case a.TunnelUp():
            return n.TunnelUp(event.configuration, event.address_changed)
        case a.Resumed():
            return n.TunnelResumed(event.configuration)
        case a.StreamLost():
            return n.TunnelLost(event.reason)
        case a.Terminated():
            return n.TunnelTerminated(event.reason, event.text, event.retry_after)
        case a.DdtAvailable():
            return n.DdtAvailable(event.available)
        case a.DdtUp():
            return n.DdtUp(event.tsid)
        case a.DdtDown():
            return n.DdtDown(event.tsid, event.reason)
        case a.DdtEnabled():
            owners = bindings.owners(event.flows)
            return n.DdtEnabled(owners) if owners else None
        case a.DdtDisabled():
            owners = bindings.owners(event.flows)
            return n.DdtDisabled(owners, event.reason) if owners else None
        case a.PairMissing():
            return n.PairMissing()
        case a.StreamsChanged():
            return n.StreamsChanged(event.redundancy, event.up, event.reason)
        case a.NagleSet():
            return n.NagleSet(event.on, event.granted)
        case a.QualityReported():
            return n.QualityReported(event.reports)
        case _:
            return None


def switched(event: a.SessionEvent, bindings: Bindings, decision: Decision | None) -> n.PathSwitched | None:
    """The change of path in a session's event, if it is one.

    Args:
        decision: of mode AUTO, while it is being carried out.
    """
    match event:
        case a.DdtEnabled():
            reason = READY if decision is None else str(decision)
            owners, path = bindings.owners(event.flows), Path.DATAGRAM
        case a.DdtDisabled():
            reason = event.reason if decision is None else str(decision)
            owners, path = bindings.owners(event.flows), Path.STREAM
        case a.QualityReported(decision=PathDecision() as theirs):
            owners = bindings.owners(bindings.in_mode(PathMode.AUTO))
            return n.PathSwitched(owners, "down", theirs.path, explain(theirs)) if owners else None
        case _:
            return None
    return n.PathSwitched(owners, "up", path, reason, decision) if owners else None


def failure(ended: a.Terminated, last_error: str) -> TunnelError:
    """Why there is no tunnel, as an exception."""
    if ended.code is not None:
        return RefusedError(code_label(ended.code), ended.text, ended.retry_after)
    if ended.reason == "local-close":
        return TunnelClosedError("closed before the tunnel was up")
    detail = last_error if last_error.startswith(ended.reason) else ended.reason
    return ConnectError(
        f"connected, but no tunnel: {detail}. What answers there may be no OpenTSM server: "
        "check address, port, and tls:// or tcp://"
    )
