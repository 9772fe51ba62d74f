"""SIP messages cut out of a byte stream (RFC 3261 section 18.3, keepalives of RFC 5626 section 3.5.1)."""

from __future__ import annotations

import re
from typing import Final

from opentsm.errors import RemoteProtocolError

from .message import MAX_MESSAGE

PING: Final = b"\r\n\r\n"
"""Between messages: answered with one CRLF."""

_END: Final = b"\r\n\r\n"
_LENGTH: Final = re.compile(rb"(?:^|\r\n)(?:content-length|l)[ \t]*:[ \t\r\n]*([^\r\n]*)", re.IGNORECASE)


class Framing:
    """One direction of one connection. Pure: bytes in, messages out.

    A stream cannot be read on behind a message whose end is not known. So after the first error it is
    broken: what there is of that message is in ``rest``, for an answer, and nothing more is taken.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0
        self._breaks = 0
        self.rest = b""

    @property
    def pending(self) -> int:
        """Bytes of a message that is not complete."""
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Take bytes."""
        self._buffer += data

    def next_untrusted(self) -> bytes | None:
        """The next complete message, or ``PING`` for a keepalive; None: it has not all come yet.

        Raises:
            RemoteProtocolError: ``too-large``, ``bad-content-length``: the stream is broken.
        """
        if self._take_breaks():
            return PING
        head = self._buffer.find(_END, max(0, self._searched - len(_END)))
        self._searched = len(self._buffer)
        if head < 0:
            if len(self._buffer) > MAX_MESSAGE:
                raise self._broken("too-large", "no end of the headers")
            return None
        length = self._length_untrusted(head)
        end = head + len(_END) + length
        if end > MAX_MESSAGE:
            raise self._broken("too-large", f"{end} bytes")
        if len(self._buffer) < end:
            # The next search has to find the same place again.
            self._searched = head
            return None
        message = bytes(self._buffer[:end])
        del self._buffer[:end]
        self._searched = self._breaks = 0
        return message

    def _take_breaks(self) -> bool:
        """Remove line ends between messages. Returns whether they make a keepalive."""
        while self._buffer[:2] == b"\r\n":
            del self._buffer[:2]
            self._searched = 0
            self._breaks += 1
            if self._breaks == 2:
                self._breaks = 0
                return True
        return False

    def _length_untrusted(self, head: int) -> int:
        """Content-Length, without which nobody knows where a message on a stream ends."""
        values = {value.strip() for value in _LENGTH.findall(self._buffer, 0, head)}
        if len(values) != 1:
            raise self._broken("bad-content-length", "none" if not values else "two that differ")
        text = values.pop()
        if not text.isdigit() or len(text) > 9:
            raise self._broken("bad-content-length", text[:80].decode("ascii", "replace"))
        return int(text)

    def _broken(self, reason: str, detail: str) -> RemoteProtocolError:
        self.rest, self._buffer = bytes(self._buffer[:MAX_MESSAGE]), bytearray()
        return RemoteProtocolError(reason, detail)
