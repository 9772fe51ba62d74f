"""SIP messages as a proxy needs them: header fields stay the text that came in.

A proxy must hand on what it does not understand (RFC 3261 section 16.6 step 1), so a message here is its
start line, its header fields as (name, text) in order, and its body. Typed views of the few fields that
matter are in ``headers``.

RFC 3261 section 7; folding: section 7.3.1; compact names: section 7.3.3.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from sipmessage.message import COMPACT_FORMS

from opentsm.errors import RemoteProtocolError

MAX_MESSAGE: Final = 32 * 1024
"""Bytes of one SIP message: a video offer with every codec is about 8 KiB; also bounds what the
regular expressions of the parsers are fed."""

MAX_HEADERS: Final = 200
"""Header lines of one message: an INVITE that passed ten proxies has about 60."""

MAX_VALUES: Final = 100
"""Values of one list header such as Via; Max-Forwards starts at 70, so an honest request has fewer."""

_TOKEN: Final = re.compile(r"[A-Za-z0-9\-.!%*_+`'~]+")
_FOLD: Final = re.compile(r"[ \t]*\r\n[ \t]+")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_REQUEST_LINE: Final = re.compile(
    r"([A-Za-z0-9\-.!%*_+`'~]+) ([^\s<>]+) SIP/(\d{1,3}\.\d{1,3})", re.IGNORECASE
)
_STATUS_LINE: Final = re.compile(r"SIP/2\.0 ([1-6]\d\d)(?: (.*))?", re.IGNORECASE)

REASONS: Final = {
    100: "Trying",
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    408: "Request Timeout",
    416: "Unsupported URI Scheme",
    420: "Bad Extension",
    423: "Interval Too Brief",
    480: "Temporarily Unavailable",
    481: "Call/Transaction Does Not Exist",
    482: "Loop Detected",
    483: "Too Many Hops",
    487: "Request Terminated",
    488: "Not Acceptable Here",
    500: "Server Internal Error",
    503: "Service Unavailable",
    505: "Version Not Supported",
}


@dataclass(slots=True)
class SipMessage:
    """What requests and responses share.

    Attributes:
        headers: (name in its long form, text), in order. body: exactly Content-Length bytes.
    """

    headers: list[tuple[str, str]] = field(default_factory=list, kw_only=True)
    body: bytes = field(default=b"", kw_only=True)

    def get(self, name: str) -> str | None:
        """Text of the first header of this name."""
        wanted = name.lower()
        return next((value for key, value in self.headers if key.lower() == wanted), None)

    def lines(self, name: str) -> list[str]:
        """Texts of all headers of this name."""
        wanted = name.lower()
        return [value for key, value in self.headers if key.lower() == wanted]

    def values(self, name: str) -> list[str]:
        """Values of a list header, whether they stand on lines of their own or behind commas."""
        return [value for line in self.lines(name) for value in split_list(line)]

    def set_values(self, name: str, values: Iterable[str]) -> None:
        """Replace all headers of this name, one value a line, at the place of the first (or at the end)."""
        wanted = name.lower()
        place = next((i for i, (key, _) in enumerate(self.headers) if key.lower() == wanted), None)
        kept = [item for item in self.headers if item[0].lower() != wanted]
        at = len(kept) if place is None else place
        self.headers = kept[:at] + [(name, value) for value in values] + kept[at:]

    def set(self, name: str, value: str) -> None:
        self.set_values(name, [value])

    def remove(self, name: str) -> None:
        self.set_values(name, [])

    def prepend(self, name: str, value: str) -> None:
        """Put a header before all others of its name: at the very top, where Via and Route belong."""
        self.headers.insert(0, (name, value))

    def with_body(self, body: bytes) -> None:
        self.body = body
        self.set("Content-Length", str(len(body)))

    def _encode(self, start: str) -> bytes:
        text = "".join(f"{name}: {value}\r\n" for name, value in self.headers)
        return f"{start}\r\n{text}\r\n".encode("utf-8", "surrogateescape") + self.body


@dataclass(slots=True)
class Request(SipMessage):
    """A request; ``uri`` is the Request-URI's text."""

    method: str
    uri: str
    version: str = "2.0"

    def encode(self) -> bytes:
        return self._encode(f"{self.method} {self.uri} SIP/2.0")

    def copy(self) -> Request:
        return Request(self.method, self.uri, self.version, headers=list(self.headers), body=self.body)


@dataclass(slots=True)
class Response(SipMessage):
    """A response."""

    code: int
    reason: str

    def encode(self) -> bytes:
        return self._encode(f"SIP/2.0 {self.code} {self.reason}")

    def copy(self) -> Response:
        return Response(self.code, self.reason, headers=list(self.headers), body=self.body)


def split_list(text: str) -> list[str]:
    """Split at commas that stand outside of quotes and angle brackets; empty items are dropped."""
    if '"' not in text and "<" not in text:
        return [item.strip() for item in text.split(",") if item.strip()]
    items, start, quoted, depth, escaped = [], 0, False, 0, False
    for i, c in enumerate(text):
        if escaped:
            escaped = False
        elif quoted:
            escaped, quoted = c == "\\", c != '"'
        elif c == '"':
            quoted = True
        elif c in "<>":
            depth = 1 if c == "<" else 0
        elif c == "," and depth == 0:
            items.append(text[start:i])
            start = i + 1
    items.append(text[start:])
    return [item.strip() for item in items if item.strip()]


