"""One client with a TUN device: ``python -m benchmarks.tun_client --help``. Runs until it is terminated.

It mirrors the server: what its device reads is routed into the session because the session "owns" the
prefix behind the server. Only the server's cost is measured, and the server cannot tell the difference.
"""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

from benchmarks.endpoint import DATAGRAM, STREAM, Client, parse_ports, steer_all
from opentsm.lab.netns import iproute_batch
from opentsm.userplane._core import UserPlane
from opentsm.userplane.tun import open_queue

SESSION = 1


def carry(plane: UserPlane, address: str, far: str, device: str, mtu: int) -> None:
    """Give the host a device that leads to ``far``; say ``ready`` and the address.

    After SIGTERM, which the caller has blocked, say what was counted.

    Args:
        address: inner address. mtu: of the device, bytes.
    """
    tun = plane.add_tun([open_queue(device)])
    plane.route_tun(f"{address}/32", tun)
    iproute_batch(
        [
            f"address add {address}/32 dev {device}",
            f"link set {device} up mtu {mtu}",
            f"route add {far} dev {device} src {address}",
        ]
    )
    print("ready", address, flush=True)
    signal.sigwait({signal.SIGTERM})
    print({name: value for name, value in plane.counters().items() if value}, flush=True)
    plane.shutdown(0)


def main() -> None:
    """Connect, set the device up, say ``ready``, wait for SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", required=True)
    parser.add_argument("--port", type=int, default=443)
    parser.add_argument("--ca", type=Path, required=True)
    parser.add_argument("--tun", default="tsm0")
    parser.add_argument("--mtu", type=int, default=1350)
    parser.add_argument("--far", required=True, help="the address behind the server")
    parser.add_argument("--path", choices=("stream", "datagram"), default="datagram")
    parser.add_argument("--ports", type=parse_ports, required=True, help="media ports at the far address")
    options = parser.parse_args()
    # Before any thread begins: they inherit it, and the signal waits for the call at the end.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    plane = UserPlane(workers=1)
    client = Client(plane, options.server, options.port, options.ca.read_bytes())
    stream, lease = client.open_stream()
    plane.session_open(SESSION, role="server", addresses=[options.far])
    plane.attach(SESSION, stream, lease.tsid)
    if options.path == "datagram":
        client.open_datagram(SESSION, stream, lease)
    steer_all(plane, SESSION, options.ports, DATAGRAM if options.path == "datagram" else STREAM)
    carry(plane, lease.address, options.far, options.tun, options.mtu)


if __name__ == "__main__":
    main()
