"""Digest access authentication as a client (RFC 7616, RFC 8760; without qop as in RFC 2069 times)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from opentsm.errors import RemoteProtocolError

MAX_CHALLENGES: Final = 8
"""Challenges of one response that are looked at: one per algorithm there is, and some."""

MAX_PARAMETERS: Final = 32
"""Parameters of one challenge; there are ten."""

_HASHES: Final[dict[str, Callable[[bytes], str]]] = {
    "MD5": lambda data: hashlib.md5(data, usedforsecurity=False).hexdigest(),
    "SHA-256": lambda data: hashlib.sha256(data).hexdigest(),
}

# One parameter at a time, never backtracking over the one before: a single pattern for the whole list is
# exponential in the number of quoted strings.
_PARAMETER: Final = re.compile(
    r"""\s*([A-Za-z0-9.!%*_+`'~-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))\s*(?:,|$)"""
)


@dataclass(frozen=True, slots=True)
class Challenge:
    """One WWW-Authenticate or Proxy-Authenticate header that we can answer."""

    realm: str
    nonce: str
    algorithm: str
    opaque: str | None
    auth: bool
    stale: bool


def parse_challenge_untrusted(value: str) -> Challenge | None:
    """A challenge; None: a scheme or an algorithm that we do not know.

    Raises:
        RemoteProtocolError: ``challenge-syntax``.
    """
    scheme, _, rest = value.strip().partition(" ")
    if scheme.lower() != "digest":
        return None
    found: dict[str, str] = {}
    at = 0
    while at < len(rest):
        match = _PARAMETER.match(rest, at)
        if match is None or len(found) >= MAX_PARAMETERS:
            raise RemoteProtocolError("challenge-syntax", value[:100])
        quoted, word = match.group(2), match.group(3)
        found[match.group(1).lower()] = word if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        at = match.end()
    return _challenge(found)


def _challenge(found: dict[str, str]) -> Challenge | None:
    if "realm" not in found or "nonce" not in found:
        raise RemoteProtocolError("challenge-syntax", "realm or nonce is missing")
    algorithm = found.get("algorithm", "MD5").upper()
    options = [word.strip().lower() for word in found.get("qop", "").split(",") if word.strip()]
    if algorithm not in _HASHES or (options and "auth" not in options):
        return None
    stale = found.get("stale", "").lower() == "true"
    return Challenge(found["realm"], found["nonce"], algorithm, found.get("opaque"), bool(options), stale)


def choose_untrusted(values: Iterable[str]) -> Challenge | None:
    """The first challenge we can answer: servers list the one they like best first (RFC 8760 section 2.4)."""
    for value in list(values)[:MAX_CHALLENGES]:
        challenge = parse_challenge_untrusted(value)
        if challenge is not None:
            return challenge
    return None


def credentials(
    challenge: Challenge, *, username: str, password: str, method: str, uri: str, cnonce: str, count: int = 1
) -> str:
    """The Authorization header that answers a challenge (RFC 7616 section 3.4).

    Args:
        cnonce: fresh randomness of ours, hexadecimal. count: how often this nonce was used, from 1.
    """
    digest = _HASHES[challenge.algorithm]
    a1 = digest(f"{username}:{challenge.realm}:{password}".encode())
    a2 = digest(f"{method}:{uri}".encode())
    middle = f"{challenge.nonce}:{count:08x}:{cnonce}:auth" if challenge.auth else challenge.nonce
    answer = digest(f"{a1}:{middle}:{a2}".encode())
    parts = [
        f"username={_quote(username)}",
        f"realm={_quote(challenge.realm)}",
        f"nonce={_quote(challenge.nonce)}",
        f"uri={_quote(uri)}",
        f'response="{answer}"',
        f"algorithm={challenge.algorithm}",
    ]
    if challenge.opaque is not None:
        parts.append(f"opaque={_quote(challenge.opaque)}")
    if challenge.auth:
        parts += ["qop=auth", f"nc={count:08x}", f'cnonce="{cnonce}"']
    return "Digest " + ", ".join(parts)


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
