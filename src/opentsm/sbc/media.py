"""Media of one call: which of our ports stand for which m-line, compiled to relay rules and media flows.

Each m-line has a pair of ports towards each party. A party's SDP says where it wants media; what the
other party gets to see instead is our pair that faces *it*. So both directions are the same small rule, and
who offers and who answers (RFC 3264) only decides *when* it takes effect: an offer in mid-call changes
nothing until it is answered, so that a refused one leaves the call as it was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from ipaddress import ip_address
from typing import Any

from opentsm.types import Flow, Protocol, SocketAddress

from .actions import CloseRelay, MediaAction, MediaFlows, OpenRelay, RelayKey, UpdateRelay
from .parties import Side
from .sdp import Description, Endpoint, Place, endpoint_untrusted, is_address, rewrite


class NoPorts(Exception):
    """The media port range is used up; the answer is 503."""


class PortPool:
    """Pairs of ports (even, odd), bounded. A released pair goes to the end of the queue, so that late packets
    of an ended call meet nobody for as long as possible."""

    def __init__(self, first: int, last: int) -> None:
        even = first + first % 2
        self._free = deque(range(even, last, 2))
        self.size = len(self._free)

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self) -> int:
        """The even port of a pair.

        Raises:
            NoPorts: none is left.
        """
        if not self._free:
            raise NoPorts
        return self._free.popleft()

    def claim(self, port: int) -> None:
        """Take this pair and no other: a call from before a restart has it.

        Raises:
            NoPorts: it is not free, or not of this range.
        """
        try:
            self._free.remove(port)
        except ValueError:
            raise NoPorts from None

    def give_back(self, port: int) -> None:
        self._free.append(port)


@dataclass(frozen=True, slots=True)
class Pools:
    """Where media ports come from: inner ones, and UDP sockets on the core side."""

    inner: PortPool
    core: PortPool

    def of(self, leg: Leg) -> PortPool:
        return self.core if leg.core else self.inner


@dataclass(frozen=True, slots=True)
class Leg:
    """One party as media sees it.

    Args:
        local: our address that faces it. other: ours of the other family, if there is one. addresses: its
        inner addresses, which cannot be forged; empty for
            somebody on the core side, who may name any address.
        source: where its SIP comes from.
        core: media goes by sockets on the core side, ``local`` being the kernel's address.
        early: where its media may come from before it has said so: whoever was offered the port.
    """

    local: str
    addresses: tuple[str, ...]
    source: str
    core: bool = False
    early: tuple[str, ...] = ()
    other: str = ""

    def facing(self, address: str) -> str:
        """Our address for media with this one: of its family, if we have one."""
        fits = bool(self.other) and _version(address) == _version(self.other)
        return self.other if fits else self.local

    def corrected(self, address: str, local: str = "") -> str:
        """The address it must have meant: a tunnelled client receives on its own inner address only, so any
        other (a softphone's Ethernet address, or somebody else's) is wrong. So is one of the family that our
        address facing it is not of: nothing could be sent there."""
        version = _version(local or self.facing(address))
        if not self.addresses:
            fits = is_address(address) and _version(address) == version
            return address if fits else self.source
        if address in self.addresses and _version(address) == version:
            return address
        same = [own for own in self.addresses if _version(own) == version]
        return same[0] if same else self.source


@dataclass(slots=True)
class _Stream:
    """One m-line's ports, parties and open relays."""

    ports: dict[Side, int] = field(default_factory=dict)
    remote: dict[Side, Endpoint] = field(default_factory=dict)
    relays: dict[str, OpenRelay] = field(default_factory=dict)
    generation: int = 0

    def port(self, side: Side) -> int:
        return self.ports[side]


Wanted = tuple[Endpoint | None, ...]
"""What a party's SDP asks for: one entry per m-line; None where we have nothing to relay."""


