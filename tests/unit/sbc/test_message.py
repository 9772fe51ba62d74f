from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opentsm.errors import RemoteProtocolError
from opentsm.sbc.message import Request, Response, parse_untrusted, reply, split_list

INVITE = (
    b"INVITE sip:bob@example.org SIP/2.0\r\n"
    b"Via: SIP/2.0/UDP 10.64.0.2;branch=z9hG4bK1, SIP/2.0/UDP 10.64.0.3;branch=z9hG4bK0\r\n"
    b"v: SIP/2.0/UDP 10.64.0.4\r\n"
    b"f: Alice <sip:alice@example.org>;tag=1\r\nt: <sip:bob@example.org>\r\n"
    b"i: call-1\r\nCSeq: 1 INVITE\r\nSubject: folded\r\n  text\r\nl: 3\r\n\r\nabcdef"
)


def test_a_request_is_read() -> None:
    message = parse_untrusted(INVITE)
    assert isinstance(message, Request)
    assert (message.method, message.uri) == ("INVITE", "sip:bob@example.org")
    assert message.get("call-id") == "call-1"
    assert message.get("FROM") == "Alice <sip:alice@example.org>;tag=1"
    assert [value.split("branch=")[-1] for value in message.values("via")][:2] == ["z9hG4bK1", "z9hG4bK0"]
    assert len(message.values("Via")) == 3
    assert message.get("Subject") == "folded text"
    assert message.body == b"abc"


def test_what_is_not_understood_goes_through_unchanged() -> None:
    raw = b"MESSAGE sip:b@x SIP/2.0\r\nX-Odd: \xff\xfe;=,<\r\nContent-Length: 0\r\n\r\n"
    message = parse_untrusted(raw)
    assert isinstance(message, Request)
    assert message.encode() == raw


@pytest.mark.parametrize("line", [b"SIP/2.0 200 OK", b"SIP/2.0 183 ", b"SIP/2.0 603", b"sip/2.0 100 Trying"])
def test_responses_are_read_with_and_without_a_reason(line: bytes) -> None:
    message = parse_untrusted(line + b"\r\nVia: x\r\n\r\n")
    assert isinstance(message, Response)
    assert 100 <= message.code < 700


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "truncated"),
        (b"INVITE sip:b@x SIP/2.0\r\n", "truncated"),
        (b"INVITE sip:b@x\r\n\r\n", "bad-start-line"),
        (b"SIP/2.0 99 Low\r\n\r\n", "bad-start-line"),
        (b"SIP/2.0 700 High\r\n\r\n", "bad-start-line"),
        (b"INVITE sip:b@x SIP/2.0\r\nno colon\r\n\r\n", "bad-header"),
        (b"INVITE sip:b@x SIP/2.0\r\na b: c\r\n\r\n", "bad-header"),
        (b"INVITE sip:b@x SIP/2.0\r\na: \x00\r\n\r\n", "control-character"),
        (b"INVITE sip:b@x SIP/2.0\r\n" + b"a: b\r\n" * 300 + b"\r\n", "too-many-headers"),
        (b"INVITE sip:b@x SIP/2.0\r\nl: 5\r\n\r\nabcd", "bad-content-length"),
        (b"INVITE sip:b@x SIP/2.0\r\nl: +1\r\n\r\nabcd", "bad-content-length"),
        (b"INVITE sip:b@x SIP/2.0\r\nl: 1\r\nl: 2\r\n\r\nabcd", "bad-content-length"),
        (b"x" * 40_000, "too-large"),
    ],
)
def test_what_cannot_be_read_has_a_name(data: bytes, reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        parse_untrusted(data)
    assert caught.value.reason == reason


@pytest.mark.fuzz
@given(st.binary(max_size=400), st.integers(0, len(INVITE)), st.integers(0, len(INVITE)))
def test_nothing_but_the_promised_error_is_raised(noise: bytes, start: int, end: int) -> None:
    for data in (noise, INVITE[:start] + noise + INVITE[end:]):
        try:
            message = parse_untrusted(data)
        except RemoteProtocolError:
            continue
        again = parse_untrusted(message.encode())
        assert again.headers == message.headers
        assert again.body == message.body


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("a, b,c", ["a", "b", "c"]),
        ('"a, b" <sip:c@d>, <sip:e,f@g>', ['"a, b" <sip:c@d>', "<sip:e,f@g>"]),
        (r'"a\", b" <sip:c@d>', [r'"a\", b" <sip:c@d>']),
        (" , ,", []),
        ("", []),
    ],
)
def test_lists_are_cut_at_the_right_commas(text: str, items: list[str]) -> None:
    assert split_list(text) == items


def test_a_header_is_replaced_where_it_stood() -> None:
    request = Request("X", "sip:a", headers=[("A", "1"), ("Via", "x"), ("B", "2"), ("via", "y")])
    request.set_values("Via", ["p", "q"])
    assert request.headers == [("A", "1"), ("Via", "p"), ("Via", "q"), ("B", "2")]
    request.prepend("Via", "top")
    assert request.values("Via") == ["top", "p", "q"]
    request.remove("via")
    assert request.headers == [("A", "1"), ("B", "2")]


def test_an_answer_repeats_what_it_must_and_adds_a_tag() -> None:
    request = parse_untrusted(INVITE)
    assert isinstance(request, Request)
    response = reply(request, 404, tag="t9", server="S")
    assert response.values("Via") == request.values("Via")
    assert response.get("To") == "<sip:bob@example.org>;tag=t9"
    assert (response.get("CSeq"), response.reason) == ("1 INVITE", "Not Found")
    assert reply(request, 100, tag="t9").get("To") == "<sip:bob@example.org>"
    request.set("To", '"x;tag=no" <sip:b@x;tag=uri>;Tag=mine')
    assert reply(request, 404, tag="t9").get("To") == request.get("To")
