"""A server with a TUN device: ``python -m benchmarks.tun_server --help``. Runs until it is terminated.

The control plane is the least that gives out tunnels: an address, a TSID, a reserved datagram tunnel for
everybody who asks. SIGUSR1 makes it busy (3 ms of JSON in every 10 ms, in Python), SIGUSR2 idle again:
whether packets notice is one of the measurements.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import secrets
import select
import signal
import socket
import threading
import time
from ipaddress import IPv4Interface, ip_address
from pathlib import Path

from benchmarks.endpoint import DATAGRAM, STREAM, parse_ports, steer_all
from opentsm.lab.netns import iproute_batch
from opentsm.types import Code, Service, Tsid
from opentsm.userplane._core import ControlMessage, DatagramReady, StreamReady, TunnelClosed, UserPlane
from opentsm.userplane.tun import open_queue
from opentsm.wire.codec import encode
from opentsm.wire.messages import ConfigurationResponse, ServiceResponse

BUSY = 0.003
PERIOD = 0.010
LIFETIME_MS = 10_000
"""How long a reserved datagram tunnel is waited for."""


class Server:
    """Gives each stream a session with the next address.

    Args:
        options: the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.plane = UserPlane(workers=1)
        self._path = DATAGRAM if options.path == "datagram" else STREAM
        self._ports: list[int] = options.ports
        self._numbers = itertools.count(1)
        self._sessions: dict[int, tuple[int, int]] = {}
        self._first = int(ip_address(options.pool))
        profile = self.plane.server_tls(
            chain_pem=(options.keys / "server.pem").read_bytes(),
            key_pem=(options.keys / "server.key").read_bytes(),
        )
        where = (options.address, options.port)
        self.plane.listen_stream([_listen(socket.SOCK_STREAM, where)], tls_profile=profile)
        self.plane.listen_datagram([_listen(socket.SOCK_DGRAM, where)], dtls=True)
        tun = self.plane.add_tun([open_queue(options.tun)])
        self.plane.route_tun("0.0.0.0/0", tun)

    def turn(self) -> None:
        """Handle what has happened."""
        for event in self.plane.poll():
            match event:
                case ControlMessage(tunnel=tunnel) if tunnel not in self._sessions:
                    self._configure(tunnel)
                case DatagramReady(tunnel=tunnel, tsid=tsid):
                    # A client that is gone by now has taken tunnel and session with it.
                    with contextlib.suppress(KeyError):
                        self.plane.attach(event.session, tunnel, tsid)
                case TunnelClosed(tunnel=tunnel) if tunnel in self._sessions:
                    session, _ = self._sessions.pop(tunnel)
                    self.plane.session_close(session)
                case StreamReady() | ControlMessage() | TunnelClosed() | _:
                    pass

    def _configure(self, stream: int) -> None:
        with contextlib.suppress(KeyError):
            self._open_session(stream)

    def _open_session(self, stream: int) -> None:
        session = next(self._numbers)
        # The first client is the one that is measured; those that come and go share 65,000 addresses.
        address = ip_address(self._first + (session - 1) % 65_000)
        tsid, datagram = Tsid(secrets.randbits(63)), Tsid(secrets.randbits(63))
        self._sessions[stream] = session, datagram
        self.plane.session_open(session, role="server", addresses=[str(address)])
        self.plane.attach(session, stream, tsid)
        self.plane.reserve(stream=stream, tsid=datagram, lifetime_ms=LIFETIME_MS)
        steer_all(self.plane, session, self._ports, self._path)
        configuration = ConfigurationResponse(
            tsid=tsid, sequence=1, code=Code.SUCCESS, inner_ipv4=IPv4Interface(f"{address}/32")
        )
        offer = ServiceResponse(
            tsid=tsid, sequence=2, code=Code.SUCCESS, service=Service.DDT, tunnel_id=datagram
        )
        self.plane.send_control(stream, encode(configuration))
        self.plane.send_control(stream, encode(offer))


def _listen(kind: socket.SocketKind, where: tuple[str, int]) -> int:
    opened = socket.socket(socket.AF_INET, kind)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    opened.bind(where)
    if kind == socket.SOCK_STREAM:
        opened.listen(256)
    opened.setblocking(False)
    return opened.detach()


def _burn(busy: threading.Event) -> None:
    """What a control plane with much to do looks like to the packets: Python that holds the GIL."""
    document = {"calls": [{"id": n, "peer": f"198.18.0.{n}", "codec": "PCMA/8000"} for n in range(40)]}
    while busy.wait():
        begin = time.monotonic()
        while time.monotonic() - begin < BUSY:
            json.loads(json.dumps(document))
        time.sleep(max(0.0, begin + PERIOD - time.monotonic()))


def main() -> None:
    """Serve until SIGTERM; then print the counters."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True)
    parser.add_argument("--port", type=int, default=443)
    parser.add_argument("--keys", type=Path, required=True, help="folder with server.pem and server.key")
    parser.add_argument("--pool", default="10.64.0.2", help="first inner address")
    parser.add_argument("--tun", default="tsm0")
    parser.add_argument("--mtu", type=int, default=1350)
    parser.add_argument("--path", choices=("stream", "datagram"), default="datagram")
    parser.add_argument("--ports", type=parse_ports, required=True, help="client ports that carry media")
    options = parser.parse_args()

    busy, done = threading.Event(), threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: busy.set())
    signal.signal(signal.SIGUSR2, lambda *_: busy.clear())
    signal.signal(signal.SIGTERM, lambda *_: done.set())
    server = Server(options)
    iproute_batch(
        [
            f"link set {options.tun} up mtu {options.mtu}",
            f"route add {options.pool}/16 dev {options.tun}".replace(options.pool, _network(options.pool)),
        ]
    )
    threading.Thread(target=_burn, args=(busy,), daemon=True).start()
    print("ready", flush=True)
    while not done.is_set():
        select.select([server.plane.event_fd], [], [], 0.2)
        server.turn()
    print({name: value for name, value in server.plane.counters().items() if value}, flush=True)
    server.plane.shutdown(0)


def _network(address: str) -> str:
    return str(IPv4Interface(f"{address}/16").network.network_address)


if __name__ == "__main__":
    main()
