"""The part of SDP a voice call needs (RFC 8866), and offer/answer for it (RFC 3264)."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Final

from opentsm.client.phone.codecs import CODECS, G711, Codec, by_map
from opentsm.client.phone.g711 import RATE
from opentsm.errors import RemoteProtocolError
from opentsm.types import SocketAddress

MAX_SDP: Final = 8192
"""Bytes of a description: what a browser with video offers; ours has 300."""

MAX_LINES: Final = 256
MAX_MEDIA: Final = 16
"""Media of one description; a call with slides and two cameras has five."""

EVENT_TYPE: Final = 101
"""Payload type we offer for telephone events: the one that everybody uses."""

EVENT_TYPES: Final = {RATE: EVENT_TYPE, 48_000: 102}
"""The same for each clock: events have their codec's (RFC 4733 section 2.1)."""

_EVENTS: Final = "TELEPHONE-EVENT"

_STATIC: Final = {"0": "PCMU", "8": "PCMA"}
_DIRECTIONS: Final = ("sendrecv", "sendonly", "recvonly", "inactive")
_MIRROR: Final = {"sendonly": "recvonly", "recvonly": "sendonly"}
_NUMBER: Final = re.compile("[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Media:
    """One m= section.

    Args:
        words: kind, port, profile and formats of the m= line as they came (``port`` as a number besides).
        address: of the media, after the session's c= line where it has none of its own.
        rtcp: where RTCP goes, if not to the next port (RFC 3605).
        names: payload type -> name of a codec we can speak. event_types: payload type -> clock of events.
    """

    kind: str
    port: int
    profile: str
    formats: tuple[str, ...]
    address: str = ""
    rtcp: SocketAddress | None = None
    direction: str = "sendrecv"
    names: tuple[tuple[str, str], ...] = ()
    event_types: tuple[tuple[str, int], ...] = ()

    @property
    def codec(self) -> tuple[Codec, int] | None:
        """The first codec offered that we can speak, and its payload type."""
        for form in self.formats:
            if (name := self._name(form)) in CODECS:
                return CODECS[name], int(form)
        return None

    @property
    def events(self) -> int | None:
        """Payload type of telephone events on the codec's clock."""
        clock = self.codec[0].clock if self.codec is not None else RATE
        found = (form for form in self.formats if dict(self.event_types).get(form) == clock)
        return next((int(form) for form in found), None)

    @property
    def on_hold(self) -> bool:
        """The far end does not listen (RFC 3264 section 8.4; 0.0.0.0 is how it was said before)."""
        return self.direction in ("sendonly", "inactive") or self.address in ("0.0.0.0", "::")

    def _name(self, form: str) -> str:
        return dict(self.names).get(form, _STATIC.get(form, ""))


@dataclass(frozen=True, slots=True)
class Description:
    media: tuple[Media, ...]

    @property
    def audio(self) -> Media | None:
        """The first audio that is wanted and that we can speak."""
        usable = (
            m
            for m in self.media
            if m.kind == "audio" and m.port and m.profile == "RTP/AVP" and m.codec is not None
        )
        return next(usable, None)


def parse_sdp_untrusted(data: bytes) -> Description:
    """A description from the network.

    Raises:
        RemoteProtocolError: ``sdp-size``, ``sdp-syntax``.
    """
    if len(data) > MAX_SDP:
        raise RemoteProtocolError("sdp-size", f"{len(data)} bytes")
    lines = data.decode(errors="replace").splitlines()
    if len(lines) > MAX_LINES or not lines or lines[0].strip() != "v=0":
        raise RemoteProtocolError("sdp-syntax", "no v=0, or too many lines")
    reader = _Reader()
    for line in lines[1:]:
        if not line.strip():
            continue
        if line[1:2] != "=":
            raise RemoteProtocolError("sdp-syntax", line[:60])
        reader.line(line[0], line[2:].strip())
    return Description(tuple(reader.media))


class _Reader:
    """Line after line; session level until the first m=."""

    def __init__(self) -> None:
        self.media: list[Media] = []
        self._session = Media("", 0, "", ())

    def line(self, kind: str, value: str) -> None:
        if kind == "m":
            self._medium(value)
        elif kind == "c":
            self._put(self._connection(value))
        elif kind == "a":
            self._attribute(value)

    @property
    def _current(self) -> Media:
        return self.media[-1] if self.media else self._session

    def _put(self, changed: Media) -> None:
        if self.media:
            self.media[-1] = changed
        else:
            self._session = changed

    def _medium(self, value: str) -> None:
        words = value.split()
        port = _number(words[1].partition("/")[0]) if len(words) >= 4 else None
        if port is None or len(self.media) >= MAX_MEDIA:
            raise RemoteProtocolError("sdp-syntax", f"m={value[:60]}")
        self.media.append(
            replace(self._session, kind=words[0], port=port, profile=words[2], formats=tuple(words[3:67]))
        )

    def _connection(self, value: str) -> Media:
        words = value.split()
        address = words[2].partition("/")[0] if len(words) == 3 and words[0] == "IN" else ""
        return replace(self._current, address=_literal(address))

    def _attribute(self, value: str) -> None:
        name, _, rest = value.partition(":")
        if name in _DIRECTIONS:
            self._put(replace(self._current, direction=name))
        elif name == "rtpmap":
            self._rtpmap(rest)
        elif name == "rtcp":
            self._rtcp(rest)

    def _rtpmap(self, value: str) -> None:
        form, _, encoding = value.partition(" ")
        words = encoding.strip().upper().split("/")
        current = self._current
        payload = _number(form)
        if payload is None or payload > 127 or len(current.names) >= 64:
            return
        name, clock, *channels = [*words, ""][:3] if len(words) < 3 else words
        if name == _EVENTS and clock in map(str, EVENT_TYPES):
            self._put(replace(current, event_types=(*current.event_types, (form, int(clock)))))
        elif (known := by_map(name, clock, [c for c in channels if c])) is not None:
            self._put(replace(current, names=(*current.names, (form, known))))

    def _rtcp(self, value: str) -> None:
        words = value.split()
        port = _number(words[0]) if words else None
        if port:
            address = _literal(words[3]) if len(words) == 4 else self._current.address
            self._put(replace(self._current, rtcp=(address, port)))


def _number(text: str) -> int | None:
    """A port or payload type; None: it is none."""
    if not _NUMBER.fullmatch(text) or int(text) > 65535:
        return None
    return int(text)


def _literal(address: str) -> str:
    """An IP address, checked: names are for proxies to resolve, not for a phone in a tunnel."""
    try:
        return str(ip_address(address))
    except ValueError:
        raise RemoteProtocolError("sdp-syntax", f"address {address[:60]!r}") from None


# -- ours ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Local:
    """What we say of ourselves: where our RTP and RTCP are, and the session's id and version.

    Args:
        codecs: names of those that are offered, the most wanted first.
    """

    address: str
    port: int
    rtcp_port: int
    session: int
    version: int = 1
    codecs: tuple[str, ...] = G711


def offer(local: Local) -> bytes:
    """Our codecs and events, both ways."""
    codecs = [(str(CODECS[name].payload_type), CODECS[name]) for name in local.codecs]
    clocks = sorted({codec.clock for _, codec in codecs})
    events = [(str(EVENT_TYPES[clock]), clock) for clock in clocks]
    return _describe(local, [_audio(local, codecs, events, "sendrecv")])


def answer(local: Local, offered: Description) -> bytes | None:
    """The answer to an offer: its first usable audio, everything else refused (RFC 3264 section 6).

    Returns:
        None: nothing in it is for us (488).
    """
    chosen = offered.audio
    if chosen is None:
        return None
    sections = [_accept(local, m) if m is chosen else _refuse(m) for m in offered.media]
    return _describe(local, sections)


def _accept(local: Local, offered: Media) -> list[str]:
    assert offered.codec is not None  # it was chosen for having one
    codec, payload_type = offered.codec
    events = [] if offered.events is None else [(str(offered.events), codec.clock)]
    direction = _MIRROR.get(offered.direction, offered.direction)
    return _audio(local, [(str(payload_type), codec)], events, direction)


def _refuse(offered: Media) -> list[str]:
    return [f"m={offered.kind} 0 {offered.profile} {' '.join(offered.formats)}"]


def _audio(
    local: Local, codecs: list[tuple[str, Codec]], events: list[tuple[str, int]], direction: str
) -> list[str]:
    formats = [form for form, _ in (*codecs, *events)]
    lines = [f"m=audio {local.port} RTP/AVP {' '.join(formats)}"]
    for form, codec in codecs:
        channels = f"/{codec.channels}" if codec.channels > 1 else ""
        lines.append(f"a=rtpmap:{form} {_written(codec.encoding)}/{codec.clock}{channels}")
        if codec.parameters:
            lines.append(f"a=fmtp:{form} {codec.parameters}")
    for form, clock in events:
        lines += [f"a=rtpmap:{form} telephone-event/{clock}", f"a=fmtp:{form} 0-15"]
    return [*lines, "a=ptime:20", f"a=rtcp:{local.rtcp_port}", f"a={direction}"]


def _written(encoding: str) -> str:
    """As its standard writes it: names are compared without case, but not by everybody."""
    return "opus" if encoding == "OPUS" else encoding


def _describe(local: Local, sections: list[list[str]]) -> bytes:
    family = "IP6" if ":" in local.address else "IP4"
    lines = [
        "v=0",
        f"o=- {local.session} {local.version} IN {family} {local.address}",
        "s=opentsm",
        f"c=IN {family} {local.address}",
        "t=0 0",
        *(line for section in sections for line in section),
    ]
    return "\r\n".join(lines).encode() + b"\r\n"
