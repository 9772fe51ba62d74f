"""Messages out of a byte stream, whatever its pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opentsm.errors import RemoteProtocolError
from opentsm.sbc.framing import PING, Framing
from opentsm.sbc.message import MAX_MESSAGE


def message(body: bytes = b"", name: str = "Content-Length", more: str = "") -> bytes:
    return f"INFO sip:a@b SIP/2.0\r\n{more}{name}: {len(body)}\r\nSubject: x\r\n\r\n".encode() + body


def everything(*pieces: bytes) -> list[bytes]:
    framing, found = Framing(), list[bytes]()
    for piece in pieces:
        framing.feed(piece)
        while (one := framing.next_untrusted()) is not None:
            found.append(one)
    return found


MESSAGES = [message(), message(b"hello"), message(b"\r\n\r\n"), message(b"x" * 700, name="l")]


@given(st.lists(st.sampled_from([*MESSAGES, b"\r\n\r\n"]), max_size=5), st.data())
def test_how_the_stream_is_cut_makes_no_difference(parts: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert everything(*pieces) == [PING if part == b"\r\n\r\n" else part for part in parts]


def test_a_lone_line_end_between_messages_is_nothing() -> None:
    assert everything(MESSAGES[0] + b"\r\n" + MESSAGES[1]) == MESSAGES[:2]
    assert everything(b"\r\n", MESSAGES[0], b"\r\n", MESSAGES[1]) == MESSAGES[:2]


def test_a_folded_length_is_read() -> None:
    data = b"INFO sip:a@b SIP/2.0\r\nContent-Length :\r\n  3\r\n\r\nabc"
    assert everything(data) == [data]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"INFO sip:a@b SIP/2.0\r\nSubject: x\r\n\r\n", "bad-content-length"),
        (message(more="l: 7\r\n"), "bad-content-length"),
        (message(name="Content-Length: -"), "bad-content-length"),
        (b"INFO sip:a@b SIP/2.0\r\nContent-Length: 99999999999\r\n\r\n", "bad-content-length"),
        (b"INFO sip:a@b SIP/2.0\r\nContent-Length: 999999\r\n\r\n", "too-large"),
        (b"INFO sip:a@b SIP/2.0\r\nSubject: " + b"x" * MAX_MESSAGE, "too-large"),
    ],
)
def test_a_stream_whose_next_message_cannot_be_found_is_broken(data: bytes, reason: str) -> None:
    framing = Framing()
    framing.feed(MESSAGES[1] + data)
    assert framing.next_untrusted() == MESSAGES[1]
    with pytest.raises(RemoteProtocolError) as broken:
        framing.next_untrusted()
    assert broken.value.reason == reason
    assert framing.rest.startswith(b"INFO"), "enough to say who is answered"
    assert framing.pending == 0


@pytest.mark.fuzz
@given(st.lists(st.binary(max_size=80) | st.sampled_from(MESSAGES), max_size=8))
def test_nothing_but_the_promised_error_is_raised_and_nothing_is_kept_for_ever(pieces: list[bytes]) -> None:
    framing = Framing()
    try:
        for piece in pieces:
            framing.feed(piece)
            while framing.next_untrusted() is not None:
                pass
    except RemoteProtocolError:
        pass
    assert framing.pending <= MAX_MESSAGE
