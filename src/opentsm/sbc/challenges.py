"""Answers to a trunk's digest challenge (RFC 3261 section 22.3, RFC 7616), from the account that we have
there."""

from __future__ import annotations

from typing import Final

from opentsm.errors import RemoteProtocolError

from .digest import digest_hash, ha1, response
from .headers import credentials_untrusted
from .message import Request, Response
from .settings import ALGORITHMS, Trunk

ANSWERED_BY: Final = {
    401: ("WWW-Authenticate", "Authorization"),
    407: ("Proxy-Authenticate", "Proxy-Authorization"),
}

_COUNT: Final = "00000001"
"""Each nonce is used once: the next request is challenged anew."""


def answer_untrusted(
    challenge: Response, request: Request, trunk: Trunk, cnonce: str
) -> tuple[str, str] | None:
    """Header name and value that answer a 401 or 407; None: no challenge in it that we know.

    Args:
        request: the request that was challenged. cnonce: a fresh word.
    """
    names = ANSWERED_BY.get(challenge.code)
    if names is None or not trunk.username:
        return None
    offers: dict[str, dict[str, str]] = {}
    for line in challenge.lines(names[0]):
        try:
            params = credentials_untrusted(line)
        except RemoteProtocolError:
            continue
        algorithm = params.get("algorithm", "MD5").upper()
        qops = [word.strip().lower() for word in params.get("qop", "auth").split(",")]
        usable = params.get("scheme") == "digest" and "auth" in qops and "nonce" in params
        # Quotes would end the text they are put into.
        if usable and algorithm in ALGORITHMS and '"' not in "".join(params.values()):
            offers.setdefault(algorithm, params)
    for algorithm in ALGORITHMS:
        if algorithm in offers:
            return names[1], _value(offers[algorithm], algorithm, request, trunk, cnonce)
    return None


def _value(params: dict[str, str], algorithm: str, request: Request, trunk: Trunk, cnonce: str) -> str:
    realm, nonce = params.get("realm", ""), params["nonce"]
    secret = ha1(algorithm, trunk.username, realm, trunk.password)
    parts = [
        f'username="{trunk.username}"',
        f'realm="{realm}"',
        f'nonce="{nonce}"',
        f'uri="{request.uri}"',
        f"algorithm={algorithm}",
    ]
    if "qop" in params:
        result = response(
            algorithm,
            secret,
            nonce=nonce,
            count=_COUNT,
            cnonce=cnonce,
            method=request.method,
            uri=request.uri,
        )
        parts += ["qop=auth", f"nc={_COUNT}", f'cnonce="{cnonce}"']
    else:
        # RFC 2069, which RFC 7616 no longer has, and old exchanges still do.
        a2 = digest_hash(algorithm, f"{request.method}:{request.uri}")
        result = digest_hash(algorithm, f"{secret}:{nonce}:{a2}")
    parts.append(f'response="{result}"')
    if "opaque" in params:
        parts.append(f'opaque="{params["opaque"]}"')
    return "Digest " + ", ".join(parts)
