"""SDP as the SBC needs it: where each m-line wants its media, and the same text with other places in it.

RFC 8866 (format), RFC 3264 (offer and answer), RFC 3605 (``a=rtcp``), RFC 5761 (``rtcp-mux``), RFC 8839 (ICE
lines, which are taken out: a candidate would lead media around the tunnel). What is not about places goes
through untouched: codecs, SRTP keys and fingerprints, T.38 attributes, ``o=``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from opentsm.errors import RemoteProtocolError

MAX_SDP: Final = 24 * 1024
"""Bytes; fits in the largest SIP message taken."""

MAX_STREAMS: Final = 16
"""m-lines of one call. Audio, video, slides, fax and what a few re-INVITEs left behind are under ten."""

MAX_LINES: Final = 800
"""A video offer with every codec and header extension has about 200 lines."""

_MEDIA: Final = re.compile(r"m=([a-z0-9\-.!+]+) +(\d{1,5})(?:/\d{1,4})? +(\S+)(?: +(.*))?", re.IGNORECASE)
_CONNECTION: Final = re.compile(r"c=IN +(IP[46]) +([^\s/]+)(?:/\S*)?\s*", re.IGNORECASE)
_RTCP: Final = re.compile(r"a=rtcp:(\d{1,5})(?: +IN +(IP[46]) +(\S+))?\s*", re.IGNORECASE)
_RTPMAP: Final = re.compile(r"a=rtpmap:(\d{1,3}) +([^/\s]+)", re.IGNORECASE)

_ICE: Final = frozenset(
    {
        "bundle-only",
        "candidate",
        "end-of-candidates",
        "ice-lite",
        "ice-mismatch",
        "ice-options",
        "ice-pacing",
        "ice-pwd",
        "ice-ufrag",
        "remote-candidates",
    }
)
"""Attributes that lead media around the negotiated place, or (``bundle-only``) make sense only with
BUNDLE."""
_STATIC_CODECS: Final = {
    "0": "PCMU", "3": "GSM", "4": "G723", "8": "PCMA", "9": "G722", "13": "CN", "15": "G728", "18": "G729",
}  # fmt: skip

HOLD_ADDRESSES: Final = frozenset({"0.0.0.0", "::"})
"""In ``c=``: the old way to say "send me nothing" (RFC 3264 section 8.4)."""


@dataclass(slots=True)
class MediaLine:
    """One m-line with the lines that belong to it."""

    kind: str
    port: int
    proto: str
    formats: str
    lines: list[str]

    @property
    def is_rtp(self) -> bool:
        return "RTP/" in self.proto.upper()

    @property
    def is_datagram(self) -> bool:
        """Whether its media travels in UDP; TCP lines (MSRP, BFCP) connect end to end and are left alone."""
        words = self.proto.upper().split("/")
        return words[0] != "TCP" and "TCP" not in words

    @property
    def mux(self) -> bool:
        return any(line.strip().lower() == "a=rtcp-mux" for line in self.lines)

    @property
    def codec(self) -> str:
        """Name of the first format; ``T.38`` and the like for what is no RTP."""
        if not self.is_rtp:
            return self.formats.split(" ")[0].upper() or self.proto
        first = self.formats.split(" ")[0]
        for line in self.lines:
            if (match := _RTPMAP.match(line)) is not None and match[1] == first:
                return match[2]
        return _STATIC_CODECS.get(first, first)


@dataclass(slots=True)
class Description:
    """A whole session description: session-level lines, then m-lines."""

    head: list[str]
    media: list[MediaLine]

    def encode(self) -> bytes:
        lines = list(self.head)
        for media in self.media:
            formats = f" {media.formats}" if media.formats else ""
            lines.append(f"m={media.kind} {media.port} {media.proto}{formats}")
            lines += media.lines
        return "".join(f"{line}\r\n" for line in lines).encode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a party wants the media of one m-line.

    Attributes:
        address, port: RTP, or whatever else. rtcp_address, rtcp_port: RTCP, where RTP is meant.
        held: the address was ``0.0.0.0``: it wants none. secure: RTP and RTCP are encrypted.
    """

    address: str
    port: int
    rtcp_address: str
    rtcp_port: int
    rtp: bool = True
    mux: bool = False
    held: bool = False
    secure: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """Where the other party shall send instead."""

    address: str
    port: int
    rtcp_port: int


