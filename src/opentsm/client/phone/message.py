"""SIP messages: bytes from strangers -> checked values, values -> bytes (RFC 3261 sections 7, 8 and 20).

``sipmessage`` reads lines, URIs, addresses and Vias. What it is given is bounded and cleaned first, and
everything a user agent will look at is read at once, so that a bad header is found here and nowhere else.

What has to go back to its sender as it came (Via, tags, routes, the target) is kept as text: written anew, a
parameter's ``+`` or ``*`` would come out percent-encoded, and the sender would not know its own transaction.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import sipmessage
from sipmessage import URI, Address, CSeq, Via

from opentsm.errors import RemoteProtocolError
from opentsm.types import SocketAddress

MAX_MESSAGE: Final = 16_384
"""Bytes of one message: ten times what a phone sends, a quarter of what UDP could bring."""

MAX_LINES: Final = 128
"""Header lines; a message through five proxies has about 40."""

MAX_LINE: Final = 2048
"""Characters of one header line; bounds the patterns that are run over it."""

MAX_VALUES: Final = 32
"""Vias, routes or contacts of one message (Max-Forwards allows 70 hops; nobody has them)."""

SIP_PORT: Final = 5060

_FOLD: Final = re.compile(rb"\r\n[ \t]+")
_CONTROLS: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_RPORT: Final = re.compile(r";\s*rport(?=\s*(?:;|$))", re.IGNORECASE)
_TOKEN: Final = re.compile(r"[A-Za-z0-9.!%*_+`'~-]{1,32}")

REASONS: Final = {
    100: "Trying",
    180: "Ringing",
    200: "OK",
    400: "Bad Request",
    405: "Method Not Allowed",
    408: "Request Timeout",
    415: "Unsupported Media Type",
    420: "Bad Extension",
    480: "Temporarily Unavailable",
    481: "Call/Transaction Does Not Exist",
    486: "Busy Here",
    487: "Request Terminated",
    488: "Not Acceptable Here",
    491: "Request Pending",
    500: "Server Internal Error",
    603: "Decline",
}


@dataclass(frozen=True, slots=True)
class SipMessage:
    """A request (``code`` 0) or a response (``method`` that of its CSeq), as it came.

    Attributes:
        target: URI of the first Contact, or "". routes: Record-Route in the order of the message.
        via_texts: one text per Via. raw: all headers.
    """

    method: str
    code: int
    phrase: str
    uri: URI | None
    vias: tuple[Via, ...]
    from_: Address
    to: Address
    call_id: str
    cseq: CSeq
    contacts: tuple[Address, ...]
    target: str
    routes: tuple[str, ...]
    via_texts: tuple[str, ...]
    body: bytes
    raw: sipmessage.Headers

    @property
    def is_request(self) -> bool:
        return self.code == 0

    @property
    def branch(self) -> str:
        return self.vias[0].parameters.get("branch") or ""

    @property
    def from_tag(self) -> str:
        return self.from_.parameters.get("tag") or ""

    @property
    def to_tag(self) -> str:
        return self.to.parameters.get("tag") or ""

    def header(self, name: str) -> str:
        return self.raw.get(name) or ""

    def tokens(self, name: str) -> tuple[str, ...]:
        """A header that is a list of words."""
        return tuple(w.strip() for value in self.raw.getlist(name) for w in value.split(",") if w.strip())

    def number(self, name: str) -> int | None:
        """A header that is a number, if it is one."""
        digits = self.header(name).partition(";")[0].strip()
        return int(digits) if re.fullmatch("[0-9]{1,9}", digits) else None


def parse_sip_untrusted(data: bytes) -> SipMessage:
    """One datagram.

    Raises:
        RemoteProtocolError: ``sip-size``, ``sip-syntax``, ``sip-header-missing``.
    """
    data = data.lstrip(b"\r\n")  # RFC 3261 section 7.5
    if not 0 < len(data) <= MAX_MESSAGE:
        raise RemoteProtocolError("sip-size", f"{len(data)} bytes")
    try:
        message = sipmessage.Message.parse(_clean(data))
        return _view(message)
    except LookupError as error:
        raise RemoteProtocolError("sip-header-missing", str(error)) from error
    except (ValueError, TypeError, RecursionError) as error:
        # TypeError: sipmessage hands parameter names to Python as keywords; one called "self" is too many.
        raise RemoteProtocolError("sip-syntax", str(error)[:200]) from error


def _clean(data: bytes) -> bytes:
    """Head unfolded and bounded; the body as long as Content-Length will say."""
    head, separator, body = data.partition(b"\r\n\r\n")
    if not separator:
        raise ValueError("no end of headers")
    head = _FOLD.sub(b" ", head)
    lines = head.split(b"\r\n")
    if len(lines) > MAX_LINES or max(map(len, lines)) > MAX_LINE:
        raise ValueError("too many or too long header lines")
    if any(map(_CONTROLS.search, lines)):
        raise ValueError("control characters in a header")
    return b"\r\n".join(line.replace(b"\t", b" ") for line in lines) + separator + body


def _view(message: sipmessage.Request | sipmessage.Response) -> SipMessage:
    vias, contacts = message.via, _contacts(message)
    via_texts, routes = split_values(message, "Via"), split_values(message, "Record-Route")
    cseq, from_, to, call_id = message.cseq, message.from_address, message.to_address, message.call_id
    if not vias or max(map(len, (vias, contacts, routes))) > MAX_VALUES:
        raise ValueError("no Via, or too many addresses")
    for route in routes:
        Address.parse(route)
    target = _uri_text(split_values(message, "Contact")[0]) if contacts else ""
    if not call_id or not message.headers["CSeq"].isascii() or not 0 <= cseq.sequence < 1 << 31:
        raise ValueError("Call-ID or CSeq")
    if isinstance(message, sipmessage.Request):
        method, code, phrase, uri = message.method, 0, "", message.uri
        if not _TOKEN.fullmatch(method) or method != cseq.method:
            raise ValueError("method")
    else:
        method, code, phrase, uri = cseq.method, message.code, message.phrase, None
        if not 100 <= code <= 699:
            raise ValueError(f"code {code}")
    return SipMessage(
        method=method,
        code=code,
        phrase=phrase,
        uri=uri,
        vias=tuple(vias),
        from_=from_,
        to=to,
        call_id=call_id,
        cseq=cseq,
        contacts=contacts,
        target=target,
        routes=routes,
        via_texts=via_texts,
        body=_body(message),
        raw=message.headers,
    )


def split_values(message: sipmessage.Message, name: str) -> tuple[str, ...]:
    """The values of a header, on one line or on several; commas in quotes or <> do not split."""
    found: list[str] = []
    for line in message.headers.getlist(name):
        quoted = bracketed = False
        begin = 0
        for at, character in enumerate(line):
            if character == '"' and line[at - 1 : at] != "\\":
                quoted = not quoted
            elif not quoted and character in "<>":
                bracketed = character == "<"
            elif character == "," and not (quoted or bracketed):
                found.append(line[begin:at].strip())
                begin = at + 1
        found.append(line[begin:].strip())
    return tuple(value for value in found if value)


def _uri_text(address: str) -> str:
    """The URI of an address, as it was written."""
    _, bracket, rest = address.rpartition("<")
    return rest.partition(">")[0] if bracket else address.partition(";")[0].strip()


def _contacts(message: sipmessage.Message) -> tuple[Address, ...]:
    values = message.headers.getlist("Contact")
    return () if values == ["*"] else tuple(a for value in values for a in Address.parse_many(value))


def _body(message: sipmessage.Message) -> bytes:
    """RFC 3261 section 18.3: what is over the length is thrown away; less than it is an error."""
    length = message.content_length
    if length is None:
        return message.body
    if not 0 <= length <= len(message.body):
        raise ValueError("Content-Length")
    return message.body[:length]


# -- building ------------------------------------------------------------------------------------------


def request(method: str, uri: str, headers: list[tuple[str, str]], body: bytes = b"") -> bytes:
    """A request; ``headers`` in the order in which they are to stand."""
    return _assemble(f"{method} {uri} SIP/2.0", headers, body)


def response(
    to: SipMessage,
    code: int,
    tag: str,
    headers: list[tuple[str, str]] | None = None,
    body: bytes = b"",
    *,
    source: SocketAddress | None = None,
) -> bytes:
    """A response to a request (RFC 3261 section 8.2.6).

    Args:
        tag: ours, added to To where the request has none; not on 100.
        source: where the request came from, for received and rport (RFC 3581 section 4).
    """
    top, *others = to.via_texts
    if source is not None:
        top = _stamp(top, source, rport="rport" in to.vias[0].parameters)
    to_text = to.header("To")
    if not to.to_tag and code != 100:
        to_text = f"{to_text};tag={tag}" if ">" in to_text else f"<{_uri_text(to_text)}>;tag={tag}"
    lines = [("Via", via) for via in (top, *others)]
    lines += [("Record-Route", route) for route in to.routes]
    lines += [("From", to.header("From")), ("To", to_text), ("Call-ID", to.call_id), ("CSeq", str(to.cseq))]
    return _assemble(f"SIP/2.0 {code} {REASONS.get(code, 'Unknown')}", lines + (headers or []), body)


def _stamp(via: str, source: SocketAddress, *, rport: bool) -> str:
    """Write into a Via where it really came from (RFC 3581 section 4)."""
    stamped = f"{via};received={source[0]}"
    return _RPORT.sub(f";rport={source[1]}", stamped, count=1) if rport else stamped


def _assemble(first: str, headers: list[tuple[str, str]], body: bytes) -> bytes:
    lines = [first, *(f"{name}: {value}" for name, value in headers), f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def parse_uri(text: str, domain: str = "") -> URI:
    """What a user writes: ``sip:bob@example.org``, or ``bob`` at our own domain.

    Raises:
        ValueError: it is no SIP address.
    """
    whole = text if text.startswith(("sip:", "sips:")) else f"sip:{text}"
    if "@" not in whole and domain:
        whole = f"{whole}@{_bracket(domain)}"
    try:
        uri = URI.parse(whole)
    except (ValueError, TypeError):
        raise ValueError(f"{text!r} is no SIP address; write sip:USER@DOMAIN") from None
    if any(ord(c) < 33 for c in str(uri)):
        raise ValueError(f"{text!r} is no SIP address; write sip:USER@DOMAIN")
    return uri


def host_port(address: SocketAddress) -> str:
    return f"{_bracket(address[0])}:{address[1]}"


def _bracket(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
