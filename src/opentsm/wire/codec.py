"""Control messages: bytes to values and back, driven by one layout table.

Header (docs/protocol.md): version and indication (1), reserved (1), type (1), TLV count (1),
TSID (8), sequence (4); then TLVs of type (2), length (2), value.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Final

from opentsm.errors import LocalProtocolError, RemoteProtocolError
from opentsm.limits import MAX_CONTROL_MESSAGE, MAX_SERVICES, MAX_TLVS
from opentsm.types import Tsid
from opentsm.wire import messages as m
from opentsm.wire import tlv as t

HEADER: Final = struct.Struct("!BBBBQI")
_TLV_HEAD: Final = struct.Struct("!HH")
_FIRST_BYTE: Final = 0x10  # version 1, indication 0
_CAPPED: Final = frozenset({t.WANTED_SERVICE.number, t.OFFERED_SERVICE.number})


@dataclass(frozen=True, slots=True)
class Layout:
    """One message type: its number, its class, its TLVs in the order we send them.

    Args:
        number: type on the wire.
        cls: the message class.
        fields: (field of the class, TLV that carries it).
        required: fields without which the message is malformed.
    """

    number: int
    cls: type[m.Message]
    fields: tuple[tuple[str, t.Tlv], ...]
    required: frozenset[str] = frozenset()
    by_number: dict[int, tuple[str, t.Tlv]] = field(init=False)
    values: Callable[[m.Message], tuple[Any, ...]] = field(init=False)
    """All fields of a message at once, in order."""

    def __post_init__(self) -> None:
        names = [name for name, _ in self.fields]
        get = attrgetter(*names)
        object.__setattr__(self, "by_number", {row.number: (name, row) for name, row in self.fields})
        object.__setattr__(self, "values", get if len(names) > 1 else lambda message: (get(message),))


_CODE: Final = frozenset({"code"})
_ANSWER: Final = (("code", t.RESPONSE_CODE), ("text", t.ERROR_TEXT))

LAYOUTS: Final = (
    Layout(
        1,
        m.ConfigurationRequest,
        (
            ("client_id", t.CLIENT_ID),
            ("username", t.USERNAME),
            ("password", t.PASSWORD),
            ("families", t.ADDRESS_FAMILIES),
            ("wanted_services", t.WANTED_SERVICE),
            ("resume_proof", t.RESUME_PROOF),
            ("join_proof", t.JOIN_PROOF),
            ("software", t.SOFTWARE),
            ("padding", t.PADDING),
        ),
    ),
    Layout(
        2,
        m.ConfigurationResponse,
        (
            *_ANSWER,
            ("inner_ipv4", t.INNER_IPV4),
            ("inner_ipv6", t.INNER_IPV6),
            ("dns_servers", t.DNS_SERVER),
            ("sip_server", t.SIP_SERVER),
            ("keepalive_ms", t.KEEPALIVE),
            ("keepalive_datagram_ms", t.KEEPALIVE_DATAGRAM),
            ("inner_mtu", t.INNER_MTU),
            ("resume_secret", t.RESUME_SECRET),
            ("observed_address", t.OBSERVED_ADDRESS),
            ("offered_services", t.OFFERED_SERVICE),
            ("persistence_ms", t.PERSISTENCE),
            ("retry_after_ms", t.RETRY_AFTER),
            ("software", t.SOFTWARE),
            ("server_epoch", t.SERVER_EPOCH),
            ("padding", t.PADDING),
        ),
        _CODE,
    ),
    Layout(3, m.ReleaseRequest, (*_ANSWER, ("tunnel_id", t.TUNNEL_ID), ("retry_after_ms", t.RETRY_AFTER))),
    Layout(4, m.ReleaseResponse, (*_ANSWER, ("tunnel_id", t.TUNNEL_ID)), _CODE),
    Layout(
        5,
        m.ServiceRequest,
        (
            ("service", t.SERVICE),
            ("action", t.SERVICE_ACTION),
            ("mode", t.PATH_MODE),
            ("flows", t.FLOW),
            ("coding", t.CODING),
            ("redundancy", t.REDUNDANCY),
        ),
        frozenset({"service", "action"}),
    ),
    Layout(
        6,
        m.ServiceResponse,
        (
            *_ANSWER,
            ("service", t.SERVICE),
            ("tunnel_id", t.TUNNEL_ID),
            ("join_secret", t.JOIN_SECRET),
            ("offered_services", t.OFFERED_SERVICE),
        ),
        _CODE,
    ),
    Layout(7, m.KeepaliveRequest, (("timestamp", t.TIMESTAMP),)),
    Layout(8, m.KeepaliveResponse, (("timestamp", t.TIMESTAMP),)),
    Layout(9, m.QualityReport, (("reports", t.PATH_QUALITY), ("decision", t.PATH_DECISION))),
    Layout(127, m.ErrorResponse, _ANSWER, _CODE),
)

_BY_NUMBER: Final = {layout.number: layout for layout in LAYOUTS}
_BY_CLASS: Final = {layout.cls: layout for layout in LAYOUTS}


def encode(message: m.Message) -> bytes:
    """The bytes of one control message.

    Raises:
        LocalProtocolError: a value does not fit its TLV, or the whole exceeds the limits.
    """
    layout = _BY_CLASS.get(type(message))
    if layout is None:
        raise LocalProtocolError(f"{type(message).__name__} cannot be sent")
    tlvs = [_TLV_HEAD.pack(row.number, len(value)) + value for row, value in _values(layout, message)]
    if len(tlvs) > MAX_TLVS:
        raise LocalProtocolError(f"{len(tlvs)} TLVs, at most {MAX_TLVS}")
    try:
        head = HEADER.pack(_FIRST_BYTE, 0, layout.number, len(tlvs), message.tsid, message.sequence)
    except struct.error as error:
        raise LocalProtocolError(f"header field out of range: {error}") from error
    data = head + b"".join(tlvs)
    if len(data) > MAX_CONTROL_MESSAGE:
        raise LocalProtocolError(f"a message of {len(data)} bytes, at most {MAX_CONTROL_MESSAGE}")
    return data


def _values(layout: Layout, message: m.Message) -> Iterator[tuple[t.Tlv, bytes]]:
    for (_, row), value in zip(layout.fields, layout.values(message), strict=True):
        if value is None:
            continue
        if row.repeats:
            for item in value:
                yield row, row.pack(item)
        else:
            yield row, row.pack(value)


def decode_untrusted(data: bytes) -> m.Message:
    """One control message from a peer's bytes, which must be exactly one frame.

    Raises:
        RemoteProtocolError: with reason ``truncated``, ``oversized``, ``bad-version``, ``bad-indication``,
            ``bad-reserved``, ``too-many-tlvs``, ``trailing-bytes``, ``duplicate-tlv``, ``bad-tlv-length``,
            ``bad-tlv-value``, ``too-many-services`` or ``missing-tlv``. Nothing else is ever raised.
    """
    if len(data) < HEADER.size:
        raise RemoteProtocolError("truncated", f"{len(data)} bytes")
    if len(data) > MAX_CONTROL_MESSAGE:
        raise RemoteProtocolError("oversized", f"{len(data)} bytes")
    first, reserved, number, count, tsid, sequence = HEADER.unpack_from(data)
    _check_header_untrusted(first, reserved, count)
    tlvs = _split_untrusted(data, count)
    layout = _BY_NUMBER.get(number)
    if layout is None:
        return m.UnknownMessage(tsid=Tsid(tsid), sequence=sequence, type=number)
    fields = _fields_untrusted(layout, tlvs)
    return layout.cls(tsid=Tsid(tsid), sequence=sequence, **fields)


def _check_header_untrusted(first: int, reserved: int, count: int) -> None:
    if first >> 4 != _FIRST_BYTE >> 4:
        raise RemoteProtocolError("bad-version", str(first >> 4))
    if first & 0x0F:
        raise RemoteProtocolError("bad-indication", str(first & 0x0F))
    if reserved:
        raise RemoteProtocolError("bad-reserved", str(reserved))
    if count > MAX_TLVS:
        raise RemoteProtocolError("too-many-tlvs", str(count))


def _split_untrusted(data: bytes, count: int) -> list[tuple[int, bytes]]:
    """The TLVs of a message: exactly ``count`` of them and not a byte more."""
    tlvs = []
    offset = HEADER.size
    for _ in range(count):
        start = offset + _TLV_HEAD.size
        if start > len(data):
            raise RemoteProtocolError("truncated", f"TLV header at byte {offset}")
        number, length = _TLV_HEAD.unpack_from(data, offset)
        offset = start + length
        if offset > len(data):
            raise RemoteProtocolError("truncated", f"TLV {number} of {length} bytes at byte {start}")
        tlvs.append((number, data[start:offset]))
    if offset != len(data):
        raise RemoteProtocolError("trailing-bytes", f"{len(data) - offset} bytes")
    return tlvs


def _fields_untrusted(layout: Layout, tlvs: list[tuple[int, bytes]]) -> dict[str, Any]:
    """Field values. A TLV we do not know, or that this message has no use for, is skipped unread."""
    names = layout.by_number
    fields: dict[str, Any] = {}
    for number, value in tlvs:
        if number not in names:
            continue
        name, row = names[number]
        if row.repeats:
            fields[name] = (*fields.get(name, ()), _unpack_untrusted(row, value))
            if number in _CAPPED and len(fields[name]) > MAX_SERVICES:
                raise RemoteProtocolError("too-many-services", row.name)
        elif name in fields:
            raise RemoteProtocolError("duplicate-tlv", row.name)
        else:
            fields[name] = _unpack_untrusted(row, value)
    if not fields.keys() >= layout.required:
        missing = (name for name, _ in layout.fields if name in layout.required - fields.keys())
        raise RemoteProtocolError("missing-tlv", ", ".join(missing))
    return fields


def _unpack_untrusted(row: t.Tlv, value: bytes) -> Any:
    try:
        return row.unpack(value)
    except RemoteProtocolError as error:
        raise RemoteProtocolError(error.reason, f"{row.name}: {error.detail}") from error.__cause__
