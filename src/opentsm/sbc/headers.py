"""Typed views of the header fields a proxy and a registrar act on. Grammar by ``sipmessage``.

That parser normalises what it prints (percent-encodes quoted parameters, for one), so it is used to read and
never to write; it may raise other things than ValueError on odd input, so it is only called through
``_parse``; and it cuts parameters at quoted semicolons, so ``params_untrusted`` reads those.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, TypeVar

from sipmessage import URI, CSeq, Via

from opentsm.errors import RemoteProtocolError

from .message import MAX_VALUES, Request, SipMessage, split_list

T = TypeVar("T")

BRANCH_COOKIE: Final = "z9hG4bK"
"""RFC 3261 section 8.1.1.7: a branch that begins so is unique."""

MAX_CSEQ: Final = 2**31 - 1
"""RFC 3261 section 8.1.1.5."""

MAX_TEXT: Final = 512
"""Characters of a URI, Call-ID, tag, branch or anything else that is looked into; honest ones are under 200.
The grammar's regular expressions take time that grows with the square of hostile text; at this length under
half a millisecond."""

MAX_CREDENTIALS: Final = 2048
"""Characters of an Authorization value, which has a dozen parameters."""

SINGLE: Final = ("From", "To", "Call-ID", "CSeq", "Max-Forwards", "Content-Type", "Expires")
"""Headers that may stand only once; two of them could be read differently by us and by the phone."""

_NUMBER: Final = re.compile(r"\+?[0-9A-Fa-f*#().\-]+")
_QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*"')
_ESCAPE: Final = re.compile(r"\\(.)")
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):")
_RECEIVED: Final = re.compile(r"\s*;\s*(?:received|rport)\b(?:\s*=\s*[^;\s]*)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ViaView:
    """One Via value. ``host`` and ``transport`` are lower case; ``branch`` is None before RFC 3261."""

    transport: str
    host: str
    port: int | None
    branch: str | None
    rport: bool


@dataclass(frozen=True, slots=True)
class NameAddr:
    """A ``name-addr`` or ``addr-spec`` with header parameters.

    Attributes:
        uri: text of the URI as it came. params: names in lower case, values as they came, quotes included.
    """

    uri: str
    params: dict[str, str | None]

    @property
    def tag(self) -> str:
        return self.params.get("tag") or ""


def _parse(parser: Callable[[str], T], text: str, reason: str, most: int = MAX_TEXT) -> T:
    """A foreign parser: whatever it raises on a peer's text is news about the peer. It never sees more than
    ``most`` characters."""
    if len(text) > most:
        raise RemoteProtocolError(reason, f"{len(text)} characters")
    try:
        return parser(text)
    except Exception as error:
        raise RemoteProtocolError(reason, f"{text[:80]!r}: {error}") from None


def lower_params(params: Mapping[str, str | None]) -> dict[str, str | None]:
    """Parameters with names in lower case, as they compare (RFC 3261 section 7.3.1)."""
    return {key.lower(): value for key, value in params.items()}


def via_untrusted(text: str) -> ViaView:
    """One Via value (RFC 3261 section 20.42)."""
    head, _, rest = text.partition(";")
    via, params = _parse(Via.parse, head, "bad-via"), params_untrusted(rest)
    branch = params.get("branch")
    if via.port is not None and not 0 < via.port < 65536:
        raise RemoteProtocolError("bad-via", text[:80])
    if branch is not None and len(branch) > MAX_TEXT:
        raise RemoteProtocolError("bad-via", "branch too long")
    return ViaView(via.transport.lower(), via.host.lower(), via.port, branch, "rport" in params)


def via_received(text: str, address: str, port: int) -> str:
    """The Via value with where it really came from (RFC 3581 section 4, asked for or not)."""
    return f"{_RECEIVED.sub('', text)};received={address};rport={port}"


def cseq_untrusted(text: str) -> CSeq:
    cseq = _parse(CSeq.parse, text, "bad-cseq")
    if cseq.sequence > MAX_CSEQ:
        raise RemoteProtocolError("bad-cseq", text[:80])
    return cseq


def name_addr_untrusted(text: str) -> NameAddr:
    """A From, To, Contact, Route or Record-Route value; its URI may be of any scheme."""
    text = text.strip()
    opened = _unquoted(text, "<")
    if opened is None:
        uri, _, rest = text.partition(";")
        if "?" in uri:
            # Without brackets nobody knows what belongs to the URI (RFC 3261 section 20).
            raise RemoteProtocolError("bad-address", text[:80])
        return NameAddr(_plain_uri(uri.strip()), params_untrusted(rest))
    closed = text.find(">", opened)
    after = text[closed + 1 :].strip()
    if closed < 0 or (after and not after.startswith(";")):
        raise RemoteProtocolError("bad-address", text[:80])
    return NameAddr(_plain_uri(text[opened + 1 : closed].strip()), params_untrusted(after[1:]))


def _plain_uri(text: str) -> str:
    if not _SCHEME.match(text) or any(c in text for c in ' \t<>"'):
        raise RemoteProtocolError("bad-address", text[:80])
    return text


def _unquoted(text: str, wanted: str) -> int | None:
    """Where ``wanted`` first stands outside quotes."""
    quoted = escaped = False
    for i, c in enumerate(text):
        if escaped:
            escaped = False
        elif quoted:
            escaped, quoted = c == "\\", c != '"'
        elif c == '"':
            quoted = True
        elif c == wanted:
            return i
    if quoted:
        raise RemoteProtocolError("bad-address", "a quote is not closed")
    return None


def params_untrusted(text: str) -> dict[str, str | None]:
    """``a=b;c;d="e;f"``: names in lower case, values as they are written."""
    params: dict[str, str | None] = {}
    rest = text.strip()
    while rest:
        cut = _unquoted(rest, ";")
        item, rest = (rest, "") if cut is None else (rest[:cut], rest[cut + 1 :])
        name, equals, value = item.strip().partition("=")
        if not name.strip() or len(params) >= MAX_VALUES:
            raise RemoteProtocolError("bad-parameters", text[:80])
        params[name.strip().lower()] = value.strip() if equals else None
    return params


def scheme_of(uri: str) -> str:
    """Scheme in lower case; empty if the text is no URI."""
    match = _SCHEME.match(uri)
    return match[1].lower() if match else ""


def uri_untrusted(text: str) -> URI:
    """A sip, sips or tel URI. Parameters and headers are read over: whoever is routed to sees the text
    itself. A scheme may be in capitals."""
    scheme, _, rest = text.partition(":")
    if scheme.lower() == "tel":
        return _tel_untrusted(rest.partition(";")[0])
    before, at, host = rest.rpartition("@")
    host = host.partition("?")[0].partition(";")[0]
    return _parse(URI.parse, f"{scheme.lower()}:{before}{at}{host}", "bad-uri")


def _tel_untrusted(number: str) -> URI:
    """RFC 3966, without what ``sipmessage`` would need cubic time for."""
    if len(number) > MAX_TEXT or _NUMBER.fullmatch(number) is None:
        raise RemoteProtocolError("bad-uri", number[:80])
    return URI(scheme="tel", host="", user=number)


def credentials_untrusted(text: str) -> dict[str, str]:
    """Parameters of a Digest ``Authorization`` value without quotes; ``scheme`` among them, in lower case.

    Not left to ``sipmessage``, whose expression for it takes exponential time for hostile text.
    """
    scheme, space, rest = text.strip().partition(" ")
    if not space or len(text) > MAX_CREDENTIALS:
        raise RemoteProtocolError("bad-credentials", text[:80])
    params = {"scheme": scheme.lower()}
    for item in split_list(rest):
        name, equals, value = item.partition("=")
        name, value = name.strip().lower(), value.strip()
        quoted = value.startswith('"')
        if not equals or not name or name in params or (quoted and not _QUOTED.fullmatch(value)):
            raise RemoteProtocolError("bad-credentials", item[:80])
        params[name] = _ESCAPE.sub(r"\1", value[1:-1]) if quoted else value
    return params


def number_untrusted(text: str, reason: str, most: int = 2**32 - 1) -> int:
    """Decimal digits, at most ``most``."""
    text = text.strip()
    if not (text.isascii() and text.isdigit()) or len(text) > 10 or int(text) > most:
        raise RemoteProtocolError(reason, text[:80])
    return int(text)


def is_literal(host: str, address: str) -> bool:
    """Whether a URI's host is this IP address, however written."""
    try:
        return ip_address(host.strip("[]")) == ip_address(address)
    except ValueError:
        return False


