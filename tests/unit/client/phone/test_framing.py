"""Messages out of a stream, however it is cut."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opentsm.client.phone.framing import PING, PONG, Framing
from opentsm.client.phone.message import MAX_MESSAGE
from opentsm.errors import RemoteProtocolError

OPTIONS = b"OPTIONS sip:a@b SIP/2.0\r\nContent-Length: 0\r\n\r\n"
MESSAGE = b"MESSAGE sip:a@b SIP/2.0\r\nl:\t5\r\nSubject: Content-Length: 9\r\n\r\n\r\n\r\nx"


@given(st.lists(st.sampled_from([OPTIONS, MESSAGE, PING]), max_size=6), st.lists(st.integers(1, 40)))
def test_any_cuts_give_the_same_messages(sent: list[bytes], cuts: list[int]) -> None:
    framing, stream, found = Framing(), b"".join(sent), []
    for length in cuts:
        found += framing.feed_untrusted(stream[:length])
        stream = stream[length:]
    found += framing.feed_untrusted(stream)
    assert found == sent


def test_an_answer_to_a_keepalive_is_none_of_the_next_message() -> None:
    framing = Framing()
    assert framing.feed_untrusted(PONG) == []
    assert framing.feed_untrusted(OPTIONS) == [PONG, OPTIONS]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"OPTIONS sip:a@b SIP/2.0\r\nX: 1\r\n\r\n", "sip-content-length"),
        (b"OPTIONS sip:a@b SIP/2.0\r\nl: 1\r\nl: 2\r\n\r\n", "sip-content-length"),
        (b"OPTIONS sip:a@b SIP/2.0\r\nl: -1\r\n\r\n", "sip-content-length"),
        (b"OPTIONS sip:a@b SIP/2.0\r\nl: 99999\r\n\r\n", "sip-size"),
        (b"x" * MAX_MESSAGE, "sip-size"),
    ],
)
def test_a_stream_without_message_ends_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as refused:
        Framing().feed_untrusted(data)
    assert refused.value.reason == reason


@pytest.mark.fuzz
@given(st.lists(st.binary(max_size=200)))
def test_any_bytes_are_messages_or_refused(chunks: list[bytes]) -> None:
    framing = Framing()
    with contextlib.suppress(RemoteProtocolError):  # and nothing else
        for chunk in chunks:
            framing.feed_untrusted(chunk)
