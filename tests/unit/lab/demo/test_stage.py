from __future__ import annotations

import socket
import sys

from opentsm.lab.demo.stage import free_port
from opentsm.lab.host import Loopback


def test_this_machine_is_a_host_without_a_namespace() -> None:
    host = Loopback()
    assert host.run([sys.executable, "-c", "print('hello')"]).stdout == "hello\n"
    one, other = host.udp(), host.udp()
    with one, other:
        one.sendto(b"x", other.getsockname())
        other.setblocking(True)
        assert other.recvfrom(9) == (b"x", one.getsockname())


def test_a_free_port_is_free_for_both_protocols() -> None:
    port = free_port()
    with socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as datagram:
        stream.bind(("127.0.0.1", port))
        datagram.bind(("127.0.0.1", port))
