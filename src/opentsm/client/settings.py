"""The arguments of ``connect``, checked and read from their files once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, Final

from opentsm.client.address import ServerAddress, parse_servers
from opentsm.client.proxy import Proxy, parse_proxy
from opentsm.client.streaming import StreamSettings, make_stream_settings
from opentsm.errors import ConfigError
from opentsm.limits import MAX_PASSWORD, MAX_SERVICES, MAX_TEXT
from opentsm.protocol.client import ClientSettings
from opentsm.types import AUTOMATIC, Coding, Redundancy, Service
from opentsm.wire.messages import AddressFamilies

PemSource = str | bytes | FilePath
"""PEM text as bytes, or the path of a file that has it."""

MessageLog = str | FilePath | Callable[[dict[str, Any]], None]
"""Where control messages are logged: a file (JSON lines, appended), or a function called with each record."""

MAX_CLIENT_ID: Final = 64
"""Bytes of a client id (docs/protocol.md, TLV 3)."""


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """What the client checks of the server, and shows of itself.

    Args:
        ca_pem: authorities to trust; None: the system's.
        chain_pem, key_pem: the client's certificate chain and key, or None.
        pin_sha256: SHA-256 of the server's certificate (DER); no other is accepted.
        verify: False accepts any certificate (a pin still holds).
        server_name: name the certificate must have, instead of the address's host.
    """

    ca_pem: bytes | None = None
    chain_pem: bytes | None = None
    key_pem: bytes | None = field(default=None, repr=False)
    pin_sha256: bytes | None = None
    verify: bool = True
    server_name: str | None = None


@dataclass(frozen=True, slots=True)
class ConnectSettings:
    """Everything one tunnel is made from. See ``opentsm.connect`` for the meaning of each."""

    servers: tuple[ServerAddress, ...]
    session: ClientSettings
    tls: TlsSettings = field(default_factory=TlsSettings)
    proxy: Proxy | None = None
    keepalive: float | None = None
    pcap: str | None = None
    message_log: MessageLog | None = None
    coding: Coding = AUTOMATIC
    streams: StreamSettings = field(default_factory=StreamSettings)


def make_settings(
    servers: str | ServerAddress | Sequence[str | ServerAddress],
    *,
    username: str | None = None,
    password: str | bytes | None = None,
    client_id: bytes | None = None,
    client_cert: PemSource | tuple[PemSource, PemSource] | None = None,
    ca: PemSource | None = None,
    pin_sha256: str | bytes | None = None,
    verify: bool = True,
    server_name: str | None = None,
    families: str | AddressFamilies = AddressFamilies.BOTH,
    services: Iterable[Service | str] = (),
    keepalive: float | None = None,
    reconnect: bool = True,
    pcap: str | FilePath | None = None,
    message_log: MessageLog | None = None,
    proxy: str | Proxy | None = None,
    redundancy: Redundancy | str | None = None,
    congestion_control: str | None = None,
    software: str | None = None,
    coding: Coding | str = AUTOMATIC,
) -> ConnectSettings:
    """The arguments of ``connect`` as settings.

    Raises:
        ConfigError: one of them cannot be; says which and what to do.
    """
    secret = password.encode() if isinstance(password, str) else password
    _check_limits(username, secret, client_id, keepalive)
    chain, key = _client_certificate(client_cert)
    session = ClientSettings(
        client_id=client_id,
        username=username,
        password=secret,
        families=_families(families),
        wanted_services=_services(services),
        software=software,
        reconnect=reconnect,
    )
    return ConnectSettings(
        servers=parse_servers(servers),
        session=session,
        tls=TlsSettings(read_pem(ca, "ca"), chain, key, parse_pin(pin_sha256), verify, server_name),
        proxy=parse_proxy(proxy) if isinstance(proxy, str) else proxy,
        keepalive=keepalive,
        pcap=None if pcap is None else str(pcap),
        message_log=message_log,
        coding=_coding(coding),
        streams=make_stream_settings(redundancy, congestion_control),
    )


def parse_pin(pin: str | bytes | None) -> bytes | None:
    """SHA-256 of a certificate: 32 bytes, or 64 hexadecimal digits, with colons as openssl prints them."""
    if pin is None:
        return None
    if isinstance(pin, str):
        digits = pin.strip().lower().removeprefix("sha256:").replace(":", "")
        if re.fullmatch("[0-9a-f]{64}", digits) is None:
            raise ConfigError(
                "pin_sha256 is not 64 hexadecimal digits",
                hint="openssl x509 -in server.pem -noout -fingerprint -sha256 prints the right value",
            )
        return bytes.fromhex(digits)
    if len(pin) != 32:
        raise ConfigError(f"pin_sha256 has {len(pin)} bytes; a SHA-256 has 32")
    return pin


def read_pem(source: PemSource | None, what: str) -> bytes | None:
    """PEM text given as it is, or read from the file that is named."""
    if source is None or isinstance(source, bytes):
        return source
    if isinstance(source, str) and source.lstrip().startswith("-----BEGIN"):
        return source.encode()
    try:
        return FilePath(source).read_bytes()
    except OSError as error:
        raise ConfigError(f"{what}: cannot read {source}: {error.strerror}") from error


def _client_certificate(
    given: PemSource | tuple[PemSource, PemSource] | None,
) -> tuple[bytes | None, bytes | None]:
    """Certificate chain and key: a pair, or one file with both."""
    if isinstance(given, tuple):
        return read_pem(given[0], "client_cert"), read_pem(given[1], "client_cert (key)")
    both = read_pem(given, "client_cert")
    if both is not None and b"PRIVATE KEY" not in both:
        raise ConfigError(
            "client_cert: no private key in it", hint="give (certificate, key), or one file with both"
        )
    return both, both


def _families(families: str | AddressFamilies) -> AddressFamilies:
    if isinstance(families, AddressFamilies):
        return families
    try:
        return AddressFamilies[families.upper()]
    except KeyError:
        raise ConfigError(f"families: {families!r}", hint="ipv4, ipv6 or both") from None


def _coding(coding: Coding | str) -> Coding:
    try:
        return Coding.parse(coding) if isinstance(coding, str) else coding
    except ValueError as error:
        raise ConfigError(f"coding: {error}") from None


def _services(services: Iterable[Service | str]) -> tuple[Service, ...]:
    by_label = {service.label.lower(): service for service in Service}
    found = []
    for service in services:
        known = service if isinstance(service, Service) else by_label.get(service.lower())
        if known is None:
            raise ConfigError(f"services: {service!r} is unknown", hint=f"one of {', '.join(by_label)}")
        found.append(known)
    if len(found) > MAX_SERVICES:
        raise ConfigError(f"services: at most {MAX_SERVICES}")
    return tuple(found)


def _check_limits(
    username: str | None, password: bytes | None, client_id: bytes | None, keepalive: float | None
) -> None:
    if username is not None and not 1 <= len(username.encode()) <= MAX_TEXT:
        raise ConfigError(f"username: 1 to {MAX_TEXT} bytes")
    if password is not None and not 1 <= len(password) <= MAX_PASSWORD:
        raise ConfigError(f"password: 1 to {MAX_PASSWORD} bytes")
    if client_id is not None and not 1 <= len(client_id) <= MAX_CLIENT_ID:
        raise ConfigError(f"client_id: 1 to {MAX_CLIENT_ID} bytes")
    if keepalive is not None and not 0 <= keepalive <= 3600:
        raise ConfigError("keepalive: seconds, 0 (none) to 3600")
