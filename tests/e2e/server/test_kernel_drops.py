"""What the kernel drops in front of a server that gets no processor time is counted by it afterwards."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from opentsm.lab.serving import ServerProcess, Shape, make_credentials
from opentsm.lab.topology import Lab, LabSpec
from opentsm.lab.waiting import until_now

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]

FLOOD = 40_000
"""More datagrams than the device's queue (10,000) or the socket's buffer (some 11,000) holds."""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(LabSpec(emulate=False)) as lab:
        yield lab


@pytest.fixture
def server(lab: Lab, tmp_path: Path) -> Iterator[ServerProcess]:
    make_credentials(tmp_path, lab["server"])
    server = ServerProcess(lab["server"], tmp_path, Shape())
    server.start()
    yield server
    server.stop()


def flood(sock: socket.socket, to: tuple[str, int], server: ServerProcess) -> None:
    """Datagrams while the server stands still."""
    assert server.process is not None
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        for _ in range(FLOOD):
            sock.sendto(b"\x80" * 172, to)
    finally:
        os.kill(server.process.pid, signal.SIGCONT)


def test_drops_at_the_device_and_at_the_socket_have_their_counters(lab: Lab, server: ServerProcess) -> None:
    def grown(name: str) -> int:
        return server.counters()[name]

    assert (grown("drop_tun_queue_full"), grown("drop_receive_queue_full")) == (0, 0)
    with lab["core"].socket(socket.AF_INET, socket.SOCK_DGRAM) as core:
        flood(core, ("10.64.1.10", 4000), server)
    until_now(lambda: grown("drop_tun_queue_full") > FLOOD / 4, what="packets dropped at the device")
    assert grown("drop_receive_queue_full") == 0
    with lab["phone1"].socket(socket.AF_INET, socket.SOCK_DGRAM) as phone:
        flood(phone, (server.host.ipv4, server.shape.port), server)
    until_now(lambda: grown("drop_receive_queue_full") > FLOOD / 4, what="datagrams dropped at the socket")
