"""SIP as a tunnel's client sees it go by: only what tells where a call's media will be.

Nothing is answered, changed or held up, and a phone that does not keep to the rules loses no more than a head
start: its media is then found by its RTP. Bytes are anybody's, so everything here is bounded.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from opentsm.errors import RemoteProtocolError
from opentsm.sbc.sdp import Description, parse_untrusted
from opentsm.types import SocketAddress

MAX_MESSAGE: Final = 16 * 1024
"""Bytes of a message; an offer with video and ICE has 4 KiB."""

MAX_CONNECTIONS: Final = 64
"""Directions of TCP connections followed at once; a phone has one connection, which is two."""

MAX_CALL_ID: Final = 256
"""Characters; RFC 3261's are under 100."""

_REQUEST: Final = re.compile(r"([A-Z]{3,16}) \S+ SIP/2\.0")
_RESPONSE: Final = re.compile(r"SIP/2\.0 (\d{3})(?: .*)?")
_LENGTH: Final = re.compile(rb"\r\n(?:content-length|l)[ \t]*:[ \t]*(\d{1,6})[ \t]*\r\n", re.IGNORECASE)
_BEGINNING: Final = re.compile(rb"(?:[A-Z]{3,16} \S+ SIP/2\.0|SIP/2\.0 \d{3})")
_COMPACT: Final = {"i": "call-id", "c": "content-type", "l": "content-length"}
_WANTED: Final = frozenset({"call-id", "cseq", "content-type", "content-length"})


@dataclass(frozen=True, slots=True)
class Message:
    """One SIP message about a call.

    Attributes:
        method: of a request; of a response, that of the request it answers.
        status: of a response; 0 for a request.
        media: its session description, if it has one.
    """

    method: str
    status: int
    call_id: str
    media: Description | None = None


def read_untrusted(data: bytes) -> Message:
    """A message from the network.

    Raises:
        RemoteProtocolError: ``sip-size``, ``sip-syntax``, or what is wrong with its SDP.
    """
    if len(data) > MAX_MESSAGE:
        raise RemoteProtocolError("sip-size", f"{len(data)} bytes")
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("utf-8", "replace").split("\r\n")
    fields = _fields(lines)
    call_id, sequence = fields.get("call-id", ""), fields.get("cseq", "").split()
    if not call_id or len(call_id) > MAX_CALL_ID or len(sequence) != 2:
        raise RemoteProtocolError("sip-syntax", "no Call-ID or CSeq")
    length = fields.get("content-length", "")
    if length.isascii() and length.isdigit() and len(length) < 7:
        body = body[: int(length)]
    media = None
    if body and fields.get("content-type", "").partition(";")[0].strip().lower() == "application/sdp":
        media = parse_untrusted(body)
    if (answer := _RESPONSE.fullmatch(first)) is not None:
        return Message(sequence[1], int(answer[1]), call_id, media)
    if (request := _REQUEST.fullmatch(first)) is not None:
        return Message(request[1], 0, call_id, media)
    raise RemoteProtocolError("sip-syntax", first[:60])


def _fields(lines: list[str]) -> dict[str, str]:
    """The first of each header that counts here. Folded lines belong to headers that do not."""
    found: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        key = name.strip().lower()
        key = _COMPACT.get(key, key)
        if colon and key in _WANTED and key not in found:
            found[key] = value.strip()
    return found


Direction = tuple[SocketAddress, SocketAddress]
"""From whom to whom."""


class Streams:
    """Messages out of the TCP segments that go by, per direction of a connection.

    Segments come once and in order on a good line. Of one sent again the part that is known is skipped; after
    a gap, what comes is ignored until a segment begins with a message.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[Direction, tuple[int, bytes]] = OrderedDict()

    def feed_untrusted(self, direction: Direction, sequence: int, data: bytes) -> Iterator[bytes]:
        """A segment; the messages that are whole with it. ``sequence``: number of its first byte."""
        expected, held = self._open.pop(direction, (0, b""))
        ahead = (sequence - expected) % 2**32
        if held and ahead >= 2**31:  # from the past: how much of it is known
            data = data[2**32 - ahead :]
            sequence = expected
            ahead = 0
        if not held or ahead:
            held = b""
            if not _BEGINNING.match(data):
                return
        held += data
        expected = (sequence + len(data)) % 2**32
        while (cut := _whole(held)) is not None:
            message, held = held[:cut], held[cut:].lstrip(b"\r\n")
            yield message
        if held and len(held) <= MAX_MESSAGE:
            self._open[direction] = (expected, held)
            if len(self._open) > MAX_CONNECTIONS:
                self._open.popitem(last=False)


def _whole(data: bytes) -> int | None:
    """Length of the message at the beginning, if all of it is there (RFC 3261 section 18.3)."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    length = _LENGTH.search(data, 0, end + 2)
    total = end + 4 + (int(length[1]) if length else 0)
    return total if len(data) >= total else None
