"""coturn as a variant: a TURN allocation instead of a tunnel, over UDP (no encryption) and over TLS.

Upwards ChannelData goes to the server and its payload from the relayed address to the core; downwards the
core sends to the relayed address. What its manual page advises for speed is followed: no command line
interface, no software attribute, no STUN-only extras, one relay thread for the one core that servers have
here (more threads are for more clients: an allocation stays on one).
"""

from __future__ import annotations

import os
import shutil
import socket
from abc import abstractmethod
from pathlib import Path
from typing import Final

from benchmarks.rig import (
    CLIENT,
    CORE,
    FIRST_FLOW,
    FLOWS,
    PAYLOAD,
    SERVER,
    SERVER_INSIDE,
    UP_PORT,
    Ends,
    Load,
)
from benchmarks.turn import CHANNEL_HEADER, Allocation, channel_header, over_udp
from benchmarks.variants import PASSWORD, USER, OuterPackets, Variant
from opentsm.errors import PlatformError

PORT: Final = 3478
TLS_PORT: Final = 443
CLIENT_PORT: Final = 5000
"""Where the allocation's 5-tuple begins; the load generator takes the port over from whoever allocated."""

BRIDGE_IN: Final = 5001
BRIDGE_OUT: Final = 5002

MOST_IN_A_SEGMENT: Final = 512
"""Packets in what the kernel merges to one segment of 64 KiB, and some more."""

PEERS: Final = [(CORE, UP_PORT), *((CORE, FIRST_FLOW + flow) for flow in range(FLOWS))]
"""The first is written to; all may write."""


def server_words(folder: Path, server: str, inside: str, log: Path) -> list[str]:
    """turnserver's command.

    Args:
        folder: where the keys are.
        server: address to listen at. inside: address that relays.
    """
    words = ["turnserver", "-n", "--no-cli", "--no-software-attribute", "--no-multicast-peers"]
    words += ["--relay-threads", "1", "--listening-ip", server, "--relay-ip", inside]
    words += ["--listening-port", str(PORT), "--tls-listening-port", str(TLS_PORT), "--no-dtls"]
    words += ["--cert", str(folder / "server.pem"), "--pkey", str(folder / "server.key")]
    words += ["--lt-cred-mech", "--realm", "bench.invalid", "--user", f"{USER}:{PASSWORD}"]
    words += ["--userdb", str(folder / "turn.db"), "--pidfile", str(folder / "turnserver.pid")]
    return [*words, "--simple-log", "--log-file", str(log)]


class Coturn(Variant):
    """A server and one allocation with a channel for each flow."""

    @classmethod
    def obstacle(cls) -> str | None:
        if not shutil.which("turnserver"):
            return "turnserver not installed (Debian: apt-get install coturn)"
        return None if os.geteuid() == 0 else "coturn's variant needs root"

    def set_up(self) -> None:
        log = self.folder / f"{self.name}.log"
        log.unlink(missing_ok=True)
        words = server_words(self.folder, SERVER, SERVER_INSIDE, log)
        self._processes.append(self.rig.start(self.rig.server, words, ready="", log=self.folder / "turn.out"))
        self.wait_for(self._listens, "turnserver does not listen", log)
        self._relayed = self._allocate()

    @abstractmethod
    def _allocate(self) -> str:
        """An allocation with its channels; returns ADDRESS:PORT that relays."""

    def _listens(self) -> bool:
        return f":{TLS_PORT}" in self.rig.server.run(["ss", "-Hltn", "sport", "=", f":{TLS_PORT}"]).stdout

    @property
    def server_pids(self) -> list[int]:
        return self.rig.server_processes()


class CoturnUdp(Coturn):
    """Plain UDP: what a relay costs without encryption."""

    name = "coturn-udp"

    def _allocate(self) -> str:
        with self.rig.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
            opened.settimeout(5.0)
            opened.bind((CLIENT, CLIENT_PORT))
            opened.connect((SERVER, PORT))
            allocation = Allocation(over_udp(opened), USER, PASSWORD)
            self._channel = allocation.bind(*PEERS[0])
            for peer in PEERS[1:]:
                allocation.bind(*peer)
        return "{}:{}".format(*allocation.relayed)

    def ends(self, load: Load) -> Ends:
        mine = f"{CLIENT}:{CLIENT_PORT}"
        if load.direction == "up":
            header = channel_header(self._channel, load.payload)
            return Ends(f"{SERVER}:{PORT}", mine, at=f"{CORE}:{UP_PORT}", flows=1, prefix=header)
        return Ends(self._relayed, f"{CORE}:{FIRST_FLOW}", at=mine, skip=CHANNEL_HEADER.size)


class CoturnTls(Coturn):
    """TLS over TCP between client and server; UDP behind it."""

    name = "coturn-tls"

    def _allocate(self) -> str:
        peers = [f"{address}:{port}" for address, port in PEERS]
        log = self.folder / "bridge.log"
        client = self.rig.start_module(
            *(self.rig.client, "benchmarks.turn_bridge", "--server", SERVER, "--port", str(TLS_PORT)),
            *("--ca", str(self.folder / "ca.pem"), "--user", USER, "--password", PASSWORD),
            *("--local", str(BRIDGE_IN), "--sink", str(BRIDGE_OUT), "--peers", *peers),
            log=log,
        )
        self._processes.append(client)
        _, address, port = self.rig.ready_line.split()
        return f"{address}:{port}"

    def ends(self, load: Load) -> Ends:
        if load.direction == "up":
            here = f"127.0.0.1:{FIRST_FLOW}"
            return Ends(f"127.0.0.1:{BRIDGE_IN}", here, at=f"{CORE}:{UP_PORT}")
        return Ends(self._relayed, f"{CORE}:{FIRST_FLOW}", at=f"127.0.0.1:{BRIDGE_OUT}")

    def check_path(self, before: OuterPackets, after: OuterPackets, packets: int) -> None:
        # On the inner side there are UDP datagrams in any case.
        if after.tcp - before.tcp < packets / MOST_IN_A_SEGMENT:
            raise PlatformError(f"{packets} packets took {after.tcp - before.tcp} TCP segments")


assert PAYLOAD % 4 == 0, "on a stream ChannelData would be padded"
