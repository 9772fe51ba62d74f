"""Control messages: golden bytes, round trips, and what a hostile peer can send."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opentsm.errors import LocalProtocolError, RemoteProtocolError
from opentsm.limits import MAX_CONTROL_MESSAGE, MAX_PASSWORD, MAX_SERVICES, MAX_TLVS
from opentsm.types import (
    UNASSIGNED_TSID,
    Code,
    Coding,
    Flow,
    Path,
    PathMode,
    Protocol,
    Redundancy,
    Service,
    ServiceAction,
    Spread,
    Tsid,
)
from opentsm.wire import messages as m
from opentsm.wire.codec import HEADER, LAYOUTS, decode_untrusted, encode
from opentsm.wire.tlv import MAX_PADDING

TSID = Tsid(0x0102030405060708)
UDP = Flow(Protocol.UDP, 4000)
UDP6 = Flow(Protocol.UDP, 4002, True, (IPv6Address("fd00::5"), 7078))

# Every message type with every field. The bytes are the wire format: they may not change.
GOLDEN: list[tuple[m.Message, str]] = [
    (
        m.ConfigurationRequest(
            tsid=UNASSIGNED_TSID,
            sequence=1,
            client_id=b"id",
            username="al",
            password=b"pw",
            families=m.AddressFamilies.BOTH,
            wanted_services=(Service.DDT, 4000),
            resume_proof=bytes(range(32)),
            join_proof=bytes(32),
            software="x",
            padding=3,
        ),
        "1000010affffffffffffffff00000001"
        "000300026964 00040002616c 000500027077 0006000103 000700020003 000700020fa0"
        "00110020000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
        "002200200000000000000000000000000000000000000000000000000000000000000000 001c000178 00280003000000",
    ),
    (
        m.ConfigurationResponse(
            tsid=TSID,
            sequence=1,
            code=Code.SUCCESS,
            text="",
            inner_ipv4=IPv4Interface("10.0.0.2/16"),
            inner_ipv6=IPv6Interface("fd00::2/64"),
            dns_servers=(IPv4Address("10.0.0.1"), IPv6Address("fd00::1")),
            sip_server=(IPv4Address("10.0.0.3"), 5060),
            keepalive_ms=30000,
            keepalive_datagram_ms=1000,
            inner_mtu=1400,
            resume_secret=bytes(32),
            observed_address=(IPv6Address("2001:db8::1"), 443),
            offered_services=(Service.SIP, Service.DDT),
            persistence_ms=330000,
            retry_after_ms=5,
            software="y",
            server_epoch=0x0807060504030201,
            padding=0,
        ),
        "1000021301020304050607080000000100010002000000020000"
        "000900050a00000210 000a0011fd00000000000000000000000000000240"
        "000b00040a000001 000b0010fd000000000000000000000000000001 000c00060a00000313c4"
        "000d000400007530 000e0004000003e8 000f00020578"
        "001000200000000000000000000000000000000000000000000000000000000000000000"
        "0012001220010db800000000000000000000000101bb 000800020001 000800020003"
        "0019000400050910 001b000400000005 001c000179 002400080807060504030201 00280000",
    ),
    (
        m.ReleaseRequest(
            tsid=TSID, sequence=2, code=Code.SHUTTING_DOWN, text="t", tunnel_id=Tsid(9), retry_after_ms=100
        ),
        "10000304010203040506070800000002 00010002000a 0002000174 001600080000000000000009 001b000400000064",
    ),
    (
        m.ReleaseResponse(tsid=TSID, sequence=2, code=Code.SUCCESS, text="t", tunnel_id=Tsid(9)),
        "10000403010203040506070800000002 000100020000 0002000174 001600080000000000000009",
    ),
    (
        m.ServiceRequest(
            tsid=TSID,
            sequence=3,
            service=Service.DDT,
            action=ServiceAction.ENABLE,
            flows=(UDP, UDP6),
            mode=PathMode.AUTO,
            coding=Coding(1, fec=True, compress=False),
            redundancy=Redundancy(Spread.FAN_OUT, 3),
        ),
        "10000507010203040506070800000003 001300020003 0014000101 0017000102 0015000411000fa0"
        "0015001611030fa2fd0000000000000000000000000000051ba6 001d00020101 002000020103",
    ),
    (
        m.ServiceResponse(
            tsid=TSID,
            sequence=3,
            code=Code.SERVICE_UNAVAILABLE,
            text="t",
            service=Service.DDT,
            tunnel_id=Tsid(0xAABB),
            join_secret=bytes(range(32)),
            offered_services=(Service.SIP,),
        ),
        "10000606010203040506070800000003 000100020001 0002000174 001300020003 00160008000000000000aabb"
        "00210020000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f 000800020001",
    ),
    (
        m.KeepaliveRequest(tsid=TSID, sequence=4, timestamp=77),
        "10000701010203040506070800000004 00180008000000000000004d",
    ),
    (
        m.KeepaliveResponse(tsid=TSID, sequence=4, timestamp=77),
        "10000801010203040506070800000004 00180008000000000000004d",
    ),
    (
        m.QualityReport(
            tsid=TSID,
            sequence=5,
            reports=(m.PathQuality(Path.DATAGRAM, 1000, 50, 2, 300, 40000),),
            decision=m.PathDecision(Path.DATAGRAM, 1, None, 91),
        ),
        "10000902010203040506070800000005 001a001501000003e800000032000000020000012c00009c40002900040101ff5b",
    ),
    (
        m.ErrorResponse(tsid=TSID, sequence=6, code=Code.UNKNOWN_TYPE, text="t"),
        "10007f02010203040506070800000006 000100020007 0002000174",
    ),
]


def golden(hexadecimal: str) -> bytes:
    return bytes.fromhex(hexadecimal.replace(" ", ""))


@pytest.mark.parametrize(("message", "data"), GOLDEN, ids=lambda v: type(v).__name__)
def test_the_wire_format_does_not_drift(message: m.Message, data: str) -> None:
    assert encode(message).hex() == golden(data).hex()
    assert decode_untrusted(golden(data)) == message


def test_every_type_and_every_field_has_golden_bytes() -> None:
    assert {type(message) for message, _ in GOLDEN} == {layout.cls for layout in LAYOUTS}
    for message, _ in GOLDEN:
        layout = next(layout for layout in LAYOUTS if layout.cls is type(message))
        assert all(getattr(message, name) not in (None, ()) for name, _ in layout.fields)


# -- round trips ------------------------------------------------------------------------------------------

addresses4 = st.ip_addresses(v=4)
addresses6 = st.ip_addresses(v=6)
addresses = st.one_of(addresses4, addresses6)
ports = st.integers(0, 65535)
endpoints = st.tuples(addresses, ports)
texts = st.text(max_size=60)
codes = st.one_of(st.sampled_from(Code), st.integers(100, 65535))
services = st.one_of(st.sampled_from(Service), st.integers(100, 65535))
service_lists = st.lists(services, max_size=6).map(tuple)
u16, u32, u64 = st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
tsids = u64.map(Tsid)
secrets = st.binary(min_size=32, max_size=32)


def flows() -> st.SearchStrategy[Flow]:
    def flow(ipv6: bool) -> st.SearchStrategy[Flow]:
        far = st.none() | st.tuples(addresses6 if ipv6 else addresses4, ports)
        return st.builds(Flow, st.sampled_from(Protocol), st.integers(1, 65535), st.just(ipv6), far)

    return st.booleans().flatmap(flow)


ipv4 = st.builds(lambda a, n: IPv4Interface((a, n)), addresses4, st.integers(0, 32))
ipv6 = st.builds(lambda a, n: IPv6Interface((a, n)), addresses6, st.integers(0, 128))
head = {"tsid": tsids, "sequence": u32}
answer = {"code": codes, "text": st.none() | texts}
quality = st.builds(m.PathQuality, st.sampled_from(Path), u32, u32, u32, u32, u32)

any_message = st.one_of(
    st.builds(
        m.ConfigurationRequest,
        **head,
        client_id=st.none() | st.binary(min_size=1, max_size=64),
        username=st.none() | st.text(min_size=1, max_size=60),
        password=st.none() | st.binary(min_size=1, max_size=MAX_PASSWORD),
        families=st.none() | st.sampled_from((m.AddressFamilies.IPV4, m.AddressFamilies.BOTH)),
        wanted_services=service_lists,
        resume_proof=st.none() | secrets,
        software=st.none() | texts,
        padding=st.none() | st.integers(0, MAX_PADDING),
    ),
    st.builds(
        m.ConfigurationResponse,
        **head,
        **answer,
        inner_ipv4=st.none() | ipv4,
        inner_ipv6=st.none() | ipv6,
        dns_servers=st.lists(addresses, max_size=4).map(tuple),
        sip_server=st.none() | endpoints,
        keepalive_ms=st.none() | u32,
        keepalive_datagram_ms=st.none() | u32,
        inner_mtu=st.none() | u16,
        resume_secret=st.none() | secrets,
        observed_address=st.none() | endpoints,
        offered_services=service_lists,
        persistence_ms=st.none() | u32,
        server_epoch=st.none() | u64,
        retry_after_ms=st.none() | u32,
        software=st.none() | texts,
        padding=st.none() | st.integers(0, MAX_PADDING),
    ),
    st.builds(m.ReleaseRequest, **head, code=st.none() | codes, tunnel_id=st.none() | tsids),
    st.builds(m.ReleaseResponse, **head, **answer, tunnel_id=st.none() | tsids),
    st.builds(
        m.ServiceRequest,
        **head,
        service=services,
        action=st.one_of(st.sampled_from(ServiceAction), st.integers(50, 255)),
        flows=st.lists(flows(), max_size=48).map(tuple),
        mode=st.none() | st.sampled_from(PathMode),
        coding=st.none() | st.builds(Coding, st.none() | st.integers(0, 2), st.booleans(), st.booleans()),
    ),
    st.builds(
        m.ServiceResponse, **head, **answer, service=st.none() | services, offered_services=service_lists
    ),
    st.builds(m.KeepaliveRequest, **head, timestamp=st.none() | u64),
    st.builds(m.KeepaliveResponse, **head, timestamp=st.none() | u64),
    st.builds(
        m.QualityReport,
        **head,
        reports=st.lists(quality, max_size=4).map(tuple),
        decision=st.none()
        | st.builds(
            m.PathDecision,
            st.sampled_from(Path),
            st.integers(0, 255),
            st.none() | st.integers(0, 100),
            st.none() | st.integers(0, 100),
        ),
    ),
    st.builds(m.ErrorResponse, **head, **answer),
)


@given(any_message)
def test_what_is_sent_is_what_arrives(message: m.Message) -> None:
    assert decode_untrusted(encode(message)) == message


# -- hostile bytes --------------------------------------------------------------------------------------


def decode_or_reason(data: bytes) -> str | m.Message:
    try:
        return decode_untrusted(data)
    except RemoteProtocolError as error:
        return REASONS[REASONS.index(error.reason)]


REASONS = [
    "truncated",
    "oversized",
    "bad-version",
    "bad-indication",
    "bad-reserved",
    "too-many-tlvs",
    "trailing-bytes",
    "duplicate-tlv",
    "bad-tlv-length",
    "bad-tlv-value",
    "too-many-services",
    "missing-tlv",
]


def frame(number: int, *tlvs: tuple[int, bytes], count: int | None = None) -> bytes:
    body = b"".join(struct.pack("!HH", kind, len(value)) + value for kind, value in tlvs)
    return HEADER.pack(0x10, 0, number, len(tlvs) if count is None else count, TSID, 1) + body


@pytest.mark.fuzz
@given(st.binary(max_size=200))
def test_random_bytes_are_refused_with_a_known_reason(data: bytes) -> None:
    decode_or_reason(data)


@pytest.mark.fuzz
@given(st.integers(1, 9), st.lists(st.tuples(st.integers(0, 32), st.binary(max_size=40)), max_size=20))
def test_random_tlvs_are_refused_or_understood(number: int, tlvs: list[tuple[int, bytes]]) -> None:
    result = decode_or_reason(frame(number, *tlvs))
    if isinstance(result, m.Message):
        assert decode_untrusted(encode(result)) == result


@pytest.mark.fuzz
@given(any_message, st.data())
def test_a_good_message_with_one_bad_byte_is_refused_or_understood(
    message: m.Message, data: st.DataObject
) -> None:
    good = bytearray(encode(message))
    at = data.draw(st.integers(0, len(good) - 1))
    good[at] ^= data.draw(st.integers(1, 255))
    decode_or_reason(bytes(good))


@given(any_message)
def test_every_truncation_is_refused(message: m.Message) -> None:
    good = encode(message)
    for end in {0, 1, 15, len(good) // 2, len(good) - 1}:
        if end < len(good):
            assert decode_or_reason(good[:end]) == "truncated"


SERVICE_REQUEST = ((19, b"\0\x03"), (20, b"\x01"))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "truncated"),
        (frame(7) + bytes(MAX_CONTROL_MESSAGE), "oversized"),
        (b"\x20" + frame(7)[1:], "bad-version"),
        (b"\x11" + frame(7)[1:], "bad-indication"),
        (b"\x10\x01" + frame(7)[2:], "bad-reserved"),
        (frame(7, count=MAX_TLVS + 1), "too-many-tlvs"),
        (frame(7, count=1), "truncated"),
        (frame(7) + b"\0", "trailing-bytes"),
        (frame(7, (24, bytes(8)), (24, bytes(8))), "duplicate-tlv"),
        (frame(7, (24, bytes(7))), "bad-tlv-length"),
        (frame(2), "missing-tlv"),
        (frame(5, (19, b"\0\x03")), "missing-tlv"),
        (frame(1, *[(7, b"\0\x01")] * (MAX_SERVICES + 1)), "too-many-services"),
        (frame(1, (4, b"\xff")), "bad-tlv-value"),
        (frame(1, (4, b"")), "bad-tlv-length"),
        (frame(1, (5, bytes(MAX_PASSWORD + 1))), "bad-tlv-length"),
        (frame(1, (6, b"\0")), "bad-tlv-value"),
        (frame(1, (6, b"\4")), "bad-tlv-value"),
        (frame(2, (1, b"\0\0"), (9, b"\x0a\0\0\1\x21")), "bad-tlv-value"),
        (frame(2, (1, b"\0\0"), (9, b"\x0a\0\0\1")), "bad-tlv-length"),
        (frame(2, (1, b"\0\0"), (10, bytes(16) + b"\x81")), "bad-tlv-value"),
        (frame(2, (1, b"\0\0"), (11, bytes(5))), "bad-tlv-length"),
        (frame(2, (1, b"\0\0"), (12, bytes(7))), "bad-tlv-length"),
        (frame(5, *SERVICE_REQUEST, (21, b"\x11\0\0")), "bad-tlv-length"),
        (frame(5, *SERVICE_REQUEST, (21, b"\x01\0\0\1")), "bad-tlv-value"),
        (frame(5, *SERVICE_REQUEST, (21, b"\x11\4\0\1")), "bad-tlv-value"),
        (frame(5, *SERVICE_REQUEST, (21, b"\x11\0\0\0")), "bad-tlv-value"),
        (frame(5, *SERVICE_REQUEST, (21, b"\x11\0\0\1\0")), "bad-tlv-length"),
        (frame(5, *SERVICE_REQUEST, (21, b"\x11\3\0\1" + bytes(6))), "bad-tlv-length"),
        (frame(5, *SERVICE_REQUEST, (23, b"\3")), "bad-tlv-value"),
        (frame(9, (26, b"\2" + bytes(20))), "bad-tlv-value"),
        (frame(9, (26, bytes(20))), "bad-tlv-length"),
    ],
)
def test_what_is_wrong_has_a_name(data: bytes, reason: str) -> None:
    assert decode_or_reason(data) == reason


def test_tlvs_nobody_knows_and_tlvs_of_other_messages_are_skipped() -> None:
    data = frame(7, (9999, b"?"), (9999, b"?"), (5, b""), (24, bytes(8)))
    assert decode_untrusted(data) == m.KeepaliveRequest(tsid=TSID, sequence=1, timestamp=0)


def test_a_type_nobody_knows_survives_with_its_header() -> None:
    assert decode_untrusted(frame(99, (1, b"?"))) == m.UnknownMessage(tsid=TSID, sequence=1, type=99)


def test_a_service_nobody_knows_survives_so_that_it_can_be_answered() -> None:
    message = decode_untrusted(frame(5, (19, b"\x12\x34"), (20, b"\x63")))
    assert message == m.ServiceRequest(tsid=TSID, sequence=1, service=0x1234, action=0x63)


# -- our own mistakes -----------------------------------------------------------------------------------

REQUEST = m.ConfigurationRequest(tsid=TSID, sequence=1)


@pytest.mark.parametrize(
    "message",
    [
        m.UnknownMessage(tsid=TSID, sequence=1, type=99),
        replace(REQUEST, sequence=2**32),
        replace(REQUEST, tsid=Tsid(2**64)),
        replace(REQUEST, client_id=b""),
        replace(REQUEST, username="x" * 256),
        replace(REQUEST, wanted_services=(1,) * (MAX_TLVS + 1)),
        m.ServiceRequest(tsid=TSID, sequence=1, service=2**16, action=1),
        m.ServiceRequest(tsid=TSID, sequence=1, service=3, action=1, flows=(Flow(Protocol.UDP, 70000),)),
        m.ServiceRequest(
            tsid=TSID,
            sequence=1,
            service=3,
            action=1,
            flows=(Flow(Protocol.UDP, 1, True, (IPv4Address("10.0.0.1"), 1)),),
        ),
        m.QualityReport(tsid=TSID, sequence=1, reports=(m.PathQuality(Path.STREAM, -1, 0, 0, 0, 0),)),
        m.QualityReport(tsid=TSID, sequence=1, decision=m.PathDecision(Path.STREAM, 300, None, None)),
    ],
)
def test_what_cannot_be_said_is_our_own_error(message: m.Message) -> None:
    with pytest.raises(LocalProtocolError):
        encode(message)
