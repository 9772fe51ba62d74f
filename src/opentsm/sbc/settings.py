"""What an operator chooses about the embedded SBC. Frozen: a new choice is a new object."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from opentsm.errors import ConfigError

ALGORITHMS: Final = ("SHA-256", "MD5")
"""Digest algorithms this registrar knows, the better first (RFC 8760 section 2.1)."""

PORTS_PER_STREAM: Final = 4
"""A relayed m-line takes a pair of ports (RTP, RTCP) towards each of its two parties."""


@dataclass(frozen=True, slots=True)
class SbcSettings:
    """Settings of one embedded SBC.

    Args:
        domain: the SIP domain served, the part after ``@``; also the realm of digest authentication.
        address: inner IPv4 or IPv6 address the SBC answers on, given to ``route_local`` by the server.
        address6: a second address of the other family, or None.
        port: inner UDP port of SIP.
        users_file: digest accounts (see ``users.UserFile``); None where a provider is given in code.
        media_ports: first and last inner port of relayed media, both included.
        anchoring: relay media through the user plane. Off: parties send to each other's inner address; the
            SBC still corrects ``c=`` lines and announces media flows, but has no quality to report.
        digest_algorithms: what may be offered to phones; a user is offered those it has a stored hash for.
            Some older phones give up when the list holds one they do not know.
        min_expires, default_expires, max_expires: seconds of a registration: refused below, given
            where the phone asks for nothing, cut to.
        ring_timeout: seconds a call may ring before it is given up (timer C of RFC 3261: over 180).
        media_timeout: seconds without a media packet from either party after which an answered call is
            taken for dead; 0 = never. Long, because both may be on hold.
        cdr_file: call detail records are appended to this file, one JSON object a line; None = store only.
        server_name: the ``Server`` header of answers made here.
    """

    domain: str
    address: str
    address6: str | None = None
    port: int = 5060
    users_file: Path | None = None
    media_ports: tuple[int, int] = (20000, 39999)
    anchoring: bool = True
    digest_algorithms: tuple[str, ...] = ALGORITHMS
    min_expires: int = 60
    default_expires: int = 600
    max_expires: int = 7200
    ring_timeout: float = 185.0
    media_timeout: float = 3600.0
    cdr_file: Path | None = None
    server_name: str = "OpenTSM"

    def __post_init__(self) -> None:
        self._check_addresses()
        first, last = self.media_ports
        if not 1024 <= first <= last <= 65535 or last - first + 1 < PORTS_PER_STREAM:
            raise ConfigError(
                f"media ports {first}-{last} cannot be used",
                hint=f"give a range within 1024-65535 with room for at least {PORTS_PER_STREAM} ports",
            )
        if first <= self.port <= last:
            raise ConfigError(
                f"SIP port {self.port} lies among the media ports {first}-{last}",
                hint="move the media range so that it leaves the SIP port out",
            )
        unknown = [name for name in self.digest_algorithms if name not in ALGORITHMS]
        if unknown or not self.digest_algorithms:
            raise ConfigError(
                f"digest algorithms {', '.join(self.digest_algorithms) or '(none)'} cannot be used",
                hint=f"choose from {', '.join(ALGORITHMS)}",
            )
        if not 0 < self.min_expires <= self.default_expires <= self.max_expires:
            raise ConfigError("registration times must grow: min_expires <= default_expires <= max_expires")

    def _check_addresses(self) -> None:
        if not self.domain or any(c.isspace() or c in '<>@;"' for c in self.domain):
            raise ConfigError(f"{self.domain!r} is no SIP domain", hint="write it as in sip:alice@DOMAIN")
        try:
            families = [ip_address(text).version for text in self.addresses]
        except ValueError as error:
            raise ConfigError(
                f"SBC address: {error}", hint="give an IP address of the inner network"
            ) from None
        if len(set(families)) != len(families):
            raise ConfigError("address and address6 are of the same family", hint="give one IPv4, one IPv6")
        if not 1 <= self.port <= 65535:
            raise ConfigError(f"{self.port} is no port", hint="SIP uses 5060")

    @property
    def addresses(self) -> tuple[str, ...]:
        """The one or two inner addresses."""
        return (self.address,) if self.address6 is None else (self.address, self.address6)
