from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opentsm.client.phone.digest import Challenge, choose_untrusted, credentials, parse_challenge_untrusted
from opentsm.errors import RemoteProtocolError

NONCE = "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v"
OPAQUE = "FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"
CNONCE = "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ"


def answer(challenge: Challenge, *, cnonce: str, password: str = "Circle of Life") -> str:
    header = credentials(
        challenge,
        username="Mufasa",
        password=password,
        method="GET",
        uri="/dir/index.html",
        cnonce=cnonce,
    )
    found = re.search(r'response="(\w+)"', header)
    assert found
    return found.group(1)


@pytest.mark.parametrize(
    ("algorithm", "response"),
    [
        ("MD5", "8ca523f5e9506fed4657c9700eebdbec"),
        ("SHA-256", "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
    ],
)
def test_examples_of_rfc_7616(algorithm: str, response: str) -> None:
    """Section 3.9.1."""
    value = f'Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm={algorithm}, '
    value += f'nonce="{NONCE}", opaque="{OPAQUE}"'
    challenge = parse_challenge_untrusted(value)
    assert challenge is not None
    assert answer(challenge, cnonce=CNONCE) == response


def test_the_old_way_without_qop() -> None:
    """The example of RFC 2069 section 2.4, as corrected by its erratum 749."""
    nonce = "dcd98b7102dd2f0e8b11d0f600bfb0c093"
    challenge = Challenge("testrealm@host.com", nonce, "MD5", None, auth=False, stale=False)
    assert answer(challenge, cnonce="", password="CircleOfLife") == "1949323746fe6a43ef61f9606e7febea"


def test_the_first_known_algorithm_is_taken() -> None:
    values = [
        'Basic realm="x"',
        'Digest realm="a", nonce="1", algorithm=SHA-512-256',
        'Digest realm="b", nonce="2", algorithm=SHA-256, qop="auth-int"',
        'Digest realm="c", nonce="3", algorithm=sha-256, qop="auth"',
        'Digest realm="d", nonce="4"',
    ]
    challenge = choose_untrusted(values)
    assert challenge == Challenge("c", "3", "SHA-256", None, auth=True, stale=False)
    assert choose_untrusted(values[:3]) is None


def test_quotes_in_names_are_escaped_both_ways() -> None:
    challenge = parse_challenge_untrusted(r'Digest realm="say \"hi\" \\", nonce="n", stale=TRUE')
    assert challenge is not None
    assert (challenge.realm, challenge.stale) == ('say "hi" \\', True)
    assert r'realm="say \"hi\" \\"' in credentials(
        challenge, username="u", password="p", method="REGISTER", uri="sip:x", cnonce="c"
    )


@pytest.mark.parametrize(
    "value", ["Digest", 'Digest realm="x"', 'Digest realm="x', "Digest realm=x nonce=y", "Digest ,"]
)
def test_what_cannot_be_read_is_a_remote_error(value: str) -> None:
    with pytest.raises(RemoteProtocolError, match="challenge-syntax"):
        parse_challenge_untrusted(value)


def test_a_header_made_to_stall_is_read_at_once() -> None:
    """A pattern over the whole list takes 2 ** n steps for n strings; here the test would never end."""
    with pytest.raises(RemoteProtocolError):
        parse_challenge_untrusted("Digest " + ", ".join(['a="x"'] * 31) + ' !"')
    with pytest.raises(RemoteProtocolError):
        parse_challenge_untrusted('Digest a="' + "\\" * 4000)


@given(st.text(max_size=100))
def test_any_text_is_a_challenge_nothing_or_a_remote_error(text: str) -> None:
    for value in (text, f"Digest {text}", f'Digest realm="a", nonce="b", {text}'):
        try:
            parse_challenge_untrusted(value)
        except RemoteProtocolError:
            continue
