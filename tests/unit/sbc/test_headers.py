from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opentsm.errors import RemoteProtocolError
from opentsm.sbc.headers import (
    credentials_untrusted,
    cseq_untrusted,
    essentials_untrusted,
    is_literal,
    name_addr_untrusted,
    params_untrusted,
    uri_untrusted,
    via_received,
    via_untrusted,
)
from opentsm.sbc.message import Request

READERS: list[Callable[[str], object]] = [
    via_untrusted,
    cseq_untrusted,
    name_addr_untrusted,
    uri_untrusted,
    params_untrusted,
    credentials_untrusted,
]


def test_a_via_is_read_whatever_its_capitals_and_spaces() -> None:
    via = via_untrusted("SIP / 2.0 / uDp  Host.Example:5070 ;Branch=z9hG4bKx; RPORT")
    assert (via.transport, via.host, via.port, via.branch, via.rport) == (
        "udp",
        "host.example",
        5070,
        "z9hG4bKx",
        True,
    )
    assert via_untrusted("SIP/2.0/UDP [fd00::1]:5060").host == "[fd00::1]"
    assert via_untrusted("SIP/2.0/UDP a;self=1;branch=b").branch == "b"


def test_where_a_request_came_from_replaces_what_it_claims() -> None:
    text = via_received("SIP/2.0/UDP 192.168.1.7;rport;branch=z9;received=1.2.3.4", "10.64.0.2", 5070)
    assert text == "SIP/2.0/UDP 192.168.1.7;branch=z9;received=10.64.0.2;rport=5070"


@pytest.mark.parametrize(
    ("text", "uri", "tag"),
    [
        ("<sip:a@b>;tag=1", "sip:a@b", "1"),
        ("sip:a@b;tag=1", "sip:a@b", "1"),
        ('"A <x>; \\" y" <sip:a@b;lr>;x="q;tag=2";TAG=3', "sip:a@b;lr", "3"),
        ("Anonymous <sip:c8oqz84zk7z@privacy.org>;tag=hyh8", "sip:c8oqz84zk7z@privacy.org", "hyh8"),
        ("<urn:service:sos>", "urn:service:sos", ""),
    ],
)
def test_addresses(text: str, uri: str, tag: str) -> None:
    found = name_addr_untrusted(text)
    assert (found.uri, found.tag) == (uri, tag)


@pytest.mark.parametrize(
    "text", ["", "<sip:a@b", '"x <sip:a@b>', "<a b>", "<sip:a@b> x", "bob", "<sip:a@b>;;;=1"]
)
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(RemoteProtocolError):
        name_addr_untrusted(text)


def test_uris() -> None:
    assert uri_untrusted("SIP:b%6Fb@Example.ORG:5070;transport=UDP?Subject=x").user == "bob"
    assert uri_untrusted("sips:[fd00::1]").host == "[fd00::1]"
    assert uri_untrusted("sip:a;x=1@b;self=2").user == "a;x=1"
    assert uri_untrusted("tel:+1-201-555;phone-context=x").user == "+1-201-555"


@pytest.mark.parametrize(
    "text", ["", "sip:", "http://x", "sip:a@", "sip:a@b c", "tel:", "tel:x", "sip:a@b:port"]
)
def test_uris_that_are_none(text: str) -> None:
    with pytest.raises(RemoteProtocolError):
        uri_untrusted(text)


def test_credentials() -> None:
    params = credentials_untrusted('Digest username="a \\"b\\", c", realm="r", qop=auth,nc=00000001, Self=x')
    assert params == {
        "scheme": "digest",
        "username": 'a "b", c',
        "realm": "r",
        "qop": "auth",
        "nc": "00000001",
        "self": "x",
    }
    for text in ("Digest", 'Digest a="b', "Digest a", "Digest a=1, a=2", "Digest " + "a" * 3000 + "=1"):
        with pytest.raises(RemoteProtocolError):
            credentials_untrusted(text)


def test_literal_addresses_compare_by_value() -> None:
    assert is_literal("[FD00:0::1]", "fd00::1")
    assert not is_literal("fd00.example", "fd00::1")


def test_a_message_must_say_who_what_and_which() -> None:
    request = Request("BYE", "sip:a@b")
    request.headers = [
        ("Via", "SIP/2.0/UDP a;branch=z9hG4bK1"),
        ("From", "<sip:a@b>;tag=1"),
        ("To", "<sip:c@b>;tag=2"),
        ("Call-ID", "x"),
        ("CSeq", "7 BYE"),
    ]
    essentials = essentials_untrusted(request)
    assert (essentials.sequence, essentials.from_.tag, essentials.to.tag) == (7, "1", "2")
    for name, _ in list(request.headers):
        broken = request.copy()
        broken.remove(name)
        with pytest.raises(RemoteProtocolError) as caught:
            essentials_untrusted(broken)
        assert caught.value.reason == "missing-header"
    request.headers.append(("call-id", "y"))
    with pytest.raises(RemoteProtocolError, match="repeated-header"):
        essentials_untrusted(request)


@pytest.mark.fuzz
@given(st.text(alphabet='sipte:@;=,"<>\\[]%./ 0A-z\udcff', max_size=80), st.integers(0, len(READERS) - 1))
def test_readers_raise_nothing_but_the_promised_error(text: str, which: int) -> None:
    try:
        READERS[which](text)
    except RemoteProtocolError:
        return


# What made common expressions for this grammar take seconds, minutes or years.
NASTY = [
    "tel:" + "1" * 30_000 + "x",
    "tel:+" + "-" * 30_000,
    "sip:" + "a-" * 15_000 + "!",
    "sip:" + "a." * 15_000 + "-",
    "sip:[" + "a:" * 15_000,
    "SIP/2.0/UDP " + "a." * 15_000 + "-",
    'Digest a="' + '\\"' * 15_000,
    'Digest a="' + '\\"' * 900,
    "Digest " + 'a="\\",' * 300,
    "1" * 30_000 + " A!",
    '"' + '\\"' * 15_000,
]


@pytest.mark.parametrize("number", range(len(NASTY)))
def test_no_text_keeps_a_reader_busy(number: int) -> None:
    """Processor time, not the clock on the wall; a thousand times what is needed."""
    before = time.process_time()
    for reader in READERS:
        try:
            reader(NASTY[number])
        except RemoteProtocolError:
            continue
    assert time.process_time() - before < 5.0
