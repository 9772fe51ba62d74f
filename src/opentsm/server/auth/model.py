"""What a client shows, who it turns out to be, and the one way to say no."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from types import MappingProxyType
from typing import Final, Protocol

from opentsm.errors import OpenTsmError
from opentsm.types import Code, IpAddress, SocketAddress

ADDRESS_ATTRIBUTES: Final = ("address", "address6")
"""Attributes of an identity that hold a fixed inner address, IPv4 and IPv6."""

NOT_OFFERED: Final = "not-offered"
"""Reason of a method for which the client has shown nothing; another method may still know it."""

BUSY: Final = "busy"
"""Reason when too many checks are waiting already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a client has shown so far. Nothing here is verified but the certificate's chain.

    Args:
        client_id: the client's own name for itself, opaque.
        username: empty where none was sent.
        password: a password or a token; empty where none was sent. Never in a repr, so never in a log.
        certificate: the TLS client certificate in DER, which the TLS layer has verified against the
            interface's CA; None where there is none.
        source: the client's outer address.
    """

    client_id: bytes = b""
    username: str = ""
    password: bytes = field(default=b"", repr=False)
    certificate: bytes | None = field(default=None, repr=False)
    source: SocketAddress | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a client is.

    Args:
        name: the account; what logs, limits and fixed addresses go by.
        method: how it was proved (``password``, ``certificate``, ``token``, ``anonymous``, a plug-in's name).
        attributes: what else is known about the account, such as ``address`` = a fixed inner address.
    """

    name: str
    method: str
    attributes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def addresses(self) -> tuple[IpAddress, ...]:
        """The account's fixed inner addresses, at most one of each family."""
        return tuple(ip_address(self.attributes[key]) for key in ADDRESS_ATTRIBUTES if key in self.attributes)


class AuthenticationFailed(OpenTsmError):
    """The client is not let in.

    Args:
        code: what the client is told. It is the same for an unknown name and a wrong password.
        reason: a stable name for counters and the log, never sent: ``not-offered``, ``unknown-user``,
            ``wrong-password``, ``unknown-token``, ``bad-certificate``, ``name-mismatch``, ``busy``,
            ``authenticator-error``, or a plug-in's own.
        retry_after: seconds after which another try makes sense; None where none does.
    """

    def __init__(self, code: Code, reason: str, *, retry_after: float | None = None) -> None:
        self.code = code
        self.reason = reason
        self.retry_after = retry_after
        super().__init__(f"{code.label}: {reason}")


def denied(reason: str) -> AuthenticationFailed:
    """The ordinary refusal; all of them look the same to the client."""
    return AuthenticationFailed(Code.UNAUTHORIZED, reason)


class Authenticator(Protocol):
    """One way, or a chain of ways, to find out who a client is."""

    async def authenticate(self, credentials: Credentials) -> Identity:
        """Say who this is.

        Raises:
            AuthenticationFailed: it is nobody we know, or there is no time to find out.
        """
        ...
