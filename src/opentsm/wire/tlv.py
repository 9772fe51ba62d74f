"""One row per TLV: its number, its name on the wire, and how its value is packed and checked.

Decoders here read a peer's bytes. They raise RemoteProtocolError with reason ``bad-tlv-length``
(the value has a length this TLV cannot have) or ``bad-tlv-value`` (right length, impossible content).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Any, Final

from opentsm.errors import LocalProtocolError, RemoteProtocolError
from opentsm.limits import MAX_PASSWORD, MAX_TEXT
from opentsm.types import (
    MAX_FACTOR,
    Code,
    Coding,
    Flow,
    IpAddress,
    Path,
    PathMode,
    Protocol,
    Redundancy,
    Service,
    ServiceAction,
    Spread,
    Tsid,
)
from opentsm.wire.messages import AddressFamilies, PathDecision, PathQuality

SECRET_BYTES: Final = 32
"""Length of a resume secret and of a resume proof (HMAC-SHA256)."""

MAX_PADDING: Final = 1200
"""Bytes of a padding: what makes a message as large as any datagram of media."""

_UNRATED: Final = 255
_MAX_CLIENT_ID: Final = 64  # docs/protocol.md; room for a UUID or a hash in hexadecimal
_FLOW_IPV6: Final = 1
_FLOW_FAR: Final = 2
_CODING_BY_LOSS: Final = 255
_CODING_FEC: Final = 1
_CODING_COMPRESS: Final = 2
_FLOW_HEAD: Final = struct.Struct("!BBH")  # protocol, flags, client port
_QUALITY: Final = struct.Struct("!BIIIII")  # path, interval ms, received, lost, jitter us, delay us


@dataclass(frozen=True, slots=True)
class Tlv:
    """How one TLV is carried.

    Args:
        number: type on the wire.
        name: name in docs/protocol.md.
        pack: value to bytes.
        unpack: a peer's bytes to a value; raises RemoteProtocolError only.
        repeats: may stand more than once in a message.
    """

    number: int
    name: str
    pack: Callable[[Any], bytes]
    unpack: Callable[[bytes], Any]
    repeats: bool = False


def _bad_length(data: bytes) -> RemoteProtocolError:
    return RemoteProtocolError("bad-tlv-length", f"{len(data)} bytes")


def _bad_value(detail: str) -> RemoteProtocolError:
    return RemoteProtocolError("bad-tlv-value", detail)


def _integer(size: int) -> tuple[Callable[[int], bytes], Callable[[bytes], int]]:
    def pack(value: int) -> bytes:
        try:
            return int(value).to_bytes(size, "big")
        except OverflowError as error:
            raise LocalProtocolError(f"{value} does not fit {size} bytes") from error

    def unpack(data: bytes) -> int:
        if len(data) != size:
            raise _bad_length(data)
        return int.from_bytes(data, "big")

    return pack, unpack


_pack_u8, _unpack_u8 = _integer(1)
_pack_u16, _unpack_u16 = _integer(2)
_pack_u32, _unpack_u32 = _integer(4)
_pack_u64, _unpack_u64 = _integer(8)


def _octets(low: int, high: int) -> tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]:
    def pack(value: bytes) -> bytes:
        if not low <= len(value) <= high:
            raise LocalProtocolError(f"a value of {len(value)} bytes is not within {low} to {high}")
        return bytes(value)

    def unpack(data: bytes) -> bytes:
        if not low <= len(data) <= high:
            raise _bad_length(data)
        return data

    return pack, unpack


def _text(low: int) -> tuple[Callable[[str], bytes], Callable[[bytes], str]]:
    def pack(value: str) -> bytes:
        data = value.encode()
        if not low <= len(data) <= MAX_TEXT:
            raise LocalProtocolError(f"a text of {len(data)} bytes is not within {low} to {MAX_TEXT}")
        return data

    def unpack(data: bytes) -> str:
        if not low <= len(data) <= MAX_TEXT:
            raise _bad_length(data)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise _bad_value("not UTF-8") from error

    return pack, unpack


def _pack_decision(value: PathDecision) -> bytes:
    ratings = [_UNRATED if r is None else r for r in (value.stream_r, value.datagram_r)]
    try:
        return bytes([value.path, value.reason, *ratings])
    except ValueError as error:
        raise LocalProtocolError(f"{value} does not fit its TLV") from error


def _unpack_decision(data: bytes) -> PathDecision:
    if len(data) != 4:
        raise _bad_length(data)
    path, reason, *ratings = data
    if path not in Path._value2member_map_:
        raise _bad_value(f"path {path}")
    stream, datagram = (None if r == _UNRATED else r for r in ratings)
    return PathDecision(Path(path), reason, stream, datagram)


def _pack_padding(value: int) -> bytes:
    if not 0 <= value <= MAX_PADDING:
        raise LocalProtocolError(f"a padding of {value} bytes is not within 0 to {MAX_PADDING}")
    return bytes(value)


def _unpack_padding(data: bytes) -> int:
    if len(data) > MAX_PADDING:
        raise _bad_length(data)
    return len(data)


def _unpack_code(data: bytes) -> Code | int:
    number = _unpack_u16(data)
    return Code(number) if number in Code._value2member_map_ else number


def _unpack_service(data: bytes) -> Service | int:
    number = _unpack_u16(data)
    return Service(number) if number in Service._value2member_map_ else number


def _unpack_action(data: bytes) -> ServiceAction | int:
    number = _unpack_u8(data)
    return ServiceAction(number) if number in ServiceAction._value2member_map_ else number


def _unpack_families(data: bytes) -> AddressFamilies:
    number = _unpack_u8(data)
    if not 1 <= number <= AddressFamilies.BOTH:
        raise _bad_value(f"address families {number}")
    return AddressFamilies(number)


def _unpack_mode(data: bytes) -> PathMode:
    number = _unpack_u8(data)
    if number not in PathMode._value2member_map_:
        raise _bad_value(f"path mode {number}")
    return PathMode(number)


def _unpack_tsid(data: bytes) -> Tsid:
    return Tsid(_unpack_u64(data))


def _pack_interface(value: IPv4Interface | IPv6Interface) -> bytes:
    return value.ip.packed + bytes([value.network.prefixlen])


def _unpack_ipv4(data: bytes) -> IPv4Interface:
    if len(data) != 5:
        raise _bad_length(data)
    if data[4] > 32:
        raise _bad_value(f"IPv4 prefix length {data[4]}")
    return IPv4Interface((data[:4], data[4]))


def _unpack_ipv6(data: bytes) -> IPv6Interface:
    if len(data) != 17:
        raise _bad_length(data)
    if data[16] > 128:
        raise _bad_value(f"IPv6 prefix length {data[16]}")
    return IPv6Interface((data[:16], data[16]))


def _pack_address(value: IpAddress) -> bytes:
    return value.packed


def _unpack_address(data: bytes) -> IpAddress:
    if len(data) == 4:
        return IPv4Address(data)
    if len(data) == 16:
        return IPv6Address(data)
    raise _bad_length(data)


def _pack_endpoint(value: tuple[IpAddress, int]) -> bytes:
    return value[0].packed + _pack_u16(value[1])


def _unpack_endpoint(data: bytes) -> tuple[IpAddress, int]:
    if len(data) not in (6, 18):
        raise _bad_length(data)
    return _unpack_address(data[:-2]), int.from_bytes(data[-2:], "big")


def _pack_flow(flow: Flow) -> bytes:
    flags = (_FLOW_IPV6 if flow.ipv6 else 0) | (_FLOW_FAR if flow.far else 0)
    try:
        head = _FLOW_HEAD.pack(flow.protocol, flags, flow.port)
    except struct.error as error:
        raise LocalProtocolError(f"not a flow that can be sent: {flow}") from error
    if flow.far is None:
        return head
    if (flow.far[0].version == 6) != flow.ipv6:
        raise LocalProtocolError(f"both ends of a flow have the same family: {flow}")
    return head + _pack_endpoint(flow.far)


def _unpack_flow(data: bytes) -> Flow:
    if len(data) < _FLOW_HEAD.size:
        raise _bad_length(data)
    protocol, flags, port = _FLOW_HEAD.unpack_from(data)
    if protocol not in Protocol._value2member_map_:
        raise _bad_value(f"flow protocol {protocol}")
    if flags & ~(_FLOW_IPV6 | _FLOW_FAR) or port == 0:
        raise _bad_value(f"flow flags {flags}, port {port}")
    ipv6 = bool(flags & _FLOW_IPV6)
    rest = data[_FLOW_HEAD.size :]
    if not flags & _FLOW_FAR:
        if rest:
            raise _bad_length(data)
        return Flow(Protocol(protocol), port, ipv6)
    if len(rest) != (18 if ipv6 else 6):
        raise _bad_length(data)
    return Flow(Protocol(protocol), port, ipv6, _unpack_endpoint(rest))


def _pack_quality(value: PathQuality) -> bytes:
    fields = (value.path, value.interval_ms, value.received, value.lost, value.jitter_us, value.delay_us)
    try:
        return _QUALITY.pack(*fields)
    except struct.error as error:
        raise LocalProtocolError(f"not a quality that can be sent: {value}") from error


def _unpack_quality(data: bytes) -> PathQuality:
    if len(data) != _QUALITY.size:
        raise _bad_length(data)
    path, *numbers = _QUALITY.unpack(data)
    if path not in Path._value2member_map_:
        raise _bad_value(f"path {path}")
    return PathQuality(Path(path), *numbers)


def _pack_coding(value: Coding) -> bytes:
    flags = (_CODING_FEC if value.fec else 0) | (_CODING_COMPRESS if value.compress else 0)
    return bytes([_CODING_BY_LOSS if value.factor is None else value.factor, flags])


def _unpack_coding(data: bytes) -> Coding:
    if len(data) != 2:
        raise _bad_length(data)
    factor, flags = data
    if (factor > MAX_FACTOR and factor != _CODING_BY_LOSS) or flags & ~(_CODING_FEC | _CODING_COMPRESS):
        raise _bad_value(f"coding factor {factor}, flags {flags}")
    chosen = None if factor == _CODING_BY_LOSS else factor
    return Coding(chosen, fec=bool(flags & _CODING_FEC), compress=bool(flags & _CODING_COMPRESS))


def _pack_redundancy(value: Redundancy) -> bytes:
    return bytes([value.spread, value.streams])


def _unpack_redundancy(data: bytes) -> Redundancy:
    if len(data) != 2:
        raise _bad_length(data)
    try:
        return Redundancy(Spread(data[0]), data[1])
    except ValueError as error:
        raise _bad_value(str(error)) from error


RESPONSE_CODE: Final = Tlv(1, "response-code", _pack_u16, _unpack_code)
ERROR_TEXT: Final = Tlv(2, "error-text", *_text(0))
CLIENT_ID: Final = Tlv(3, "client-id", *_octets(1, _MAX_CLIENT_ID))
USERNAME: Final = Tlv(4, "username", *_text(1))
PASSWORD: Final = Tlv(5, "password", *_octets(1, MAX_PASSWORD))
ADDRESS_FAMILIES: Final = Tlv(6, "address-families", _pack_u8, _unpack_families)
WANTED_SERVICE: Final = Tlv(7, "wanted-service", _pack_u16, _unpack_service, repeats=True)
OFFERED_SERVICE: Final = Tlv(8, "offered-service", _pack_u16, _unpack_service, repeats=True)
INNER_IPV4: Final = Tlv(9, "inner-ipv4", _pack_interface, _unpack_ipv4)
INNER_IPV6: Final = Tlv(10, "inner-ipv6", _pack_interface, _unpack_ipv6)
DNS_SERVER: Final = Tlv(11, "dns-server", _pack_address, _unpack_address, repeats=True)
SIP_SERVER: Final = Tlv(12, "sip-server", _pack_endpoint, _unpack_endpoint)
KEEPALIVE: Final = Tlv(13, "keepalive-interval", _pack_u32, _unpack_u32)
KEEPALIVE_DATAGRAM: Final = Tlv(14, "keepalive-interval-datagram", _pack_u32, _unpack_u32)
INNER_MTU: Final = Tlv(15, "inner-mtu", _pack_u16, _unpack_u16)
RESUME_SECRET: Final = Tlv(16, "resume-secret", *_octets(SECRET_BYTES, SECRET_BYTES))
RESUME_PROOF: Final = Tlv(17, "resume-proof", *_octets(SECRET_BYTES, SECRET_BYTES))
OBSERVED_ADDRESS: Final = Tlv(18, "observed-address", _pack_endpoint, _unpack_endpoint)
SERVICE: Final = Tlv(19, "service", _pack_u16, _unpack_service)
SERVICE_ACTION: Final = Tlv(20, "service-action", _pack_u8, _unpack_action)
FLOW: Final = Tlv(21, "flow", _pack_flow, _unpack_flow, repeats=True)
TUNNEL_ID: Final = Tlv(22, "tunnel-id", _pack_u64, _unpack_tsid)
PATH_MODE: Final = Tlv(23, "path-mode", _pack_u8, _unpack_mode)
TIMESTAMP: Final = Tlv(24, "timestamp", _pack_u64, _unpack_u64)
PERSISTENCE: Final = Tlv(25, "persistence-time", _pack_u32, _unpack_u32)
PATH_QUALITY: Final = Tlv(26, "path-quality", _pack_quality, _unpack_quality, repeats=True)
RETRY_AFTER: Final = Tlv(27, "retry-after", _pack_u32, _unpack_u32)
SOFTWARE: Final = Tlv(28, "software", *_text(0))
SERVER_EPOCH: Final = Tlv(36, "server-epoch", _pack_u64, _unpack_u64)
PATH_DECISION: Final = Tlv(41, "path-decision", _pack_decision, _unpack_decision)
PADDING: Final = Tlv(40, "padding", _pack_padding, _unpack_padding)
CODING: Final = Tlv(29, "coding", _pack_coding, _unpack_coding)
REDUNDANCY: Final = Tlv(32, "redundancy", _pack_redundancy, _unpack_redundancy)
JOIN_SECRET: Final = Tlv(33, "join-secret", *_octets(SECRET_BYTES, SECRET_BYTES))
JOIN_PROOF: Final = Tlv(34, "join-proof", *_octets(SECRET_BYTES, SECRET_BYTES))

ALL_TLVS: Final[dict[int, Tlv]] = {
    row.number: row for row in list(globals().values()) if isinstance(row, Tlv)
}
"""Every TLV of docs/protocol.md by its number."""
