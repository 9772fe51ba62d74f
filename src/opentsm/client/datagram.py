"""The outer UDP socket of a datagram tunnel."""

from __future__ import annotations

import socket

from opentsm.types import SocketAddress


def open_datagram_socket(remote: SocketAddress) -> socket.socket:
    """A UDP socket connected to the server: only its datagrams come in, and ICMP errors are heard.

    Raises:
        OSError: the system refuses (no route, a policy).
    """
    family = socket.AF_INET6 if ":" in remote[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.connect(remote)
    except BaseException:
        sock.close()
        raise
    return sock
