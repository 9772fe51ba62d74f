"""Clients that come and go: TLS, Configuration, DTLS, gone, again. ``python -m benchmarks.churn --help``.

One failure ends it: a control plane that refuses is not the busy one that is to be measured.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import threading
import time
from pathlib import Path

from benchmarks.endpoint import Client
from opentsm.userplane._core import UserPlane


def main() -> None:
    """Set up and tear down until SIGTERM; then print how many."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", required=True)
    parser.add_argument("--port", type=int, default=443)
    parser.add_argument("--ca", type=Path, required=True)
    parser.add_argument("--rate", type=float, default=20.0, help="tunnel pairs per second")
    options = parser.parse_args()
    done = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: done.set())
    plane = UserPlane(workers=1)
    client = Client(plane, options.server, options.port, options.ca.read_bytes())
    print("ready", flush=True)
    begin, made = time.monotonic(), 0
    for number in itertools.count(1):
        if done.wait(max(0.0, begin + number / options.rate - time.monotonic())):
            break
        stream, lease = client.open_stream()
        plane.session_open(number, role="client", addresses=[lease.address], sink="local")
        plane.attach(number, stream, lease.tsid)
        client.open_datagram(number, stream, lease)
        client.close(stream)
        plane.session_close(number)
        made += 1
    print(made, flush=True)
    plane.shutdown(0)


if __name__ == "__main__":
    main()