class MediaSession:
    """Media of one call.

    Args:
        call: serial number, for relay keys.
        anchoring: whether media is relayed; else only addresses are corrected.

    Attributes:
        corrected: how many ``c=`` addresses were put right.
        kinds: kind and codec of each m-line that was ever in use, by its place. codec: of what is spoken.
    """

    def __init__(self, call: int, pools: Pools, caller: Leg, callee: Leg, *, anchoring: bool) -> None:
        self.legs = {Side.CALLER: caller, Side.CALLEE: callee}
        self.corrected = 0
        self.codec = ""
        self.kinds: dict[int, tuple[str, str]] = {}
        self._call = call
        self._pools = pools
        self._anchoring = anchoring
        self._streams: list[_Stream] = []
        self._offer: tuple[Side, Wanted] | None = None
        self._settled = False
        self._announced: dict[Side, frozenset[Flow]] = {Side.CALLER: frozenset(), Side.CALLEE: frozenset()}

    @property
    def has_offer_from(self) -> Side | None:
        """Who made the offer that is not answered yet."""
        return self._offer[0] if self._offer else None

    def set_leg(self, side: Side, leg: Leg) -> list[MediaAction]:
        """Another phone of the callee's answers: it has other addresses, and the flows of the one before
        are no longer media. Ports towards the one before are of no use to one on another side."""
        before = self.legs[side]
        if replace(leg, early=before.early) == before:
            return []
        actions: list[MediaAction] = []
        if (leg.local, leg.core) != (before.local, before.core):
            actions += self._take_down()
            for stream in self._streams:
                self._release(stream, side)
        self.legs[side] = leg
        flows, self._announced[side] = self._announced[side], frozenset()
        return [*actions, MediaFlows(before.source, _ordered(flows), active=False)] if flows else actions

    def _take_down(self) -> list[MediaAction]:
        relays = [relay for stream in self._streams for relay in stream.relays.values()]
        for stream in self._streams:
            stream.relays.clear()
        return [CloseRelay(relay.key) for relay in relays]

    def _release(self, stream: _Stream, side: Side) -> None:
        if (port := stream.ports.pop(side, None)) is not None:
            self._pools.of(self.legs[side]).give_back(port)

    def _equip(self, stream: _Stream) -> None:
        """See to it that the stream has a pair of ports towards each party.

        Raises:
            NoPorts: one of the two ranges is used up; what was taken is kept for the next attempt.
        """
        for side in Side:
            if side not in stream.ports:
                stream.ports[side] = self._pools.of(self.legs[side]).take()

    def offer(self, side: Side, description: Description) -> tuple[Description, list[MediaAction]]:
        """An offer passes. Returns what the other party is to see, and what to do.

        Raises:
            NoPorts: the range is used up. RemoteProtocolError: it cannot be read.
        """
        wanted = self._read(side, description)
        places = self._places(side, wanted)
        self._offer = (side, wanted)
        actions: list[MediaAction] = []
        if not self._settled:
            # Nothing is lost by a first offer that fails, and early media must find its way.
            self._set(side, wanted)
            actions = self._compile()
        return self._rewritten(side, description, places), actions

    def answer(self, side: Side, description: Description) -> tuple[Description, list[MediaAction]]:
        """An answer passes: both sides' wishes take effect. Several may come to one offer (early media, then
        the call itself, from one phone or from several); the last one counts.

        Raises:
            NoPorts, RemoteProtocolError: as ``offer``.
        """
        told = [self._local(index, side) for index in range(len(self._streams))]
        wanted = self._read(side, description, told)
        places = self._places(side, wanted)
        if self._offer is not None and self._offer[0] is side.other:
            self._set(side.other, self._offer[1])
        self._set(side, wanted)
        for index, line in enumerate(description.media):
            if line.port:
                self.kinds[index] = (line.kind.lower(), line.codec)
        spoken = [codec for kind, codec in self.kinds.values() if kind == "audio"]
        self.codec = next(iter(spoken or [codec for _, codec in self.kinds.values()]), "")
        return self._rewritten(side, description, places), self._compile()

    def preview(self, side: Side, description: Description) -> Description:
        """What the other party is to see of an SDP that takes no effect: one of a phone that was too late.

        Raises:
            NoPorts, RemoteProtocolError: as ``offer``.
        """
        return self._rewritten(side, description, self._places(side, self._read(side, description)))

    def settle(self) -> None:
        """The offer has its final answer; what comes next is a change."""
        self._settled = True
        self._offer = None

    def discard_offer(self) -> None:
        """The offer was refused: all stays as it was."""
        self._offer = None

    def kept(self) -> dict[str, Any]:
        """What an answered call needs of this to go on after a restart; for JSON."""
        return {
            "legs": {side.value: asdict(leg) for side, leg in self.legs.items()},
            "kinds": [[index, *kind] for index, kind in self.kinds.items()],
            "codec": self.codec,
            "streams": [
                {
                    "ports": {side.value: port for side, port in stream.ports.items()},
                    "remote": {side.value: asdict(endpoint) for side, endpoint in stream.remote.items()},
                    "generation": stream.generation,
                }
                for stream in self._streams
            ],
        }

    @classmethod
    def restored(cls, call: int, pools: Pools, kept: dict[str, Any], *, anchoring: bool) -> MediaSession:
        """The media of a call from before a restart: the same ports, the same parties. ``resume`` opens it.

        Raises:
            NoPorts: one of its ports has another owner now. KeyError, TypeError, ValueError: ``kept`` is not
                what this version writes.
        """
        legs = {Side(side): _leg(leg) for side, leg in kept["legs"].items()}
        media = cls(call, pools, legs[Side.CALLER], legs[Side.CALLEE], anchoring=anchoring)
        media.codec = kept["codec"]
        media.kinds = {index: (kind, codec) for index, kind, codec in kept["kinds"]}
        media._settled = True
        try:
            for one in kept["streams"]:
                stream = _Stream(generation=one["generation"])
                media._streams.append(stream)
                stream.remote = {Side(side): Endpoint(**end) for side, end in one["remote"].items()}
                for name, port in one["ports"].items():
                    pools.of(legs[Side(name)]).claim(port)
                    stream.ports[Side(name)] = port
        except (NoPorts, KeyError, TypeError, ValueError):
            media.close()
            raise
        return media

    def resume(self) -> list[MediaAction]:
        """Open what ``restored`` made ready."""
        return self._compile()

    def close(self) -> list[MediaAction]:
        """End everything and give the ports back."""
        self._offer = None
        for stream in self._streams:
            stream.remote = {}
        actions = self._compile()
        for stream in self._streams:
            for side in Side:
                self._release(stream, side)
        return actions

    # -- reading ----------------------------------------------------------------------------------
    def _read(self, side: Side, description: Description, told: Sequence[str] = ()) -> Wanted:
        """What a party asks for. An answer must be of the family of the place it was told."""
        return tuple(
            self._correct(side, endpoint_untrusted(description, line), *told[index : index + 1])
            if line.port and line.is_datagram
            else None
            for index, line in enumerate(description.media)
        )

    def _correct(self, side: Side, endpoint: Endpoint, local: str = "") -> Endpoint:
        if endpoint.held:
            return endpoint
        leg = self.legs[side]
        address = leg.corrected(endpoint.address, local)
        rtcp = leg.corrected(endpoint.rtcp_address, leg.facing(address))
        self.corrected += address != endpoint.address
        return replace(endpoint, address=address, rtcp_address=rtcp)

    def _places(self, side: Side, wanted: Wanted) -> list[Place | None]:
        """What the other party is to see: our ports that face it, or without anchoring the right address."""
        while len(self._streams) < len(wanted):
            self._streams.append(_Stream())
        places: list[Place | None] = []
        for index, (stream, endpoint) in enumerate(zip(self._streams, wanted, strict=False)):
            if endpoint is None:
                places.append(None)
            elif not self._anchoring:
                places.append(Place(endpoint.address, endpoint.port, endpoint.rtcp_port))
            else:
                self._equip(stream)
                port = stream.port(side.other)
                address = endpoint.address if endpoint.held else self._local(index, side.other)
                places.append(Place(address, port, port + 1))
        return places

    def _local(self, index: int, side: Side) -> str:
        """Our address for one m-line of a party: of the family that its own SDP has there, if it has
        spoken."""
        leg, endpoint = self.legs[side], self._streams[index].remote.get(side)
        if self._offer is not None and self._offer[0] is side and index < len(self._offer[1]):
            endpoint = self._offer[1][index] or endpoint
        return leg.local if endpoint is None or endpoint.held else leg.facing(endpoint.address)

    def _rewritten(self, side: Side, description: Description, places: Sequence[Place | None]) -> Description:
        return rewrite(description, places, self.legs[side].source)

    def _set(self, side: Side, wanted: Wanted) -> None:
        """A party's SDP takes effect. An m-line refused (port 0) ends for both (RFC 3264 section 6); one on
        hold by address keeps its relay as it was."""
        for stream, endpoint in zip(self._streams, wanted, strict=False):
            if endpoint is None:
                stream.remote = {}
            elif not (endpoint.held and side in stream.remote):
                stream.remote[side] = endpoint

    # -- compiling --------------------------------------------------------------------------------
    def _compile(self) -> list[MediaAction]:
        """From what holds now to what should hold: the fewest relay commands and flow notices."""
        actions: list[MediaAction] = []
        if self._anchoring:
            for index, stream in enumerate(self._streams):
                for part in ("rtp", "rtcp"):
                    actions += self._compile_part(index, stream, part)
        for side in Side:
            actions += self._announce(side)
        return actions

    def _compile_part(self, index: int, stream: _Stream, part: str) -> list[MediaAction]:
        have = stream.relays.get(part)
        remotes = {side: _remote(stream.remote.get(side), part) for side in Side}
        a, b = remotes[Side.CALLER], remotes[Side.CALLEE]
        if not self._is_needed(stream, part) or (a is None and b is None and have is None):
            if have is None:
                return []
            del stream.relays[part]
            return [CloseRelay(have.key)]
        extra = 0 if part == "rtp" else 1
        locals_ = [(self._local(index, side), stream.port(side) + extra) for side in Side]
        if have is None or [have.local_a, have.local_b] != locals_:
            gone: list[MediaAction] = [CloseRelay(have.key)] if have is not None else []
            return [*gone, self._open(index, part, locals_, (a, b))]
        new_a, new_b = a if a != have.remote_a else None, b if b != have.remote_b else None
        rtp, rtcp = self._follow(stream, part)
        follow = (rtp, rtcp) if (rtp, rtcp) != (have.rtp, have.rtcp) else None
        if new_a is None and new_b is None and follow is None:
            return []
        stream.relays[part] = replace(
            have, remote_a=a or have.remote_a, remote_b=b or have.remote_b, rtp=rtp, rtcp=rtcp
        )
        return [UpdateRelay(have.key, new_a, new_b, follow)]

    def _open(
        self,
        index: int,
        part: str,
        locals_: Sequence[SocketAddress],
        remotes: tuple[SocketAddress | None, SocketAddress | None],
    ) -> OpenRelay:
        stream, caller, callee = self._streams[index], self.legs[Side.CALLER], self.legs[Side.CALLEE]
        stream.generation += 1
        rtp, rtcp = self._follow(stream, part)
        stream.relays[part] = OpenRelay(
            RelayKey(self._call, index, part, stream.generation),
            locals_[0],
            locals_[1],
            remotes[0],
            remotes[1],
            rtp,
            rtcp,
            early_a=caller.early,
            early_b=callee.early,
            core_a=caller.core,
            core_b=callee.core,
        )
        return stream.relays[part]

    def _follow(self, stream: _Stream, part: str) -> tuple[bool, bool]:
        """Whether to read RTP headers, and RTCP, which may be muxed and is encrypted where media is."""
        ends = stream.remote.values()
        is_rtp = any(endpoint.rtp for endpoint in ends)
        return part == "rtp" and is_rtp, is_rtp and not any(endpoint.secure for endpoint in ends)

    def _is_needed(self, stream: _Stream, part: str) -> bool:
        ends = stream.remote.values()
        if not ends or len(stream.ports) < len(Side):
            return False
        if part == "rtp":
            return True
        muxed = len(ends) == len(Side) and all(endpoint.mux for endpoint in ends)
        return all(endpoint.rtp for endpoint in ends) and not muxed

    def _announce(self, side: Side) -> list[MediaAction]:
        """Tell the server which flows of a tunnelled party are media, from before the first packet."""
        leg = self.legs[side]
        wanted: frozenset[Flow] = frozenset()
        if leg.addresses:
            wanted = frozenset(flow for stream in self._streams for flow in self._flows(side, stream))
        before, self._announced[side] = self._announced[side], wanted
        actions: list[MediaAction] = []
        if gone := before - wanted:
            actions.append(MediaFlows(leg.source, _ordered(gone), active=False))
        if new := wanted - before:
            actions.append(MediaFlows(leg.source, _ordered(new), active=True))
        return actions

    def _flows(self, side: Side, stream: _Stream) -> list[Flow]:
        endpoint = stream.remote.get(side)
        if endpoint is None or endpoint.held:
            return []
        flows = []
        for part, extra in (("rtp", 0), ("rtcp", 1)):
            remote = _remote(endpoint, part)
            if remote is None or (part == "rtcp" and not endpoint.rtp):
                continue
            local = self.legs[side].facing(remote[0])
            far = (ip_address(local), stream.port(side) + extra) if side in stream.ports else None
            flows.append(Flow(Protocol.UDP, remote[1], ":" in remote[0], far))
        return flows


def _leg(kept: dict[str, Any]) -> Leg:
    return Leg(**{**kept, "addresses": tuple(kept["addresses"]), "early": tuple(kept["early"])})


def _version(address: str) -> int:
    return 6 if ":" in address else 4


def _remote(endpoint: Endpoint | None, part: str) -> SocketAddress | None:
    if endpoint is None or endpoint.held:
        return None
    if part == "rtp":
        return endpoint.address, endpoint.port
    return endpoint.rtcp_address, endpoint.rtcp_port


def _ordered(flows: frozenset[Flow]) -> tuple[Flow, ...]:
    return tuple(sorted(flows, key=lambda flow: (flow.port, flow.ipv6)))
