from __future__ import annotations

import pytest

from opentsm.sbc.digest import MAX_NONCES, NONCE_LIFETIME, Nonces, Verdict, challenge, ha1, judge, response

# RFC 2617 section 3.5 and RFC 7616 section 3.9.1; RFC 8760 uses the same computation.
VECTORS = [
    (
        "MD5",
        ("Mufasa", "testrealm@host.com", "Circle Of Life"),
        {"nonce": "dcd98b7102dd2f0e8b11d0f600bfb0c093", "count": "00000001", "cnonce": "0a4f113b"},
        "6629fae49393a05397450978507c4ef1",
    ),
    (
        "MD5",
        ("Mufasa", "http-auth@example.org", "Circle of Life"),
        {
            "nonce": "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v",
            "count": "00000001",
            "cnonce": "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ",
        },
        "8ca523f5e9506fed4657c9700eebdbec",
    ),
    (
        "SHA-256",
        ("Mufasa", "http-auth@example.org", "Circle of Life"),
        {
            "nonce": "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v",
            "count": "00000001",
            "cnonce": "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ",
        },
        "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1",
    ),
]


@pytest.mark.parametrize(("algorithm", "who", "given", "expected"), VECTORS)
def test_published_vectors(
    algorithm: str, who: tuple[str, str, str], given: dict[str, str], expected: str
) -> None:
    user, realm, password = who
    stored = ha1(algorithm, user, realm, password)
    assert response(algorithm, stored, method="GET", uri="/dir/index.html", **given) == expected


REALM, ADDRESS = "example.org", "10.64.0.2"


def answer(nonce: str, *, password: str = "pw", algorithm: str = "MD5", nc: int = 1) -> dict[str, str]:
    count = f"{nc:08x}"
    stored = ha1(algorithm, "alice", REALM, password)
    digest = response(
        algorithm, stored, nonce=nonce, count=count, cnonce="c", method="REGISTER", uri="sip:example.org"
    )
    return {
        "scheme": "digest",
        "username": "alice",
        "realm": REALM,
        "nonce": nonce,
        "uri": "sip:example.org",
        "qop": "auth",
        "nc": count,
        "cnonce": "c",
        "response": digest,
        "algorithm": algorithm,
    }


def verdict(nonces: Nonces, params: dict[str, str], now: float = 100.0, address: str = ADDRESS) -> Verdict:
    def stored(user: str, algorithm: str) -> str | None:
        return ha1(algorithm, "alice", REALM, "pw") if user == "alice" else None

    return judge(now, nonces, params, realm=REALM, method="REGISTER", address=address, stored=stored)


@pytest.mark.parametrize("algorithm", ["MD5", "SHA-256"])
def test_the_right_password_is_good_once_per_count(algorithm: str) -> None:
    nonces = Nonces(b"k")
    nonce = nonces.make(100.0, ADDRESS)
    first = answer(nonce, algorithm=algorithm)
    assert verdict(nonces, first) is Verdict.GOOD
    assert verdict(nonces, first) is Verdict.STALE
    assert verdict(nonces, answer(nonce, algorithm=algorithm, nc=2)) is Verdict.GOOD


def test_wrong_passwords_users_and_methods_are_bad() -> None:
    nonces = Nonces(b"k")
    nonce = nonces.make(100.0, ADDRESS)
    assert verdict(nonces, answer(nonce, password="guess")) is Verdict.BAD
    assert verdict(nonces, answer(nonce) | {"username": "nobody"}) is Verdict.BAD
    # A failed guess does not use up the count of the real phone.
    assert verdict(nonces, answer(nonce)) is Verdict.GOOD


def test_nonces_end_and_belong_to_one_address_and_one_server() -> None:
    nonces = Nonces(b"k")
    nonce = nonces.make(100.0, ADDRESS)
    good = answer(nonce)
    assert verdict(nonces, good, now=100.0 + NONCE_LIFETIME + 1) is Verdict.STALE
    assert verdict(nonces, good, address="10.64.0.3") is Verdict.STALE
    assert verdict(Nonces(b"other"), good) is Verdict.STALE
    for forged in ("", "zz.zz", nonce[:-1] + "x", "ffffffffff" + nonce, "\udcff.\udcff"):
        assert not nonces.is_fresh(100.0, ADDRESS, forged)


@pytest.mark.parametrize(
    "more",
    [
        {"scheme": "basic"},
        {"realm": "other"},
        {"qop": "auth-int"},
        {"qop": ""},
        {"algorithm": "SHA-1"},
        {"nc": "1"},
        {"nc": "+0000001"},
        {"cnonce": ""},
    ],
)
def test_what_is_no_answer_to_our_challenge(more: dict[str, str]) -> None:
    nonces = Nonces(b"k")
    assert verdict(nonces, answer(nonces.make(100.0, ADDRESS)) | more) is Verdict.MALFORMED


def test_the_memory_for_counts_is_bounded() -> None:
    nonces = Nonces(b"k")
    for number in range(MAX_NONCES + 100):
        assert nonces.use(str(number), 1)
    assert len(nonces._counts) == MAX_NONCES
    assert not nonces.use(str(MAX_NONCES + 99), 1)


def test_the_challenge_says_what_is_wanted() -> None:
    text = challenge("r", "n", "SHA-256", stale=True)
    assert text == 'Digest realm="r", nonce="n", algorithm=SHA-256, qop="auth", stale=true'
