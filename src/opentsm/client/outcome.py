"""What became of a connection attempt, and what a person can do about it."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from opentsm.errors import ConnectError, RemoteProtocolError

_REMEDIES: Final = {
    "name-not-found": "check the spelling of the host name, and this machine's DNS",
    "refused": "nothing listens there: is the server running, and is this its port?",
    "timeout": "a firewall may drop TCP to this port: try port 443, or go through a proxy (proxy=...)",
    "unreachable": "this machine has no way to that address: check the network, or use the other IP family",
    "reset": "something on the way cut the connection: a firewall that inspects it? try a proxy (proxy=...)",
    "proxy-error": "check address, user name and password of the proxy, and that it allows this port",
    "tls_not_tls": "a server on plain TCP is reached with tcp://HOST:PORT; else check address and port",
    "tls_unknown_issuer": "give the CA's certificate (ca=...) or the server's fingerprint (pin_sha256=...)",
    "tls_name_mismatch": "connect by a name in the certificate, or give it as server_name=...",
    "tls_pin_mismatch": "if the certificate was renewed, update pin_sha256; else somebody is in between",
    "tls_certificate_expired": "renew the server's certificate, or set this machine's clock",
    "tls_no_client_certificate": "this server wants a client certificate: client_cert=...",
    "tls_alpn_mismatch": "the server speaks TLS but not OpenTSM: check address and port",
    "bad-frame": "what answers there is no OpenTSM server on this transport: check address, port, tls:// or tcp://",
}

_BLOCKED: Final = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
_CUT: Final = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED})


class AttemptError(Exception):
    """One attempt failed.

    Args:
        reason: a stable name. detail: the system's or the peer's words.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}" if detail else reason)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A failed attempt: where to, and why."""

    target: str
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        remedy = _REMEDIES.get(self.reason, "")
        what = f"{self.reason}: {self.detail}" if self.detail else self.reason
        # The user plane's texts often say what to do already.
        return f"{self.target}: {what}" + (f" -- {remedy}" if remedy and remedy not in what else "")


def classify(error: BaseException) -> AttemptError:
    """An exception of an attempt as a reason and its detail."""
    if isinstance(error, AttemptError):
        return error
    if isinstance(error, RemoteProtocolError):
        return AttemptError(error.reason, error.detail)
    if isinstance(error, socket.gaierror):
        return AttemptError("name-not-found", error.strerror or str(error))
    if isinstance(error, TimeoutError):
        return AttemptError("timeout", "no answer")
    if isinstance(error, ConnectionRefusedError):
        return AttemptError("refused", error.strerror or "")
    if isinstance(error, OSError):
        reason = (
            "unreachable" if error.errno in _BLOCKED else "reset" if error.errno in _CUT else "socket-error"
        )
        return AttemptError(reason, error.strerror or str(error))
    return AttemptError("failed", f"{type(error).__name__}: {error}")


def connect_error(outcomes: Sequence[Outcome]) -> ConnectError:
    """The error that lists every attempt."""
    if len(outcomes) == 1:
        return ConnectError(f"no tunnel: {outcomes[0]}")
    lines = "\n".join(f"  {number}. {outcome}" for number, outcome in enumerate(outcomes, 1))
    return ConnectError(f"no tunnel after {len(outcomes)} attempts:\n{lines}")