def url_host(address: str) -> str:
    """An IP address as it stands in a URI."""
    return f"[{address}]" if ":" in address else address


@dataclass(frozen=True, slots=True)
class Essentials:
    """The fields every message must have, read once."""

    via: ViaView
    call_id: str
    sequence: int
    method: str
    from_: NameAddr
    to: NameAddr


def essentials_untrusted(message: SipMessage) -> Essentials:
    """Check and read what RFC 3261 section 8.1.1 makes mandatory.

    Raises:
        RemoteProtocolError: ``missing-header``, ``repeated-header`` or the reason of one field.
    """
    vias = message.values("Via")
    if not vias or any(not message.get(name) for name in ("From", "To", "Call-ID", "CSeq")):
        raise RemoteProtocolError("missing-header")
    if len(vias) > MAX_VALUES or any(len(message.lines(name)) > 1 for name in SINGLE):
        raise RemoteProtocolError("repeated-header")
    cseq = cseq_untrusted(message.get("CSeq") or "")
    call_id = message.get("Call-ID") or ""
    from_ = name_addr_untrusted(message.get("From") or "")
    to = name_addr_untrusted(message.get("To") or "")
    if max(len(call_id), len(from_.tag), len(to.tag)) > MAX_TEXT:
        raise RemoteProtocolError("bad-call-id", "too long")
    if isinstance(message, Request) and cseq.method != message.method:
        raise RemoteProtocolError("bad-cseq", f"{cseq.method} in a {message.method}")
    return Essentials(via_untrusted(vias[0]), call_id, cseq.sequence, cseq.method, from_, to)
