"""HTTP digest authentication as SIP uses it: RFC 3261 section 22, RFC 7616, RFC 8760.

Only ``qop=auth`` is accepted. Nonces cost no memory until they were used with the right password: a nonce
is its time of birth, a number, and an HMAC over them and the address it was given to.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final

NONCE_LIFETIME: Final = 300.0
"""Seconds. Long enough for a registration to be refreshed once or twice without another round trip."""

MAX_NONCES: Final = 20_000
"""Nonces in use whose counters are remembered: one per phone; the longest unused is forgotten first."""

_HASHES: Final[Mapping[str, Callable[[bytes], Any]]] = {"MD5": hashlib.md5, "SHA-256": hashlib.sha256}


def digest_hash(algorithm: str, text: str) -> str:
    """H(text) in lower-case hexadecimal digits."""
    hashed: str = _HASHES[algorithm](text.encode("utf-8", "surrogateescape")).hexdigest()
    return hashed


def ha1(algorithm: str, user: str, realm: str, password: str) -> str:
    """H(A1) of RFC 7616 section 3.4.2, the only form of a password that needs to be stored."""
    return digest_hash(algorithm, f"{user}:{realm}:{password}")


def response(
    algorithm: str,
    stored: str,
    *,
    nonce: str,
    count: str,
    cnonce: str,
    method: str,
    uri: str,
    qop: str = "auth",
) -> str:
    """The ``response`` parameter (RFC 7616 section 3.4.1) for a stored H(A1)."""
    a2 = digest_hash(algorithm, f"{method}:{uri}")
    return digest_hash(algorithm, f"{stored}:{nonce}:{count}:{cnonce}:{qop}:{a2}")


class Verdict(enum.Enum):
    GOOD = "good"
    STALE = "the nonce is too old or its counter was used; the password is not judged"
    BAD = "the response is wrong"
    MALFORMED = "the header is not a digest answer we asked for"


class Nonces:
    """Makes and judges nonces.

    Args:
        key: secret of this process; after a restart every old nonce is stale, which phones handle.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._counts: OrderedDict[str, int] = OrderedDict()
        self._made = 0

    def make(self, now: float, address: str) -> str:
        # Phones behind one address that ask in the same millisecond must not share a nonce and its counter.
        self._made += 1
        stamp = f"{int(now * 1000):x}-{self._made:x}"
        return f"{stamp}.{self._mac(stamp, address)}"

    def is_fresh(self, now: float, address: str, nonce: str) -> bool:
        """Whether we made it, for this address, not long ago."""
        stamp, _, mac = nonce.partition(".")
        if not hmac.compare_digest(
            mac.encode("utf-8", "surrogateescape"), self._mac(stamp, address).encode()
        ):
            return False
        return 0.0 <= now - int(stamp.partition("-")[0], 16) / 1000 + 0.001 <= NONCE_LIFETIME

    def use(self, nonce: str, count: int) -> bool:
        """Note a counter. Returns False if it was used before (RFC 7616 section 3.4: a replay)."""
        if count <= self._counts.get(nonce, 0):
            return False
        self._counts[nonce] = count
        self._counts.move_to_end(nonce)
        while len(self._counts) > MAX_NONCES:
            self._counts.popitem(last=False)
        return True

    def _mac(self, stamp: str, address: str) -> str:
        plain = f"nonce {stamp} {address}".encode("utf-8", "surrogateescape")
        return hmac.digest(self._key, plain, hashlib.sha256)[:16].hex()


def challenge(realm: str, nonce: str, algorithm: str, *, stale: bool) -> str:
    """Value of ``WWW-Authenticate``."""
    text = f'Digest realm="{realm}", nonce="{nonce}", algorithm={algorithm}, qop="auth"'
    return f"{text}, stale=true" if stale else text


def judge(
    now: float,
    nonces: Nonces,
    params: Mapping[str, str],
    *,
    realm: str,
    method: str,
    address: str,
    stored: Callable[[str, str], str | None],
) -> Verdict:
    """Judge the parameters of an ``Authorization`` header.

    Args:
        params: as ``headers.credentials_untrusted`` gives them.
        stored: the H(A1) of (user, algorithm), or None.

    A wrong password on a stale nonce is told ``STALE``: whoever knows the password comes back at once,
    whoever guesses learns nothing.
    """
    algorithm = params.get("algorithm", "MD5").upper()
    given = {key: params.get(key, "") for key in ("username", "nonce", "nc", "cnonce", "uri", "response")}
    count = given["nc"]
    if (
        params.get("scheme") != "digest"
        or params.get("realm") != realm
        or algorithm not in _HASHES
        or params.get("qop", "").lower() != "auth"
        or not all(given.values())
        or len(count) != 8
        or not all(c in "0123456789abcdefABCDEF" for c in count)
    ):
        return Verdict.MALFORMED
    if not nonces.is_fresh(now, address, given["nonce"]):
        return Verdict.STALE
    secret = stored(given["username"], algorithm)
    # An unknown user takes the same time and gets the same answer as a wrong password.
    expected = response(
        algorithm,
        secret or digest_hash(algorithm, "no such user"),
        nonce=given["nonce"],
        count=count,
        cnonce=given["cnonce"],
        method=method,
        uri=given["uri"],
    )
    matches = hmac.compare_digest(
        expected.encode(), given["response"].lower().encode("utf-8", "surrogateescape")
    )
    if secret is None or not matches:
        return Verdict.BAD
    return Verdict.GOOD if nonces.use(given["nonce"], int(count, 16)) else Verdict.STALE
