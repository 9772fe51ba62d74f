"""SIP messages cut out of a stream (RFC 3261 section 18.3) and the keepalives between them (RFC 5626)."""

from __future__ import annotations

import re
from typing import Final

from opentsm.client.phone.message import MAX_MESSAGE
from opentsm.errors import RemoteProtocolError

PING: Final = b"\r\n\r\n"
"""Asks whether the other end is there (RFC 5626 section 4.4.1)."""

PONG: Final = b"\r\n"
"""The answer."""

_END: Final = b"\r\n\r\n"
_LENGTH: Final = re.compile(rb"^(?:content-length|l)[ \t]*:[ \t]*([0-9]{1,9})[ \t]*\r?$", re.I | re.M)


class Framing:
    """One direction of one connection: bytes in, messages out.

    After an error nobody knows where the next message begins, so the connection is of no more use.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed_untrusted(self, data: bytes) -> list[bytes]:
        """Take bytes; what is complete now: messages, ``PING``, ``PONG``.

        Raises:
            RemoteProtocolError: ``sip-size``, ``sip-content-length``.
        """
        self._buffer += data
        found = []
        while (message := self._next_untrusted()) is not None:
            found.append(message)
        return found

    def _next_untrusted(self) -> bytes | None:
        if self._buffer[:2] == PONG:
            if PING.startswith(self._buffer) and len(self._buffer) < len(PING):
                return None  # it may be a ping whose second half is still on its way
            return self._cut(len(PING) if self._buffer.startswith(PING) else len(PONG))
        head = self._buffer.find(_END, 0, MAX_MESSAGE)
        if head < 0:
            if len(self._buffer) >= MAX_MESSAGE:
                raise RemoteProtocolError("sip-size", "no end of the headers")
            return None
        lengths = set(_LENGTH.findall(self._buffer, 0, head + 2))
        if len(lengths) != 1:
            raise RemoteProtocolError("sip-content-length", "none" if not lengths else "several")
        end = head + len(_END) + int(lengths.pop())
        if end > MAX_MESSAGE:
            raise RemoteProtocolError("sip-size", f"{end} bytes")
        return self._cut(end) if len(self._buffer) >= end else None

    def _cut(self, end: int) -> bytes:
        message = bytes(self._buffer[:end])
        del self._buffer[:end]
        return message
