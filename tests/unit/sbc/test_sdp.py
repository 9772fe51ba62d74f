from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opentsm.errors import RemoteProtocolError
from opentsm.sbc.sdp import Place, endpoint_untrusted, parse_untrusted, rewrite


def text(*lines: str) -> bytes:
    return "".join(f"{line}\r\n" for line in lines).encode()


RICH = text(
    "v=0",
    "o=alice 1 1 IN IP4 192.168.1.7",
    "s=-",
    "c=IN IP4 192.168.1.7",
    "t=0 0",
    "a=group:BUNDLE 0 1",
    "a=ice-lite",
    "m=audio 16000/2 RTP/SAVP 111 0 101",
    "i=voice",
    "b=AS:64",
    "a=rtpmap:111 opus/48000/2",
    "a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:d0RmdmcmVCspeEc3QGZiNWpVLFJhQX1cfHAwJSoj",
    "a=rtcp:16009 IN IP4 192.168.1.8",
    "a=ice-ufrag:8hhY",
    "a=candidate:1 1 UDP 2130706431 192.168.1.7 16000 typ host",
    "a=sendrecv",
    "m=video 16002 UDP/TLS/RTP/SAVPF 96",
    "c=IN IP6 2001:db8::7",
    "a=rtcp-mux",
    "a=fingerprint:sha-256 AA:BB",
    "m=image 16004 udptl t38",
    "a=T38FaxVersion:0",
    "m=application 16006 TCP/BFCP *",
    "a=setup:actpass",
    "m=text 0 RTP/AVP 98",
)


def test_each_m_line_says_where_it_wants_its_media() -> None:
    description = parse_untrusted(RICH)
    ends = [endpoint_untrusted(description, line) for line in description.media]
    assert [(e.address, e.port, e.rtcp_port, e.rtp, e.mux) for e in ends[:3]] == [
        ("192.168.1.7", 16000, 16009, True, False),
        ("2001:db8::7", 16002, 16003, True, True),
        ("192.168.1.7", 16004, 16005, False, False),
    ]
    assert ends[0].rtcp_address == "192.168.1.8"
    assert [line.codec for line in description.media] == ["opus", "96", "T38", "*", "98"]
    assert [line.is_datagram for line in description.media] == [True, True, True, False, True]


def test_only_places_change() -> None:
    description = parse_untrusted(RICH)
    places = [
        Place("10.64.0.1", 20000, 20001),
        Place("10.64.0.1", 20004, 20005),
        Place("10.64.0.1", 20008, 20009),
    ]
    result = rewrite(description, [*places, None, None], "10.64.0.2").encode().decode().split("\r\n")
    assert result == [
        "v=0",
        "o=alice 1 1 IN IP4 192.168.1.7",
        "s=-",
        "c=IN IP4 10.64.0.1",
        "t=0 0",
        "m=audio 20000 RTP/SAVP 111 0 101",
        "i=voice",
        "b=AS:64",
        "a=rtpmap:111 opus/48000/2",
        "a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:d0RmdmcmVCspeEc3QGZiNWpVLFJhQX1cfHAwJSoj",
        "a=rtcp:20001",
        "a=sendrecv",
        "m=video 20004 UDP/TLS/RTP/SAVPF 96",
        "a=rtcp-mux",
        "a=fingerprint:sha-256 AA:BB",
        "m=image 20008 udptl t38",
        "a=T38FaxVersion:0",
        "m=application 16006 TCP/BFCP *",
        "c=IN IP4 10.64.0.2",
        "a=setup:actpass",
        "m=text 0 RTP/AVP 98",
        "",
    ]


def test_no_address_of_the_party_is_left_where_media_could_go() -> None:
    description = parse_untrusted(RICH)
    places = [Place("fd00::1", 20000 + 4 * n, 20001 + 4 * n) for n in range(3)]
    result = rewrite(description, [*places, None, None], "fd00::2")
    for line in result.media[:4]:
        assert endpoint_untrusted(result, line).address in ("fd00::1", "fd00::2")
    assert b"c=IN IP6 fd00::1" in result.encode()


def test_without_a_session_level_address_each_m_line_gets_its_own() -> None:
    description = parse_untrusted(text("v=0", "m=audio 5 RTP/AVP 0", "i=x", "c=IN IP4 1.2.3.4", "a=x"))
    result = rewrite(description, [Place("10.64.0.1", 20000, 20001)], "10.64.0.2")
    assert result.media[0].lines == ["i=x", "c=IN IP4 10.64.0.1", "a=x"]
    assert result.head == ["v=0"]


@pytest.mark.parametrize("line", ["c=IN IP4 0.0.0.0", "c=IN IP6 ::"])
def test_hold_by_address_is_known(line: str) -> None:
    description = parse_untrusted(text("v=0", line, "m=audio 5 RTP/AVP 0"))
    assert endpoint_untrusted(description, description.media[0]).held


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        text("v=1"),
        text("v=0", "m=audio 5 RTP/AVP 0"),
        text("v=0", "c=IN IP4 1.2.3.4", "m=audio 70000 RTP/AVP 0"),
        text("v=0", "c=IN IP4 1.2.3.4", "m=audio x RTP/AVP 0"),
        text("v=0", "c=IN IP5 1.2.3.4", "m=audio 5 RTP/AVP 0"),
        text("v=0", "c=IN IP4 1.2.3.4", "m=audio 5 RTP/AVP 0", "a=rtcp:0"),
        text("v=0", "c=IN IP4 1.2.3.4", "junk"),
        text("v=0", "c=IN IP4 1.2.3.4", *["m=audio 5 RTP/AVP 0"] * 17),
        text("v=0", "c=IN IP4 1.2.3.4", *["a=x"] * 1000),
        b"v=0\r\n" + b"a=" + b"x" * 30_000,
    ],
)
def test_malformed_descriptions(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_untrusted(body)


@pytest.mark.fuzz
@given(st.binary(max_size=200), st.integers(0, len(RICH)), st.integers(0, 200))
def test_nothing_but_the_promised_error_is_raised(noise: bytes, start: int, cut: int) -> None:
    for data in (noise, RICH[:start] + noise + RICH[start + cut :]):
        try:
            description = parse_untrusted(data)
        except RemoteProtocolError:
            continue
        places = [Place("10.64.0.1", 20000, 20001) if line.port else None for line in description.media]
        again = parse_untrusted(rewrite(description, places, "10.64.0.2").encode())
        assert len(again.media) == len(description.media)
