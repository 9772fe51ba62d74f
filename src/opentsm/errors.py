"""Every exception OpenTSM raises on purpose.

    OpenTsmError
    ├── ConfigError             a settings file is wrong; says file, line and what to do
    ├── LocalProtocolError      our side asked for something its state does not allow
    ├── RemoteProtocolError     a peer's bytes broke the protocol (the only error that
    │                           functions ending in ``_untrusted`` may raise)
    ├── TunnelError             a tunnel could not be made or kept
    │   ├── ConnectError        no server address answered
    │   ├── RefusedError        the server answered with a code other than success
    │   └── TunnelClosedError   the tunnel is gone; the call needs a live one
    └── PlatformError           this machine cannot do what was asked, and why

"Ours or theirs" follows h11: a local error is a bug or a misuse to be fixed by the caller,
a remote one is news about the peer.
"""

from __future__ import annotations


class OpenTsmError(Exception):
    """Base of every error raised by this package."""


class ConfigError(OpenTsmError):
    """A settings file or value cannot be used.

    Args:
        message: what is wrong.
        source: name of the file, or of the place the text came from.
        line: 1-based line, where known.
        hint: what to do about it.
    """

    def __init__(self, message: str, *, source: str = "", line: int | None = None, hint: str = "") -> None:
        self.message = message
        self.source = source
        self.line = line
        self.hint = hint
        where = f"{source}:{line}: " if line is not None else f"{source}: " if source else ""
        super().__init__(f"{where}{message}" + (f" ({hint})" if hint else ""))


class LocalProtocolError(OpenTsmError):
    """Our own side used a session in a way its state does not allow."""


class RemoteProtocolError(OpenTsmError):
    """Bytes from a peer that the protocol does not allow.

    Args:
        reason: a stable, countable name (``truncated``, ``bad-tlv-length``, ...).
        detail: for the log; never sent to the peer.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}" if detail else reason)


class TunnelError(OpenTsmError):
    """A tunnel could not be made or kept."""


class ConnectError(TunnelError):
    """No server address could be reached; the text lists each attempt and its outcome."""


class RefusedError(TunnelError):
    """The server answered, and said no.

    Args:
        code: the response code's name (see ``opentsm.types.Code``).
        text: the server's own words, already limited in length.
        retry_after: seconds the server asked us to wait, or None.
    """

    def __init__(self, code: str, text: str = "", retry_after: float | None = None) -> None:
        self.code = code
        self.text = text
        self.retry_after = retry_after
        super().__init__(f"the server refused: {code}" + (f" ({text})" if text else ""))


class TunnelClosedError(TunnelError):
    """The tunnel is gone; the reason it went is the message."""


class PlatformError(OpenTsmError):
    """This machine cannot do what was asked; the message says what is missing and the remedy."""
