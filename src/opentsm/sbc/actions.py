"""What the SBC's core wants done. The service carries it out, in order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from opentsm.types import Flow, SocketAddress

from .transactions import Send

if TYPE_CHECKING:
    from .dialogs import Call
    from .location import Binding


class RelayKey(NamedTuple):
    """Names a relay for life: a closed one's key is never used again."""

    call: int
    stream: int
    part: str  # rtp, rtcp
    generation: int


@dataclass(frozen=True, slots=True)
class OpenRelay:
    """Join two ports of ours; side A is the caller's. See ``UserPlane.relay_open``.

    Attributes:
        remote_a, remote_b: the negotiated parties. early_a, early_b: as long as that is not known, addresses
            that were offered the port and may be heard already.
        core_a, core_b: the port is a UDP socket on the core side. rtp, rtcp: what is read for statistics.
    """

    key: RelayKey
    local_a: SocketAddress
    local_b: SocketAddress
    remote_a: SocketAddress | None
    remote_b: SocketAddress | None
    rtp: bool
    rtcp: bool = False
    early_a: tuple[str, ...] = ()
    early_b: tuple[str, ...] = ()
    core_a: bool = False
    core_b: bool = False


@dataclass(frozen=True, slots=True)
class UpdateRelay:
    """Other parties, or other things to read; None leaves them as they are."""

    key: RelayKey
    remote_a: SocketAddress | None
    remote_b: SocketAddress | None
    follow: tuple[bool, bool] | None = None


@dataclass(frozen=True, slots=True)
class CloseRelay:
    """End a relay; what it counted belongs to its call's record."""

    key: RelayKey


@dataclass(frozen=True, slots=True)
class MediaFlows:
    """These flows of the client at ``address`` are media, or no longer are."""

    address: str
    flows: tuple[Flow, ...]
    active: bool


@dataclass(frozen=True, slots=True)
class SaveBindings:
    """The bindings of a user are now these."""

    aor: str
    bindings: tuple[Binding, ...]


@dataclass(frozen=True, slots=True)
class CallStands:
    """A call is answered, or an answered one has changed: what outlives this process is another now."""

    call: Call


@dataclass(frozen=True, slots=True)
class CallEnded:
    """A call is over; all its relays have been closed by actions before this one."""

    call: Call


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the log. ``event`` is also the name of a counter."""

    event: str
    fields: dict[str, Any] = field(default_factory=dict)
    warning: bool = False


MediaAction = OpenRelay | UpdateRelay | CloseRelay | MediaFlows
Action = Send | MediaAction | SaveBindings | CallStands | CallEnded | Note
