"""Server addresses as people write them: ``tls://host:443``, ``tcp://10.0.0.1:8443``, or just ``host``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urlsplit

from opentsm.errors import ConfigError
from opentsm.types import Transport

DEFAULT_PORT: Final = 443
"""The one port that is open nearly everywhere."""

MAX_SERVERS: Final = 16
"""Servers in one list: tried one after the other, more would keep a user waiting for minutes."""

_STREAMS: Final = {"tls": Transport.TLS, "tcp": Transport.TCP}
_DATAGRAMS: Final = frozenset({"udp", "dtls"})


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where a server listens.

    Args:
        transport: of the stream tunnel, TLS or TCP; the datagram tunnel is its pair on the same port.
        host: name or IP address. port: 1 to 65535.
    """

    transport: Transport
    host: str
    port: int = DEFAULT_PORT

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.transport.value}://{host}:{self.port}"


def parse_server(text: str) -> ServerAddress:
    """One address.

    Raises:
        ConfigError: it is not one; says why and what to write.
    """
    shape = "write tls://HOST:PORT, for example tls://tsm.example.org:443"
    parts = split_url(text if "://" in text else f"tls://{text}", shape)
    if parts.scheme in _DATAGRAMS:
        raise ConfigError(
            f"{text!r}: a tunnel begins on a stream; the datagram tunnel is made when a flow wants it",
            hint=f"write {'tls' if parts.scheme == 'dtls' else 'tcp'}://{parts.netloc}",
        )
    if parts.scheme not in _STREAMS:
        raise ConfigError(f"{text!r}: unknown transport {parts.scheme!r}", hint=shape)
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username is not None:
        raise ConfigError(f"{text!r}: only a host and a port belong here", hint=shape)
    return ServerAddress(_STREAMS[parts.scheme], parts.hostname or "", parts.port or DEFAULT_PORT)


def parse_servers(servers: str | ServerAddress | Sequence[str | ServerAddress]) -> tuple[ServerAddress, ...]:
    """One or several addresses, in the order in which they are to be tried; doubles are left out."""
    given = [servers] if isinstance(servers, str | ServerAddress) else list(servers)
    parsed = [server if isinstance(server, ServerAddress) else parse_server(server) for server in given]
    unique = tuple(dict.fromkeys(parsed))
    if not unique:
        raise ConfigError("no server address given", hint="give at least one, such as tls://HOST:443")
    if len(unique) > MAX_SERVERS:
        raise ConfigError(f"{len(unique)} server addresses, at most {MAX_SERVERS} are tried")
    return unique


def split_url(text: str, shape: str) -> SplitResult:
    """``urlsplit`` with a host and a sane port, or a ConfigError with the hint ``shape``."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{text!r}: {error}", hint=shape) from error
    if not parts.hostname or port == 0:
        raise ConfigError(f"{text!r}: {'port 0 is no port' if port == 0 else 'no host'}", hint=shape)
    return parts
