"""SIP that goes by: what is read out of it, and that any bytes at all are survived."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opentsm.client.signalling import (
    MAX_CONNECTIONS,
    MAX_MESSAGE,
    Direction,
    Message,
    Streams,
    read_untrusted,
)
from opentsm.errors import RemoteProtocolError

WAY: Direction = (("10.64.1.10", 40000), ("10.64.0.2", 5060))


def sdp(port: int = 4000, address: str = "10.64.1.10", *more: str) -> bytes:
    lines = ["v=0", f"o=- 1 1 IN IP4 {address}", "s=-", f"c=IN IP4 {address}", "t=0 0"]
    lines += [f"m=audio {port} RTP/AVP 0", *more]
    return "".join(f"{line}\r\n" for line in lines).encode()


def sip(first: str, cseq: str, body: bytes = b"", call_id: str = "abc") -> bytes:
    kind = "Content-Type: application/sdp\r\n" if body else ""
    head = f"{first}\r\nVia: SIP/2.0/UDP x\r\nCall-ID: {call_id}\r\nCSeq: {cseq}\r\n{kind}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


INVITE = sip("INVITE sip:bob@example.test SIP/2.0", "1 INVITE", sdp())
BYE = sip("BYE sip:bob@example.test SIP/2.0", "2 BYE")


def test_a_request_an_answer_and_their_sdp() -> None:
    message = read_untrusted(INVITE)
    assert (message.method, message.status, message.call_id) == ("INVITE", 0, "abc")
    assert message.media is not None
    assert [line.port for line in message.media.media] == [4000]
    assert read_untrusted(sip("SIP/2.0 486 Busy Here", "1 INVITE")) == Message("INVITE", 486, "abc")


def test_compact_names_and_odd_spelling() -> None:
    body = sdp(5004)
    text = b"INVITE sip:b@c SIP/2.0\r\ni : xyz\r\nCSEQ:7 INVITE\r\nc: Application/SDP;x=y\r\n"
    text += b"l: %d\r\n\r\n%b%b"
    message = read_untrusted(text % (len(body), body, b"trailing"))
    assert message.call_id == "xyz"
    assert message.media is not None
    assert message.media.media[0].port == 5004


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"INVITE sip:b@c SIP/2.0\r\nCSeq: 1 INVITE\r\n\r\n", "sip-syntax"),
        (b"hello\r\nCall-ID: a\r\nCSeq: 1 INVITE\r\n\r\n", "sip-syntax"),
        (b"x" * (MAX_MESSAGE + 1), "sip-size"),
        (sip("INVITE sip:b@c SIP/2.0", "1 INVITE", b"v=0\r\nm=audio x RTP/AVP 0\r\n"), "bad-sdp"),
    ],
)
def test_what_cannot_be_read_has_a_name(data: bytes, reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as refused:
        read_untrusted(data)
    assert refused.value.reason == reason


def cut(data: bytes, size: int, start: int = 2**32 - 50) -> list[tuple[int, bytes]]:
    """Segments with their numbers, which wrap."""
    return [((start + at) % 2**32, data[at : at + size]) for at in range(0, len(data), size)]


@pytest.mark.parametrize("size", [60, 100, 10_000])
def test_messages_come_whole_out_of_segments(size: int) -> None:
    streams = Streams()
    found = [one for part in cut(INVITE + BYE, size) for one in streams.feed_untrusted(WAY, *part)]
    assert found[0] == INVITE
    # A segment that does not begin with a message is skipped when nothing was held.
    assert found[1:] == ([BYE] if (len(INVITE) % size or size > len(INVITE)) else [])


def test_segments_sent_again_are_read_once_and_a_gap_costs_one_message() -> None:
    streams = Streams()
    first, second, third = cut(INVITE, 80)[:3]
    parts = [first, second, first, second, third, *cut(INVITE, 80)[3:]]
    assert [m for part in parts for m in streams.feed_untrusted(WAY, *part)] == [INVITE]
    assert [m for part in (first, third) for m in streams.feed_untrusted(WAY, *part)] == []
    assert list(streams.feed_untrusted(WAY, 7, BYE)) == [BYE]


def test_connections_do_not_pile_up() -> None:
    streams = Streams()
    for port in range(3 * MAX_CONNECTIONS):
        assert not list(streams.feed_untrusted((("10.0.0.1", port), WAY[1]), 0, INVITE[:40]))
    assert len(streams._open) == MAX_CONNECTIONS
    assert not list(streams.feed_untrusted(WAY, 0, b"INVITE sip:b@c SIP/2.0\r\nX: " + b"x" * MAX_MESSAGE))
    assert WAY not in streams._open


@given(st.binary(max_size=300), st.binary(max_size=60))
def test_any_bytes_are_survived(noise: bytes, tail: bytes) -> None:
    for data in (noise, INVITE[: len(noise)] + noise, INVITE.replace(b"4000", tail)):
        try:
            read_untrusted(data)
        except RemoteProtocolError:
            continue


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.binary(max_size=50)), max_size=20))
def test_any_segments_are_survived(parts: list[tuple[int, bytes]]) -> None:
    streams = Streams()
    for number, data in [(0, INVITE[:100]), *parts]:
        for message in streams.feed_untrusted(WAY, number, data):
            assert message
