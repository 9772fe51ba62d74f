"""A TURN client over TLS for one process that knows UDP only: ``python -m benchmarks.turn_bridge --help``.

What comes to its local UDP socket leaves as ChannelData on the first channel; what the server sends on any
channel goes to the local sink. Whatever waits when it looks leaves in one TLS record, as a good client would
do it. Runs until it is terminated.
"""

from __future__ import annotations

import argparse
import contextlib
import select
import signal
import socket
import ssl

from benchmarks.turn import CHANNEL_HEADER, FIRST_CHANNEL, HEADER, Allocation, over_stream

CHUNK = 65536
AT_ONCE = 64
"""Packets that go into one record at most: 12 KiB of 16."""

SO_RCVBUFFORCE = 33
"""asm-generic/socket.h; Python 3.11 does not name it. It needs root, which this has."""

STUN_BITS = 0xC000
"""Set in no STUN message, and in part in a channel number (RFC 8656 section 12)."""


class Bridge:
    """Both directions.

    Args:
        server: address and port of the TURN server.
        ca: file with its authority.
        local: where packets come from.
        sink: where packets go.
    """

    def __init__(
        self, server: tuple[str, int], ca: str, local: tuple[str, int], sink: tuple[str, int]
    ) -> None:
        context = ssl.create_default_context(cafile=ca)
        connected = socket.create_connection(server, 10)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._tls = context.wrap_socket(connected, server_hostname=server[0])
        self._media = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._media.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        self._media.bind(local)
        self._media.setblocking(False)
        self._sink = sink
        self._received = bytearray()

    def allocate(self, user: str, password: str) -> Allocation:
        """The allocation, before any media flows."""
        return Allocation(over_stream(self._tls), user, password)

    def run(self) -> None:
        """Forward until the end of the process."""
        self._tls.setblocking(True)
        while True:
            ready, _, _ = select.select([self._tls, self._media], [], [])
            if self._media in ready:
                self._up()
            if self._tls in ready:
                self._down()

    def _up(self) -> None:
        record = bytearray()
        with contextlib.suppress(BlockingIOError):
            for _ in range(AT_ONCE):
                payload = self._media.recv(2048)
                # On a stream each message fills words of four bytes (RFC 8656 section 12.5).
                record += CHANNEL_HEADER.pack(FIRST_CHANNEL, len(payload)) + payload
                record += bytes(-len(payload) % 4)
        self._tls.sendall(record)

    def _down(self) -> None:
        more = self._tls.recv(CHUNK)
        if not more:
            raise ConnectionError("the TURN server has closed")
        self._received += more
        while self._tls.pending():
            self._received += self._tls.recv(CHUNK)
        at, received = 0, self._received
        while at + CHANNEL_HEADER.size <= len(received):
            channel, length = CHANNEL_HEADER.unpack_from(received, at)
            size = HEADER.size + length if not channel & STUN_BITS else CHANNEL_HEADER.size + length
            end = at + size + (-size % 4)
            if end > len(received):
                break
            if channel & STUN_BITS:
                begin = at + CHANNEL_HEADER.size
                self._media.sendto(bytes(received[begin : begin + length]), self._sink)
            at = end
        del received[:at]


def main() -> None:
    """Allocate, bind the channels, say ``ready`` with the relayed address, forward until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ca", required=True)
    parser.add_argument("--user", required=True)
    parser.add_argument("--password", required=True)
    parser.add_argument("--local", type=int, required=True, help="UDP port on 127.0.0.1 to read from")
    parser.add_argument("--sink", type=int, required=True, help="UDP port on 127.0.0.1 to write to")
    parser.add_argument("--peers", nargs="+", required=True, help="ADDRESS:PORT; the first is written to")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    here = "127.0.0.1"
    bridge = Bridge((options.server, options.port), options.ca, (here, options.local), (here, options.sink))
    allocation = bridge.allocate(options.user, options.password)
    for peer in options.peers:
        address, _, port = peer.partition(":")
        allocation.bind(address, int(port))
    print("ready", *allocation.relayed, flush=True)
    bridge.run()


if __name__ == "__main__":
    main()
