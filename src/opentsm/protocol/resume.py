"""Resume and join proofs: pure functions of docs/protocol.md, "Keys".

A proof shows that its maker holds the session's resume secret, for one TSID and on one TLS connection
only: it is worth nothing on any other.

A server derives the secrets from one master key: generation n of a session's secret is a function of the key,
the TSID and n. So what it has to keep over a restart is the key and a small number per session, and a number
that is one behind (the process was killed before the last one was written) is no loss.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from opentsm.types import Tsid

_LABEL: Final = b"resume"
_SECRET_LABEL: Final = b"resume-secret"
_JOIN_LABEL: Final = b"join"
NO_BINDING: Final = bytes(32)
"""The binding of a plain TCP tunnel, which has no TLS session to be bound to."""


def resume_proof(secret: bytes, tsid: Tsid, binding: bytes) -> bytes:
    """HMAC-SHA256(secret, "resume" || TSID as 8 bytes || binding of the new connection).

    Args:
        secret: the 32-byte resume secret of the last Configuration Response.
        tsid: the TSID to be resumed.
        binding: the new connection's 32-byte resume binding (zeros on plain TCP).
    """
    return hmac.digest(secret, _LABEL + tsid.to_bytes(8, "big") + binding, hashlib.sha256)


def join_proof(secret: bytes, tsid: Tsid, binding: bytes) -> bytes:
    """HMAC-SHA256(secret, "join" || TSID as 8 bytes || binding of the new connection).

    Args:
        secret: the 32-byte secret that came with the reservation, over the session's own stream.
        tsid: the TSID that was reserved.
        binding: the new connection's 32-byte resume binding (zeros on plain TCP).
    """
    return hmac.digest(secret, _JOIN_LABEL + tsid.to_bytes(8, "big") + binding, hashlib.sha256)


def join_holds(proof: bytes, secret: bytes, tsid: Tsid, binding: bytes) -> bool:
    """Whether the join proof was made from this secret; takes the same time whatever is wrong with it."""
    return hmac.compare_digest(proof, join_proof(secret, tsid, binding))


def proof_holds(proof: bytes, secret: bytes, tsid: Tsid, binding: bytes) -> bool:
    """Whether the proof was made from this secret; takes the same time whatever is wrong with it."""
    return hmac.compare_digest(proof, resume_proof(secret, tsid, binding))


def resume_secret(master: bytes, tsid: Tsid, generation: int) -> bytes:
    """Generation ``generation`` of a session's secret: HMAC-SHA256(master, label || TSID || generation).

    Args:
        master: the server's 32-byte key.
        tsid: of the session, which is never used for another one.
        generation: grows with each resume.
    """
    text = _SECRET_LABEL + tsid.to_bytes(8, "big") + generation.to_bytes(8, "big")
    return hmac.digest(master, text, hashlib.sha256)
