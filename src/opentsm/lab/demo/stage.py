"""Where the demonstration plays: a lab with firewalls and a bad network, or bare loopback."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from opentsm.errors import PlatformError
from opentsm.lab.capture import Packet
from opentsm.lab.firewall import tcp_443_only, tcp_udp_443
from opentsm.lab.host import Host, Loopback
from opentsm.lab.serving import ServerProcess, Shape, make_credentials
from opentsm.lab.topology import Lab, LabSpec

ALICE: Final = "alice"
BOB: Final = "bob"

ROUND_TRIP: Final = 0.120
LOSS: Final = 0.02
"""Alice's WAN: seconds there and back, and the share of packets lost each way."""

SERVICES: Final = ("SIP", "DDT", "redundancy", "FEC")
"""What the server offers; the phones ask for redundancy only where a part is about it."""

NEAR_ROUND_TRIP: Final = 0.010
"""Bob's WAN: an ordinary line to the same city, without loss."""


class Stage(Protocol):
    """What a story needs of the world.

    Attributes:
        left_out: what this stage cannot show, in sentences; empty on a whole one.
    """

    server: ServerProcess
    left_out: Sequence[str]

    @property
    def url(self) -> str: ...
    def host(self, user: str) -> Host:
        """Where a phone stands."""

    def weather(self) -> None:
        """Let the network's chances begin anew, so that each call meets the same."""

    async def block(self, blocked: bool) -> None:
        """Make the firewall in front of Alice drop UDP silently, or pass it again."""

    def watch(self) -> Any:
        """A context manager whose value, at its end, counts packets outside Alice's firewall by kind."""


class LabStage:
    """Two phones, each behind a NAT and a firewall that passes only port 443 of the server."""

    left_out: Sequence[str] = ()

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.server = ServerProcess(
            lab["server"], folder, Shape(sbc=True, core="userspace", services=SERVICES)
        )
        self._address = (lab["server"].ipv4,)

    @property
    def url(self) -> str:
        return f"tls://{self.server.host.ipv4}:443"

    def host(self, user: str) -> Host:
        return self.lab["phone1" if user == ALICE else "phone2"]

    def prepare(self) -> None:
        """Firewalls and weather."""
        for site in (1, 2):
            self.lab.firewall(site).apply(tcp_udp_443(*self._address))
        self.lab.wan(1).set(delay=ROUND_TRIP / 2, loss=LOSS)
        self.lab.wan(2).set(delay=NEAR_ROUND_TRIP / 2)

    def weather(self) -> None:
        self.lab.wan(1).reseed(self.lab.spec.seed)

    async def block(self, blocked: bool) -> None:
        policy = tcp_443_only if blocked else tcp_udp_443
        await asyncio.to_thread(self.lab.firewall(1).apply, policy(*self._address))

    @contextmanager
    def watch(self) -> Iterator[Wire]:
        counts = Wire()
        with self.lab["firewall1"].capture("wan0") as wire:
            yield counts
        for packet in wire.packets:
            counts.add(packet)


@dataclass
class Wire:
    """Packets and bytes by protocol and port: TCP/443, UDP/443, or something that should not be there."""

    packets: Counter[str] = field(default_factory=Counter)
    octets: Counter[str] = field(default_factory=Counter)

    def add(self, packet: Packet) -> None:
        port = "443" if 443 in (packet.source_port, packet.destination_port) else "other"
        kind = f"{packet.protocol.upper()}/{port}"
        self.packets[kind] += 1
        self.octets[kind] += packet.length

    def __str__(self) -> str:
        return ", ".join(
            f"{count} packets {kind} ({self.octets[kind] / 1000:.0f} kB)"
            for kind, count in sorted(self.packets.items())
        )


class LoopbackStage:
    """The same calls without a network in between: no privileges, no firewall, no delay, no loss."""

    left_out: Sequence[str] = (
        "no NAT and no firewall: phones and server share this machine's loopback interface",
        "no WAN: nothing is delayed or lost, so both paths sound alike",
        "no block of UDP in mid-call (part c), and no count of packets outside a firewall",
    )

    def __init__(self, folder: Path) -> None:
        port = free_port()
        shape = Shape(sbc=True, core="userspace", ipv6=False, address="127.0.0.1", port=port)
        self.server = ServerProcess(Loopback(), folder, shape)

    @property
    def url(self) -> str:
        return f"tls://127.0.0.1:{self.server.shape.port}"

    def host(self, user: str) -> Host:
        return self.server.host

    def weather(self) -> None:
        """There is none."""

    async def block(self, blocked: bool) -> None:
        raise PlatformError("there is no firewall on loopback: this part needs network namespaces")

    @contextmanager
    def watch(self) -> Iterator[Wire]:
        yield Wire()


def free_port() -> int:
    """A port number that is free for TCP and UDP on loopback."""
    while True:
        with socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as datagram:
            stream.bind(("127.0.0.1", 0))
            port = int(stream.getsockname()[1])
            try:
                datagram.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@contextmanager
def lab_stage(seed: int) -> Iterator[LabStage]:
    """A lab with a running server in it.

    Raises:
        PlatformError: no lab can be made here; the message says why.
    """
    spec = LabSpec(sites=2, ipv6=False, seed=seed)
    with tempfile.TemporaryDirectory(prefix="opentsm-demo-") as folder, Lab(spec) as lab:
        stage = LabStage(lab, Path(folder))
        stage.prepare()
        with _serving(stage):
            yield stage


@contextmanager
def loopback_stage() -> Iterator[LoopbackStage]:
    """A running server on loopback."""
    with tempfile.TemporaryDirectory(prefix="opentsm-demo-") as folder:
        stage = LoopbackStage(Path(folder))
        with _serving(stage):
            yield stage


@contextmanager
def _serving(stage: Stage) -> Iterator[None]:
    make_credentials(stage.server.folder, stage.server.host, (ALICE, BOB))
    try:
        stage.server.start()
        yield
    finally:
        stage.server.stop()
