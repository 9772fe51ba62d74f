"""The client whose packets are timed: a TUN device, and tunnels to a real ``opentsm serve``.

``python -m benchmarks.delay_client --help``. As ``tun_client``, but its server has a whole control plane: the
client shows a token and asks for its datagram tunnel.
"""

from __future__ import annotations

import argparse
import signal
import socket
from pathlib import Path

from benchmarks.endpoint import DATAGRAM, WAIT, Client, Lease, steer_all
from benchmarks.rig import DOWN_PORT, UP_PORT
from benchmarks.tun_client import carry
from opentsm.types import UNASSIGNED_TSID, Code, Flow, PathMode, Protocol, Service, ServiceAction, Tsid
from opentsm.userplane._core import ControlMessage, StreamReady, UserPlane
from opentsm.wire.codec import decode_untrusted, encode
from opentsm.wire.messages import (
    AddressFamilies,
    ConfigurationRequest,
    ConfigurationResponse,
    Message,
    ServiceRequest,
    ServiceResponse,
)

SESSION = 1
DEVICE = "tsm0"
MTU = 1350


class TokenClient(Client):
    """A client that is let in for a token and asks for a datagram tunnel for the media on ``DOWN_PORT``."""

    token = b""

    def open_stream(self) -> tuple[int, Lease]:
        """TCP, TLS, Configuration and Service exchange."""
        connected = socket.create_connection(self._server, WAIT)
        connected.setblocking(False)
        stream = self._plane.attach_stream(
            connected.detach(), tls_profile=self._profile, server_name=self._server[0]
        )
        self._events.wait(StreamReady, stream)
        asking = ConfigurationRequest(
            tsid=UNASSIGNED_TSID, sequence=1, password=self.token, families=AddressFamilies.IPV4
        )
        configuration = self.exchange(stream, asking)
        if not isinstance(configuration, ConfigurationResponse) or configuration.code != Code.SUCCESS:
            raise ConnectionError(f"no tunnel: {configuration}")
        asking_more = ServiceRequest(
            tsid=configuration.tsid,
            sequence=2,
            service=Service.DDT,
            action=ServiceAction.ENABLE,
            mode=PathMode.DATAGRAM,
            flows=(Flow(Protocol.UDP, DOWN_PORT),),
        )
        service = self.exchange(stream, asking_more)
        if not isinstance(service, ServiceResponse) or service.tunnel_id is None:
            raise ConnectionError(f"no datagram tunnel: {service}")
        assert configuration.inner_ipv4 is not None
        return stream, Lease(str(configuration.inner_ipv4.ip), configuration.tsid, service.tunnel_id)

    def open_datagram(self, session: int, stream: int, lease: Lease) -> int:
        """DTLS, then the Configuration exchange by which the server knows the tunnel carries."""
        tunnel = super().open_datagram(session, stream, lease)
        self.exchange(tunnel, ConfigurationRequest(tsid=Tsid(lease.datagram_tsid), sequence=1))
        return tunnel

    def exchange(self, tunnel: int, request: Message) -> Message:
        """Send a request and wait for what is said next on this tunnel."""
        self._plane.send_control(tunnel, encode(request))
        return decode_untrusted(self._events.wait(ControlMessage, tunnel).data)


def main() -> None:
    """Connect, set the device up, say ``ready`` and the address, wait for SIGTERM."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--server", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ca", type=Path, required=True)
    parser.add_argument("--token", required=True)
    parser.add_argument("--far", required=True, help="the address behind the server")
    options = parser.parse_args()
    # Before any thread begins: they inherit it, and the signal waits for the call at the end.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    plane = UserPlane(workers=1)
    client = TokenClient(plane, options.server, options.port, options.ca.read_bytes())
    client.token = options.token.encode()
    stream, lease = client.open_stream()
    plane.session_open(SESSION, role="server", addresses=[options.far])
    plane.attach(SESSION, stream, lease.tsid)
    client.open_datagram(SESSION, stream, lease)
    steer_all(plane, SESSION, [UP_PORT], DATAGRAM)
    carry(plane, lease.address, options.far, DEVICE, MTU)


if __name__ == "__main__":
    main()