def parse_untrusted(data: bytes) -> Request | Response:
    """Read one datagram as a SIP message: start line, header lines and body, nothing of what they mean.

    Raises:
        RemoteProtocolError: as ``parse_head_untrusted`` and ``cut_body_untrusted``.
    """
    message = parse_head_untrusted(data)
    cut_body_untrusted(message)
    return message


def parse_head_untrusted(data: bytes) -> Request | Response:
    """As ``parse_untrusted``, but the body is all that follows the headers: enough to answer 400.

    Raises:
        RemoteProtocolError: ``too-large``, ``truncated``, ``bad-start-line``, ``bad-header``,
            ``too-many-headers``, ``control-character``.
    """
    if len(data) > MAX_MESSAGE:
        raise RemoteProtocolError("too-large", f"{len(data)} bytes")
    head, end, body = data.lstrip(b"\r\n").partition(b"\r\n\r\n")
    if not end:
        raise RemoteProtocolError("truncated", "no empty line after the headers")
    # What is not UTF-8 goes through unchanged; it is not ours to mend.
    text = _FOLD.sub(" ", head.decode("utf-8", "surrogateescape"))
    start, _, rest = text.partition("\r\n")
    message = _start_line_untrusted(start)
    message.headers = _headers_untrusted(rest)
    message.body = body
    return message


def parse_refusable_untrusted(data: bytes) -> Request:
    """A request whose start line is wrong, but whose headers can be read: enough to answer 400.

    Raises:
        RemoteProtocolError: it is nothing of the kind.
    """
    start, _, rest = data[:MAX_MESSAGE].lstrip(b"\r\n").partition(b"\r\n")
    words = start.decode("utf-8", "surrogateescape").split()
    if len(words) < 3 or not _TOKEN.fullmatch(words[0]) or not words[-1].upper().startswith("SIP/"):
        raise RemoteProtocolError("bad-start-line", start[:80].decode("ascii", "replace"))
    message = parse_head_untrusted(words[0].encode() + b" sip:unreadable SIP/2.0\r\n" + rest)
    assert isinstance(message, Request)
    return message


def _start_line_untrusted(line: str) -> Request | Response:
    if (status := _STATUS_LINE.fullmatch(line)) is not None and not _CONTROL.search(line):
        return Response(int(status[1]), status[2] or "")
    if (request := _REQUEST_LINE.fullmatch(line)) is not None and not _CONTROL.search(line):
        return Request(request[1], request[2], request[3])
    raise RemoteProtocolError("bad-start-line", line[:80])


def _headers_untrusted(text: str) -> list[tuple[str, str]]:
    lines = text.split("\r\n") if text else []
    if len(lines) > MAX_HEADERS:
        raise RemoteProtocolError("too-many-headers", f"{len(lines)} header lines")
    headers = []
    for line in lines:
        name, colon, value = line.partition(":")
        name = name.rstrip(" \t")
        if not colon or _TOKEN.fullmatch(name) is None:
            raise RemoteProtocolError("bad-header", line[:80])
        if _CONTROL.search(value):
            raise RemoteProtocolError("control-character", name[:80])
        headers.append((COMPACT_FORMS.get(name.lower(), name), value.strip()))
    return headers


def cut_body_untrusted(message: SipMessage) -> None:
    """Hold the body to its Content-Length (RFC 3261 section 18.3): what follows it in a datagram is dropped;
    a body cut short is an error.

    Raises:
        RemoteProtocolError: ``bad-content-length``.
    """
    body = message.body
    lengths = message.lines("Content-Length")
    if not lengths:
        message.headers.append(("Content-Length", str(len(body))))
        return
    text = lengths[0]
    if len(set(lengths)) > 1 or not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise RemoteProtocolError("bad-content-length", ", ".join(lengths)[:80])
    if int(text) > len(body):
        raise RemoteProtocolError("bad-content-length", f"{text} announced, {len(body)} came")
    message.body = body[: int(text)]


def reply(request: Request, code: int, reason: str = "", *, tag: str = "", server: str = "") -> Response:
    """An answer of our own (RFC 3261 section 8.2.6).

    Args:
        tag: To tag to add if the request has none; a 100 needs none.
        server: text of the ``Server`` header, if any.
    """
    response = Response(code, reason or REASONS.get(code, "Failed"))
    response.headers = [("Via", value) for value in request.lines("Via")]
    for name in ("From", "To", "Call-ID", "CSeq"):
        value = request.get(name) or ""
        if name == "To" and value and tag and code > 100 and not _has_tag(value):
            value = f"{value};tag={tag}"
        if value:
            response.headers.append((name, value))
    if code == 100 and (stamp := request.get("Timestamp")) is not None:
        response.headers.append(("Timestamp", stamp))
    if server:
        response.headers.append(("Server", server))
    response.headers.append(("Content-Length", "0"))
    return response


def _has_tag(to: str) -> bool:
    return re.search(r";\s*tag\s*=", to.rpartition(">")[2], re.IGNORECASE) is not None
