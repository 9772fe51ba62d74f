"""What is compared: plain routing and OpenTSM with its datagram and its stream path. The rivals are in
``ocserv``, ``openvpn``, ``coturn`` and ``wireguard``.

A variant sets itself up on a rig, says how the core reaches the client and whose CPU time counts, checks
that the packets really take the path they are said to take, and takes itself down.
"""

from __future__ import annotations

import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import ClassVar, Final

from benchmarks.rig import CLIENT, CORE, DOWN_PORT, SERVER, UP_PORT, Ends, Load, Rig, stop, through_device
from opentsm.admin.certificates import create_authority, issue_client, issue_server, write
from opentsm.errors import PlatformError

INNER: Final = "10.64.0.2"
USER: Final = "bench"
PASSWORD: Final = "bench"
SETTLE: Final = 10.0
"""Seconds a rival's server and client may take to be up; they need half of one."""


MOST_MERGED: Final = 64
"""Datagrams that the kernel merges into one, which it then counts once."""

STRAY: Final = 50
STRAY_SHARE: Final = 0.02
"""Packets on the other path that are no sign of trouble: keepalives, dead peer detection."""


@dataclass(frozen=True, slots=True)
class OuterPackets:
    """Datagrams and segments, in and out; what the kernel merges counts once."""

    udp: int
    tcp: int


class Variant(ABC):
    """One way from the client to the core.

    Args:
        rig: where.
        folder: for keys, configurations and logs.
    """

    name: ClassVar[str]
    datagrams: ClassVar[bool] = True

    def __init__(self, rig: Rig, folder: Path) -> None:
        self.rig = rig
        self.folder = folder
        self.inner = INNER
        self._processes: list[subprocess.Popen[str]] = []
        self._opened: list[socket.socket] = []

    @abstractmethod
    def set_up(self) -> None:
        """Bring the tunnel up."""

    def take_down(self) -> None:
        """End the processes, last started first; their devices and routes go with them."""
        while self._opened:
            self._opened.pop().close()
        while self._processes:
            stop(self._processes.pop())

    def keep(self, process: subprocess.Popen[str]) -> None:
        """One more process that ends with the variant."""
        self._processes.append(process)

    def keep_open(self, opened: socket.socket) -> None:
        """A socket that is closed with the variant."""
        self._opened.append(opened)

    def ends(self, load: Load) -> Ends:
        """Where a load goes in and comes out."""
        return through_device(load, self.inner)

    @property
    def server_pids(self) -> list[int]:
        """Whose CPU time counts."""
        return []

    @classmethod
    def obstacle(cls) -> str | None:
        """Why this variant cannot run on this machine."""
        return None

    def wait_for(self, condition: Callable[[], bool], complaint: str, log: Path) -> None:
        """Wait until the condition holds.

        Raises:
            PlatformError: it does not within ``SETTLE`` seconds; the message has the complaint and the log.
        """
        deadline = time.monotonic() + SETTLE
        while not condition():
            if time.monotonic() > deadline:
                raise PlatformError(f"{complaint}; see {log}")
            time.sleep(0.02)

    def outer_packets(self) -> OuterPackets:
        """What has reached and left the sockets of the server's host so far: the tunnels, nothing else.

        Inner packets are forwarded there and end at no socket.
        """
        lines = self.rig.server.run(["cat", "/proc/net/snmp"]).stdout.splitlines()
        counts = {}
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            counts[names.partition(":")[0]] = dict(zip(names.split(), values.split(), strict=True))
        udp, tcp = counts["Udp"], counts["Tcp"]
        return OuterPackets(
            udp=int(udp["InDatagrams"]) + int(udp["OutDatagrams"]),
            tcp=int(tcp["InSegs"]) + int(tcp["OutSegs"]),
        )

    def check_path(self, before: OuterPackets, after: OuterPackets, packets: int) -> None:
        """Make sure that the packets went the way this variant is named after.

        Raises:
            PlatformError: they did not.
        """
        udp, tcp = after.udp - before.udp, after.tcp - before.tcp
        stray = STRAY_SHARE * packets + STRAY
        if (udp < packets / MOST_MERGED) if self.datagrams else (udp > stray):
            raise PlatformError(f"{packets} packets took {udp} UDP datagrams and {tcp} TCP segments")


class Plain(Variant):
    """Routing and nothing else: what the rig itself costs and can do."""

    name = "plain"

    def set_up(self) -> None:
        self.inner = CLIENT
        with suppress(PlatformError):
            self.rig.client.ip("route", "del", CORE)
        self.rig.client.ip("route", "add", CORE, "via", SERVER)

    def take_down(self) -> None:
        self.rig.client.ip("route", "del", CORE)

    def check_path(self, before: OuterPackets, after: OuterPackets, packets: int) -> None:
        if after != before:
            raise PlatformError("packets that should have been forwarded ended at the server")


class OpenTsm(Variant):
    """The user plane under ``tun_server`` and ``tun_client``."""

    path: ClassVar[str]

    def set_up(self) -> None:
        server = self.rig.start_module(
            *(self.rig.server, "benchmarks.tun_server", "--address", SERVER, "--keys", str(self.folder)),
            *("--path", self.path, "--ports", str(DOWN_PORT)),
        )
        self._processes.append(server)
        client = self.rig.start_module(
            *(self.rig.client, "benchmarks.tun_client", "--server", SERVER, "--far", CORE),
            *("--ca", str(self.folder / "ca.pem"), "--path", self.path, "--ports", str(UP_PORT)),
        )
        self._processes.append(client)

    @property
    def server_pids(self) -> list[int]:
        return [self._processes[0].pid]

    def signal_server(self, number: int) -> None:
        """SIGUSR1 makes the server's control plane busy, SIGUSR2 idle."""
        self._processes[0].send_signal(number)


class OpenTsmDtls(OpenTsm):
    """Media on the datagram tunnel."""

    name = "opentsm-dtls"
    path = "datagram"


class OpenTsmTls(OpenTsm):
    """Everything on the stream."""

    name = "opentsm-tls"
    path = "stream"
    datagrams = False


def make_keys(folder: Path) -> None:
    """A development CA, the server's certificate for all servers, and a client's for OpenVPN."""
    now = datetime.now(UTC)
    authority = create_authority(now)
    write(authority, folder, "ca")
    server = issue_server(authority, now, names=["bench.invalid"], addresses=[ip_address(SERVER)])
    write(server, folder, "server")
    write(issue_client(authority, now, name=USER), folder, "client")
