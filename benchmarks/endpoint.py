"""The client half of the benchmarks: one session's tunnels on a bare user plane, without the SDK above it.

What is measured is the user plane; driving it directly keeps the control plane's work out of the figures
(but for the measurement that puts it in on purpose).
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from opentsm.types import UNASSIGNED_TSID, Code
from opentsm.userplane._core import ControlMessage, DatagramReady, StreamReady, TunnelClosed, UserPlane
from opentsm.wire.codec import decode_untrusted, encode
from opentsm.wire.messages import ConfigurationRequest, ConfigurationResponse, ServiceResponse

if TYPE_CHECKING:
    from opentsm.userplane._core import Event

STREAM: Final = 0
DATAGRAM: Final = 1
UDP: Final = 17
WAIT: Final = 10.0
"""Seconds for any one step of the set-up; a busy server of the measurements answers within one."""

KEEPALIVE_MS: Final = 40
"""Half the silence after which the user plane begins to doubt a datagram path."""

E = TypeVar("E", bound="Event")


class Events:
    """Events of one user plane, waited for by kind.

    Args:
        plane: whose events.
    """

    def __init__(self, plane: UserPlane) -> None:
        self._plane = plane
        self._pending: deque[Event] = deque()

    def wait(self, kind: type[E], tunnel: int, seconds: float = WAIT) -> E:
        """The next event of a kind on a tunnel; others of that tunnel before it are passed over.

        Raises:
            ConnectionError: the tunnel ended, or the time is up.
        """
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            while self._pending:
                event = self._pending.popleft()
                if isinstance(event, kind) and event.tunnel == tunnel:  # type: ignore[union-attr]
                    return event
                if isinstance(event, TunnelClosed) and event.tunnel == tunnel:
                    raise ConnectionError(f"tunnel closed: {event.reason} {event.detail}")
            select.select([self._plane.event_fd], [], [], left)
            self._pending.extend(self._plane.poll())
        raise ConnectionError(f"no {kind.__name__} within {seconds:g} s")


@dataclass(frozen=True, slots=True)
class Lease:
    """What the server gave: inner address, and the TSID under which it expects the datagram tunnel."""

    address: str
    tsid: int
    datagram_tsid: int


class Client:
    """Opens sessions from one user plane.

    Args:
        plane: the user plane.
        server: the server's outer address.
        port: TCP and UDP port.
        ca_pem: who signed its certificate.
    """

    def __init__(self, plane: UserPlane, server: str, port: int, ca_pem: bytes) -> None:
        self._plane = plane
        self._events = Events(plane)
        self._server = (server, port)
        self._profile = plane.client_tls(ca_pem=ca_pem)

    def open_stream(self) -> tuple[int, Lease]:
        """TCP, TLS, Configuration exchange. Returns the stream tunnel and the lease."""
        connected = socket.create_connection(self._server, WAIT)
        connected.setblocking(False)
        stream = self._plane.attach_stream(
            connected.detach(), tls_profile=self._profile, server_name=self._server[0]
        )
        self._events.wait(StreamReady, stream)
        self._plane.send_control(stream, encode(ConfigurationRequest(tsid=UNASSIGNED_TSID, sequence=1)))
        return stream, self._lease(stream)

    def _lease(self, stream: int) -> Lease:
        configuration = decode_untrusted(self._events.wait(ControlMessage, stream).data)
        service = decode_untrusted(self._events.wait(ControlMessage, stream).data)
        if not isinstance(configuration, ConfigurationResponse) or not isinstance(service, ServiceResponse):
            raise ConnectionError("the server's answers are not those of benchmarks.tun_server")
        if configuration.code != Code.SUCCESS or not configuration.inner_ipv4 or service.tunnel_id is None:
            raise ConnectionError(f"the server refuses: {configuration.code!r}")
        return Lease(str(configuration.inner_ipv4.ip), configuration.tsid, service.tunnel_id)

    def open_datagram(self, session: int, stream: int, lease: Lease) -> int:
        """DTLS to the same port, under the key of the stream's TLS session. Returns the tunnel."""
        connected = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        connected.connect(self._server)
        tunnel = self._plane.attach_datagram(
            connected.detach(), dtls=True, tsid=lease.datagram_tsid, stream=stream, rtt_hint_ms=5
        )
        self._events.wait(DatagramReady, tunnel)
        self._plane.attach(session, tunnel, lease.datagram_tsid)
        # Between two loads the path is not silent, as it is not with a client that listens to its path.
        self._plane.set_keepalive(tunnel, interval_ms=KEEPALIVE_MS)
        return tunnel

    def close(self, stream: int) -> None:
        """Close a stream and wait until it has gone."""
        self._plane.close(stream)
        self._events.wait(TunnelClosed, stream)


def steer_all(plane: UserPlane, session: int, ports: Iterable[int], path: int) -> None:
    """Media on these client ports takes one path."""
    for port in ports:
        plane.steer(session, protocol=UDP, port=port, mode=path, media=True)


def parse_ports(text: str) -> list[int]:
    """``4000-4003,5000`` -> [4000, 4001, 4002, 4003, 5000]."""
    ports: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        ports += range(int(first), int(last or first) + 1)
    return ports
