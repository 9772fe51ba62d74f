"""Evidence from a wire: packets as a namespace's interface saw them, as values and as pcap.

AF_PACKET in "cooked" mode gives every packet from its IP header on, whether the device is Ethernet
(veth) or TUN. On the sender's own interface a packet is captured before the send call returns, so
``stop`` sees all that was sent before it. Further away, a busy machine may forward it a moment later:
there, ``wait_for`` what must come.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

from opentsm.errors import PlatformError
from opentsm.lab.netns import call_inside
from opentsm.lab.packets import parse, protocol_name

_ETH_P_ALL: Final = 3
_ETH_P_IP, _ETH_P_IPV6 = 0x0800, 0x86DD
_PACKET_OUTGOING: Final = 4
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_SO_TIMESTAMPNS: Final = 35
_SO_RCVBUFFORCE: Final = 33
_LINKTYPE_RAW: Final = 101

MAX_PACKETS: Final = 500_000
"""Packets one capture keeps: 50 s of the largest e2e test (200 flows at 50/s); more are only counted."""

SNAP_LENGTH: Final = 256
"""Bytes kept of a packet: headers and the first payload bytes, which is what tests look at."""

PAYLOAD_LENGTH: Final = 64
"""Payload bytes in the parsed view."""

RECEIVE_BUFFER: Final = 64 << 20
"""Kernel buffer, so that a busy machine loses no evidence."""

_POLL: Final = 0.05
"""Seconds between looks at the stop flag while the wire is quiet; ``stop`` itself drains the rest."""


@dataclass(frozen=True, slots=True)
class Packet:
    """One captured packet.

    Args:
        time: seconds since the epoch, by the kernel.
        direction: "in" or "out", seen from the captured interface's host.
        version: 4 or 6.
        protocol: udp, tcp, icmp, icmpv6 or the number as text.
        source, destination: addresses.
        source_port, destination_port: 0 where there is none.
        length: bytes of the IP packet on the wire.
        payload: first bytes after the transport header (at most 64).
        flags: TCP flags (2 = SYN, 4 = RST, 1 = FIN, 16 = ACK).
        raw: first bytes of the packet.
    """

    time: float
    direction: Literal["in", "out"]
    version: int
    protocol: str
    source: str
    destination: str
    source_port: int
    destination_port: int
    length: int
    payload: bytes
    flags: int
    raw: bytes

    @property
    def is_dtls(self) -> bool:
        """A DTLS record: content type 20 to 26, version 254.x (RFC 6347 section 4.1); or a DTLS 1.2 CID."""
        return self.protocol == "udp" and _record(self.payload, 0xFE)

    @property
    def is_tls(self) -> bool:
        """The beginning of a TLS record (RFC 8446 section 5.1); a segment may begin in mid-record."""
        return self.protocol == "tcp" and _record(self.payload, 0x03)


def _record(payload: bytes, major: int) -> bool:
    return len(payload) >= 3 and 20 <= payload[0] <= 26 and payload[1] == major


class Capture:
    """A running capture; ``stop`` (or leaving the ``with`` block) ends it.

    Args:
        namespace: where.
        interface: which device there.
        max_packets: packets kept; the rest is counted in ``missed``.
        snap_length: bytes kept of each.

    Raises:
        PlatformError: no such interface, or no right to capture.
    """

    def __init__(
        self,
        namespace: str,
        interface: str,
        *,
        max_packets: int = MAX_PACKETS,
        snap_length: int = SNAP_LENGTH,
    ) -> None:
        self._records: list[tuple[float, bool, int, bytes]] = []
        self._views: list[Packet] = []
        self._max = max_packets
        self._snap = snap_length
        self._guard = threading.RLock()
        self._changed = threading.Condition(self._guard)
        self._stopping = threading.Event()
        self.missed = 0
        try:
            self._socket = call_inside(namespace, _open, interface)
        except OSError as error:
            raise PlatformError(f"cannot capture on {interface} of {namespace}: {error.strerror}") from error
        self._thread = threading.Thread(target=self._pump, name=f"capture-{interface}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Take in everything that passed before this call, then end. May be called again."""
        self._stopping.set()
        self._thread.join()
        self._socket.close()

    @property
    def packets(self) -> list[Packet]:
        """All packets so far, in the order of the wire. While running it may lag by a moment."""
        with self._guard:
            for record in self._records[len(self._views) :]:
                self._views.append(_view(*record))
            return list(self._views)

    def select(
        self,
        *,
        protocol: str | None = None,
        port: int | None = None,
        source: str | None = None,
        destination: str | None = None,
        direction: Literal["in", "out"] | None = None,
    ) -> list[Packet]:
        """Packets of which everything named is true; ``port`` is either end's."""
        return [
            packet
            for packet in self.packets
            if (protocol is None or packet.protocol == protocol)
            and (port is None or port in (packet.source_port, packet.destination_port))
            and (source is None or packet.source == source)
            and (destination is None or packet.destination == destination)
            and (direction is None or packet.direction == direction)
        ]

    def wait_for(self, count: int, *, within: float = 10.0, **wanted: Any) -> list[Packet]:
        """Wait until ``select(**wanted)`` has at least ``count`` packets, and return them.

        Raises:
            TimeoutError: they did not come within so many seconds; the message says how many did.
        """
        deadline = time.monotonic() + within
        with self._changed:
            while len(found := self.select(**wanted)) < count:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"{len(found)} of {count} packets came: {wanted or 'any'}")
                self._changed.wait(left)
        return found

    def save(self, path: Path | str) -> None:
        """Write a pcap file (LINKTYPE_RAW, nanoseconds) that Wireshark and tcpdump read."""
        with self._guard:
            records = list(self._records)
        with Path(path).open("wb") as file:
            file.write(struct.pack("=IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, self._snap, _LINKTYPE_RAW))
            for when, _, length, data in records:
                seconds = int(when)
                nanoseconds = int((when - seconds) * 1e9)
                file.write(struct.pack("=IIII", seconds, nanoseconds, len(data), length) + data)

    def _pump(self) -> None:
        while not self._stopping.is_set():
            self._socket.settimeout(_POLL)
            with contextlib.suppress(TimeoutError):
                self._take()
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._take()
        _, dropped = struct.unpack("II", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        self.missed += dropped

    def _take(self) -> None:
        # MSG_TRUNC makes recvmsg say the packet's whole length even though it copies only the start.
        buffer = bytearray(self._snap)
        length, control, _, address = self._socket.recvmsg_into([buffer], 64, socket.MSG_TRUNC)
        if address[1] not in (_ETH_P_IP, _ETH_P_IPV6):
            return
        if len(self._records) >= self._max:
            self.missed += 1
            return
        data = bytes(buffer[: min(length, self._snap)])
        record = (_timestamp(control), address[2] == _PACKET_OUTGOING, length, data)
        with self._guard:
            self._records.append(record)
            self._changed.notify_all()


def _open(interface: str) -> socket.socket:
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    opened.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    try:
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
    except OSError:
        # In a user namespace it stays within net.core.rmem_max; ``missed`` tells if that was too small.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    try:
        opened.bind((interface, _ETH_P_ALL))
    except OSError:
        opened.close()
        raise
    return opened


def _timestamp(control: list[tuple[int, int, bytes]]) -> float:
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS and len(data) >= 16:
            seconds, nanoseconds = struct.unpack("qq", data[:16])
            return float(seconds + nanoseconds / 1e9)
    return time.time()


def _view(when: float, outgoing: bool, length: int, raw: bytes) -> Packet:
    direction: Literal["in", "out"] = "out" if outgoing else "in"
    header = parse(raw)
    if header is None:
        return Packet(when, direction, raw[0] >> 4 if raw else 0, "?", "", "", 0, 0, length, b"", 0, raw)
    name = protocol_name(header.protocol)
    start, flags, ports = header.transport, 0, (0, 0)
    if name in ("udp", "tcp") and not header.fragment and len(raw) >= start + 8:
        ports = struct.unpack_from("!HH", raw, start)
        if name == "tcp" and len(raw) >= start + 14:
            flags = raw[start + 13]
            start += (raw[start + 12] >> 4) * 4
        else:
            start += 8
    payload = raw[start : start + PAYLOAD_LENGTH]
    return Packet(
        when,
        direction,
        header.version,
        name,
        header.source,
        header.destination,
        *ports,
        length,
        payload,
        flags,
        raw,
    )
