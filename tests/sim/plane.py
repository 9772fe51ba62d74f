"""A small user plane: two tunnels, rows, and media that is counted. The rules are those of the boundary."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from opentsm.protocol.actions import SteerMode
from opentsm.types import Flow, IpAddress, Path, Spread, Tsid
from tests.sim.network import Tunnel


@dataclass(frozen=True)
class Media:
    """One inner packet of a flow; ``sender`` tells two sessions of the server apart."""

    flow: Flow
    number: int
    sender: int


@dataclass(frozen=True)
class Numbered:
    """A sequenced frame: copies of it may come by other streams."""

    number: int
    media: Media


@dataclass(frozen=True)
class Probe:
    """A keepalive of the user plane; ``echo``: the answer."""

    echo: bool = False


SILENT_AFTER = 1.6
PROBE_INTERVAL = 0.5


_SERIALS = itertools.count()


@dataclass(eq=False)
class Plane:
    """What the user plane holds for one session on one side (0 client, 1 server)."""

    side: int
    serial: int = field(default_factory=lambda: next(_SERIALS))
    addresses: tuple[IpAddress, ...] = ()
    tunnels: dict[Path, Tunnel] = field(default_factory=dict)
    attached: set[Tunnel] = field(default_factory=set)
    extras: dict[Tsid, Tunnel] = field(default_factory=dict)
    used: list[Tunnel] = field(default_factory=list)
    spread: Spread = Spread.SINGLE
    numbers: int = 0
    seen: set[tuple[int, int]] = field(default_factory=set)
    copies_dropped: int = 0
    turn: int = 0
    rows: dict[Flow, SteerMode] = field(default_factory=dict)
    received: dict[Flow, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    by_path: dict[Flow, Counter[Path]] = field(default_factory=lambda: defaultdict(Counter))
    sent: Counter[Flow] = field(default_factory=Counter)
    drops: Counter[str] = field(default_factory=Counter)
    heard: dict[Flow, Path] = field(default_factory=dict)
    echo_at: float = 0.0
    silent: bool = False

    def usable(self, path: Path) -> Tunnel | None:
        tunnel = self.tunnels.get(path)
        return tunnel if tunnel in self.attached and tunnel.alive[self.side] else None

    def send(self, flow: Flow) -> None:
        """The application (or the core) sends the flow's next packet."""
        self.sent[flow] += 1
        mode = self.rows.get(flow, SteerMode.STREAM)
        path = Path(int(mode))
        media = Media(flow, self.sent[flow], self.serial)
        tunnel = self.usable(path) if path is Path.DATAGRAM else None
        if tunnel is not None:
            tunnel.send(self.side, media)
        else:
            self._send_by_stream(media)

    def _send_by_stream(self, media: Media) -> None:
        main = self.usable(Path.STREAM)
        streams = [s for s in (main, *self.used) if s is not None and s.alive[self.side]]
        if not streams:
            self.drops["no-path"] += 1
        elif self.spread is Spread.FAN_OUT and len(streams) > 1:
            self.numbers += 1
            for stream in streams:
                stream.send(self.side, Numbered(self.numbers, media))
        elif self.spread is Spread.LOAD_BALANCE:
            self.turn += 1
            streams[self.turn % len(streams)].send(self.side, media)
        else:
            streams[0].send(self.side, media)

    def take(self, tunnel: Tunnel, item: Media | Numbered) -> None:
        if tunnel not in self.attached:
            self.drops["not-attached"] += 1
            return
        if isinstance(item, Numbered):
            key = (item.media.sender, item.number)
            if key in self.seen:
                self.copies_dropped += 1
                return
            self.seen.add(key)
        media = item.media if isinstance(item, Numbered) else item
        self.heard[media.flow] = tunnel.path
        self.by_path[media.flow][tunnel.path] += 1
        self.received[media.flow].append((media.sender, media.number))

    def attach(self, path: Path) -> None:
        """As UserPlane.attach: the newer tunnel of a kind takes over, the older is closed."""
        tunnel = self.tunnels[path]
        beside = set(map(id, self.extras.values()))
        for older in [t for t in self.attached if t.path is path and t is not tunnel and id(t) not in beside]:
            self.detach(older)
            older.close(self.side, "replaced")
        self.attached.add(tunnel)

    def detach(self, tunnel: Tunnel) -> None:
        self.attached.discard(tunnel)
        if tunnel in self.used:
            self.used.remove(tunnel)

    def clear(self) -> None:
        for tunnel in (*self.attached, *self.tunnels.values(), *self.extras.values()):
            tunnel.close(self.side, "session-closed")
        self.extras.clear()
        self.used.clear()
        self.spread = Spread.SINGLE
        self.attached.clear()
        self.tunnels.clear()
        self.rows.clear()
        self.heard.clear()