def parse_untrusted(body: bytes) -> Description:
    """Read a session description.

    Raises:
        RemoteProtocolError: ``bad-sdp``, ``sdp-too-large``, ``sdp-too-many-streams``.
    """
    if len(body) > MAX_SDP:
        raise RemoteProtocolError("sdp-too-large", f"{len(body)} bytes")
    lines = [line for line in re.split(r"\r\n|\n|\r", body.decode("utf-8", "surrogateescape")) if line]
    if not lines or lines[0].strip() != "v=0" or len(lines) > MAX_LINES:
        raise RemoteProtocolError("bad-sdp", "it does not begin with v=0, or has too many lines")
    description = Description([], [])
    for line in lines:
        if len(line) < 2 or line[1] != "=" or not line[0].isalpha() or "\0" in line:
            raise RemoteProtocolError("bad-sdp", line[:80])
        if line.startswith("m="):
            description.media.append(_media_untrusted(line))
        else:
            (description.media[-1].lines if description.media else description.head).append(line)
    if len(description.media) > MAX_STREAMS:
        raise RemoteProtocolError("sdp-too-many-streams", f"{len(description.media)} m-lines")
    for media in description.media:
        if media.port:
            endpoint_untrusted(description, media)
    return description


def _media_untrusted(line: str) -> MediaLine:
    match = _MEDIA.fullmatch(line.strip())
    if match is None or int(match[2]) > 65535:
        raise RemoteProtocolError("bad-sdp", line[:80])
    return MediaLine(match[1], int(match[2]), match[3], (match[4] or "").strip(), [])


def endpoint_untrusted(description: Description, media: MediaLine) -> Endpoint:
    """Where this m-line wants its media, as it says itself. A host name in ``c=`` is kept as text."""
    address = _connection_untrusted(media.lines) or _connection_untrusted(description.head)
    if address is None:
        raise RemoteProtocolError("bad-sdp", "no c= line")
    rtcp_address, rtcp_port = address, min(media.port + 1, 65535)
    for line in media.lines:
        if line.lower().startswith("a=rtcp:"):
            match = _RTCP.fullmatch(line)
            if match is None or not 0 < int(match[1]) < 65536:
                raise RemoteProtocolError("bad-sdp", line[:80])
            rtcp_address, rtcp_port = match[3] or address, int(match[1])
    held = address in HOLD_ADDRESSES
    secure = media.is_rtp and "SAVP" in media.proto.upper()
    return Endpoint(address, media.port, rtcp_address, rtcp_port, media.is_rtp, media.mux, held, secure)


def _connection_untrusted(lines: Sequence[str]) -> str | None:
    for line in lines:
        if line.startswith("c="):
            match = _CONNECTION.fullmatch(line)
            if match is None:
                raise RemoteProtocolError("bad-sdp", line[:80])
            return match[2]
    return None


def is_address(text: str) -> bool:
    """Whether it is an IP address; a host name in ``c=`` is not resolved."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def rewrite(description: Description, places: Sequence[Place | None], fallback: str) -> Description:
    """The same description with other places.

    Args:
        places: one per m-line; None leaves port and protocol as they are.
        fallback: address for m-lines that are left as they are, in place of the one they inherited.

    Session-level ``c=`` stays where it stood, because some phones look nowhere else.
    """
    head_address = next((p.address for p in places if p is not None), fallback)
    had_head = _connection_untrusted(description.head) is not None
    head = [
        _connection(head_address) if line.startswith("c=") else line
        for line in description.head
        if not _is_ice(line) and not line.lower().startswith("a=group:bundle")
    ]
    media = [
        _rewrite_media(line, place, head_address if had_head else None, fallback)
        for line, place in zip(description.media, places, strict=True)
    ]
    return Description(head, media)


def _rewrite_media(media: MediaLine, place: Place | None, inherited: str | None, fallback: str) -> MediaLine:
    lines = [line for line in media.lines if not _is_ice(line) and not line.startswith("c=")]
    address = fallback if place is None else place.address
    if address != inherited and (media.port or inherited is None):
        # c= stands after i= and before b= (RFC 8866 section 9).
        at = 1 if lines and lines[0].startswith("i=") else 0
        lines.insert(at, _connection(address))
    if place is None:
        return MediaLine(media.kind, media.port, media.proto, media.formats, lines)
    lines = [f"a=rtcp:{place.rtcp_port}" if line.lower().startswith("a=rtcp:") else line for line in lines]
    return MediaLine(media.kind, place.port, media.proto, media.formats, lines)


def _connection(address: str) -> str:
    return f"c=IN {'IP6' if ':' in address else 'IP4'} {address}"


def _is_ice(line: str) -> bool:
    if not line.startswith("a="):
        return False
    return re.split(r"[:\s]", line[2:], maxsplit=1)[0].lower() in _ICE
