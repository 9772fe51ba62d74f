from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opentsm.client.phone.message import parse_sip_untrusted, parse_uri, response
from opentsm.errors import RemoteProtocolError

LINES = [
    "OPTIONS sip:bob@10.64.0.3 SIP/2.0",
    "Via: SIP/2.0/UDP 10.64.0.1;branch=z9hG4bK.~a+b*c;rport;i=7, SIP/2.0/TCP 10.64.0.2:5070;branch=z9hG4bK2",
    "v: SIP/2.0/UDP 10.64.0.9;branch=z9hG4bK3",
    'f: "Alice, the first" <sip:alice@example.org>;tag=a+b*1',
    "t: <sip:bob@example.org>",
    "i: call%1@host",
    "CSeq: 7",
    "  OPTIONS",
    'Record-Route: <sip:a,c@10.64.0.1;lr;x=a+b>, "p, q" <sip:10.64.0.5;lr>',
    "m: <sip:alice@10.64.0.2:5070;ob=a+b>",
    "l: 4",
    "",
    "bodyand more",
]


def message(*changes: tuple[int, str]) -> bytes:
    lines = list(LINES)
    for number, text in changes:
        lines[number] = text
    return "\r\n".join(lines).encode()


def test_what_a_user_agent_looks_at_is_read() -> None:
    got = parse_sip_untrusted(b"\r\n\r\n" + message())
    assert (got.method, got.is_request, got.call_id, got.cseq.sequence) == ("OPTIONS", True, "call%1@host", 7)
    assert (got.from_tag, got.to_tag, got.branch) == ("a+b*1", "", "z9hG4bK.~a+b*c")
    assert len(got.vias) == 3
    assert got.routes == ("<sip:a,c@10.64.0.1;lr;x=a+b>", '"p, q" <sip:10.64.0.5;lr>')
    assert got.target == "sip:alice@10.64.0.2:5070;ob=a+b"
    assert got.body == b"body"  # RFC 3261 section 18.3: what is over the length is thrown away


def test_a_response_gives_back_what_came_to_the_letter() -> None:
    """Characters that are legal in tokens must not come back percent-encoded."""
    answer = response(parse_sip_untrusted(message()), 200, "mine", source=("10.64.0.77", 5099)).decode()
    lines = answer.split("\r\n")
    assert "Via: SIP/2.0/UDP 10.64.0.1;branch=z9hG4bK.~a+b*c;rport=5099;i=7;received=10.64.0.77" in lines
    assert "Via: SIP/2.0/TCP 10.64.0.2:5070;branch=z9hG4bK2" in lines
    assert "Via: SIP/2.0/UDP 10.64.0.9;branch=z9hG4bK3" in lines
    assert 'From: "Alice, the first" <sip:alice@example.org>;tag=a+b*1' in lines
    assert "To: <sip:bob@example.org>;tag=mine" in lines
    assert "Record-Route: <sip:a,c@10.64.0.1;lr;x=a+b>" in lines
    again = parse_sip_untrusted(answer.encode())
    assert (again.code, again.to_tag, again.method) == (200, "mine", "OPTIONS")


def test_a_to_without_brackets_gets_its_tag_as_a_header_parameter() -> None:
    got = parse_sip_untrusted(message((4, "To: sip:bob@example.org")))
    assert b"To: <sip:bob@example.org>;tag=mine\r\n" in response(got, 486, "mine")
    assert b"tag=mine" not in response(got, 100, "mine")


@pytest.mark.parametrize(
    "change",
    [
        (0, "OPTIONS"),
        (0, "OPTIONS mailto:bob SIP/2.0"),
        (0, "SIP/2.0 99 Low"),
        (0, "SIP/2.0 abc x"),
        (0, "INVITE sip:bob@10.64.0.3 SIP/2.0"),
        (1, "Via: nonsense"),
        (3, "From: <sip:a@b>;self=1"),
        (3, "From: <sip:a@b;self=1>"),
        (4, "No-To: x"),
        (5, "i: "),
        (6, "CSeq: 99999999999"),
        (6, "CSeq: \u0667"),
        (8, "Record-Route: <sip:a@b>, nonsense nonsense"),
        (10, "l: -1"),
        (10, "l: 400"),
        (10, "Content-Length: 9" + "9" * 5000),
        (10, "X: " + "y" * 3000),
        (10, "X: a\nInjected: yes"),
        (10, "X: a\x00"),
        (10, "\r\n".join(["X: 1"] * 200)),
        (10, ", ".join(["m: <sip:a@b>"] + ["<sip:a@b>"] * 60)),
    ],
)
def test_what_is_wrong_is_a_remote_error(change: tuple[int, str]) -> None:
    with pytest.raises(RemoteProtocolError, match=r"sip-(syntax|header-missing)"):
        parse_sip_untrusted(message(change))


@pytest.mark.parametrize("data", [b"", b"\r\n", b"x" * 20000])
def test_sizes(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="sip-size"):
        parse_sip_untrusted(data)


@given(st.binary(max_size=300))
def test_any_bytes_are_sip_or_a_remote_error(data: bytes) -> None:
    try:
        parse_sip_untrusted(data)
    except RemoteProtocolError:
        pass
    else:
        pytest.fail("random bytes are never SIP")


@given(st.binary(max_size=30), st.integers(0, 700), st.integers(0, 20))
def test_a_damaged_message_is_read_or_a_remote_error(junk: bytes, at: int, cut: int) -> None:
    whole = message()
    try:
        got = parse_sip_untrusted(whole[:at] + junk + whole[at + cut :])
    except RemoteProtocolError:
        return
    answered = response(got, 200, "t", source=("10.0.0.1", 1))
    assert parse_sip_untrusted(answered).call_id == got.call_id


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("bob", "sip:bob@example.org"),
        ("sip:bob@10.0.0.1:5070", "sip:bob@10.0.0.1:5070"),
        ("bob@other.org", "sip:bob@other.org"),
        ("sip:bob@[fd00::1]", "sip:bob@[fd00::1]"),
    ],
)
def test_what_a_user_writes(text: str, uri: str) -> None:
    assert str(parse_uri(text, "example.org")) == uri


@pytest.mark.parametrize("text", ["", "bob smith", "sip:", "bob@", "sip:bob@a b", "a\r\nb"])
def test_what_is_no_address_says_what_to_write(text: str) -> None:
    with pytest.raises(ValueError, match="write sip:USER@DOMAIN"):
        parse_uri(text, "example.org")
