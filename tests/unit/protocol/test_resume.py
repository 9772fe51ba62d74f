"""Resume proofs."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from opentsm.protocol.resume import NO_BINDING, proof_holds, resume_proof
from opentsm.types import Tsid

SECRET, BINDING, TSID = b"k" * 32, b"b" * 32, Tsid(0x0102030405060708)
PROOF = resume_proof(SECRET, TSID, BINDING)


def test_a_proof_is_what_the_document_says() -> None:
    text = b"resume" + bytes([1, 2, 3, 4, 5, 6, 7, 8]) + BINDING
    assert hmac.new(SECRET, text, hashlib.sha256).digest() == PROOF


@pytest.mark.parametrize(
    ("secret", "tsid", "binding"),
    [(b"x" * 32, TSID, BINDING), (SECRET, Tsid(1), BINDING), (SECRET, TSID, NO_BINDING)],
)
def test_a_proof_is_worth_nothing_anywhere_else(secret: bytes, tsid: Tsid, binding: bytes) -> None:
    assert proof_holds(PROOF, SECRET, TSID, BINDING)
    assert not proof_holds(PROOF, secret, tsid, binding)


@pytest.mark.parametrize("proof", [b"", PROOF[:-1], PROOF + b"\0", bytes(32)])
def test_a_damaged_proof_does_not_hold(proof: bytes) -> None:
    assert not proof_holds(proof, SECRET, TSID, BINDING)
