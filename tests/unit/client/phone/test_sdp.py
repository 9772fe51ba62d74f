from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opentsm.client.phone.sdp import Description, Local, Media, answer, offer, parse_sdp_untrusted
from opentsm.errors import RemoteProtocolError

LOCAL = Local("10.64.0.2", 20000, 20001, session=9)


def parsed(text: str) -> Description:
    return parse_sdp_untrusted("\r\n".join(["v=0", *text.splitlines()]).encode() + b"\r\n")


def audio(text: str) -> Media:
    found = parsed(text).audio
    assert found is not None
    return found


def test_our_offer_says_what_we_can() -> None:
    media = parse_sdp_untrusted(offer(LOCAL)).audio
    assert media is not None
    assert (media.address, media.port, media.formats) == ("10.64.0.2", 20000, ("0", "8", "101"))
    assert (media.events, media.direction) == (101, "sendrecv")
    assert media.rtcp == ("10.64.0.2", 20001)


def test_ipv6() -> None:
    local = Local("fd00::2", 20000, 20001, session=9)
    assert b"c=IN IP6 fd00::2\r\n" in offer(local)
    media = parse_sdp_untrusted(offer(local)).audio
    assert media is not None
    assert media.address == "fd00::2"


@pytest.mark.parametrize(
    ("formats", "maps", "encoding", "payload_type", "events"),
    [
        ("8 0", "", "PCMA", 8, None),
        ("9 0", "a=rtpmap:9 G722/8000", "PCMU", 0, None),
        ("96 97", "a=rtpmap:96 pcma/8000\na=rtpmap:97 telephone-event/8000", "PCMA", 96, 97),
        ("96 0 101", "a=rtpmap:96 speex/8000\na=rtpmap:101 telephone-event/8000", "PCMU", 0, 101),
    ],
)
def test_the_first_law_that_is_offered_is_taken(
    formats: str, maps: str, encoding: str, payload_type: int, events: int | None
) -> None:
    media = audio(f"c=IN IP4 10.0.0.1\nm=audio 4000 RTP/AVP {formats}\n{maps}")
    assert media.codec is not None
    assert (media.codec[0].encoding, media.codec[1], media.events) == (encoding, payload_type, events)


def test_an_answer_takes_one_audio_and_refuses_the_rest_in_order() -> None:
    """RFC 3264 section 6: as many m= lines, in the same order; port 0 refuses."""
    offered = parsed(
        "c=IN IP4 10.0.0.1\nm=image 5000 udptl t38\nm=audio 6000 RTP/SAVP 0\nm=audio 4000 RTP/AVP 8 0 101\n"
        "a=rtpmap:101 telephone-event/8000\nm=video 7000 RTP/AVP 99"
    )
    answered = answer(LOCAL, offered)
    assert answered is not None
    lines = [line for line in answered.decode().splitlines() if line.startswith("m=")]
    assert lines == [
        "m=image 0 udptl t38",
        "m=audio 0 RTP/SAVP 0",
        "m=audio 20000 RTP/AVP 8 101",
        "m=video 0 RTP/AVP 99",
    ]


@pytest.mark.parametrize(
    ("offered", "answered", "held"),
    [
        ("sendrecv", "sendrecv", False),
        ("sendonly", "recvonly", True),
        ("recvonly", "sendonly", False),
        ("inactive", "inactive", True),
    ],
)
def test_directions_are_mirrored(offered: str, answered: str, held: bool) -> None:
    description = parsed(f"c=IN IP4 10.0.0.1\nm=audio 4000 RTP/AVP 0\na={offered}")
    assert description.audio is not None
    assert description.audio.on_hold is held
    assert f"a={answered}\r\n".encode() in (answer(LOCAL, description) or b"")


def test_hold_as_it_was_said_before() -> None:
    assert audio("c=IN IP4 0.0.0.0\nm=audio 4000 RTP/AVP 0").on_hold


def test_rtcp_elsewhere() -> None:
    assert audio("c=IN IP4 10.0.0.1\nm=audio 4000 RTP/AVP 0\na=rtcp:5001").rtcp == ("10.0.0.1", 5001)
    elsewhere = audio("c=IN IP4 10.0.0.1\nm=audio 4000 RTP/AVP 0\na=rtcp:5001 IN IP4 10.0.0.9")
    assert elsewhere.rtcp == ("10.0.0.9", 5001)


@pytest.mark.parametrize(
    "text",
    [
        "m=audio 0 RTP/AVP 0",
        "m=audio 4000 RTP/SAVP 0",
        "m=audio 4000 RTP/AVP 9",
        "m=video 4000 RTP/AVP 0",
        "s=no media",
    ],
)
def test_nothing_for_us(text: str) -> None:
    description = parsed(f"c=IN IP4 10.0.0.1\n{text}")
    assert description.audio is None
    assert answer(LOCAL, description) is None


@pytest.mark.parametrize(
    "text",
    [
        "m=audio x RTP/AVP 0",
        "m=audio 70000 RTP/AVP 0",
        "m=audio 4000",
        "c=IN IP4 not-an-address",
        "nonsense",
        "\n".join(["m=audio 1 RTP/AVP 0"] * 17),
        "\n".join(["a=x"] * 300),
    ],
)
def test_what_cannot_be_read_is_a_remote_error(text: str) -> None:
    with pytest.raises(RemoteProtocolError, match="sdp-syntax"):
        parsed(text)


@given(st.binary(max_size=120), st.integers(0, 200), st.integers(0, 10))
def test_any_bytes_are_a_description_or_a_remote_error(junk: bytes, at: int, cut: int) -> None:
    whole = offer(LOCAL)
    for data in (junk, b"v=0\r\n" + junk, whole[:at] + junk + whole[at + cut :]):
        try:
            description = parse_sdp_untrusted(data)
        except RemoteProtocolError:
            continue
        answered = answer(LOCAL, description)
        if answered is not None:
            again = parse_sdp_untrusted(answered)
            assert len(again.media) == len(description.media)
